"""The places that a recipe names, so that a run can be read from any working directory and after it was moved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .._files import HUB_PREFIX
from .._weights import is_packaged_name
from ..data.text.options import TRAINED
from .schema import READ_BY, Recipe, recipe_value

_PLACES: dict[str, tuple[str, ...]] = {
    "model.init_from": (),
    "data.path": ("digits",),
    "text.path": ("stdlib",),
    "text.tokenizer": TRAINED,
    "glue.path": (),
    "glue.tokenizer": TRAINED,
}
"""Keys that name a file or a folder, and the words that are none."""
_MODELS = ("model.init_from", "text.tokenizer", "glue.tokenizer")
"""Those that may name an installed model instead, as `opencrate/digits`."""


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, which mean the same in every working directory."""
    read = ("model", *READ_BY[recipe.task])
    for key in _PLACES:
        section, name = key.split(".")
        value = recipe_value(recipe, key)
        if section in read and value is not None:
            changed = dataclasses.replace(getattr(recipe, section), **{name: absolute(key, value)})
            recipe = dataclasses.replace(recipe, **{section: changed})
    return recipe


def absolute(key: str, place: str) -> str:
    """An absolute path of a place that a key names; words, and names of models and of the Hub, stay as they are."""
    named = key in _MODELS and is_packaged_name(place)
    if named or place in _PLACES[key] or place.startswith(HUB_PREFIX):
        return place
    return str(Path(place).expanduser().absolute())


def same_place(key: str, one: str, other: str) -> bool:
    """Whether two values of a key name the same place, however they say it."""
    return one == other or len({Path(absolute(key, place)).resolve() for place in (one, other)}) == 1
