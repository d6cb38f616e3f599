"""Models of every kind, written and read back: the graph gives what the model gives, at other sizes too."""

import importlib.util
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

import opencrate as oc
from opencrate.export import export_model, open_exported
from opencrate.export.targets import TARGETS

from ..contract.wrapped import IMAGES, SIZES, TEXT

INSTALLED = {name: all(importlib.util.find_spec(one) for one in target.packages) for name, target in TARGETS.items()}
HERE = [
    pytest.param(name, marks=pytest.mark.skipif(not INSTALLED[name], reason=f"needs {', '.join(target.packages)}"))
    for name, target in TARGETS.items()
]
QUICK = {"num_inputs": 4, "batch_size": 3, "repeats": 2}
CONSTRAINED = {"subspace_constraint": "joint", "dictionary_constraint": "orthonormal"}


def image_model(folder, cls=oc.CrateForImageClassification, **changes):
    torch.manual_seed(0)
    kind = oc.CrateMAEConfig if cls is oc.CrateMAEForPreTraining else oc.CrateConfig
    labels = {} if cls is not oc.CrateForImageClassification else {"num_labels": 4}
    model = cls(kind(**{**SIZES, **IMAGES, "num_hidden_layers": 1, **labels, **changes})).eval()
    model.save_pretrained(folder)
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return model


def text_model(folder):
    torch.manual_seed(0)
    oc.CrateForCausalLM(oc.CrateTextConfig(**{**SIZES, **TEXT, "num_hidden_layers": 1})).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[EOS]", *(f"w{n}" for n in range(28))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(folder)
    text = folder.parent / "book.txt"
    text.write_text(" ".join(f"w{7 * number % 28}" for number in range(200)))
    return str(text)


@pytest.fixture(autouse=True)
def token_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCRATE_CACHE", str(tmp_path / "tokens"))


@pytest.mark.parametrize("to", HERE)
def test_a_classifier(tmp_path, to):
    model = image_model(tmp_path / "model", **CONSTRAINED)
    found = export_model(tmp_path / "model", tmp_path / "out", to, **QUICK)
    assert (found.inputs, found.outputs, found.size) == (("pixel_values",), ("logits",), None)
    check = found.check
    assert check.inputs == "4 crops of two photographs, not of the model's classes" and check.other == "12x16 pixels"
    assert check.worst <= found.tolerance == TARGETS[to].tolerance and check.decisions == 4
    assert check.accuracy is None and [one.batch for one in check.speed] == [1, 3]
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert not list((tmp_path / "out").glob("*.py")) and not list((tmp_path / "out").glob("*float*"))
    assert str(oc.__file__).encode() not in (tmp_path / "out" / TARGETS[to].file).read_bytes()
    if to == "torch":
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        pixels = torch.randn(5, 3, 16, 12)
        with torch.no_grad():
            torch.testing.assert_close(program(pixels)[0], model(pixels).logits, rtol=1e-4, atol=1e-5)


