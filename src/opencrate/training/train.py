"""Train one recipe and leave a complete run directory."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from transformers import PreTrainedModel, TrainingArguments

from .._outputs import write_json, write_text
from ..recipe.load import load_recipe, recipe_yaml
from ..recipe.locations import located
from ..recipe.schema import Recipe
from ..store import runs
from ..store.build import check_model
from ..store.card import write_card
from ..store.checkpoints import check_readable, disk_errors, newest, step_of
from ..store.environment import environment
from .allocator import keep_freed_memory
from .callbacks import RunLog
from .extension import check_extendable, is_finished, take_up
from .precision import decided, precision_restored
from .sharding import whole_model
from .tasks import Parts, task_of
from .trainer import RecipeTrainer, training_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What `train` leaves: where it lies, and its metrics as in `metrics.json`."""

    directory: Path
    metrics: dict[str, Any]


@precision_restored()
def train(
    recipe: Recipe | str | Path,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    skip_bad: bool = False,
) -> TrainedRun | None:
    """Train a recipe from its seed, evaluate once on the held-out test split, and write the run directory.

    Under `torchrun` every process calls this; the first one writes, and the others return `None` when the training
    is done. `training.per_device_train_batch_size` times the processes (times the accumulation steps) is what one
    optimizer step sees.

    With `optimiser.ema_decay` the averaged weights are evaluated and saved as the model; the last weights themselves
    lie beside them in `last.safetensors`. Of self-supervised training the model is the teacher's encoder, if there is a
    teacher; the student's last weights and the heads lie beside it.

    Args:
        recipe: from `load_recipe`, or what that takes.
        output_dir: the run directory; `runs/<recipe>-seed<seed>` by default.
        overwrite: replace a finished run of that name, once this one is complete, and an unfinished one at once.
        resume: continue from the newest checkpoint of the unfinished run there; from the start if it has none. A
            checkpoint of the last step stands until the evaluation is over, whatever `save_strategy` says. The data may
            have moved. A finished run continues if the recipe is longer and the rest of it would be the same
            (`check_extendable`).
        skip_bad: leave out images that cannot be read; they are named in the metrics.

    Returns:
        The directory and the metrics: those of the task on its test split (for a classifier `accuracy`, 0 to 1, and
        `loss`, nats per image), `seconds` of training, `epochs`, `steps`, `parameters`, `history`, `data`, and how it
        was run.

    Raises:
        ValueError: bad recipe or data, an output directory that is taken, or an unfinished run of another recipe;
            nothing is written then.
        FloatingPointError: loss, gradient or weights are no longer finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
        OSError: the disk is full (`errno.ENOSPC`).
    """
    recipe = located(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    default = Path("runs") / f"{recipe.name}-seed{recipe.training.seed}"
    directory = default if output_dir is None else Path(output_dir).expanduser()
    recipe = decided(recipe, directory if resume else None)
    partial = runs.partial_directory(directory)
    extends = resume and is_finished(directory)
    _check_target(recipe, directory, overwrite, resume)
    if resume and runs.recover(directory):  # it was killed after it was done
        return TrainedRun(directory, runs.read_metrics(directory))
    check_model(recipe)
    keep_freed_memory()
    if recipe.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "logging.tensorboard=true: the tensorboard package is not installed; `pip install opencrate[tensorboard]`,"
            " or leave the option out"
        )
    parts = task_of(recipe.task).build(recipe, skip_bad)
    if resume:
        runs.check_same_data(partial, parts.data)
    arguments = training_arguments(recipe, partial / runs.CHECKPOINTS, validate=parts.validation is not None)
    if arguments.process_index > 0:
        _fit(recipe, parts, arguments, resume)
        return None
    replaces = overwrite or extends
    with disk_errors(partial / runs.CHECKPOINTS), runs.new_directory(directory, replaces, resume) as working:
        if extends and newest(working / runs.CHECKPOINTS) is None:
            take_up(directory, working)
        write_text(working / runs.RECIPE, recipe_yaml(recipe))
        write_json(working / runs.ENVIRONMENT, environment())
        write_json(working / runs.DATA, parts.data)
        parts.processor.save_pretrained(working)
        if recipe.model.starts_whitened:  # the rest of the start follows from the seed
            runs.save_start(working, parts.model)
        metrics, model = _fit(recipe, parts, arguments, resume)
        write_json(working / runs.ENVIRONMENT, environment())  # with what was chosen for this processor
        model.save_pretrained(working)
        task_of(recipe.task).leave(parts, working)
        metrics = {**metrics, **task_of(recipe.task).test(model, parts, recipe), "data": parts.data}
        write_json(working / runs.METRICS, metrics)
        _leave_card(working)
        (working / runs.DATA).unlink()
        if recipe.training.save_strategy == "no":  # there is that of the last step
            shutil.rmtree(working / runs.CHECKPOINTS, ignore_errors=True)
    return TrainedRun(directory, metrics)


