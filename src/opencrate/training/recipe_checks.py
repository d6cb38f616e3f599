"""What the values of a recipe must be to each other; the range of each one stands in the schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._values import field_error
from ..data.text.options import check_text_data

if TYPE_CHECKING:
    from .recipe import Recipe

READ_BY = {"causal-lm": ("text",), "masked-lm": ("text",), "sentence-classification": ("glue",)}
"""Sections that a task of text reads; those of images read `data` and `augmentation`."""

Where = Callable[[str], str]


def check_values(recipe: Recipe, where: Where) -> None:
    """Refuse a value that does not fit the others.

    Args:
        recipe: each value of its type and in its range already.
        where: the file or override that set a dotted key.

    Raises:
        ValueError: the first such value.
    """
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
    fits = 0 < len(training.srr_parts) == len(set(training.srr_parts))
    _require(fits, "training.srr_parts", "one or more of subspace_rate, rate, l1, each once", recipe, where)
    layers = training.srr_layers
    _require(len(layers) > 0, "training.srr_layers", "all, random, or a list of layers from 1", recipe, where)


def _check_images(recipe: Recipe, where: Where) -> None:
    size = recipe.data.image_size
    fits = isinstance(size, int) or len(size) == 2
    _require(fits, "data.image_size", "pixels or [height, width]", recipe, where)
    channels = recipe.data.num_channels
    for key in ("data.image_mean", "data.image_std"):
        what = f"a list of one value per channel (data.num_channels is {channels})"
        _require(len(recipe_value(recipe, key)) == channels, key, what, recipe, where)
    for key in ("augmentation.crop_scale", "augmentation.crop_ratio"):
        limits = recipe_value(recipe, key)
        fits = len(limits) == 2 and limits[0] <= limits[1]
        _require(fits, key, "[least, most] with least <= most", recipe, where)


def recipe_value(recipe: Recipe, key: str) -> Any:
    """The value of a key `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def _require(fits: bool, key: str, allowed: str, recipe: Recipe, where: Where) -> None:
    if not fits:
        raise field_error(f"{where(key)}: '{key}'", recipe_value(recipe, key), allowed)
