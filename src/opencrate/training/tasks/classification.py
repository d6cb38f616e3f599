"""Labelled images and a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_crate import pair
from ...data.fingerprint import fingerprint
from ...data.images.labelled import cells_of
from ...data.images.sources import ImageSplits, load_images
from ...data.images.tensors import ImageTransform, to_tensors
from ...data.images.training import TrainingImages
from ...evaluation.classifier import Evaluation, evaluate_classifier
from ...recipe.schema import Recipe
from ...store.build import build_config, build_processor
from ...store.inputs import log_skipped
from ...store.start import start_model
from ..losses import cross_entropy_sum
from ..regulariser import check_regulariser
from ..whitebox_callback import measured_images
from ..whitening import NUM_IMAGES, whiten_patches
from .base import Batch, Parts, Task, held_out_batches


class ImageClassification(Task):
    """Cross-entropy of a transformers image classifier."""

    def build(self, recipe: Recipe, skip_bad: bool) -> Parts:
        splits = load_images(recipe.data, skip_bad, patch_of(recipe) if skip_bad else (1, 1))
        config = build_config(recipe, splits.label_names)
        check_regulariser(config, recipe.regulariser)
        return image_parts(recipe, splits, config)

    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        outputs = model(pixel_values=batch["pixel_values"], **recorded)
        smoothing = recipe.training.label_smoothing_factor
        return cross_entropy_sum(outputs.logits, batch["labels"], smoothing), outputs

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        logits, labels = model(pixel_values=batch["pixel_values"]).logits, batch["labels"]
        correct = (logits.argmax(-1) == labels).sum().item()
        return {"count": len(labels), "accuracy": correct, "loss": cross_entropy_sum(logits, labels).item()}

    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        found = evaluate_split(model, parts.test, recipe)
        return {"accuracy": found.top1, "loss": found.loss, "test": found.to_dict()}

    def outcome(self, metrics: dict[str, Any]) -> str:
        return f"accuracy {100 * metrics['accuracy']:.2f} % on {metrics['test']['num_images']:,} test images"


def image_parts(recipe: Recipe, splits: ImageSplits, config: PreTrainedConfig) -> Parts:
    """The parts of a model of images, without masks."""
    start = start_images(recipe, splits, config)
    return Parts(
        **start.fields,
        train=TrainingImages(splits.train, start.transform, recipe.augmentation),
        validation=None if splits.validation is None else to_tensors(splits.validation, start.transform),
        test=to_tensors(splits.test, start.transform),
    )


@dataclass(frozen=True)
class ImageStart:
    """What the tasks of images have in common: fields of `Parts`, and how an image becomes a tensor."""

    fields: dict[str, Any]
    transform: ImageTransform


def start_images(recipe: Recipe, splits: ImageSplits, config: PreTrainedConfig) -> ImageStart:
    """A model of images before its first step, with whitened patches if the recipe says so."""
    log_skipped(splits.skipped)
    processor = build_processor(recipe.data)
    model, initialisation = start_model(recipe, config)
    transform = ImageTransform.for_model(config, processor)
    count = recipe.logging.measure_inputs if config.model_type in ("crate", "crate_mae") else 0
    if recipe.model.starts_whitened:
        rows = range(0, len(splits.train), max(1, len(splits.train) // NUM_IMAGES))
        whiten_patches(model, transform(cells_of(splits.train, rows)), recipe.training.seed)
    fields = {
        "model": model,
        "initialisation": initialisation,
        "processor": processor,
        "measured": measured_images(splits, transform, count) if count else None,
        "data": fingerprints(splits),
    }
    return ImageStart(fields, transform)


def evaluate_split(model: PreTrainedModel, split: Any, recipe: Recipe) -> Evaluation:
    """Accuracy, loss and confusion of a model on one split."""
    return evaluate_classifier(model, held_out_batches(split, recipe))


def fingerprints(splits: ImageSplits) -> dict[str, Any]:
    """What the splits hold, and the images that were left out."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found: dict[str, Any] = {name: fingerprint(split) for name, split in parts.items() if split is not None}
    return {**found, "skipped": list(splits.skipped)} if splits.skipped else found


def patch_of(recipe: Recipe) -> tuple[int, int]:
    """(height, width) of the model's patches: smaller images are bad."""
    return pair(getattr(build_config(recipe, ["one", "other"]), "patch_size", 1))