KINDS = {
    "encoder": (oc.CrateModel, {}, ("last_hidden_state", "pooler_output")),
    "autoencoder": (oc.CrateMAEForPreTraining, {"decoder_num_hidden_layers": 1, "mask_ratio": 0.5}, ("logits",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("to", HERE)
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_and_autoencoders(tmp_path, kind, to):
    cls, changes, outputs = KINDS[kind]
    image_model(tmp_path / "model", cls, **changes)
    found = export_model(tmp_path / "model", tmp_path / "out", to, **QUICK)
    assert found.outputs == outputs and found.check.agreement is None and found.check.other_size is not None
    assert found.inputs == (("pixel_values", "noise") if kind == "autoencoder" else ("pixel_values",))


@pytest.mark.parametrize("to", HERE)
def test_a_causal_language_model(tmp_path, to):
    text = text_model(tmp_path / "model")
    found = export_model(tmp_path / "model", tmp_path / "out", to, check=text, **QUICK)
    assert found.inputs == ("input_ids", "attention_mask") and found.outputs == ("logits",)
    check = found.check
    assert check.other == "12 tokens" and check.decisions == 4 * 24 and 0 <= check.accuracy <= 1
    assert check.eager_accuracy == pytest.approx(check.accuracy, abs=0.1)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match=r"size=8: of images, and .* reads texts"):
        export_model(tmp_path / "model", tmp_path / "other", to, size=8)


INVERTING = ({"compression": "gradient"}, {"compression_guard": "length"})


@pytest.mark.parametrize("changes", INVERTING, ids=str)
def test_what_inverts_matrices_is_exported(changes, tmp_path):
    """Products in full precision stand in a context of autocast, which a file cannot hold."""
    image_model(tmp_path / "model", num_hidden_layers=1, **changes)
    assert export_model(tmp_path / "model", tmp_path / "out", "torch", **QUICK).check.worst < 1e-5


@pytest.mark.parametrize("changes", INVERTING, ids=str)
@pytest.mark.parametrize("to", HERE[1:])
def test_what_inverts_matrices_is_refused_by_onnx(to, changes, tmp_path):
    image_model(tmp_path / "model", **changes)
    (setting,) = (f"{name}={value!r}" for name, value in changes.items())
    with pytest.raises(ValueError, match=f"{setting} inverts matrices, which ONNX cannot; give to=torch"):
        export_model(tmp_path / "model", tmp_path / "out", to, **QUICK)


def test_one_size_where_the_graph_cannot_follow(tmp_path):
    model = image_model(tmp_path / "model", position_interpolation="scale")
    with pytest.raises(ValueError, match=r"`size` is missing: position_interpolation='scale' ties the graph to one"):
        export_model(tmp_path / "model", tmp_path / "out", "torch", **QUICK)
    with pytest.raises(ValueError, match="size=10x8: not a multiple of the model's patch of 4x4 pixels"):
        export_model(tmp_path / "model", tmp_path / "out", "torch", size=(10, 8), **QUICK)
    assert not (tmp_path / "out").exists()
    found = export_model(tmp_path / "model", tmp_path / "out", "torch", size=(12, 8), **QUICK)
    assert found.size == (12, 8) and found.check.other_size is None
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"] == {"height": 12, "width": 8}
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 12, 8)).logits
        torch.testing.assert_close(program(torch.ones(1, 3, 12, 8))[0], expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(AssertionError):
            program(torch.ones(1, 3, 8, 8))


def test_beyond_the_tolerance_nothing_is_written(tmp_path, monkeypatch):
    image_model(tmp_path / "model")
    monkeypatch.setattr(
        "opencrate.export.run.runner_of", lambda path, backend: lambda pixels: (torch.ones(len(pixels), 4),)
    )
    with pytest.raises(ValueError, match=r"tolerance=0\.001: the outputs differ .* nothing was written"):
        export_model(tmp_path / "model", tmp_path / "out", "torch", **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.skipif(not INSTALLED["int8"], reason="needs onnx, onnxscript, onnxruntime")
@pytest.mark.parametrize("form", [{}, {"dictionary_expansion": 2, "dictionary_decode": "tied", "ista_num_steps": 2}])
def test_every_linear_map_is_of_8_bits(tmp_path, form):
    """U, the map from the heads, D and its transpose, the head; not the table of positions and the convolution."""
    import onnx

    image_model(tmp_path / "model", hidden_size=32, patch_embedding="conv", **form)
    export_model(tmp_path / "model", tmp_path / "out", "int8", **QUICK)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    multiplied = [one for one in graph.node if one.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    constant = [name for one in multiplied for name in one.input[:2] if len(one.input) and name in kinds]
    assert {kinds[name] for name in constant} == {onnx.TensorProto.INT8} and len(constant) >= 5
    assert not [one for one in graph.node if one.op_type == "Transpose" and one.input[0] in kinds]


@pytest.mark.skipif(not INSTALLED["onnx"], reason="needs onnx, onnxscript, onnxruntime")
def test_damaged_files_and_other_sizes_are_refused(tmp_path):
    image_model(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", "onnx", size=8, **QUICK)
    with pytest.raises(ValueError, match="was exported for images of 8x8 pixels"):
        open_exported(tmp_path / "out").logits(torch.zeros(1, 3, 12, 8))
    (tmp_path / "out" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"model\.onnx: cannot be read"):
        open_exported(tmp_path / "out")