def _leave_card(working: Path) -> None:
    """Write the model card. Hours of training are not lost because one cannot be made."""
    try:
        write_card(working)
    except Exception as error:
        logger.warning("no model card was written: %s: %s", type(error).__name__, error)


def _check_target(recipe: Recipe, directory: Path, overwrite: bool, resume: bool) -> None:
    """Refuse, before any data is read, what cannot be written to."""
    if overwrite and resume:
        raise ValueError("resume=True goes on with a run, overwrite=True starts it again: give one of them")
    partial, extends = runs.partial_directory(directory), resume and is_finished(directory)
    text = (recipe.text.path, recipe.text.tokenizer, recipe.glue.path, recipe.glue.tokenizer)
    inputs = (recipe.data.path, recipe.model.init_from, *text)
    runs.check_place(directory, overwrite or extends, resume, inputs)
    if extends and not (partial / runs.RECIPE).is_file():
        check_extendable(directory, recipe)
    if resume:
        runs.check_same_recipe(partial, recipe)


def _fit(
    recipe: Recipe, parts: Parts, arguments: TrainingArguments, resume: bool
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Run the Trainer: the metrics of the training itself, and the model that is to be saved."""
    folder, kind = Path(str(arguments.output_dir)), type(parts.model)
    log = RunLog(folder.parent / runs.LOG)
    trainer = RecipeTrainer(parts, arguments, recipe, log)
    checkpoint = newest(folder) if resume else None
    if checkpoint is not None:
        check_readable(checkpoint)
    if trainer.processes.main:
        _announce(trainer, checkpoint)
        if checkpoint is None:
            log.rewind(0, [])
    trainer.train(checkpoint)
    seconds, main = trainer.seconds, trainer.processes.main
    model = whole_model(parts.model, kind, main)
    if trainer.average:
        if main:
            save_model(model, str(folder.parent / runs.LAST_WEIGHTS), {"format": "pt"})
        trainer.average.copy_to(parts.model)
        model = whole_model(parts.model, kind, main)
    started = {"initialisation": asdict(parts.initialisation)} if parts.initialisation else {}
    metrics = {
        "seconds": round(seconds, 2),
        "epochs": round(trainer.state.epoch, 4),
        "steps": trainer.state.global_step,
        "seed": recipe.training.seed,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "processes": trainer.processes.count,
        "samples_per_step": trainer.samples_per_step,
        "resumed_at": trainer.resumed_at,
        **started,
        "history": log.history,
        **({"white_box": trainer.white_box.to_dict()} if trainer.white_box else {}),
    }
    for callback in trainer.task_callbacks:
        metrics.update(callback.metrics())
    return metrics, model


def _announce(trainer: RecipeTrainer, checkpoint: Path | None) -> None:
    """What a reader of the terminal could not guess."""
    if checkpoint is not None:
        logger.info("resuming at step %d from %s", step_of(checkpoint), checkpoint)
    if (count := trainer.processes.count) > 1:
        size = trainer.args.per_device_train_batch_size
        words = f"{count} processes, {size} samples each: a global batch of {size * count} samples"
        logger.info("%s, %d per optimizer step", words, trainer.samples_per_step)
