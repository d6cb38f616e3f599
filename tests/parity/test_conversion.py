"""Published checkpoints in and out: wrappers, files, refusals, and the way back bit for bit."""

import argparse
import collections
import io
import random
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from opencrate import CrateConfig, CrateForImageClassification, CrateModel, load_official, to_official
from opencrate.conversion import read_checkpoint, source_state_dict
from tests.golden import load_golden, sub_dict

from .common import present

CLASSIFIER = {
    "main": {"num_attention_heads": 4},
    "nonsquare_mean_pool": {"num_attention_heads": 1, "image_size": (32, 48), "pool": "mean"},
    "rect_patch_gray": {"num_attention_heads": 3, "image_size": (16, 40), "patch_size": (4, 8), "ista_step_size": 0.3},
}
ALPHA = {"main": {"num_attention_heads": 4}, "nonsquare": {"num_attention_heads": 2, "image_size": [16, 24]}}
CASES = [("crate_classifier", "crate", file, kwargs) for file, kwargs in CLASSIFIER.items()]
CASES += [("crate_alpha",) * 2 + (file, kwargs) for file, kwargs in ALPHA.items() if file in present("crate_alpha")]


def weights(set_name: str = "crate_classifier", file: str = "main") -> dict[str, torch.Tensor]:
    return sub_dict(load_golden(set_name, file), "state_dict.")


def load(source, **kwargs) -> CrateForImageClassification:
    return load_official(source, "crate", **{"num_attention_heads": 4, **kwargs})


def assert_same(state_dict, expected) -> None:
    assert state_dict.keys() == expected.keys()
    for name, value in expected.items():
        assert state_dict[name].dtype == value.dtype and torch.equal(state_dict[name], value), name


# --- the way back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("set_name, family, file, kwargs", CASES)
def test_round_trip_is_key_for_key_and_bit_for_bit(set_name, family, file, kwargs, dtype):
    official = {name: value.to(dtype) for name, value in weights(set_name, file).items()}
    model = load_official(official, family, **kwargs)
    assert not model.training and model.dtype == dtype
    assert_same(to_official(model), official)
    assert_same(to_official(load_official(to_official(model), family, **kwargs)), official)


def test_sizes_come_from_the_tensors():
    config = load(weights()).config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (48, 3, 12)
    assert (config.image_size, config.patch_size, config.num_channels, config.num_labels) == (32, 4, 3, 10)
    nonsquare = load_official(weights("crate_alpha", "nonsquare"), "crate_alpha", **ALPHA["nonsquare"]).config
    assert (nonsquare.num_channels, nonsquare.patch_size, nonsquare.dictionary_expansion) == (3, 4, 4)
    gray = load_official(weights(file="rect_patch_gray"), "crate", **CLASSIFIER["rect_patch_gray"]).config
    assert (gray.num_channels, gray.num_labels) == (1, 7)


