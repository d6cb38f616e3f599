"""The places that a recipe names, so that a run can be read from any working directory and after it was moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    return _with_places(recipe, absolute)


def portable(recipe: Recipe) -> Recipe:
    """The recipe for somebody else's machine: a word in capitals, as PATH, in the place of each absolute path."""
    return _with_places(recipe, lambda key, place: _word(key) if Path(place).is_absolute() else place)


def missing_places(recipe: Recipe) -> dict[str, str]:
    """The keys for which `portable` leaves a word, with that word."""
    places = {key: recipe_value(recipe, key) for key in _read_places(recipe)}
    return {key: _word(key) for key, place in places.items() if place is not None and Path(place).is_absolute()}


def _word(key: str) -> str:
    return key.rpartition(".")[2].upper()


def _read_places(recipe: Recipe) -> list[str]:
    """The keys of places in the sections that the recipe's task reads."""
    read = ("model", *READ_BY[recipe.task])
    return [key for key in _PLACES if key.partition(".")[0] in read]


def _with_places(recipe: Recipe, place_of: Callable[[str, str], str]) -> Recipe:
    """The recipe with each place exchanged for what `place_of` makes of the key and it."""
    for key in _read_places(recipe):
        section, name = key.split(".")
        value = recipe_value(recipe, key)
        if value is not None:
            changed = dataclasses.replace(getattr(recipe, section), **{name: place_of(key, value)})
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
