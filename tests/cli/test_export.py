"""`opencrate export`, and `predict` by what it wrote."""

import importlib.util
import json
import shutil

import pytest
import torch
from transformers import (
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from opencrate import CrateImageProcessor, open_saved
from opencrate.export import exported, run as export_run, targets
from opencrate.export.runners import runner_of

from ..analysis.language_models import causal, saved
from .conftest import save_tokenizer

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


@pytest.fixture(scope="module")
def vitmae(tmp_path_factory):
    """transformers' masked autoencoder, whose graph is of one image size."""
    folder = tmp_path_factory.mktemp("vitmae") / "vitmae"
    tiny = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tiny |= {f"decoder_{name}": value for name, value in tiny.items()}
    ViTMAEForPreTraining(ViTMAEConfig(image_size=16, patch_size=4, **tiny)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CrateImageProcessor(size=size, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("plain", ("--to", "onxx"), "unknown --to 'onxx'; did you mean 'onnx'?"),
        ("plain", ("--to", "torch", "--opset", "99"), "unknown option '--opset' of `opencrate export`"),
        ("plain", ("--to", "torch", "--size", "15"), "--size 15x15: not a multiple of the model's patch of 4x4 pixels"),
        ("plain", ("--to", "torch", "--size", "0"), "'0' is not a whole number of at least 1"),
        ("plain", ("--to", "torch", "--size", "100000"), "at most 16,384"),
        ("plain", ("--to", "torch", "--size", "16x16x16"), "neither one number nor height x width"),
        ("plain", ("--to", "torch", "--tolerance", "nan"), "'nan' is not a number of at least 0"),
        ("plain", ("--to", "torch", "--num-images", "0"), "'0' is not a whole number"),
        ("vitmae", ("--to", "torch"), "--size PIXELS is missing: the graph cannot follow the image size ("),
        ("language", ("--to", "torch", "--size", "16"), "--size 16: of images, and"),
        ("sentences", ("--to", "torch"), "holds"),
    ],
)
def test_mistakes_are_one_line(opencrate, plain_crate, vitmae, images, tmp_path, model, words, message):
    sentences = tmp_path / "sentences"
    if model == "sentences":
        fields = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
        sentences.mkdir()
        (sentences / "config.json").write_text(json.dumps(fields))
    places = {"plain": plain_crate, "language": tmp_path / "language", "vitmae": vitmae, "sentences": sentences}
    check = () if model == "language" else ("--check", images)
    if model == "language":
        saved(causal("crate"), tmp_path / "language")
    result = opencrate("export", places[model], *words, *check, *QUICK, "--output", tmp_path / "out")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1), result.err
    assert message in result.err and not (tmp_path / "out").exists()


def test_a_tolerance_that_is_not_met_leaves_nothing(opencrate, plain_crate, images, tmp_path, monkeypatch):
    monkeypatch.setattr(export_run, "runner_of", lambda *words: lambda pixels: (torch.zeros(len(pixels), 3),))
    words = ("--to", "torch", "--check", images, *QUICK, "--output", tmp_path / "out")
    result = opencrate("export", plain_crate, *words)
    assert result.code == 2 and "--tolerance 0.001: the outputs differ" in result.err
    assert list(tmp_path.iterdir()) == []


def test_roberta_reads_two_tokens_less_than_it_has_positions(opencrate, book, tmp_path):
    """It counts from the position after the padding's; longer texts than that cannot be traced, nor computed."""
    config = RobertaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    save_tokenizer(tmp_path / "roberta", mask_token="[PAD]", sep_token="[SEP]")
    assert open_saved(tmp_path / "roberta").context == 32
    words = ("--to", "torch", "--check", book, *QUICK, "--output", tmp_path / "out")
    result = opencrate("export", tmp_path / "roberta", *words)
    assert result.code == 0 and "at 16 tokens" in result.out, result.err


@pytest.mark.skipif(not RUNTIME, reason="needs onnx, onnxscript, onnxruntime, which the test environment leaves out")
def test_nothing_to_make_8_bits(opencrate, images, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetModel(config).save_pretrained(tmp_path / "convolutions")
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "convolutions")
    words = ("--to", "int8", "--size", 32, "--check", images, *QUICK, "--output", tmp_path / "out")
    result = opencrate("export", tmp_path / "convolutions", *words)
    assert result.code == 2 and "the model has no linear maps" in result.err
    assert not (tmp_path / "out").exists()
