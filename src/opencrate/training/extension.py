"""Continue a finished run: exactly, as if it had been longer from the start, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..recipe.schema import Recipe, TrainingRecipe
from ..stats.words import plural
from ..store import checkpoints, runs

_LENGTH = ("training.num_train_epochs", "training.max_steps")
_KEPT = (runs.LOG, "tensorboard")
"""What the rest of the run adds to, beside its newest checkpoint."""


def is_finished(directory: Path) -> bool:
    """Whether a finished run lies in a directory."""
    return (directory / runs.METRICS).is_file() and (directory / runs.RECIPE).is_file()


def check_extendable(directory: Path, recipe: Recipe) -> None:
    """Refuse to continue a finished run where that would not be the longer run that the recipe describes.

    It is where the length alone differs, the learning rate does not depend on it, and a checkpoint was kept.

    Raises:
        ValueError: says why not, and what to do instead.
    """
    before, steps = runs.read_recipe(directory), runs.read_metrics(directory)["steps"]
    changed = runs.changed_keys(before, recipe)
    done = f"{directory}: is finished after {plural(steps, 'step')}"
    finetune = f"`opencrate finetune {directory} {directory} training.num_train_epochs=...`"
    if not changed:
        raise ValueError(
            f"{done}: there is nothing to resume; overwrite=True trains it again, and {finetune} trains its weights "
            "further"
        )
    newest = checkpoints.newest(directory / runs.CHECKPOINTS)
    if set(changed) - set(_LENGTH):
        reason = f"the recipe differs in more than its length ({runs.in_words(changed)})"
    elif not _longer(before.training, recipe.training, steps):
        reason = f"the recipe is not longer ({runs.in_words(changed)})"
    elif not _keeps_its_rate(recipe.training):
        reason = f"its learning rate ({recipe.training.lr_scheduler_type}) depends on the length and has run its course"
    elif recipe.task == "self-supervised":
        reason = "the teacher's momentum, and the steps at which it was measured, depend on the length"
    elif newest is None:
        reason = "it kept no checkpoint (training.save_strategy=no)"
    else:
        return
    raise ValueError(
        f"{done} and cannot continue as a longer run, since {reason}; train its weights further by "
        f"{finetune}, which starts a new schedule, or train the longer run from the start into another "
        "output directory (or pass overwrite=True to replace this one)"
    )


def take_up(directory: Path, working: Path) -> None:
    """Copy what the rest of a finished run depends on to where it continues."""
    newest = checkpoints.newest(directory / runs.CHECKPOINTS)
    if newest is None:
        return
    for name in _KEPT:
        source = directory / name
        if source.is_dir():
            shutil.copytree(source, working / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, working / name)
    staged = working / runs.CHECKPOINTS / checkpoints.STAGING / newest.name
    shutil.copytree(newest, staged)
    checkpoints.publish(working / runs.CHECKPOINTS, checkpoints.step_of(newest), keep=None)


def _longer(before: TrainingRecipe, now: TrainingRecipe, steps: int) -> bool:
    if now.max_steps > 0:
        return now.max_steps > steps
    return before.max_steps <= 0 and now.num_train_epochs > before.num_train_epochs


def _keeps_its_rate(training: TrainingRecipe) -> bool:
    """Whether the learning rate of a step is the same however long the run is."""
    fixed_warmup = training.warmup_steps == 0 or training.warmup_steps >= 1
    kind = training.lr_scheduler_type
    return kind == "constant" or (kind == "constant_with_warmup" and fixed_warmup)
