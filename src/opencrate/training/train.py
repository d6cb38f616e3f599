"""Train one recipe and leave a complete run directory."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from ..analysis.evaluation import Evaluation, evaluate_classifier
from ..configuration_crate import pair
from ..data.fingerprint import fingerprint
from ..data.labelled import cells_of
from ..data.sources import ImageSplits, load_images
from ..data.tensors import ImageTransform, in_batches, to_tensors
from ..data.training_images import TrainingImages
from . import runs
from .allocator import keep_freed_memory
from .callbacks import RunLog
from .checkpoints import disk_errors, newest, step_of
from .initialisation import Initialisation, start_model
from .models import build_config, build_processor
from .recipe import Recipe, recipe_yaml
from .regulariser import check_regulariser
from .saved import log_skipped
from .trainer import ImageTrainer, training_arguments
from .whitebox_callback import MeasuredImages, measured_images
from .whitening import NUM_IMAGES, whiten_patches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What `train` leaves: where it lies, and its metrics as in `metrics.json`."""

    directory: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Parts:
    """Everything that a recipe stands for, built and checked before anything is written."""

    model: PreTrainedModel
    initialisation: Initialisation | None
    processor: Any
    splits: ImageSplits
    train: Dataset
    validation: Dataset | None
    test: Dataset
    measured: MeasuredImages | None


def default_run_directory(recipe: Recipe) -> Path:
    """`runs/<recipe>-seed<seed>`."""
    return Path("runs") / f"{recipe.name}-seed{recipe.training.seed}"


def train(
    recipe: Recipe,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    skip_bad: bool = False,
) -> TrainedRun | None:
    """Train a recipe from its seed, evaluate once on the held-out test images, and write the run directory.

    Under `torchrun` every process calls this; the first one writes, and the others return `None` when the training
    is done. `training.per_device_train_batch_size` times the processes (times the accumulation steps) is what one
    optimizer step sees.

    With `training.ema_decay` the averaged weights are evaluated and saved as the model; the last weights themselves
    lie beside them in `last.safetensors`.

    Args:
        recipe: from `load_recipe`.
        output_dir: the run directory; `runs/<recipe>-seed<seed>` by default.
        overwrite: replace a finished run of that name, once this one is complete, and an unfinished one at once.
        resume: go on from the newest checkpoint of the unfinished run in that place; from the start if it has none.
        skip_bad: leave out images that cannot be read; they are named in the metrics.

    Returns:
        The directory and the metrics: `accuracy` (0 to 1) and `loss` (nats per image) on the test images,
        `seconds` of training, `epochs`, `steps`, `parameters`, `history`, `test`, `data`, and how it was run.

    Raises:
        ValueError: bad recipe or data, an output directory that is taken, or an unfinished run of another recipe;
            nothing is written then.
        FloatingPointError: loss, gradient or weights are no longer finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
        OSError: the disk is full (`errno.ENOSPC`).
    """
    directory = Path(output_dir) if output_dir is not None else default_run_directory(recipe)
    partial = runs.partial_directory(directory)
    _check_target(recipe, directory, overwrite, resume)
    keep_freed_memory()
    parts = _build(recipe, skip_bad)
    arguments = training_arguments(recipe.training, partial / runs.CHECKPOINTS, validate=parts.validation is not None)
    if arguments.process_index > 0:
        _fit(recipe, parts, arguments, resume)
        return None
    with disk_errors(partial / runs.CHECKPOINTS), runs.new_directory(directory, overwrite, resume) as working:
        runs.write_text(working / runs.RECIPE, recipe_yaml(recipe))
        runs.write_json(working / runs.ENVIRONMENT, runs.environment())
        parts.processor.save_pretrained(working)
        if _whitens(recipe):  # the rest of the start follows from the seed
            runs.save_start(working, parts.model)
        metrics = _fit(recipe, parts, arguments, resume)
        parts.model.save_pretrained(working)
        test = evaluate_split(parts.model, parts.test, recipe)
        metrics = {
            "accuracy": test.top1,
            "loss": test.loss,
            **metrics,
            "test": test.to_dict(),
            "data": _fingerprints(parts.splits),
        }
        runs.write_json(working / runs.METRICS, metrics)
        if recipe.training.save_strategy == "no":  # there is one if the run was interrupted
            shutil.rmtree(working / runs.CHECKPOINTS, ignore_errors=True)
    return TrainedRun(directory, metrics)


