"""Packing: what goes in, what stays out, and what is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from opencrate import evaluate

from .conftest import new_package

FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md", "training.yaml"}


@pytest.fixture
def place(tmp_path):
    return new_package(tmp_path)


def test_a_packed_model_is_complete_and_names_no_place(packed, text_run):
    digits, letters = (packed / "opencrate_weights" / name for name in ("digits", "letters"))
    assert {path.name for path in digits.iterdir()} == FILES
    assert all(value.dtype == torch.bfloat16 for value in load_file(digits / "model.safetensors").values())
    config = json.loads((digits / "config.json").read_text())
    assert config["dtype"] == "float32" and "auto_map" not in config and config["id2label"]["3"] == "3"
    home = str(text_run.parent)
    for folder in (digits, letters):
        for path in folder.iterdir():
            assert home.encode() not in path.read_bytes(), path.name
    assert "path: PATH" in (letters / "training.yaml").read_text()


def test_the_manifest_states_what_lies_there(packed, digits_runs):
    entry = json.loads((packed / "opencrate_weights" / "manifest.json").read_text())["models"]["digits"]
    other = json.loads((digits_runs[1] / "metrics.json").read_text())["accuracy"]
    (score,) = entry["scores"]
    assert score["value"] == evaluate(packed / "opencrate_weights" / "digits", data="digits").top1
    assert score["mean"] == pytest.approx((score["value"] + other) / 2)
    assert entry["license"] == "mit" and entry["recipe"] == "digits" and 0 < entry["bf16_change"] < 0.05
    assert set(entry["files"]) == FILES


def test_the_card_says_so_too(packed):
    card = ModelCard.load(packed / "opencrate_weights" / "digits" / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "opencrate/digits"
    assert "rounded to bf16" in card.content and 'model="opencrate/digits"' in card.content
    assert "spread over seeds 0, 1" in card.content and "training.yaml" in card.content
    assert "model.config.num_hidden_layers=2" in card.content  # how to train it again


def test_the_result_is_that_of_the_packed_weights(pack, digits_runs, place, tmp_path):
    """Measured anew: a run that claims more than its weights reach does not take the claim along."""
    run = tmp_path / "run"
    shutil.copytree(digits_runs[0], run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "accuracy": 1.0}))
    pack.pack([run], "digits", place)
    (score,) = json.loads((place / "manifest.json").read_text())["models"]["digits"]["scores"]
    card = ModelCard.load(place / "digits" / "README.md")
    assert score["value"] == pytest.approx(metrics["accuracy"], abs=0.02) and score["value"] < 1
    assert card.data.eval_results[0].metric_value == pytest.approx(score["value"], abs=1e-6)
    assert "that of the run itself is: top-1 accuracy 100.00 %" in card.content


def test_other_data_than_the_run_s_is_refused(pack, text_run, place, tmp_path):
    """The result would be another; the same data may lie elsewhere."""
    run, book = tmp_path / "run", tmp_path / "elsewhere.txt"
    shutil.copytree(text_run, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace(str(text_run.parent), "/nowhere"))
    with pytest.raises(ValueError, match=r"/nowhere/book\.txt"):
        pack.pack([run], "letters", place)
    book.write_text((text_run.parent / "book.txt").read_text()[:-100])
    with pytest.raises(ValueError, match=r"the data at text\.path is not what it was trained on; give --data"):
        pack.pack([run], "letters", place, data=book)
    shutil.copyfile(text_run.parent / "book.txt", book)
    pack.pack([run], "letters", place, data=book)
    assert "path: PATH" in (place / "letters" / "training.yaml").read_text()


def test_a_whitened_start_goes_with_the_model(packed, pack, whitened_run, place, tmp_path):
    name, run = "start.safetensors", tmp_path / "run"
    assert (packed / "opencrate_weights" / "whitened" / name).read_bytes() == (whitened_run / name).read_bytes()
    shutil.copytree(whitened_run, run)
    (run / name).unlink()
    with pytest.raises(ValueError, match=r"holds no start\.safetensors"):
        pack.pack([run], "whitened", place)


def test_outputs_that_change_too_much_are_refused(pack, digits_runs, place):
    with pytest.raises(ValueError, match="more than the tolerance"):
        pack.pack(digits_runs[:1], "digits", place, tolerance=1e-6)
    assert json.loads((place / "manifest.json").read_text())["models"] == {}
    assert not [path for path in place.iterdir() if path.is_dir()]


@pytest.mark.parametrize("limit", ["MODEL_LIMIT", "PACKAGE_LIMIT"])
def test_too_many_bytes_are_refused(pack, digits_runs, place, limit, monkeypatch):
    monkeypatch.setattr(pack, limit, 1000)
    with pytest.raises(ValueError, match=r"bytes, but"):
        pack.pack(digits_runs[:1], "digits", place)
    assert not (place / "digits").exists()


def test_names_are_kept_unless_overwritten(pack, digits_runs, place):
    pack.pack(digits_runs[:1], "digits", place)
    with pytest.raises(ValueError, match="--overwrite"):
        pack.pack(digits_runs[1:], "digits", place)
    first = (place / "digits" / "model.safetensors").read_bytes()
    pack.pack(digits_runs[1:], "digits", place, overwrite=True)
    assert (place / "digits" / "model.safetensors").read_bytes() != first
    pack.remove("digits", place)
    assert not (place / "digits").exists() and json.loads((place / "manifest.json").read_text())["models"] == {}


@pytest.mark.parametrize("name", ["", "a/b", "..", "_private", "__init__.py", "manifest.json", "ü"])
def test_bad_names_are_refused(pack, digits_runs, place, name):
    with pytest.raises(ValueError, match="--name"):
        pack.pack(digits_runs[:1], name, place)


def test_runs_that_are_no_seeds_of_each_other_are_refused(pack, digits_runs, text_run, place):
    with pytest.raises(ValueError, match=r"no other seed"):
        pack.pack([digits_runs[0], digits_runs[0]], "digits", place)
    with pytest.raises(ValueError, match=r"no other seed"):
        pack.pack([digits_runs[0], text_run], "digits", place)


def test_the_command_line(pack, digits_runs, place, tmp_path, capsys):
    assert pack.main([str(digits_runs[0]), "--name", "digits", "--package", str(place)]) == 0
    assert "packed opencrate/digits" in capsys.readouterr().out
    assert pack.main([str(tmp_path / "none"), "--name", "other", "--package", str(place)]) == 2
    assert "pack: error:" in capsys.readouterr().err
    assert pack.main(["--remove", "digits", "--package", str(place)]) == 0


def test_reading_needs_the_standard_library_only(packed):
    code = "import opencrate_weights as w, sys; print(w.folder('digits').name, [m for m in ('torch', 'numpy') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=packed, capture_output=True, text=True, env={"PYTHONPATH": str(packed)}
    )
    assert found.stdout.split() == ["digits", "[]"], found.stderr
