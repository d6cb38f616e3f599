"""A model as one traced graph: tensors in, tensors out, free in the batch, the image size and the length of a text."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..blocks import compressions, release_constraints
from ..configuration_crate import pair
from ..store.saved import SavedModel

OUTPUTS = ("logits", "last_hidden_state", "pooler_output")
"""What a graph returns of a model's outputs: the logits alone where there are any."""
_TEXT = ("input_ids", "attention_mask")
_FEW = 2  # torch makes an axis of length 0 or 1 a constant, so none that is to be free may have it


class Graph(nn.Module):
    """A model as a function of tensors alone.

    Attributes:
        inputs: names of the arguments, in order.
        outputs: names of what is returned, in order.
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.options: dict[str, Any] = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Float32 outputs, in the order of `outputs`."""
        found = self.model(**dict(zip(self.inputs, tensors)), **self.options)
        return tuple(getattr(found, name) for name in self.outputs)


@dataclass(frozen=True)
class Shapes:
    """Which axes of a graph are free.

    Attributes:
        patch: (height, width) of what the image size is a multiple of; `None` for texts.
        size: (height, width) of the only images that the graph takes; `None` where any multiple of the patch is.
        length: the most tokens of a text; `None` where there is no such limit.
    """

    patch: tuple[int, int] | None
    size: tuple[int, int] | None = None
    length: int | None = None

    def axes(self, inputs: tuple[str, ...]) -> tuple[dict[int, Any], ...]:
        """For each input, the free axes as `torch.export` takes them."""
        if self.patch is None:
            return ({0: Dim("batch"), 1: Dim("length", max=self.length)},) * len(inputs)
        image: dict[int, Any] = {0: Dim.DYNAMIC}
        noise: dict[int, Any] = {0: Dim.DYNAMIC}
        if self.size is None:
            names = zip((2, 3), self.patch, ("rows", "columns"))
            image |= {axis: Dim(name) if step == 1 else step * Dim(name) for axis, step, name in names}
            noise |= {1: Dim.DYNAMIC}
        return (image, noise)[: len(inputs)]


def graph_of(saved: SavedModel, example: Mapping[str, Tensor]) -> Graph:
    """The graph of a saved model, moved to the CPU in float32; `example` are inputs that it takes.

    Raises:
        ValueError: the model returns none of `OUTPUTS`.
    """
    model = nn.Module.to(saved.model, "cpu", torch.float32).eval()
    inputs = tuple(name for name in (*_TEXT, "pixel_values", "noise") if name in example)
    graph = Graph(model, inputs, ())
    with torch.no_grad():
        found = model(**example, **graph.options)
    known = [name for name in OUTPUTS if isinstance(getattr(found, name, None), Tensor)]
    if not known:
        raise ValueError(
            f"{saved.source}: {type(model).__name__} returns none of {', '.join(OUTPUTS)}; export a classifier, an "
            "encoder, an autoencoder or a language model"
        )
    graph.outputs = ("logits",) if "logits" in known else tuple(known)
    return graph


def inputs_of(saved: SavedModel, batch: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """What a graph takes of a batch: pixels, with the noise that masks an autoencoder's patches, or ids and a mask."""
    if saved.reads == "texts":
        ids = batch["input_ids"]
        return {"input_ids": ids, "attention_mask": batch.get("attention_mask", torch.ones_like(ids))}
    pixels = batch["pixel_values"].float()
    if not getattr(saved.model.config, "mask_ratio", 0):
        return {"pixel_values": pixels}
    (height, width), (rows, columns) = pixels.shape[-2:], pair(saved.model.config.patch_size)
    draws = torch.Generator().manual_seed(seed)
    patches = height // rows * (width // columns)
    return {"pixel_values": pixels, "noise": torch.rand(len(pixels), patches, generator=draws)}


def trace(graph: Graph, example: Mapping[str, Tensor], shapes: Shapes) -> ExportedProgram:
    """The graph by `torch.export`, on inputs with at least two of everything that is free.

    Raises:
        ValueError: the model cannot be traced, or only at one image size where several were asked for.
    """
    _check_positions(graph.model.config, shapes)
    given = tuple(_enlarged(example, shapes)[name] for name in graph.inputs)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(released(graph), given, dynamic_shapes=(shapes.axes(graph.inputs),))
    except ValueError:
        raise
    except Exception as error:  # torch.export raises whatever the model's code meets
        words = _reason(error)
        if shapes.patch is not None and shapes.size is None:
            raise ValueError(f"`size` is missing: the graph cannot follow the image size ({words})") from error
        raise ValueError(f"the model cannot be traced: {words}") from error


def _reason(error: Exception) -> str:
    """What torch says in its first line; of a broken constraint, the line that says which."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Constraints violated") and len(lines) > 1:
        return lines[1].strip(" -")
    return lines[0].partition(" For more information")[0]


def released(graph: Graph) -> Graph:
    """The graph without constraints, for which file formats have no factorisation; a copy where there are any."""
    config = graph.model.config
    names = ("subspace_constraint", "dictionary_constraint")
    if all(getattr(config, name, "none") == "none" for name in names):
        return graph
    graph = deepcopy(graph)
    release_constraints(graph.model)
    return graph


def inverting(model: nn.Module) -> str | None:
    """The setting of a model that factors or inverts matrices, which ONNX cannot."""
    for step in compressions(model):
        if step.kind == "gradient":
            return "compression='gradient'"
        if step.guarded:
            return f"compression_guard={step.config.compression_guard!r}"
    return None


def _check_positions(config: Any, shapes: Shapes) -> None:
    if shapes.size is None and getattr(config, "position_interpolation", None) == "scale":
        raise ValueError(
            "`size` is missing: position_interpolation='scale' ties the graph to one image size, as its factor becomes "
            "a constant"
        )


def _enlarged(example: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The example with at least two inputs, and two patches either way where the image size is free."""
    found = {name: torch.cat((value, value))[: max(_FEW, len(value))] for name, value in example.items()}
    if shapes.patch is None or shapes.size is not None:
        return found
    pixels, patch = found["pixel_values"], shapes.patch
    size = [max(had, _FEW * one) for had, one in zip(pixels.shape[-2:], patch)]
    found["pixel_values"] = nn.functional.interpolate(pixels, size=size)
    if "noise" in found:
        found["noise"] = torch.rand(len(pixels), size[0] // patch[0] * (size[1] // patch[1]))
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters say of themselves off the terminal: Python warnings, and messages below an error."""
    root, handler, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)  # onnxruntime logs at the root, which would otherwise get a handler for good
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
