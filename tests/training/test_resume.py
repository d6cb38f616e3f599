"""Resume: a run that is stopped anywhere and taken up again ends as one that never stopped."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from opencrate import calibration, products
from opencrate.store import checkpoints, runs
from opencrate.training.tasks.classification import ImageClassification
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

from ..recipes.folders import VIT_OVERRIDES, write_classes
from .common import RANDOM, WHITENED, assert_same_run

DROPOUT_VIT = (VIT_OVERRIDES[0], VIT_OVERRIDES[1].replace("{", "{hidden_dropout_prob: 0.2, "))
STEPS = ("training.num_train_epochs=3", "training.save_strategy=steps", "training.save_steps=2")


class Killed(BaseException):
    """Ends a run at once, with no handler in the way."""


def stop_before(monkeypatch, step, error=Killed):
    """Let a run fail before its optimizer step `step` (counted from 0)."""
    original = RecipeTrainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step == step:
            raise error("stopped by the test")
        return original(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", training_step)


def killed_and_resumed(recipe, directory, stops, monkeypatch):
    for step in stops:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            stop_before(patched, step)
            train(recipe, directory, resume=True)
    return train(recipe, directory, resume=True)


LION = ["optimiser.optim=lion", "training.gradient_accumulation_steps=2", "data.validation_fraction=0.25"]
SGD = ["optimiser.optim=sgd", "training.max_steps=8", "training.save_strategy=epoch"]


@pytest.mark.parametrize(
    ("overrides", "stops"),
    [
        ([*RANDOM], [1, 3, 5, 6]),  # before the first checkpoint, mid-epoch, at an epoch's end
        ([*RANDOM, "training.bf16=true", "training.dataloader_num_workers=2"], [5, 7]),
        ([*RANDOM, "data.keep_on=device"], [5]),
        pytest.param(LION, [3, 4], marks=pytest.mark.slow),
        pytest.param(SGD, [4, 7], marks=pytest.mark.slow),
        (["optimiser.optim=muon", "training.max_steps=6", *WHITENED], [3]),
        pytest.param([*RANDOM, *DROPOUT_VIT], [5], marks=pytest.mark.slow),
    ],
    ids=["random", "bf16-workers", "on-device", "lion-accumulation", "sgd-epochs", "muon", "dropout-vit"],
)
def test_resumed_run_is_bit_equal(small, overrides, stops, monkeypatch, tmp_path):
    recipe = small(*STEPS, *overrides)
    whole = train(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed", stops, monkeypatch)
    assert_same_run(whole.directory, resumed.directory)
    assert whole.metrics["resumed_at"] == [] and resumed.metrics["resumed_at"]
    assert resumed.metrics["accuracy"] == whole.metrics["accuracy"]
    assert resumed.metrics["loss"] == whole.metrics["loss"]
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


def test_seconds_add_up_over_the_pieces(small, monkeypatch, tmp_path):
    killed_and_resumed(small(*STEPS), tmp_path / "run", [5], monkeypatch)
    progress = json.loads((checkpoints.newest(tmp_path / "run" / "checkpoints") / "progress.json").read_text())
    stored = runs.read_metrics(tmp_path / "run")
    assert progress["resumed_at"] == stored["resumed_at"] == [4]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 3)
        train(small(*STEPS), tmp_path / "other")
    path = tmp_path / "other.partial" / "checkpoints" / "checkpoint-2" / "progress.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000.0}))
    assert 1000 < train(small(*STEPS), tmp_path / "other", resume=True).metrics["seconds"] < 1600


def test_last_step_is_not_repeated(small, monkeypatch, tmp_path):
    """Killed after the last checkpoint, while the test images are evaluated."""
    recipe = small("training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2")
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(
            "opencrate.training.tasks.classification.evaluate_split", lambda *_: (_ for _ in ()).throw(Killed())
        )
        train(recipe, tmp_path / "run")
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert resumed.metrics["steps"] == 4 and resumed.metrics["resumed_at"] == [4]
    assert_same_run(whole.directory, resumed.directory)


def test_nothing_to_resume_starts_a_run(small, tmp_path):
    recipe = small("training.max_steps=2")
    (tmp_path / "empty.partial").mkdir()
    (tmp_path / "empty.partial" / runs._LOCK).write_text(runs._LOCK_TEXT)
    (tmp_path / "empty.partial" / "log.jsonl").write_text('{"step": 1}\nhalf a li')
    first, second = (train(recipe, tmp_path / name, resume=True).directory for name in ("none", "empty"))
    assert_same_run(first, second)


def test_another_recipe_is_refused(small, monkeypatch, tmp_path):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 5)
        train(small(*STEPS), tmp_path / "run")
    with pytest.raises(ValueError) as caught:
        train(small(*STEPS, "training.learning_rate=0.5", "model.config.pool=cls"), tmp_path / "run", resume=True)
    assert "training.learning_rate was 0.001, now 0.5" in str(caught.value)
    assert "model.config.pool was 'mean', now 'cls'" in str(caught.value)
    assert "training.seed" not in str(caught.value)
    with pytest.raises(ValueError, match="give one of them"):
        train(small(*STEPS), tmp_path / "run", overwrite=True, resume=True)
    train(small(*STEPS), tmp_path / "run", overwrite=True)
    with pytest.raises(ValueError, match="is finished after"):
        train(small(*STEPS), tmp_path / "run", resume=True)


def test_an_interrupted_evaluation_costs_no_training(small, monkeypatch, tmp_path):
    """Also where the recipe asks for no checkpoints."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    recipe = small("training.max_steps=2")
    whole = train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ImageClassification, "test", interrupted)
        train(recipe, tmp_path / "run")
    with monkeypatch.context() as patched:
        stop_before(patched, 0)
        resumed = train(recipe, tmp_path / "run", resume=True)
    assert resumed.metrics["resumed_at"] == [2] and resumed.metrics["accuracy"] == whole.metrics["accuracy"]
    assert_same_run(whole.directory, resumed.directory)
    assert not (resumed.directory / "checkpoints").exists() and not (resumed.directory / runs.DATA).exists()