def _check_target(recipe: Recipe, directory: Path, overwrite: bool, resume: bool) -> None:
    """Refuse, before any data is read, what cannot be written to."""
    if overwrite and resume:
        raise ValueError("--resume goes on with a run, --overwrite starts it again: give one of them")
    runs.check_free(directory, overwrite)
    if resume:
        runs.check_same_recipe(runs.partial_directory(directory), recipe)


def evaluate_split(model: PreTrainedModel, split: Dataset, recipe: Recipe) -> Evaluation:
    """Accuracy, loss and confusion of a model on one split, with the recipe's evaluation batch size."""
    training = recipe.training
    batches = in_batches(split, training.per_device_eval_batch_size, training.dataloader_num_workers)
    return evaluate_classifier(model, batches)


def _build(recipe: Recipe, skip_bad: bool) -> _Parts:
    if recipe.training.tensorboard:
        _require_tensorboard()
    splits = load_images(recipe.data, skip_bad, _patch(recipe) if skip_bad else (1, 1))
    log_skipped(splits.skipped)
    processor = build_processor(recipe.data)
    model, initialisation = start_model(recipe, splits.label_names)
    check_regulariser(model.config, recipe.training)
    transform = ImageTransform.for_model(model.config, processor)
    count = recipe.training.measure_images if model.config.model_type == "crate" else 0
    if _whitens(recipe):
        rows = range(0, len(splits.train), max(1, len(splits.train) // NUM_IMAGES))
        whiten_patches(model, transform(cells_of(splits.train, rows)), recipe.training.seed)
    return _Parts(
        model=model,
        initialisation=initialisation,
        processor=processor,
        splits=splits,
        train=TrainingImages(splits.train, transform, recipe.augmentation),
        validation=None if splits.validation is None else to_tensors(splits.validation, transform),
        test=to_tensors(splits.test, transform),
        measured=measured_images(splits, transform, count) if count else None,
    )


def _require_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "training.tensorboard=true: the tensorboard package is not installed; `pip install opencrate[tensorboard]`,"
            " or leave the option out"
        )


def _whitens(recipe: Recipe) -> bool:
    return recipe.model.whiten_patches and recipe.model.init_from is None


def _fit(recipe: Recipe, parts: _Parts, arguments: TrainingArguments, resume: bool) -> dict[str, Any]:
    """Run the Trainer, leave the weights to be saved in the model; the metrics of the training itself."""
    folder = Path(arguments.output_dir)
    log = RunLog(folder.parent / runs.LOG)
    trainer = ImageTrainer(parts.model, arguments, parts.train, parts.validation, recipe, log, parts.measured)
    checkpoint = newest(folder) if resume else None
    if trainer.processes.main:
        _announce(trainer, checkpoint)
        if checkpoint is None:
            log.rewind(0, [])
    trainer.train(checkpoint)
    seconds = trainer.seconds
    if trainer.average:
        if trainer.processes.main:
            save_model(parts.model, str(folder.parent / runs.LAST_WEIGHTS), {"format": "pt"})
        trainer.average.copy_to(parts.model)
    started = {"initialisation": parts.initialisation.to_dict()} if parts.initialisation else {}
    return {
        "seconds": round(seconds, 2),
        "epochs": round(trainer.state.epoch, 4),
        "steps": trainer.state.global_step,
        "seed": recipe.training.seed,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "processes": trainer.processes.count,
        "images_per_step": trainer.images_per_step,
        "resumed_at": trainer.resumed_at,
        **started,
        "history": log.history,
        **({"white_box": trainer.white_box.to_dict()} if trainer.white_box else {}),
    }


def _patch(recipe: Recipe) -> tuple[int, int]:
    """(height, width) of the model's patches: smaller images are bad."""
    return pair(getattr(build_config(recipe, ["one", "other"]), "patch_size", 1))


def _announce(trainer: ImageTrainer, checkpoint: Path | None) -> None:
    """What a reader of the terminal could not guess."""
    if checkpoint is not None:
        logger.info("resuming at step %d from %s", step_of(checkpoint), checkpoint)
    if trainer.processes.count > 1:
        size = trainer.args.per_device_train_batch_size
        logger.info(
            "%d processes, %d images each: a global batch of %d images, %d per optimizer step",
            trainer.processes.count,
            size,
            size * trainer.processes.count,
            trainer.images_per_step,
        )


def _fingerprints(splits: ImageSplits) -> dict[str, Any]:
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found: dict[str, Any] = {name: fingerprint(split) for name, split in parts.items() if split is not None}
    return {**found, "skipped": list(splits.skipped)} if splits.skipped else found
