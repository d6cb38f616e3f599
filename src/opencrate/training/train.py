"""Train one recipe and leave a complete run directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..analysis.evaluation import Evaluation, evaluate_classifier
from ..data.fingerprint import fingerprint
from ..data.sources import ImageSplits, load_images
from ..data.tensors import ImageTransform, in_batches, to_tensors
from . import runs
from .models import build_config, build_processor, initialise
from .recipe import Recipe, recipe_yaml
from .trainer import ImageTrainer, RunLog, training_arguments


@dataclass(frozen=True)
class TrainedRun:
    """What `train` leaves: where it lies, and its metrics as in `metrics.json`."""

    directory: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Parts:
    """Everything that a recipe stands for, built and checked before anything is written."""

    model: PreTrainedModel
    processor: Any
    splits: ImageSplits
    train: Dataset
    validation: Dataset | None
    test: Dataset


def default_run_directory(recipe: Recipe) -> Path:
    """`runs/<recipe>-seed<seed>`."""
    return Path("runs") / f"{recipe.name}-seed{recipe.training.seed}"


def train(recipe: Recipe, output_dir: str | Path | None = None, overwrite: bool = False) -> TrainedRun:
    """Train a recipe from its seed, evaluate once on the held-out test images, and write the run directory.

    Args:
        recipe: from `load_recipe`.
        output_dir: the run directory; `runs/<recipe>-seed<seed>` by default.
        overwrite: replace a finished run of that name, once this one is complete.

    Returns:
        The directory and the metrics: `accuracy` (0 to 1) and `loss` (nats per image) on the test images,
        `seconds` of training, `epochs`, `steps`, `parameters`, `history`, `test`, `data`.

    Raises:
        ValueError: bad recipe or data, or an output directory that is taken; nothing is written then.
        FloatingPointError: the loss is no longer finite.
    """
    directory = Path(output_dir) if output_dir is not None else default_run_directory(recipe)
    runs.check_free(directory, overwrite)
    parts = _build(recipe)
    with runs.new_directory(directory, overwrite) as working:
        runs.write_text(working / runs.RECIPE, recipe_yaml(recipe))
        runs.write_json(working / runs.ENVIRONMENT, runs.environment())
        parts.processor.save_pretrained(working)
        metrics = _fit(recipe, parts, working)
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
        _remove_empty(working / runs.CHECKPOINTS)
    return TrainedRun(directory, metrics)


def evaluate_split(model: PreTrainedModel, split: Dataset, recipe: Recipe) -> Evaluation:
    """Accuracy, loss and confusion of a model on one split, with the recipe's evaluation batch size."""
    training = recipe.training
    batches = in_batches(split, training.per_device_eval_batch_size, training.dataloader_num_workers)
    return evaluate_classifier(model, batches)


def _build(recipe: Recipe) -> _Parts:
    splits = load_images(recipe.data)
    config = build_config(recipe, splits.label_names)
    processor = build_processor(recipe.data)
    transform = ImageTransform.for_model(config, processor)
    return _Parts(
        model=initialise(config, recipe.training.seed),
        processor=processor,
        splits=splits,
        train=to_tensors(splits.train, transform),
        validation=None if splits.validation is None else to_tensors(splits.validation, transform),
        test=to_tensors(splits.test, transform),
    )


def _fit(recipe: Recipe, parts: _Parts, working: Path) -> dict[str, Any]:
    """Run the Trainer; the metrics of the training itself."""
    arguments = training_arguments(recipe.training, working / runs.CHECKPOINTS, validate=parts.validation is not None)
    log = RunLog(working / runs.LOG)
    trainer = ImageTrainer(parts.model, arguments, parts.train, parts.validation)
    trainer.add_callback(log)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "epochs": round(trainer.state.epoch, 4),
        "steps": trainer.state.global_step,
        "seed": recipe.training.seed,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "history": log.history,
    }


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _fingerprints(splits: ImageSplits) -> dict[str, Any]:
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: fingerprint(split) for name, split in parts.items() if split is not None}
