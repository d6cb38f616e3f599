"""FSDP2: two processes that hold half of the weights each train as one that holds them all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from opencrate import CrateConfig, CrateForImageClassification
from opencrate.recipe.load import load_recipe
from opencrate.training.sharding import as_sharded, is_sharded, whole, whole_model, wrap_layers
from opencrate.training.train import train

from ..recipes.folders import FOLDER_OVERRIDES
from .sharded import LAUNCH

ROOT = Path(__file__).parents[2]
TWO_LAYERS = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
SHORT = ("training.max_steps=4", "training.learning_rate=1e-2", f"model.config={TWO_LAYERS}")
IMAGES = (*SHORT, "augmentation.crop=padded", "data.validation_fraction=0.2", "training.num_train_epochs=1")
FORMS = {
    "adamw": (*IMAGES, "optimiser.ema_decay=0.9", "training.save_strategy=steps", "training.save_steps=2"),
    "muon": (*IMAGES, "optimiser.optim=muon", "training.gradient_accumulation_steps=2"),
    "tied": (*SHORT, "text.block_size=32", "model.config.tie_word_embeddings=true"),
    "untied": (*SHORT, "text.block_size=32", "model.config.tie_word_embeddings=false"),
}
STOPS = {"adamw": 3}
"""Runs that are stopped before a step and resumed from their checkpoint."""


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """The folder of a form's run in one process (`<form>-1`) and of that sharded over two (`<form>-2`)."""
    return in_one_and_sharded(small, tmp_path_factory.mktemp("sharded"), ("adamw", "tied"))


@pytest.fixture(scope="module")
def others(small, tmp_path_factory):
    """The other forms, as `runs`."""
    return in_one_and_sharded(small, tmp_path_factory.mktemp("others"), ("muon", "untied"))


ALL = pytest.mark.parametrize(
    ("folder", "form"),
    [
        *(("runs", form) for form in ("adamw", "tied")),
        *(pytest.param("others", form, marks=pytest.mark.slow) for form in ("muon", "untied")),
    ],
)


def in_one_and_sharded(small, folder, forms):
    (folder / "text.txt").write_text("the small boat leaves when the bell rings over quiet water.\n" * 90)
    os.environ["OPENCRATE_CACHE"], before = str(folder / "cache"), os.environ.get("OPENCRATE_CACHE")
    jobs = []
    for form in forms:
        overrides = FORMS[form]
        if form in ("tied", "untied"):
            job = ["shakespeare", [f"text.path={folder / 'text.txt'}", "training.bf16=false", *overrides]]
        else:
            job = ["imagefolder", [*FOLDER_OVERRIDES, f"data.path={small().data.path}", *overrides]]
        train(load_recipe(job[0], [*job[1], "training.per_device_train_batch_size=4"]), folder / f"{form}-1")
        two = [*job[1], "training.per_device_train_batch_size=2"]
        jobs.append([job[0], two, str(folder / f"{form}-2"), STOPS.get(form)])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.sharded", str(folder / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    os.environ.pop("OPENCRATE_CACHE")
    if before is not None:
        os.environ["OPENCRATE_CACHE"] = before
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@ALL
def test_weights_are_those_of_one_process(folder, form, request):
    """The model that is saved, whole, and what `ema_decay` leaves beside it."""
    runs = request.getfixturevalue(folder)
    one, two = (runs / f"{form}-{count}" for count in (1, 2))
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in two.glob("*.safetensors"))
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())


@ALL
def test_metrics_are_those_of_one_process(folder, form, request):
    runs = request.getfixturevalue(folder)
    one, two = (json.loads((runs / f"{form}-{count}" / "metrics.json").read_text()) for count in (1, 2))
    assert two["processes"] == 2 and two["samples_per_step"] == one["samples_per_step"]
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert two["resumed_at"] == ([2] if form in STOPS else [])
    for first, second in zip(one["history"], two["history"], strict=True):
        for name in ("train_loss", "gradient_norm"):
            assert second[name] == pytest.approx(first[name], rel=1e-4)


def test_layers_are_sharded_unless_classes_are_named():
    model = CrateForImageClassification(CrateConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    wrap_layers(model, plugin)
    assert plugin.transformer_cls_names_to_wrap == ["CrateLayer"]
    plugin.transformer_cls_names_to_wrap = ["CrateEmbeddings"]
    wrap_layers(model, plugin)
    assert plugin.transformer_cls_names_to_wrap == ["CrateEmbeddings"]
    assert not is_sharded(model) and whole_model(model, type(model), main=True) is model
    value = torch.ones(3)
    assert whole(value) is value and as_sharded(value, torch.zeros(3)) is value


def test_the_launch_file_says_what_is_tested():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "examples" / "fsdp2.yaml"))
    given = {name.upper(): str(value) for name, value in config.fsdp_config.items()}
    for name, value in LAUNCH.items():
        if name.startswith("FSDP_"):
            assert given[name].lower() == value.lower(), name
