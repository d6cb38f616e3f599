"""Runs that fail: numbers that are not finite, and a full disk; the last good checkpoint stands."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opencrate.cli.main import main
from opencrate.store import checkpoints
from opencrate.training.callbacks import FiniteWatch
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

from .common import RANDOM, assert_same_run

SAVING = ("training.num_train_epochs=3", "training.save_strategy=steps", "training.save_steps=2")


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("what", ["loss", "weight"])
@pytest.mark.parametrize("bf16", ["false", "true"])
def test_a_number_that_is_not_finite_stops_at_once(small, what, bf16, monkeypatch, tmp_path):
    """In step 6, between two logs; the weights of the checkpoint and of the run so far are good."""
    original = RecipeTrainer.compute_loss
    seen = {}

    def compute_loss(self, model, inputs, *arguments, **options):
        seen["model"] = self.model
        if self.state.global_step == 5 and what == "weight":
            with torch.no_grad():
                self.model.classifier.weight[0, 0] = float("inf")
        loss = original(self, model, inputs, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 5 and what == "loss" else loss

    monkeypatch.setattr(RecipeTrainer, "compute_loss", compute_loss)
    with pytest.raises(FloatingPointError, match=r"not finite at step 6.*last good checkpoint is .*checkpoint-4"):
        train(small(*SAVING, f"training.bf16={bf16}"), tmp_path / "run")
    if what == "loss":
        assert all(value.isfinite().all() for value in seen["model"].parameters()), "the optimizer must not have moved"
    kept = checkpoints.complete(tmp_path / "run.partial" / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-2", "checkpoint-4"]
    assert all(value.isfinite().all() for path in kept for value in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_device_that_is_not_waited_for_still_names_the_first_bad_step(small, comes_back, monkeypatch, tmp_path):
    """As on a GPU: the flag is read late, one step later or when the epoch is logged, and says where it began."""
    original = RecipeTrainer.compute_loss
    steps = []

    def compute_loss(self, *arguments, **options):
        steps.append(self.state.global_step)
        loss = original(self, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 4 else loss

    def late(self, value, args, step):
        self.look_later(torch.isfinite(value.detach()), args, step)
        self._copied = torch.zeros((), dtype=torch.int64) if comes_back else None

    monkeypatch.setattr(FiniteWatch, "look", late)
    monkeypatch.setattr(RecipeTrainer, "compute_loss", compute_loss)
    with pytest.raises(FloatingPointError, match=r"not finite at step 5 .*last good checkpoint is .*checkpoint-4"):
        train(small(*SAVING), tmp_path / "run")
    assert steps[-1] in (4, 5), "three steps an epoch"


def test_broken_weights_are_not_saved(small, monkeypatch, tmp_path):
    """A step that overflows without a warning in its gradient."""
    original = RecipeTrainer._save_checkpoint

    def save(self, model, trial):
        if self.state.global_step == 4:
            with torch.no_grad():
                self.model.classifier.bias[0] = float("nan")
        original(self, model, trial)

    monkeypatch.setattr(RecipeTrainer, "_save_checkpoint", save)
    with pytest.raises(FloatingPointError, match="not finite at step 4"):
        train(small(*SAVING), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run.partial" / "checkpoints").iterdir()] == ["checkpoint-2"]


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLACES = {
    "model": ("transformers.modeling_utils.safe_save_file", "checkpoint-4"),
    "optimizer": ("torch.save", "checkpoint-4"),
    "average": ("opencrate.training.ema.save_file", "checkpoint-4"),
    "flush": ("opencrate.store.checkpoints._flush", "checkpoint-4"),
}
EARLIER = ("model", "optimizer", "average")


@pytest.mark.parametrize("place", ["flush", *(pytest.param(one, marks=pytest.mark.slow) for one in EARLIER)])
def test_disk_full_while_saving(small, place, monkeypatch, tmp_path):
    recipe = small(*SAVING, *RANDOM)
    whole = train(recipe, tmp_path / "whole")
    original = RecipeTrainer._save_checkpoint

    def save(self, model, trial):
        with monkeypatch.context() as patched:
            if self.state.global_step == 4:
                patched.setattr(PLACES[place][0], full)
            original(self, model, trial)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"disk full.*checkpoint-2; free") as caught:
        patched.setattr(RecipeTrainer, "_save_checkpoint", save)
        train(recipe, tmp_path / "run")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "run.partial" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert_same_run(whole.directory, train(recipe, tmp_path / "run", resume=True).directory)


def test_disk_full_at_the_end_without_checkpoints(small, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="disk full while saving"):
        train(small("training.max_steps=1"), tmp_path / "run")
    assert files_below(tmp_path) == []


def test_disk_full_is_one_line_and_exit_1(small, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    (tmp_path / "recipe.yaml").write_text(
        "model: {size: digits}\ndata: {path: digits, image_size: 8, num_channels: 1,\n"
        " image_mean: [0.5], image_std: [0.5]}\ntraining: {max_steps: 1}\n"
    )
    assert main(["train", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]) == 1
    error = capfd.readouterr().err
    assert "disk full while saving" in error and "Traceback" not in error
    assert files_below(tmp_path) == ["recipe.yaml"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no `mount` command here")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(small, small_disk):
    """Checkpoints of some 300 kB, all kept, until there is no room for another."""
    recipe = small(*SAVING, "training.save_steps=1", "training.save_total_limit=null")
    with pytest.raises(OSError, match="disk full while saving") as caught:
        train(recipe, small_disk / "run")
    assert caught.value.errno == errno.ENOSPC
    kept = checkpoints.complete(small_disk / "run.partial" / "checkpoints")
    assert kept and not (small_disk / "run.partial" / "checkpoints" / checkpoints.STAGING).exists()
    for path in kept:
        assert json.loads((path / "progress.json").read_text())["step"] == checkpoints.step_of(path)
        assert load_file(path / "model.safetensors") and torch.load(path / "optimizer.pt", weights_only=True)


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), checkpoints.disk_errors(Path(tmp_path)):
        raise PermissionError("not allowed")
