"""`opencrate export`, and `predict` by what it wrote."""

import importlib.util
import json
import shutil

import pytest

from opencrate.export import exported, targets
from opencrate.export.runners import runner_of

QUICK = ("--repeats", 2)
RUNTIME = all(importlib.util.find_spec(one) for one in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def program(digits_run, tmp_path_factory):
    """The digits run by torch.export."""
    from opencrate.cli.main import main

    folder = tmp_path_factory.mktemp("exported") / "program"
    assert main(["export", str(digits_run), "--to", "torch", "--output", str(folder), "--repeats", "2"]) == 0
    return folder


@pytest.fixture
def as_onnx(program, tmp_path, monkeypatch):
    """The same folder as if it held ONNX, run by torch: what `predict` does around a runtime, without one."""
    folder = tmp_path / "as-onnx"
    shutil.copytree(program, folder)
    facts = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**facts, "to": "onnx"}))
    (folder / "model.pt2").rename(folder / "model.onnx")
    monkeypatch.setattr(targets, "_require", lambda *words: None)
    monkeypatch.setattr(exported, "runner_of", lambda path, backend: runner_of(path.rename(folder / "a.pt2"), "torch"))
    return folder


def close(found, expected):
    found, expected = json.loads(found.out), json.loads(expected.out)
    assert [one["file"] for one in found] == [one["file"] for one in expected]
    for one, other in zip(found, expected):
        assert [guess["label"] for guess in one["predictions"]] == [guess["label"] for guess in other["predictions"]]
        for guess, same in zip(one["predictions"], other["predictions"]):
            assert guess["probability"] == pytest.approx(same["probability"], abs=1e-4)


def test_export_checks_on_what_the_run_held_out(opencrate, digits_run, program):
    found = json.loads((program / "export.json").read_text())
    metrics = json.loads((digits_run / "metrics.json").read_text())
    check = found["check"]
    assert check["accuracy"] == check["eager_accuracy"] == metrics["accuracy"] and check["agreement"] == 1
    assert check["inputs"] == "360 images that the run held out" and check["other_size"]["relative"] < 1e-3
    assert {path.name for path in program.iterdir()} == {
        ".opencrate", "model.pt2", "config.json", "preprocessor_config.json", "export.json"
    }  # fmt: skip
    again = opencrate("export", digits_run, "--to", "torch", "--output", program)
    assert again.code == 2 and "--overwrite" in again.err


def test_export_prints_a_table_or_json(opencrate, plain_crate, loose_images, tmp_path):
    words = ("export", plain_crate, "--to", "torch", "--size", 16, "--check", loose_images, *QUICK)
    result = opencrate(*words, "--output", tmp_path / "one")
    assert result.code == 0 and result.err == "", result.err
    assert "any batch of images of 16x16 pixels" in result.out and f"wrote {tmp_path / 'one'}" in result.out
    assert f"7 images of {loose_images}" in result.out
    found = json.loads(opencrate(*words, "--output", tmp_path / "two", "--format", "json").out)
    assert (found["to"], found["size"], found["check"]["count"]) == ("torch", [16, 16], 7)
    assert found["check"]["accuracy"] is None and [one["batch"] for one in found["check"]["speed"]] == [1, 7]


def test_predict_by_an_exported_model(opencrate, digits_run, as_onnx, loose_images):
    words = (loose_images, "--top-k", 3, "--batch-size", 4, "--format", "json")
    eager, found = opencrate("predict", digits_run, *words), opencrate("predict", as_onnx, *words, "--backend", "onnx")
    assert found.code == 0 and found.err == "", found.err
    close(found, eager)


@pytest.mark.skipif(not RUNTIME, reason="needs onnx, onnxscript, onnxruntime, which the test environment leaves out")
@pytest.mark.parametrize("to", ["onnx", "int8"])
def test_predict_by_onnx_runtime(opencrate, folder_run, images, loose_images, tmp_path, to):
    words = ("--to", to, "--check", images, "--output", tmp_path / "out", "--format", "json", *QUICK)
    result = opencrate("export", folder_run, *words)
    assert result.code == 0 and result.err == "", result.err
    check = json.loads(result.out)["check"]
    # of the run's own images those that it held out
    assert check["count"] == 6 and check["agreement"] >= 0.9 and check["accuracy"] is not None
    files = (loose_images, "--top-k", 3, "--format", "json")
    eager, found = (
        opencrate("predict", folder_run, *files),
        opencrate("predict", tmp_path / "out", *files, "--backend", "onnx"),
    )
    assert found.code == 0 and found.err == "", found.err
    if to == "onnx":
        close(found, eager)


def test_bad_words(opencrate, digits_run, program, images, tmp_path, monkeypatch):
    out = ("--output", tmp_path / "out")
    assert "--to" in opencrate("export", digits_run, *out).err
    assert "7x8: not a multiple" in opencrate("export", digits_run, "--to", "torch", "--size", "7x8", *out).err
    assert "no such" in opencrate("export", tmp_path / "nowhere", "--to", "torch", *out).err
    inside = opencrate("export", digits_run, "--to", "torch", "--output", digits_run / "out")
    assert inside.code == 2 and "lies inside an input" in inside.err
    assert "--backend onnx or openvino" in opencrate("predict", program, images).err
    monkeypatch.setattr(targets, "_require", lambda *words: None)
    assert "holds no export.json" in opencrate("predict", digits_run, images, "--backend", "onnx").err
    assert "holds one to torch" in opencrate("predict", program, images, "--backend", "onnx").err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("export", "m", "--to", "onnx", "--output", "out"), ("predict", "m", "x.png", "--backend", "onnx")]
)
def test_a_missing_package_is_one_line(opencrate, plain_crate, images, monkeypatch, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    places = {"m": plain_crate, "x.png": images / "top" / "0.png"}
    result = opencrate(*(places.get(word, word) for word in words))
    assert result.code == 2 and "opencrate[onnx]" in result.err and len(result.err.splitlines()) == 1