def test_data_that_moved(small, monkeypatch, tmp_path):
    """As when a run is begun on one machine and ended on another: the same images in another place, and no others.

    The words that describe the recipe may have changed.
    """

    def recipe(folder):
        return small(*STEPS, f"data.path={tmp_path / folder}")

    write_classes(tmp_path / "here", 10)
    whole = train(recipe("here"), tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 5)
        train(recipe("here"), tmp_path / "run")
    write_classes(tmp_path / "other", 11)
    with pytest.raises(ValueError, match="cannot resume with other data: test, train differ"):
        train(recipe("other"), tmp_path / "run", resume=True)
    (tmp_path / "here").rename(tmp_path / "there")
    now = replace(recipe("there"), description="other words")
    resumed = train(now, tmp_path / "run", resume=True)
    assert resumed.metrics["resumed_at"] == [4] and "there" in (resumed.directory / runs.RECIPE).read_text()
    assert_same_run(whole.directory, resumed.directory)


def test_a_run_at_work_is_not_resumed(small, tmp_path):
    """The lock is held by another process; the same process could not be told apart."""
    (tmp_path / "run.partial").mkdir()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with runs._locked(tmp_path / "run.partial"):
            os.write(write, b"locked")
            signal.pause()
    try:
        assert os.read(read, 6) == b"locked"
        with pytest.raises(ValueError, match="another process is training there"):
            train(small("training.max_steps=1"), tmp_path / "run", resume=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    train(small("training.max_steps=1"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, 1),  # mid-epoch
        (signal.SIGTERM, 8),  # last
        *(pytest.param(signal.SIGINT, step, marks=pytest.mark.slow) for step in (2, 8)),  # 2: an epoch's end
        *(pytest.param(signal.SIGTERM, step, marks=pytest.mark.slow) for step in (1, 2)),
    ],
)
def test_signal_saves_and_stops(small, number, step, monkeypatch, tmp_path):
    """Also where the recipe asks for no checkpoints; the finished run then keeps none."""
    recipe = small("training.num_train_epochs=3", *RANDOM)
    whole = train(recipe, tmp_path / "whole")
    original = RecipeTrainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **options)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match=f"step {step + 1}.*resume=True"):
        patched.setattr(RecipeTrainer, "training_step", training_step)
        train(recipe, tmp_path / "run")
    assert signal.getsignal(number) == before
    kept = checkpoints.complete(tmp_path / "run.partial" / "checkpoints")
    assert [path.name for path in kept] == [f"checkpoint-{step + 1}"]
    resumed = train(recipe, tmp_path / "run", resume=True)
    assert_same_run(whole.directory, resumed.directory)
    assert not (resumed.directory / "checkpoints").exists()


def test_checkpoints_load_as_weights_only(small, tmp_path):
    """Nothing in a checkpoint needs a pickle that can run code."""
    run = train(small(*STEPS, "optimiser.optim=lion"), tmp_path / "run")
    kept = checkpoints.complete(run.directory / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-8", "checkpoint-9"]
    for path in kept:
        assert not (path / "training_args.bin").exists()
        for name in ("optimizer.pt", "scheduler.pt"):
            assert torch.load(path / name, weights_only=True)


def test_a_resumed_run_keeps_what_was_chosen_for_the_processor(small, tmp_path, monkeypatch):
    """Without a measurement oneDNN would not be used: the resumed run has it from its checkpoint."""
    monkeypatch.setattr(calibration, "_choices", {})
    monkeypatch.setattr(products, "SMALL", 0)
    recipe = small(*STEPS, "training.max_steps=4")
    chosen = {}

    def choose(work, rule, ways, bound):
        key = f"{work}, {torch.get_num_threads()} threads"
        calibration.keep({key: "onednn" if work.startswith("product") else rule})
        return calibration.choices()[key]

    with monkeypatch.context() as patched:
        patched.setattr(products, "choose", choose)
        whole = train(recipe, tmp_path / "whole")
        chosen = calibration.choices()
        with pytest.raises(Killed):
            stop_before(patched, 3)
            train(recipe, tmp_path / "killed")
    assert "onednn" in chosen.values()
    calibration._choices.clear()  # another process
    resumed = train(recipe, tmp_path / "killed", resume=True)
    assert calibration.choices().items() >= chosen.items()
    assert_same_run(whole.directory, resumed.directory)
    stored = json.loads((resumed.directory / runs.ENVIRONMENT).read_text())
    assert stored["calibration"] == calibration.choices()
