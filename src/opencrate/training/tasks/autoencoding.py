"""Images, with or without labels, and a masked autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from ...configuration_crate import pair
from ...data.images.labelled import cells_of
from ...data.images.masks import MaskedImages, MaskedTrainingImages
from ...data.images.sources import load_images
from ...data.images.tensors import ImageTransform, in_batches, to_tensors
from ...data.images.training import TrainingImages
from ...evaluation.inputs import evaluating, place
from ...evaluation.masked import evaluate_autoencoder
from ...recipe.schema import ENCODERS, Recipe
from ...store.build import build_config, build_processor
from ...store.inputs import log_skipped
from ...store.start import start_model
from ..losses import penalty
from ..whitebox_callback import measured_images
from ..whitening import NUM_IMAGES, starts_whitened, whiten_patches
from .base import Parts, Task, add_up
from .classification import fingerprints

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
        log_skipped(splits.skipped)
        processor = build_processor(recipe.data)
        model, initialisation = start_model(recipe, config)
        transform = ImageTransform.for_model(config, processor)
        count = recipe.logging.measure_inputs if config.model_type == "crate_mae" else 0
        if starts_whitened(recipe.model):
            rows = range(0, len(splits.train), max(1, len(splits.train) // NUM_IMAGES))
            whiten_patches(model, transform(cells_of(splits.train, rows)), recipe.training.seed)
        train = TrainingImages(splits.train, transform, recipe.augmentation)
        return Parts(
            model=model,
            initialisation=initialisation,
            processor=processor,
            train=MaskedTrainingImages(train, num_patches),
            validation=None if splits.validation is None else _fixed(splits.validation, transform, num_patches),
            test=_fixed(splits.test, transform, num_patches),
            measured=measured_images(splits, transform, count) if count else None,
            data=fingerprints(splits),
        )

    def count(self, batch: dict[str, Tensor]) -> int:
        return len(batch["pixel_values"])

    def loss_sum(
        self, model: nn.Module, batch: dict[str, Tensor], recipe: Recipe, recorded: dict[str, bool]
    ) -> tuple[Tensor, Any]:
        outputs = model(pixel_values=batch["pixel_values"], noise=batch["noise"], **recorded)
        pixels = outputs.loss - penalty(getattr(model, "module", model))  # which the trainer adds for every task
        return pixels * self.count(batch), outputs

    def sums(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
        outputs = model(pixel_values=batch["pixel_values"], noise=batch["noise"])
        count = self.count(batch)
        return {"count": count, "loss": (outputs.loss - penalty(getattr(model, "module", model))).item() * count}

    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        training = recipe.training
        batches = in_batches(parts.test, training.per_device_eval_batch_size, training.dataloader_num_workers)
        with evaluating(model):
            placed = ({name: place(value, model) for name, value in batch.items()} for batch in batches)
            sums = add_up(self.sums(model, batch) for batch in placed)
        mean, std = parts.processor.image_mean, parts.processor.image_std
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
    """The number of patches of an image, once the configuration masks some and shows some.

    Raises:
        ValueError: a mask ratio that does not.
    """
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
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        if value:
            raise ValueError(f"{key}={value:g}: is for classifiers, not for task {recipe.task}; set it to 0")


def _fixed(split: Any, transform: ImageTransform, num_patches: int) -> Dataset:
    return MaskedImages(to_tensors(split, transform), num_patches)
