"""What the common trainers write is read: any wrapper, any prefix, any order; of two sets one is taken and named."""

import argparse
import itertools
import json
import logging
import pathlib
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from opencrate import load_official, to_official
from opencrate.conversion import read_checkpoint, source_state_dict

from .test_conversion import assert_same, load, weights

OTHER = 0.5
"""Added to weights that are not to be taken."""


def under(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def inside(mark, tensors):
    """The mark of FSDP, torch.compile or checkpointing after every part that is a number."""
    return {
        ".".join(f"{part}.{mark}" if part.isdecimal() else part for part in name.split(".")): value
        for name, value in tensors.items()
    }


def other(tensors):
    return {name: value + OTHER for name, value in tensors.items()}


LAYOUTS = {
    "lightning": lambda sd: {"epoch": 1, "state_dict": under("model", sd), "hyper_parameters": {"lr": 0.1}},
    "lightning with a loss": lambda sd: {"state_dict": {**under("net", sd), "criterion.weight": torch.ones(3)}},
    "lightning and deepspeed": lambda sd: {"state_dict": under("_forward_module.model", sd)},
    "timm": lambda sd: {"arch": "vit", "state_dict": other(sd), "state_dict_ema": sd},
    "timm, old": lambda sd: {"state_dict": under("module", other(sd)), "model_ema": under("module", sd)},
    "mae": lambda sd: {"model": sd, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=1.0)},
    "beit": lambda sd: {"model": sd, "model_ema": None},
    "deepspeed": lambda sd: {"module": sd, "global_steps": 7},
    "dino": lambda sd: {
        "student": {**under("module.backbone", other(sd)), "module.head.weight": torch.ones(2)},
        "teacher": {**under("backbone", sd), "head.weight": torch.ones(2)},
        "dino_loss": {"center": torch.zeros(1, 4)},
    },
    "fairseq": lambda sd: {"args": None, "cfg": {"model": {"arch": "vit"}}, "model": sd, "extra_state": {}},
    "swa": lambda sd: {"model": other(sd), "ema": {"n_averaged": torch.tensor(3), **under("module", sd)}},
    "ddp and compile": lambda sd: under("module._orig_mod", sd),
    "compile and ddp": lambda sd: under("_orig_mod.module", sd),
    "fsdp": lambda sd: under("_fsdp_wrapped_module", inside("_fsdp_wrapped_module", sd)),
    "checkpointing": lambda sd: {"model": inside("_checkpoint_wrapped_module", sd)},
    "compiled layers": lambda sd: inside("_orig_mod", sd),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read(layout, tmp_path):
    source = LAYOUTS[layout](weights())
    assert_same(source_state_dict(source), weights())
    torch.save(source, tmp_path / "checkpoint.pth")
    assert_same(to_official(load(tmp_path / "checkpoint.pth")), weights())


@pytest.mark.parametrize("order", list(itertools.permutations(("wrap", "prefix", "mark", "net"))))
def test_any_order_of_wrappers(order):
    steps = {
        "wrap": lambda sd: {"state_dict": sd},
        "prefix": lambda sd: under("module", sd),
        "mark": lambda sd: under("_orig_mod", sd),
        "net": lambda sd: under("net", sd),
    }
    source, wrapped = weights(), 0
    for step in order:
        if step != "wrap":
            source = steps[step](source)
        wrapped += step == "wrap"
    assert_same(source_state_dict({"model": {"state_dict": source}}), weights())


CHOICES = [
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("student", "teacher"),
    ("model", "state_dict_ema"),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("plain", "averaged"), CHOICES)
def test_of_two_sets_one_is_taken_and_said(plain, averaged, nested, caplog):
    source = {plain: other(weights()), averaged: weights()}
    source = {"state_dict": source} if nested and "state_dict" not in source else source
    with caplog.at_level(logging.WARNING, logger="opencrate"):
        assert_same(source_state_dict(source), weights())
    (line,) = (record.getMessage() for record in caplog.records)
    assert averaged in line.split("left out")[0] and plain in line.split("left out")[1] and "weights=KEY" in line
    assert_same(source_state_dict(source, weights=plain), other(weights()))
    with pytest.raises(ValueError, match=f"weights='{averaged[:-1]}': .*did you mean '{averaged}'"):
        source_state_dict(source, weights=averaged[:-1])


def test_two_models_in_one_module_are_told_apart(caplog):
    """Prefixes too: a Lightning module with an average of its model."""
    source = {"state_dict": {**under("model", other(weights())), **under("ema_model", weights())}}
    assert_same(source_state_dict(source), weights())
    assert "took 'state_dict.ema_model', left out 'state_dict.model'" in caplog.text
    source = {**other(weights()), **under("ema", weights())}
    assert_same(source_state_dict(source), weights())


def test_one_set_is_taken_without_a_word(caplog):
    for layout in ("mae", "beit", "fairseq", "fsdp", "lightning"):
        source_state_dict(LAYOUTS[layout](weights()))
    assert not caplog.records


def test_a_wrapper_around_itself_ends():
    circle: dict = {"epoch": 1}
    circle["model"] = circle
    with pytest.raises(ValueError, match="no state dict found"):
        source_state_dict(circle)
    first, second = {}, {}
    first["model"], second["state_dict"] = second, first
    with pytest.raises(ValueError, match="no state dict found"):
        source_state_dict(first)


def test_our_own_names_are_read():
    """A trainer around our model keeps our names."""
    model = load(weights())
    assert_same(to_official(load({"state_dict": under("model", model.state_dict())})), weights())


SHARDS = {"model": ("safetensors", save_file), "pytorch_model": ("bin", torch.save)}


@pytest.mark.parametrize("stem", SHARDS)
@pytest.mark.parametrize("count", [1, 3])
def test_folders_of_transformers_and_accelerate(stem, count, tmp_path):
    suffix, save = SHARDS[stem]
    names = list(weights())
    parts = {f"{stem}-{index + 1:05d}-of-{count:05d}.{suffix}": names[index::count] for index in range(count)}
    if count == 1:
        parts = {f"{stem}.{suffix}": names}
    else:
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for file, part in parts.items():
        save({name: weights()[name] for name in part}, tmp_path / file)
    assert_same(to_official(load(tmp_path)), weights())


def test_of_two_files_in_a_folder_one_is_taken_and_said(tmp_path, caplog):
    save_file(weights(), tmp_path / "model.safetensors")
    torch.save(other(weights()), tmp_path / "pytorch_model.bin")
    assert_same(source_state_dict(tmp_path), weights())
    assert "took model.safetensors, left out pytorch_model.bin" in caplog.text


@pytest.mark.parametrize("content", ["3", "{}", '{"weight_map": {"cls_token": "../elsewhere.bin"}}', "[" * 100_000])
def test_damaged_indices_are_named(content, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json.*(damaged|not a file beside it)"):
        read_checkpoint(tmp_path)


def test_a_sharded_checkpoint_of_torch_says_what_to_do(tmp_path):
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="dcp_to_torch"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["lightning.fabric.utilities.data.AttributeDict", "yacs.config.CfgNode", "omegaconf.dictconfig.DictConfig"]
)
def test_settings_of_trainers_are_read_as_plain_values(name, tmp_path, monkeypatch):
    """Nothing of the module is imported: it is gone when the file is read."""
    module, _, cls = name.rpartition(".")
    made = types.ModuleType(module)
    kind = type(cls, (dict,), {"__module__": module})
    setattr(made, cls, kind)
    settings = kind(lr=0.1)
    settings.__dict__["frozen"] = True
    with monkeypatch.context() as patch:
        for end in range(1, len(module.split("."))):
            patch.setitem(sys.modules, ".".join(module.split(".")[:end]), types.ModuleType(module))
        patch.setitem(sys.modules, module, made)
        torch.save({"state_dict": weights(), "config": settings, "output": pathlib.Path("x")}, tmp_path / "last.ckpt")
    assert_same(source_state_dict(tmp_path / "last.ckpt"), weights())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_kept_and_mixed_ones_said(dtype, caplog):
    half = {name: value.to(dtype) for name, value in weights().items()}
    assert load_official(half, "crate", num_attention_heads=4).dtype == dtype
    assert not caplog.records
    mixed = {**half, "cls_token": weights()["cls_token"]}
    assert load(mixed).dtype == torch.float32
    assert str(dtype) in caplog.text and "the model is of torch.float32" in caplog.text
