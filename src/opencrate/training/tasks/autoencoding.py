"""Images, with or without labels, and a masked autoencoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_crate import pair
from ...data.images.masks import MaskedImages, MaskedTrainingImages
from ...data.images.sources import load_images
from ...evaluation.masked import evaluate_autoencoder
from ...recipe.schema import ENCODERS, Recipe, recipe_value
from ...store.build import build_config
from ..losses import penalty
from .base import Batch, Parts, Task, held_out_batches
from .classification import image_parts

_FOR_CLASSIFIERS = (
    *("augmentation.mixup", "augmentation.cutmix"),
    *("training.label_smoothing_factor", "regulariser.weight"),
)
"""Keys that are for classifiers alone; 0 is off."""


class MaskedAutoencoding(Task):
    """A masked autoencoder's own loss: squared error on the patches that it did not see. Labels are not used.

    What is masked follows from (seed, epoch, image) in training, and from the image alone in validation and test.
    """

    def build(self, recipe: Recipe, skip_bad: bool) -> Parts:
        _check_recipe(recipe)
        config = build_config(recipe)
        num_patches = check_masking(config)
        smallest = pair(config.patch_size) if skip_bad else (1, 1)
        splits = load_images(recipe.data, skip_bad, smallest, labelled=False)
        parts = image_parts(recipe, splits, config)
        held_out = {"validation": parts.validation, "test": parts.test}
        masked = {name: MaskedImages(split, num_patches) for name, split in held_out.items() if split is not None}
        return replace(parts, train=MaskedTrainingImages(parts.train, num_patches), **masked)

    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        outputs = model(pixel_values=batch["pixel_values"], noise=batch["noise"], **recorded)
        pixels = outputs.loss - penalty(model)  # which the trainer adds for every task
        return pixels * self.count(batch), outputs

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        outputs = model(pixel_values=batch["pixel_values"], noise=batch["noise"])
        count = self.count(batch)
        return {"count": count, "loss": (outputs.loss - penalty(model)).item() * count}

    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        batches = held_out_batches(parts.test, recipe)
        mean, std = parts.processor.image_mean, parts.processor.image_std
        sums = self.sums_of(model, batches)
        return {**self.metrics(sums), "test": evaluate_autoencoder(model, batches, mean, std).to_dict()}

    def outcome(self, metrics: dict[str, Any]) -> str:
        test = metrics["test"]
        where = f"on {test['num_images']:,} test images"
        if "error_model" not in test:
            return f"loss {metrics['loss']:.4f}, PSNR {test['psnr']['mean']:.2f} dB {where}"
        error, colour, nearest = (test[f"error_{name}"]["mean"] for name in ("model", "mean_colour", "nearest_visible"))
        baselines = f"mean colour {colour:.4f}, nearest visible patch {nearest:.4f}"
        return f"loss {metrics['loss']:.4f}, masked-patch error {error:.4f} ({baselines}) {where}"


def check_masking(config: PreTrainedConfig) -> int:
    """The number of patches of an image; `ValueError` unless the configuration masks some and shows some."""
    (height, width), (rows, columns) = pair(config.image_size), pair(config.patch_size)
    total, ratio = (height // rows) * (width // columns), config.mask_ratio
    if not 0 <= ratio < 1:
        raise ValueError(f"model.config.mask_ratio={ratio:g}: must be at least 0 and less than 1")
    visible = int(total * (1 - ratio))
    if visible == 0:
        raise ValueError(f"model.config.mask_ratio={ratio:g}: masks all {total} patches of an image; lower it")
    if visible == total and getattr(config, "loss_on", "masked") == "masked":
        raise ValueError(
            f"model.config.mask_ratio={ratio:g}: masks none of the {total} patches of an image, so there is no loss on "
            "masked patches; raise it" + (", or set model.config.loss_on=all" if hasattr(config, "loss_on") else "")
        )
    return total


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what does not fit the task, before anything is read."""
    if recipe.model.type not in ENCODERS:
        raise ValueError(
            f"model.type={recipe.model.type}: task {recipe.task} trains masked autoencoders; give "
            f"{' or '.join(ENCODERS)}"
        )
    for key in _FOR_CLASSIFIERS:
        if value := recipe_value(recipe, key):
            raise ValueError(f"{key}={value:g}: is for classifiers, not for task {recipe.task}; set it to 0")
