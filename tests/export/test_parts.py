"""The parts of an export that need no trace: differences, decisions, sizes of processors, names, missing packages."""

import importlib.util
import math

import pytest
import torch
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

from opencrate import CrateImageProcessor
from opencrate.export import open_exported, targets
from opencrate.export.check import Difference, _Decisions
from opencrate.export.graph import Shapes, quiet
from opencrate.export.sizes import processor_at


def test_the_largest_difference_of_all_outputs():
    one = Difference().plus([torch.tensor([1.0, 2.5])], [torch.tensor([1.0, 2.0])])
    assert (one.largest, one.scale, one.relative) == (0.5, 2.0, 0.25)
    assert one.plus([torch.zeros(1)], [torch.tensor([-4.0])]) == Difference(4.0, 4.0)
    assert Difference().plus([torch.zeros(2)], [torch.zeros(2)]).relative == 0
    assert Difference().plus([torch.ones(2)], [torch.zeros(2)]).relative > 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_infinitely_far(wrong):
    assert math.isinf(Difference().plus([torch.tensor([wrong])], [torch.tensor([1.0])]).relative)


def test_decisions_on_images_and_on_real_tokens():
    images, texts = _Decisions(), _Decisions()
    expected, found = torch.eye(3), torch.eye(3)[[0, 1, 1]]
    images.add("classifier", {"labels": torch.tensor([0, 1, 1])}, expected, found)
    assert (images.total, images.same, images.right) == (3, 2, {"eager": 2, "exported": 3})
    # the third of three tokens is padding; only the first has a next one, token 1, which nobody expects
    batch = {"input_ids": torch.tensor([[0, 1, 2]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    texts.add("causal", batch, expected[None], found[None])
    assert (texts.total, texts.same, texts.labelled, texts.right) == (2, 2, 1, {"eager": 0, "exported": 0})


def test_a_processor_for_another_size():
    resized = processor_at(CrateImageProcessor(), (112, 96))
    assert (resized.size.shortest_edge, dict(resized.crop_size)["height"], dict(resized.crop_size)["width"]) == (
        128,
        112,
        96,
    )
    image = torch.randint(0, 255, (3, 300, 200), dtype=torch.uint8)
    assert resized(images=[image], return_tensors="pt")["pixel_values"].shape[-2:] == (112, 96)
    plain = processor_at(ViTImageProcessorPil(size={"height": 8, "width": 8}), (12, 20))
    assert plain(images=[image], return_tensors="pt")["pixel_values"].shape[-2:] == (12, 20)
    square = ConvNextImageProcessorPil(size={"shortest_edge": 8}, crop_pct=0.875)
    assert processor_at(square, (16, 16))(images=[image], return_tensors="pt")["pixel_values"].shape[-2:] == (16, 16)
    with pytest.raises(ValueError, match=r"size=12x20: .* gives square images"):
        processor_at(square, (12, 20))


def test_free_axes():
    assert [sorted(one) for one in Shapes((4, 4)).axes(("pixel_values", "noise"))] == [[0, 2, 3], [0, 1]]
    assert [sorted(one) for one in Shapes((4, 4), (8, 8)).axes(("pixel_values", "noise"))] == [[0], [0]]
    assert [sorted(one) for one in Shapes(None, length=9).axes(("input_ids", "attention_mask"))] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("name, missing", [("onnx", "onnxscript"), ("int8", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == missing else object())
    with pytest.raises(ValueError, match=rf"to={name}: {missing} is not installed; `pip install opencrate\[") as error:
        targets.target_named(name)
    assert str(error.value).endswith(f"[{targets.TARGETS[name].extra}]`")
    assert targets.target_named("torch").packages == ()


def test_extras_install_what_is_imported():
    import tomllib
    from pathlib import Path

    given = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for one in [*targets.TARGETS.values(), *targets.BACKENDS.values()]:
        if one.extra:
            assert {*one.packages} <= {words.partition(">")[0] for words in given[one.extra]}


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'onnx'"):
        targets.target_named("onx")
    with pytest.raises(ValueError, match="backend=onnxx"):
        open_exported(tmp_path, "onnxx")


def test_quiet_leaves_logging_as_it_was(capfd):
    import logging

    before = list(logging.root.handlers), logging.root.manager.disable
    with quiet():
        logging.warning("not seen")
    assert (list(logging.root.handlers), logging.root.manager.disable) == before
    assert "not seen" not in capfd.readouterr().err
