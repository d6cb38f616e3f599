"""SIGKILL at random points of a digits run, inside checkpoint writing too: resumed, it ends bit-equal."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from opencrate.store import checkpoints

from .common import RANDOM, assert_same_run

ROOT = Path(__file__).parents[2]
DIGITS = (
    "model.config.num_hidden_layers=1",
    "training.num_train_epochs=2",
    "training.save_strategy=steps",
    "training.save_steps=5",
    *RANDOM,
)


OF_VIEWS = (
    *("views.local_views=1", "views.local_size=4", "training.per_device_train_batch_size=32", "ssl.head_hidden=16"),
    *("ssl.prototypes=32", "ssl.bottleneck=8", "ssl.teacher_momentum=0.9", "ssl.weight_decay_end=0.4"),
    *("ssl.clip_each=0.5", "training.max_grad_norm=0", "ssl.evaluate_images=50"),
)

STAGING = "checkpoints/.staging"


class Killer:
    """A process that trains in children and kills them; see killer.py."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.training.killer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(self, output, overrides, **end):
        job = {"recipe": "digits", "overrides": [*DIGITS, *overrides], "output": str(output), **end}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def killer():
    one = Killer()
    yield one
    one.close()


def draw_kill(draw):
    """Where a kill falls: by time anywhere, or at an event of the file system."""
    return {"at_event": draw.randint(1, 150)} if draw.random() < 0.6 else {"after_seconds": draw.uniform(0.3, 3)}


def kill_and_resume(killer, output, overrides, kills, draw):
    """Kill a run `kills` times, anew from where it stood; how often inside checkpoint writing, then let it end.

    The first kill falls inside checkpoint writing for certain, whatever the speed of the machine; the others anywhere.
    """
    inside = done = 0
    while done < kills:
        way = draw_kill(draw) if done else {"at_event": draw.randint(4, 10), "below": STAGING}
        found = killer.run(output, overrides, **way)
        assert found["killed"] or found["finished"], found
        if found["finished"]:  # sooner than it was to be killed: its result counts, and another run begins
            yield inside
            inside = 0
            continue
        done += 1
        inside += bool(found["staged"])
        for name in found["checkpoints"]:
            path = output.with_name(output.name + ".partial") / "checkpoints" / name
            step = json.loads((path / "progress.json").read_text())["step"]
            assert step == checkpoints.step_of(path) and load_file(path / "model.safetensors")
    if not output.exists():
        assert killer.run(output, overrides)["finished"]
    yield inside


def check_kills(killer, folder, overrides, kills, seed):
    """Kills inside checkpoint writing, and runs that were finished on the way; each is compared with a whole one."""
    draw = random.Random(seed)
    assert killer.run(folder / "whole", overrides)["finished"]
    inside = runs = 0
    for found in kill_and_resume(killer, folder / "killed", overrides, kills, draw):
        inside, runs = inside + found, runs + 1
        assert_same_run(folder / "whole", folder / "killed")
        (folder / "killed").rename(folder / f"finished-{runs}")
    return inside, runs


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kills(killer, kills, tmp_path):
    inside, runs = check_kills(killer, tmp_path, ["training.max_steps=26"], kills, seed=0)
    assert inside >= 1 and runs >= 1


@pytest.mark.slow
def test_kills_of_an_autoencoder(killer, tmp_path):
    """The masks are what is random here; a classifier's mixing and smoothing are off."""
    off = ("augmentation.mixup=0", "augmentation.cutmix=0", "training.label_smoothing_factor=0")
    words = ("task=masked-autoencoding", "model.type=crate_mae", "training.max_steps=26", *off)
    inside, runs = check_kills(killer, tmp_path, words, 6, seed=3)
    print(f"autoencoder: 6 kills, {inside} inside checkpoint writing, {runs} runs bit-equal")
    assert inside >= 1 and runs >= 1


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_kills_of_self_supervision(killer, kills, tmp_path):
    """Views, teacher, centre, prototypes that thaw in the second epoch, and rows that begin before a checkpoint."""
    off = ("augmentation.mixup=0", "augmentation.cutmix=0", "augmentation.crop=none", "augmentation.flip=0")
    off = (*off, "augmentation.erasing=0", "optimiser.ema_decay=0", "training.label_smoothing_factor=0")
    words = ("task=self-supervised", *OF_VIEWS, "training.max_steps=26", "data.validation_fraction=0.3", *off)
    inside, runs = check_kills(killer, tmp_path, words, kills, seed=5)
    assert inside >= 1 and runs >= 1
    assert (tmp_path / "finished-1" / "student.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bf16", ["false", "true"])
def test_many_kills(killer, bf16, workers, tmp_path):
    """Twelve kills in each of the four forms: 48."""
    overrides = [f"training.bf16={bf16}", f"training.dataloader_num_workers={workers}"]
    inside, runs = check_kills(killer, tmp_path, overrides, 12, seed=workers + (bf16 == "true"))
    print(f"bf16={bf16}, {workers} workers: 12 kills, {inside} inside checkpoint writing, {runs} runs bit-equal")
    assert inside >= 1
