"""A finished run goes on as the longer run would have been, or says why not and what to do."""

import pytest

from opencrate.training.train import train

from .common import RANDOM, assert_same_run
from .test_resume import Killed, stop_before

KEPT = ("training.save_strategy=epoch", "training.lr_scheduler_type=constant")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [RANDOM, ("training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=4")]
)
def test_a_run_of_constant_rate_goes_on_bit_by_bit(small, overrides, tmp_path):
    length = "training.num_train_epochs="
    train(small(*KEPT, *overrides, f"{length}2"), tmp_path / "run")
    extended = train(small(*KEPT, *overrides, f"{length}4"), tmp_path / "run", resume=True)
    train(small(*KEPT, *overrides, f"{length}4"), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert extended.metrics["resumed_at"] == [6] and extended.metrics["steps"] == 12
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]


def test_an_interrupted_extension_leaves_the_finished_run_and_goes_on(small, monkeypatch, tmp_path):
    first, longer = (small(*KEPT, f"training.num_train_epochs={epochs}") for epochs in (1, 3))
    finished = train(first, tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 7)
        train(longer, tmp_path / "run", resume=True)
    assert (finished.directory / "model.safetensors").is_file()
    train(longer, tmp_path / "run", resume=True)
    train(longer, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ((), ("training.num_train_epochs=3",), r"its learning rate \(cosine\) depends on the length"),
        (("training.lr_scheduler_type=linear",), ("training.max_steps=9",), r"learning rate \(linear\) depends"),
        (("training.lr_scheduler_type=constant",), ("training.max_steps=9",), "it kept no checkpoint"),
        (
            ("training.lr_scheduler_type=constant_with_warmup", "training.warmup_steps=0.5"),
            ("training.max_steps=9",),
            r"learning rate \(constant_with_warmup\) depends",
        ),
        (
            KEPT,
            ("training.num_train_epochs=2", "training.learning_rate=1"),
            "in more than its length .*learning_rate was",
        ),
        (KEPT, ("training.num_train_epochs=0.5",), "the recipe is not longer"),
        (KEPT, ("training.max_steps=1",), "the recipe is not longer"),
    ],
)
def test_what_cannot_go_on_exactly_says_the_way(small, before, now, reason, tmp_path):
    train(small(*before), tmp_path / "run")
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(
        ValueError, match=rf"finished after 3 steps.*{reason}.*opencrate finetune \S+run \S+run training"
    ):
        train(small(*before, *now), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_finished_run_of_the_same_recipe_has_nothing_to_resume(small, tmp_path):
    train(small(), tmp_path / "run")
    with pytest.raises(ValueError, match="nothing to resume; overwrite=True trains it again"):
        train(small(), tmp_path / "run", resume=True)
