"""Two processes of a `torchrun` train without labels as one does on the same global batch, an incomplete one left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opencrate.recipe.load import load_recipe
from opencrate.training.train import train

from ...recipes.folders import FOLDER_OVERRIDES
from .test_task import DINO, SIMDINO, VIEWS

ROOT = Path(__file__).parents[3]
STEPS = (
    "training.max_steps=5",
    "ssl.freeze_last_layer_epochs=1",
    "ssl.teacher_momentum=0.5",
    "ssl.weight_decay_end=0.4",
)
FORMS = {
    "dino": (*DINO, *STEPS, "ssl.clip_each=1"),
    "simdino": (*SIMDINO, "ssl.group_size=5", "training.max_steps=3", "ssl.teacher_momentum=0.5"),
    "lejepa": ("ssl.objective=lejepa", "ssl.features=8", "training.max_steps=3"),
}
"""24 images make global batches of 10: two steps an epoch, and four images left out."""


def overrides_of(form, path, processes):
    size = f"training.per_device_train_batch_size={10 // processes}"
    return [*FOLDER_OVERRIDES, f"data.path={path}", *VIEWS, *FORMS[form], "model.config.subspace_penalty=0.1", size]


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Each form by one process and by two: `<form>-1` and `<form>-2`."""
    folder, path = tmp_path_factory.mktemp("two"), small().data.path
    jobs = [[overrides_of(form, path, 2), str(folder / f"{form}-2")] for form in FORMS]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.ssl.two_runs", str(folder / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for form in FORMS:
        train(load_recipe("imagefolder", overrides_of(form, path, 1)), folder / f"{form}-1")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_weights(folder, form):
    one, two = (json.loads((folder / f"{form}-{count}" / "metrics.json").read_text()) for count in (1, 2))
    assert (one["processes"], two["processes"], two["samples_per_step"]) == (1, 2, 10)
    assert [row["step"] for row in two["history"]] == ([2, 4, 5] if form == "dino" else [2, 3])
    for first, second in zip(*(metrics["history"] for metrics in (one, two)), strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-6, abs=1e-7)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-5), (
            "a factor AdamW would not see"
        )
    for first, second in zip(*(metrics["self_supervision"]["history"] for metrics in (one, two)), strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    for name in ("model", "head", *(["student"] if form != "lejepa" else [])):
        first, second = (load_file(folder / f"{form}-{count}" / f"{name}.safetensors") for count in (1, 2))
        assert first.keys() == second.keys()
        one_vector, other = (torch.cat([value.flatten().double() for value in of.values()]) for of in (first, second))
        difference = ((one_vector - other).norm() / one_vector.norm()).item()
        print(f"{form}, {name}: {difference:.1e}")
        assert difference <= 1e-6