def test_the_expansion_of_a_crate_alpha_dictionary_is_read():
    official = weights("crate_alpha", "nonsquare")
    official |= {name: value[:, :48].clone() for name, value in official.items() if re.search(r"fn\.D1?$", name)}
    model = load_official(official, "crate_alpha", **ALPHA["nonsquare"])
    assert model.config.dictionary_expansion == 2
    assert_same(to_official(model), official)


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"attention_output": "tied"}, "attention_output"),
        ({"attention_output": "none", "num_attention_heads": 2}, "attention_output"),
        ({"compression_kappa": 1.0}, "compression_kappa"),
        ({"attention_scale": 1.0}, "attention_scale"),
        ({"subspace_constraint": "each"}, "subspace_constraint"),
        ({"dictionary_constraint": "orthonormal"}, "dictionary_constraint"),
        ({"ista_threshold": "soft"}, "ista_threshold"),
        ({"ista_num_steps": 2}, "ista_num_steps"),
        ({"dictionary_decode": "tied", "ista_start": "input"}, "dictionary_decode"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"patch_embedding": "conv"}, "patch_embedding"),
        ({"dictionary_decode": "untied"}, "patch_embedding"),
        ({"dictionary_decode": "untied", "patch_embedding": "conv"}, "layer_norm_eps"),
        ({**CrateConfig.SIZES["alpha-tiny"], "attention_output_bias": True}, "attention_output_bias"),
        ({**CrateConfig.SIZES["alpha-tiny"], "ista_residual": False}, "ista_residual"),
    ],
)
def test_settings_the_published_code_does_not_have_are_not_exported(settings, field):
    model = CrateForImageClassification(CrateConfig.from_size("tiny", **{**settings, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=rf"{field}=.* no counterpart"):
        to_official(model)


def test_only_classifiers_are_exported():
    config = CrateConfig.from_size("tiny", num_hidden_layers=1)
    with pytest.raises(ValueError, match="CrateModel"):
        to_official(CrateModel(config))
    config.num_labels = 0
    with pytest.raises(ValueError, match="with a head"):
        to_official(CrateForImageClassification(config))


# --- wrappers and files ----------------------------------------------------------------------------------------


def training_checkpoint(state_dict) -> dict:
    """What the published training loop writes, with what others add."""
    return {
        "epoch": 3,
        "arch": "CRATE_tiny",
        "state_dict": state_dict,
        "best_acc1": torch.tensor(71.5),
        "best_loss": np.float64(0.7),
        "seen": np.int64(12),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler": {"last_epoch": 3, "base_lrs": [0.1], "_last_lr": [np.float32(0.05)]},
        "args": argparse.Namespace(lr=1e-3, data="imagenet", seed=None),
    }


WRAPPERS = {
    "plain": lambda sd: sd,
    "ordered": collections.OrderedDict,
    "state_dict": lambda sd: {"state_dict": sd},
    "model": lambda sd: {"model": sd, "epoch": 1},
    "module": lambda sd: {f"module.{name}": value for name, value in sd.items()},
    "all": lambda sd: {"model": {"state_dict": {f"module.{name}": value for name, value in sd.items()}}},
    "training": training_checkpoint,
    "training of several processes": lambda sd: training_checkpoint({f"module.{k}": v for k, v in sd.items()}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_peeled(wrapper):
    source = WRAPPERS[wrapper](weights())
    before = list(source)
    assert_same(source_state_dict(source), weights())
    assert list(source) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar"])
def test_training_checkpoints_are_read_from_files(tmp_path, suffix, legacy):
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(training_checkpoint(weights()), path, _use_new_zipfile_serialization=not legacy)
    for source in (path, str(path)):
        assert_same(to_official(load(source)), weights())


def test_safetensors_files_are_read(tmp_path):
    save_file(weights(), tmp_path / "crate.safetensors")
    assert_same(to_official(load(tmp_path / "crate.safetensors")), weights())


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_scalars_written_by_numpy_1_and_2(tmp_path, module):
    buffer, path = io.BytesIO(), tmp_path / "checkpoint.pth"
    torch.save(training_checkpoint(weights()), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"numpy\._?core\.multiarray", module, old.read(name)))
    assert read_checkpoint(path)["best_loss"] == 0.7
    assert_same(source_state_dict(path), weights())


# --- refusals ------------------------------------------------------------------------------------------------


class NotATensor:
    """Stands for a pickled model object."""


def test_other_pickles_are_refused_with_the_safe_way_round(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": weights(), "ema": NotATensor()}, path)
    with pytest.raises(ValueError, match=r"it would run \S*NotATensor") as refusal:
        load(path)
    assert str(path) in str(refusal.value) and "torch.save(model.state_dict()" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80", b"PK\x03\x04 no archive", b"<html></html>"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoints(tmp_path, content, suffix):
    path = tmp_path / f"crate{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"was not unpickled|not a readable"):
        load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_never_raise_anything_but_value_error(tmp_path, legacy):
    buffer, path, rng = io.BytesIO(), tmp_path / "crate.pth", random.Random(0)
    torch.save(training_checkpoint({"cls_token": torch.ones(3)}), buffer, _use_new_zipfile_serialization=not legacy)
    refused = 0
    for _ in range(150):
        damaged = bytearray(buffer.getvalue())
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randrange(1, len(damaged))] if rng.random() < 0.3 else damaged)
        try:
            read_checkpoint(path)
        except ValueError:
            refused += 1
    assert refused > 50


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf://owner/name/file"):
        load(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load(tmp_path)
    with pytest.raises(ValueError, match="hf://owner/name/file"):
        load("hf://owner/name")


def test_hub_files_are_downloaded_by_name(monkeypatch, tmp_path):
    save_file(weights(), tmp_path / "crate.safetensors")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *args: asked.append(args) or tmp_path / "crate.safetensors"
    )
    assert_same(to_official(load("hf://owner/name/folder/crate.safetensors")), weights())
    assert asked == [("owner/name", "folder/crate.safetensors")]


@pytest.mark.parametrize(
    "source, message",
    [
        ({}, "no state dict found"),
        ({"epoch": 3}, r"no state dict found.*\['epoch'\]"),
        ({"state_dict": {}}, "no state dict found"),
        ({**weights(), "epoch": 3}, r"holds tensors only, but \['epoch'\]"),
        ({"model": {**weights(), "ema": {}}}, r"holds tensors only, but \['ema'\]"),
    ],
)
def test_sources_without_a_plain_state_dict(source, message):
    with pytest.raises(ValueError, match=message):
        load(source)


def test_a_file_that_holds_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load(tmp_path / "list.pth")


def changed(**changes) -> dict:
    """The golden weights with entries replaced, or removed where the value is None (``__`` stands for a dot)."""
    official = {**weights(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in official.items() if value is not None}


@pytest.mark.parametrize(
    "official, message",
    [
        (changed(cls_token=None), "'cls_token' is missing"),
        (changed(transformer__layers__1__1__fn__weight=None), r"missing \['transformer\.layers\.1\.1\.fn\.weight'\]"),
        (changed(mlp_head__0__bias=None), r"missing \['mlp_head\.0\.bias'\]"),
        (changed(surprise=torch.ones(1)), r"unexpected keys \['surprise'\]"),
        (changed(mlp_head__0__surprise=torch.ones(1)), r"unexpected \['mlp_head\.0\.surprise'\]"),
        (changed(mlp_head__1__bias=torch.ones(3)), r"mlp_head\.1\.bias has shape \(3,\), expected \(10,\)"),
        (changed(mlp_head__1__bias=torch.ones(10, dtype=torch.int64)), "dtype torch.int64"),
        (changed(cls_token=torch.ones(48)), r"'cls_token' has shape \(48,\)"),
        (changed(pos_embedding=torch.ones(1, 60, 48)), "59 positions form no square grid"),
        (changed(transformer__layers__0__0__fn__qkv__weight=torch.ones(())), "qkv.weight' has shape"),
        (
            {name.replace("layers.1.", "layers.7."): value for name, value in weights().items()},
            r"missing \['transformer\.layers\.1",
        ),
        ({name: value for name, value in weights().items() if "to_out" not in name}, "missing .*to_out"),
        (weights("crate_alpha", "nonsquare"), "does not look like family 'crate'"),
    ],
)
def test_keys_and_shapes_that_do_not_fit(official, message):
    with pytest.raises(ValueError, match=message):
        load(official)


@pytest.mark.parametrize(
    "file, kwargs, message",
    [
        ("main", {"num_attention_heads": None}, "num_attention_heads cannot be inferred"),
        ("main", {"num_attention_heads": 5}, "num_attention_heads=5 does not divide K p = 48"),
        ("main", {"num_attention_heads": 0}, "num_attention_heads=0"),
        ("main", {"image_size": 64}, "image_size=64 .* 65? ?|64 positions"),
        ("main", {"patch_size": 5}, "patch_size=5 does not divide"),
        ("main", {"hiden_size": 48}, "did you mean 'hidden_size'"),
        ("main", {"num_hidden_layers": 4}, "missing"),
        ("rect_patch_gray", {"num_attention_heads": 3}, "patch_size cannot be inferred"),
        ("rect_patch_gray", {"num_attention_heads": 3, "patch_size": (4, 8)}, "image_size cannot be inferred"),
        ("nonsquare_mean_pool", {"num_attention_heads": 1}, "image_size cannot be inferred"),
    ],
)
def test_sizes_that_cannot_be_inferred_or_contradict(file, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load(weights(file=file), **kwargs)


def test_alpha_patch_size_comes_from_the_convolution():
    with pytest.raises(ValueError, match="patch_size=8 contradicts"):
        load_official(weights("crate_alpha", "nonsquare"), "crate_alpha", patch_size=8, num_attention_heads=2)


def test_unknown_family():
    with pytest.raises(ValueError, match=r"unknown checkpoint family 'crate_alfa'; did you mean 'crate_alpha'\?"):
        load_official(weights(), "crate_alfa")
