"""Export a saved model: trace, write, read back, compare with the eager model, and put the folder in its place."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .._files import shown
from .._outputs import write_json
from ..configuration_crate import pair
from ..store import runs
from ..store.kinds import KINDS, Kind
from ..store.saved import SavedModel, open_saved
from .check import Check, compare, compare_other_size, time_both
from .formats import write_graph
from .graph import Graph, Shapes, graph_of, inputs_of, inverting, trace
from .runners import runner_of
from .samples import Samples, samples_of
from .sizes import processor_at
from .targets import FACTS, TARGETS, target_named

TAKEN: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "sentences")
"""Kinds of models that are exported."""


@dataclass(frozen=True)
class Export:
    """A model that was exported.

    Attributes:
        path: the folder.
        to: one of `TARGETS`.
        source: the model, as it was given.
        kind: what it is for.
        inputs, outputs: names of the graph's arguments and results, in order.
        size: (height, width) of the only images it takes; `None` for images and texts of any size.
        parameters: of the model.
        bytes: of the graph with its weights; `eager_bytes` those of the model's parameters in float32.
        tolerance: the largest relative difference that was accepted.
        check: what was found.
    """

    path: Path
    to: str
    source: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: tuple[int, int] | None
    parameters: int
    bytes: int
    eager_bytes: int
    tolerance: float
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `export.json` holds them."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("path", "check")}
        versions = {"opencrate": __version__, "torch": torch.__version__}
        return {**found, "check": self.check.to_dict(), "versions": versions, "threads": torch.get_num_threads()}


def export_model(
    source: SavedModel | str | Path,
    output: str | Path,
    to: str = "onnx",
    *,
    size: int | tuple[int, int] | None = None,
    check: str | None = None,
    num_inputs: int = 1000,
    batch_size: int = 32,
    repeats: int = 20,
    tolerance: float | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write a saved model as a graph that runs without this package, and check it against the eager model on the CPU.

    The folder holds the graph, `config.json`, the image processor or tokenizer, and `export.json`.

    Args:
        source: the model, or its folder.
        output: the folder to write.
        to: `torch` (torch.export), `onnx`, `int8` (ONNX with 8-bit linear maps, U and D included) or `openvino`.
        size: image size, or (height, width), of a graph for that size only; by default any multiple of the patch.
        check: images or a text to check on, as `samples_of`.
        num_inputs: at most so many of them.
        batch_size: inputs at a time.
        repeats: timed calls of each form.
        tolerance: the largest accepted difference of outputs, as a fraction of the largest; by default the target's.
        skip_bad: leave out unreadable images, named and counted.
        overwrite: replace an earlier export.

    Raises:
        ValueError: a missing package, a model that cannot be exported so, an output that may not be written, data that
            cannot be read, or a difference beyond the tolerance (nothing is then written).
    """
    target = target_named(to)
    allowed = target.tolerance if tolerance is None else tolerance
    name = source.source if isinstance(source, SavedModel) else str(source)
    runs.check_place(output, overwrite, inputs=(name, check))
    saved = source if isinstance(source, SavedModel) else open_saved(source, TAKEN)
    saved = _on_cpu(saved, size)
    if to != "torch" and (setting := inverting(saved.model)):
        raise ValueError(f"to={to}: {setting} inverts matrices, which ONNX cannot; give to=torch")
    samples = samples_of(saved, check, num_inputs, batch_size, skip_bad)
    first = next(iter(samples.batches))
    example = inputs_of(saved, first)
    graph = graph_of(saved, example)
    shapes = _shapes(saved, example, size)
    program = trace(graph, example, shapes)
    with runs.new_directory(output, overwrite) as folder:
        path = write_graph(program, graph, to, folder)
        del program
        found = _checked(saved, graph, runner_of(path, _BACKEND[to]), samples, shapes, repeats)
        if not found.worst <= allowed:
            raise ValueError(
                f"tolerance={allowed:g}: the outputs differ from the eager model's by {found.worst:.2g} of the largest "
                f"output on {found.inputs}; nothing was written. Give a larger tolerance if that is good enough"
            )
        export = _described(saved, graph, shapes, to, folder, allowed, found)
        _write_companions(saved, folder)
        write_json(folder / FACTS, export.to_dict())
    return replace(export, path=Path(output).expanduser().absolute())


_BACKEND = {"torch": "torch", "onnx": "onnx", "int8": "onnx", "openvino": "openvino"}


def _on_cpu(saved: SavedModel, size: int | tuple[int, int] | None) -> SavedModel:
    """The model in float32 on the CPU, with a processor that gives images of the asked size."""
    torch.nn.Module.to(saved.model, "cpu", torch.float32)
    if size is None:
        return saved
    if saved.reads == "texts":
        raise ValueError(f"size={size}: of images, and {saved.source} reads texts")
    height, width = pair(size)
    patch = pair(getattr(saved.model.config, "patch_size", 1))
    if height % patch[0] or width % patch[1]:
        raise ValueError(f"size={height}x{width}: not a multiple of the model's patch of {patch[0]}x{patch[1]} pixels")
    fitted = replace(saved)
    vars(fitted)["processor"] = processor_at(saved.processor, (height, width))  # where the cached property keeps it
    return fitted


def _shapes(saved: SavedModel, example: dict[str, torch.Tensor], size: int | tuple[int, int] | None) -> Shapes:
    if saved.reads == "texts":
        limited = getattr(saved.model.config, "max_position_embeddings", None) is not None
        return Shapes(None, length=saved.context if limited else None)
    patch = pair(getattr(saved.model.config, "patch_size", 1))
    if size is None:
        return Shapes(patch)
    given = example["pixel_values"].shape[-2:]
    if tuple(given) != pair(size):
        raise ValueError(f"size={size}: the image processor gives {given[0]}x{given[1]} pixels, and cannot be changed")
    return Shapes(patch, pair(size))


def _checked(saved: SavedModel, graph: Graph, run: Any, samples: Samples, shapes: Shapes, repeats: int) -> Check:
    fields = compare(saved, graph, run, samples.batches)
    first = next(iter(samples.batches))
    if shapes.size is None:
        fields["other_size"], fields["other"] = compare_other_size(saved, graph, run, first, shapes)
    speed = time_both(saved, graph, run, first, repeats)
    return Check(inputs=samples.words, count=samples.count, speed=speed, **fields)


def _described(
    saved: SavedModel, graph: Graph, shapes: Shapes, to: str, folder: Path, tolerance: float, check: Check
) -> Export:
    stem = Path(TARGETS[to].file).stem
    return Export(
        path=folder,
        to=to,
        source=shown(saved.source),
        kind=saved.kind,
        inputs=graph.inputs,
        outputs=graph.outputs,
        size=shapes.size,
        parameters=saved.num_parameters,
        bytes=sum(file.stat().st_size for file in folder.glob(f"{stem}.*")),
        eager_bytes=4 * saved.num_parameters,
        tolerance=tolerance,
        check=check,
    )


def _write_companions(saved: SavedModel, folder: Path) -> None:
    """The configuration with the class names, and the image processor or tokenizer; without code beside them."""
    _write_fields(folder / "config.json", saved.model.config)
    if saved.reads == "texts":
        saved.tokenizer.save_pretrained(folder)
    else:
        _write_fields(folder / "preprocessor_config.json", saved.processor)


def _write_fields(path: Path, owner: Any) -> None:
    fields = json.loads(owner.to_json_string())
    write_json(path, {name: value for name, value in fields.items() if name != "auto_map"})
