"""Which text a language model is looked at on: one that is named, or what its run held out."""

from __future__ import annotations

from pathlib import Path

from ..data.text.documents import Documents
from ..data.text.load import divided
from ..data.text.options import TextData
from ..data.text.sources import read_parts
from . import runs

LANGUAGE_TASKS = ("causal-lm", "masked-lm")


def documents_of(model: str, text: TextData | None) -> Documents:
    """The test part of a text, else its validation part, else all of it; without a text, what a run held out.

    Args:
        model: a run directory, or another model where `text` is given.
        text: what to read; `None` is the run's own.

    Raises:
        ValueError: no text given and none known, or a source that is missing, empty or cannot be read.
    """
    if text is None:
        parts, wanted = divided(_own_text(model)), ("test", "validation")
    else:
        parts, wanted = read_parts(text), ("test", "validation", "all", "train")
    for part in wanted:
        if part in parts:
            return parts[part]
    raise ValueError(f"{model}: held no text out; say on what by --text TEXT")


def _own_text(model: str) -> TextData:
    """The text of a language run's recipe."""
    if (Path(model).expanduser() / runs.RECIPE).is_file():
        recipe = runs.read_recipe(model)
        if recipe.task in LANGUAGE_TASKS:
            return recipe.text
    raise ValueError(f"{model}: not a run of a language model, so it names no text; say on what by --text TEXT")
