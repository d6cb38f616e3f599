"""`opencrate/name` is a folder of the installed package, wherever a model is named, and no network is used."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

import opencrate
from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor, open_saved
from opencrate._files import locate
from opencrate.cli.main import main
from opencrate.store.runs import initial_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt is an error that no library expects."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)).save(path)
    return path


def test_classes_of_ours(package, digits_runs):
    model = CrateForImageClassification.from_pretrained("opencrate/digits")
    expected = CrateForImageClassification.from_pretrained(digits_runs[0])
    assert model.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name].bfloat16().float()), name
    assert CrateConfig.from_pretrained("opencrate/digits").id2label == expected.config.id2label
    assert CrateImageProcessor.from_pretrained("opencrate/digits").crop_size["height"] == 8


def test_auto_classes(package):
    assert AutoConfig.from_pretrained("opencrate/letters").model_type == "crate_text"
    assert type(AutoModel.from_pretrained("opencrate/digits")) is opencrate.CrateModel
    assert type(AutoModelForCausalLM.from_pretrained("opencrate/letters")) is opencrate.CrateForCausalLM
    assert AutoTokenizer.from_pretrained("opencrate/letters")("to be")["input_ids"]
    processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path="opencrate/digits")
    assert isinstance(processor, CrateImageProcessor)
    assert transformers.PreTrainedTokenizerFast.from_pretrained("opencrate/letters").is_fast


def test_pipelines_with_and_without_a_task(package, picture):
    named = pipeline("image-classification", model="opencrate/digits")(str(picture))
    found = pipeline(model="opencrate/digits")(str(picture))
    assert found == named and found[0]["label"] in {str(digit) for digit in range(10)}
    text = pipeline(model="opencrate/letters")("to ", max_new_tokens=2, do_sample=False)
    assert text[0]["generated_text"].startswith("to ")


def test_python_functions(package):
    saved = open_saved("opencrate/digits", ("classifier",))
    assert saved.path == package / "digits" and not saved.is_run and saved.name == "digits"
    assert open_saved("opencrate/letters", ("causal",)).tokenizer("to")["input_ids"]


COMMANDS = {
    "predict": ("predict", "opencrate/digits", "digit.png"),
    "evaluate": ("evaluate", "opencrate/digits", "--data", "digits"),
    "analyze": ("analyze", "opencrate/digits", "--data", "digits", "--num-images", "4", "--output", "out"),
    "audit": ("audit", "opencrate/digits", "--data", "digits", "--num-images", "100", "--output", "out"),
    "doctor": ("doctor", "opencrate/digits", "--data", "digits"),
    "generate": ("generate", "opencrate/letters", "to be", "--max-new-tokens", "2"),
    "probe": ("probe", "opencrate/whitened", "--data", "digits", "--untrained"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_commands(package, picture, words, capsys):
    code = main(list(words))
    findings = words[0] == "doctor" and code == 1
    assert code == 0 or findings, capsys.readouterr().err


def test_the_untrained_model_is_the_one_that_the_run_started_with(package, digits_runs, whitened_run):
    for name, run in (("digits", digits_runs[0]), ("whitened", whitened_run)):
        found, expected = (
            one.state_dict() for one in (open_saved(f"opencrate/{name}").untrained(), initial_model(run))
        )
        assert all(torch.equal(value, expected[key]) for key, value in found.items()), name
    start = "crate.embeddings.patch_embeddings.projection.weight"
    assert not torch.equal(open_saved("opencrate/whitened").model.state_dict()[start], found[start])


def test_a_whitened_start_that_is_not_there_is_no_start(package, whitened_run, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(package / "whitened", folder)
    (folder / "start.safetensors").unlink()
    with pytest.raises(ValueError, match=r"start\.safetensors: missing; it holds the whitened patch embedding"):
        open_saved(folder).untrained()


def test_fine_tuning_keeps_the_name(package):
    words = ["model.config={}", "model.size=null", "training.max_steps=1"]
    assert main(["finetune", "opencrate/digits", "digits", *words, "--no-report", "--output", "tuned"]) == 0
    metrics = json.loads(Path("tuned/metrics.json").read_text())
    assert metrics["initialisation"]["source"] == "opencrate/digits" and metrics["initialisation"]["new"] == []
    assert "init_from: opencrate/digits" in Path("tuned/recipe.yaml").read_text()


def test_a_report_needs_a_place(package, capsys):
    assert main(["analyze", "opencrate/digits", "--data", "digits"]) == 2
    assert "--output is missing: an installed model" in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_close_ones(package, capsys):
    assert main(["predict", "opencrate/digit", "digit.png", "--skip-bad"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'opencrate/digits'?" in error and "hf://opencrate/digit" in error
    for cls in (AutoConfig, AutoTokenizer, CrateForImageClassification):
        with pytest.raises(OSError, match="did you mean 'opencrate/digits'"):
            cls.from_pretrained("opencrate/digit", local_files_only=True)


def test_without_the_package_it_is_said_how_to_install_it(no_package, capsys):
    with pytest.raises(ValueError, match=r"not installed; run `pip install \./weights`"):
        locate("opencrate/digits")
    with pytest.raises(OSError, match="not installed"):
        AutoModel.from_pretrained("opencrate/digits", local_files_only=True)
    assert main(["models", "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [] and "pip install ./weights" in captured.err


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_everywhere(package, change, capsys):
    path = package / "digits" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if change == "flip" else content[:100])
    if change == "remove":
        path.unlink()
    words = "no such file" if change == "remove" else "damaged"
    for read in (CrateForImageClassification.from_pretrained, AutoConfig.from_pretrained, open_saved, locate):
        with pytest.raises(ValueError, match=rf"model\.safetensors: {words}.*install opencrate-weights again"):
            read("opencrate/digits")
    assert main(["models"]) == 0
    assert words.split()[0] in capsys.readouterr().out
    assert open_saved("opencrate/letters").kind == "causal"  # the others are as they were


ASKS_THE_HUB = [{"revision": "main"}, {"subfolder": "inner"}, {"force_download": True}]


@pytest.mark.parametrize("options", ASKS_THE_HUB, ids=lambda options: next(iter(options)))
def test_what_only_the_hub_has_goes_to_the_hub(package, options, monkeypatch):
    """A revision, a subfolder or a forced download is of the Hub; so is a name after `hf://`."""
    asked = []

    def cached_file(name, file, **given):
        asked.append(str(name))
        raise OSError("asked the Hub")

    monkeypatch.setattr("transformers.configuration_utils.cached_file", cached_file)
    with pytest.raises(OSError, match="asked the Hub"):
        AutoConfig.from_pretrained("opencrate/digits", **options)
    with pytest.raises(ValueError, match="asked the Hub"):
        opencrate._pretrained.read_config("hf://opencrate/digits")
    assert set(asked) == {"opencrate/digits"}


def test_a_name_that_is_not_held_falls_through(package, monkeypatch):
    """The Hub is asked as if nothing were installed, and its own error is the error."""
    monkeypatch.setattr("transformers.configuration_utils.cached_file", lambda name, *_, **__: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception, match="opencrate/other"):
        AutoConfig.from_pretrained("opencrate/other")


def test_a_folder_of_that_path_comes_first(package, digits_runs, tmp_path):
    (tmp_path / "opencrate").mkdir()
    (tmp_path / "opencrate" / "digits").symlink_to(digits_runs[1])
    assert open_saved("opencrate/digits").is_run
    assert open_saved("opencrate/digits").recipe.training.seed == 1


@pytest.mark.parametrize("name", ["opencrate/..", "opencrate/", "opencrate/a/b", "opencrate", "Opencrate/digits"])
def test_other_names_are_paths(package, name):
    with pytest.raises(ValueError, match=r"no such folder|holds no config|not a folder"):
        locate(name)


def test_registering_twice_changes_nothing():
    before = AutoConfig.from_pretrained.__func__
    opencrate.register_auto_classes()
    assert AutoConfig.from_pretrained.__func__ is before


def test_the_table(package, capsys):
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "opencrate/digits" in table and "image-classification" in table and "(2 seeds)" in table and "yes" in table
    assert main(["models", "--format", "json"]) == 0
    digits, letters, _ = json.loads(capsys.readouterr().out)
    assert digits["name"] == "opencrate/digits" and digits["damage"] == "" and digits["parameters"] > 10_000
    assert digits["scores"][0]["seeds"] == [0, 1] and letters["dataset"] == "a line of Hamlet"
    assert digits["bytes"] == sum(path.stat().st_size for path in (package / "digits").iterdir())
