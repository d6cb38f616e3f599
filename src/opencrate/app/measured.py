"""Inputs that layers are measured on, and the tabs that measure them: two models, or one that was uploaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..analysis.layers.analyze import analyze
from ..export.samples import photographs
from ..reports import tables
from ..reports.html import Part, Table
from ..reports.layers import curves
from ..reports.whitebox import page
from ..stats.words import percent, plural
from ..store.saved import SavedModel
from .images import probabilities
from .texts import MAX_CHARACTERS
from .uploads import opened_model, read_picture

PHOTOGRAPHS = 16
_BLOCK, _BLOCKS = 64, 32


def compare(
    models: Sequence[tuple[str, SavedModel]], file: str | None = None, text: str | None = None
) -> tuple[Part, ...]:
    """Two models side by side on one picture or one text: what they say, and what their layers do.

    Args:
        models: two, each with its name for readers.
        file: an uploaded picture, for models that read images.
        text: for models that read texts.

    Raises:
        ValueError: the same model twice, models that read different things, or as the inputs are read.
    """
    (first, one), (second, other) = models
    if first == second:
        raise ValueError(f"model: {first} twice; choose two models")
    if one.reads != other.reads:
        raise ValueError(f"{first} reads {one.reads}, {second} reads {other.reads}; choose two that read the same")
    boxes, pixels = {}, {}
    for name, saved in models:
        if saved.reads == "images":
            picture = read_picture(saved, file)
            pixels[name] = saved.transform.processor(images=[picture], return_tensors="pt")["pixel_values"]
            inputs: Any = pixels[name]
        else:
            inputs = text_blocks(saved, text or "")
        boxes[name] = analyze(saved.model, inputs, name=name)
    tables_ = [_facts(models)]
    if all(saved.kind == "classifier" for _, saved in models):
        tables_.append(_classes(models, pixels))
    note = "Each model's R^c is taken against subspaces of its own: compare how it moves over the layers, not its size."
    return (Part("Two models", (), tuple(tables_)), Part("Layers", (note,), curves(boxes)))


def _facts(models: Sequence[tuple[str, SavedModel]]) -> Table:
    """What the models are."""
    rows = (
        {
            "model": name,
            "class": type(saved.model).__name__,
            "layers": str(getattr(saved.model.config, "num_hidden_layers", "–")),
            "width": str(getattr(saved.model.config, "hidden_size", "–")),
            "parameters": f"{saved.num_parameters / 1e6:.2f} M",
        }
        for name, saved in models
    )
    return Table("What they are", tables.frame(rows))


def _classes(models: Sequence[tuple[str, SavedModel]], pixels: dict[str, Tensor]) -> Table:
    """The classes that they say, most probable first."""
    said = [probabilities(saved, pixels[name]) for name, saved in models]
    rows = [
        {
            "": f"{place}.",
            **{
                name: f"{label} ({percent(value)})"
                for (name, _), (label, value) in zip(models, (tuple(found.items())[place - 1] for found in said))
            },
        }
        for place in range(1, min(map(len, said)) + 1)
    ]
    return Table("What they say", tables.frame(rows))


def analyze_upload(files: Sequence[str] | None, text: str, limit: int) -> tuple[Part, ...]:
    """The white-box report of a model that was uploaded, as `opencrate analyze` makes it.

    A model of images is measured on crops of two photographs, one of texts on a text. Its files are deleted after that.

    Args:
        files: a zip file of a saved folder, or its files.
        text: for a model of texts.
        limit: bytes of the model's files.

    Raises:
        ValueError: as `uploads.opened_model`; a model of an unknown type, or a text that is too short.
    """
    with opened_model(files, limit) as saved:
        name = str(saved.model.config.model_type)
        if saved.reads == "images":
            inputs: Any = torch.stack([one["pixel_values"] for one in photographs(saved, PHOTOGRAPHS)])
            words = f"{PHOTOGRAPHS} crops of two photographs"
        else:
            inputs = text_blocks(saved, text)
            words = f"{plural(len(inputs), 'block')} of {inputs.shape[1]} tokens of the text"
        report = page(analyze(saved.model, inputs, name=name))
        model = f"{type(saved.model).__name__}, {saved.num_parameters / 1e6:.1f} M parameters"
        sentences = (f"{model}, measured on {words}.", *report.summary)
    return (Part("In short", sentences), *report.parts)


def text_blocks(saved: SavedModel, text: str) -> Tensor:
    """A text's tokens in blocks of at most 64, int64 `(blocks, N)`; what fills no block is left out.

    Raises:
        ValueError: a text of more than 20,000 characters or fewer than 8 tokens.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"text: has {len(text):,} characters, more than {MAX_CHARACTERS:,}; shorten it")
    ids = saved.tokenizer(text)["input_ids"]
    size = min(_BLOCK, saved.context, max(8, len(ids) // 4))
    count = min(_BLOCKS, len(ids) // size)
    if count == 0:
        raise ValueError(f"text: has {len(ids)} tokens, fewer than {size}; give a longer one")
    return torch.tensor(ids[: count * size]).view(count, size)
