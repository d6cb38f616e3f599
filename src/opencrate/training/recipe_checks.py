"""The ranges of a recipe's values: one line each, and one error that names the key, the value and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..data.text.options import check_text_data

if TYPE_CHECKING:
    from .recipe import Recipe

AT_LEAST = {
    "data.num_channels": 1,
    "data.split_seed": 0,
    "augmentation.crop_padding": 0,
    "augmentation.randaugment_ops": 0,
    "augmentation.randaugment_magnitude": 0,
    "augmentation.mixup": 0,
    "augmentation.cutmix": 0,
    "training.seed": 0,
    "training.per_device_train_batch_size": 1,
    "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 0,
    "training.min_learning_rate": 0,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "training.max_grad_norm": 0,
    "training.dataloader_num_workers": 0,
    "training.save_steps": 1,
    "training.srr_weight": 0,
    "training.srr_lambda": 0,
    "training.measure_images": 0,
    "training.measure_every_epochs": 1,
}
BELOW_ONE = (
    "data.test_fraction",
    "data.validation_fraction",
    "training.label_smoothing_factor",
    "training.adam_beta1",
    "training.adam_beta2",
    "training.ema_decay",
)
PROBABILITIES = ("augmentation.flip", "augmentation.erasing")
INTERVALS = {"augmentation.crop_scale": 1.0, "augmentation.crop_ratio": float("inf")}
"""Keys of [least, most] pairs with 0 < least <= most, and the largest `most`."""

READ_BY = {"causal-lm": ("text",), "masked-lm": ("text",), "sentence-classification": ("glue",)}
"""Sections that a task of text reads; those of images read `data` and `augmentation`."""

Where = Callable[[str], str]


def check_values(recipe: Recipe, where: Where) -> None:
    """Refuse a value outside its range.

    Args:
        recipe: typed already.
        where: the file or override that set a dotted key.

    Raises:
        ValueError: the first such value.
    """
    for key, least in AT_LEAST.items():
        _require(recipe_value(recipe, key) >= least, key, f"at least {least}", recipe, where)
    for key in BELOW_ONE:
        _require(0 <= recipe_value(recipe, key) < 1, key, "at least 0 and below 1", recipe, where)
    for key in PROBABILITIES:
        _require(0 <= recipe_value(recipe, key) <= 1, key, "a probability, 0 to 1", recipe, where)
    for key, most in INTERVALS.items():
        limits = recipe_value(recipe, key)
        fits = len(limits) == 2 and 0 < limits[0] <= limits[1] <= most
        bound = f" <= {most:g}" if most < float("inf") else ""
        _require(fits, key, f"[least, most] with 0 < least <= most{bound}", recipe, where)
    fits = recipe.augmentation.randaugment_magnitude <= 30
    _require(fits, "augmentation.randaugment_magnitude", "at most 30", recipe, where)
    if recipe.training.max_steps <= 0:
        key = "training.num_train_epochs"
        _require(recipe.training.num_train_epochs > 0, key, "above 0", recipe, where)
    limit = recipe.training.save_total_limit
    _require(limit is None or limit >= 1, "training.save_total_limit", "at least 1, or null for all", recipe, where)
    _check_sections(recipe, where)
    _check_regulariser(recipe, where)
    _check_images(recipe, where)


def _check_sections(recipe: Recipe, where: Where) -> None:
    """Refuse settings that the task does not read, which would be an error of thought."""
    read = READ_BY.get(recipe.task, ("data", "augmentation"))
    unread = [section for section in ("data", "augmentation", "text", "glue") if section not in read]
    for section in unread:
        given = getattr(recipe, section)
        for name, value in dataclasses.asdict(given).items():
            if value != getattr(type(given)(), name):
                raise ValueError(
                    f"{where(f'{section}.{name}')}: '{section}.{name}' is set, but task {recipe.task} reads nothing "
                    f"of '{section}'; remove it, or change the task"
                )
    if "text" in read:
        check_text_data(recipe.text)


def _check_regulariser(recipe: Recipe, where: Where) -> None:
    training = recipe.training
    _require(training.srr_eps > 0, "training.srr_eps", "above 0", recipe, where)
    fits = 0 < len(training.srr_parts) == len(set(training.srr_parts))
    _require(fits, "training.srr_parts", "one or more of subspace_rate, rate, l1, each once", recipe, where)
    layers = training.srr_layers
    fits = isinstance(layers, str) or (len(layers) > 0 and min(layers) >= 1)
    _require(fits, "training.srr_layers", "all, random, or a list of layers from 1", recipe, where)


def _check_images(recipe: Recipe, where: Where) -> None:
    size = recipe.data.image_size
    fits = size >= 1 if isinstance(size, int) else len(size) == 2 and min(size) >= 1
    _require(fits, "data.image_size", "pixels or [height, width], at least 1", recipe, where)
    channels = recipe.data.num_channels
    for key in ("data.image_mean", "data.image_std"):
        what = f"one value per channel (data.num_channels is {channels})"
        _require(len(recipe_value(recipe, key)) == channels, key, what, recipe, where)
    _require(min(recipe.data.image_std) > 0, "data.image_std", "above 0 for every channel", recipe, where)


def recipe_value(recipe: Recipe, key: str) -> Any:
    """The value of a key `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def _require(fits: bool, key: str, allowed: str, recipe: Recipe, where: Where) -> None:
    if not fits:
        raise ValueError(f"{where(key)}: '{key}' must be {allowed}; got {recipe_value(recipe, key)}")
