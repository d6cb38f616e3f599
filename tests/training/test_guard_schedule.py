"""A guard that waits: which steps are trained with it, that evaluation always has it, and that a resumed run is the same."""

import pytest

from opencrate import CrateForImageClassification
from opencrate.blocks import Compression
from opencrate.training.guard_schedule import GuardSchedule
from opencrate.training.train import train

from .common import assert_same_run

GUARDED = ("model.config.compression_guard=length", "data.validation_fraction=0.25", "training.max_steps=6")
WAITS = (*GUARDED, "optimiser.guard_from=0.5", "optimiser.ema_decay=0.9")


@pytest.fixture
def calls(monkeypatch):
    """Of each compression step that was taken: whether in training, and whether with the guard."""
    seen, original = [], Compression._guarded

    def guarded(self, tokens, half, padding):
        out = original(self, tokens, half, padding)
        seen.append((self.training, out is not half))
        return out

    monkeypatch.setattr(Compression, "_guarded", guarded)
    return seen


def test_the_first_steps_are_trained_without(small, calls, tmp_path):
    run = train(small(*WAITS), tmp_path / "run")
    layers = CrateForImageClassification.from_pretrained(run.directory).config.num_hidden_layers
    assert [guarded for training, guarded in calls if training] == 3 * layers * [False] + 3 * layers * [True]
    assert all(guarded for training, guarded in calls if not training)
    assert not all(training for training, _ in calls)
    assert CrateForImageClassification.from_pretrained(run.directory).config.compression_guard == "length"


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_is_the_same(step, small, monkeypatch, tmp_path):
    """Cut off before and after the guard begins to work."""
    saving = (*WAITS, "training.save_strategy=steps", "training.save_steps=2")
    whole = train(small(*saving), tmp_path / "whole")

    def cut(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(GuardSchedule, "on_step_end", cut)
        with pytest.raises(KeyError, match="cut"):
            train(small(*saving), tmp_path / "cut")
    again = train(small(*saving), tmp_path / "cut", resume=True)
    assert again.metrics["resumed_at"] == [step - 1]
    assert_same_run(whole.directory, again.directory)


def test_a_model_without_a_guard_has_none_to_wait_for(small, tmp_path):
    with pytest.raises(
        ValueError, match=r"optimiser\.guard_from=0\.5: the model has no guard .*compression_guard=length"
    ):
        train(small("optimiser.guard_from=0.5"), tmp_path / "run")
