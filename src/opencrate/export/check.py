"""An exported model against the eager one: differences of outputs, decisions, accuracy and speed on the same inputs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bench.timing import in_turns, pair_ratios, quartiles
from ..store.kinds import Kind
from ..store.saved import SavedModel
from .graph import Graph, Shapes, inputs_of
from .runners import Runner

DECIDES = ("classifier", "causal", "masked")
"""Kinds of models whose outputs are scores of classes or tokens."""


@dataclass(frozen=True)
class Difference:
    """How far two runs of a model are apart.

    Attributes:
        largest: the largest absolute difference of two outputs.
        scale: the largest absolute output of the eager model.
    """

    largest: float = 0.0
    scale: float = 0.0

    @property
    def relative(self) -> float:
        """The largest difference as a fraction of the largest output."""
        return self.largest / self.scale if self.scale else float(self.largest > 0)

    def plus(self, found: Iterable[Tensor], expected: Iterable[Tensor]) -> Difference:
        """With further outputs; what is not finite in `found` is infinitely far away."""
        largest, scale = self.largest, self.scale
        for one, other in zip(found, expected):
            apart = (one.double() - other.double()).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
            largest, scale = max(largest, apart.max().item()), max(scale, other.abs().max().item())
        return Difference(largest, scale)


@dataclass(frozen=True)
class Speed:
    """Medians of calls in turns.

    Attributes:
        batch: inputs at a time.
        eager, exported: seconds of a call.
        ratio: quartiles of how many times as long the eager model takes, pair by pair.
        repeats: timed calls of each.
    """

    batch: int
    eager: float
    exported: float
    ratio: tuple[float, float, float]
    repeats: int


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        inputs: what it was checked on, in words.
        count: how many inputs.
        difference: on them.
        other_size: the difference on the first ones at another image size or length; `None` for a graph of one size.
        other: that size or length, in words.
        agreement: the share of decisions (the largest score) that are the same; `None` for models that decide nothing.
        eager_accuracy, accuracy: the share of right decisions where labels are known: of images, or of next tokens.
        decisions: how many decisions were compared.
        speed: at each batch size.
    """

    inputs: str
    count: int
    difference: Difference
    other_size: Difference | None = None
    other: str = ""
    agreement: float | None = None
    eager_accuracy: float | None = None
    accuracy: float | None = None
    decisions: int = 0
    speed: tuple[Speed, ...] = ()

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return max(one.relative for one in (self.difference, self.other_size) if one is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the relative differences."""
        found = asdict(self)
        found["difference"]["relative"] = self.difference.relative
        if self.other_size is not None:
            found["other_size"]["relative"] = self.other_size.relative
        return found


@dataclass
class _Decisions:
    """Counts over batches."""

    total: int = 0
    same: int = 0
    labelled: int = 0
    right: dict[str, int] = field(default_factory=lambda: {"eager": 0, "exported": 0})

    def add(self, kind: Kind, batch: Mapping[str, Tensor], expected: Tensor, found: Tensor) -> None:
        """Of scores `(B, C)` or `(B, N, C)` of one batch."""
        real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones(len(expected)).bool()
        chosen = {"eager": expected.argmax(-1), "exported": found.argmax(-1)}
        self.total += int(real.sum())
        self.same += int((chosen["eager"] == chosen["exported"])[real].sum())
        labels = batch.get("labels")
        if kind == "causal":
            labels, real = batch["input_ids"][:, 1:], real[:, 1:]
            chosen = {name: ids[:, :-1] for name, ids in chosen.items()}
        if labels is None:
            return
        self.labelled += int(real.sum())
        for name, ids in chosen.items():
            self.right[name] += int((ids == labels)[real].sum())


def compare(saved: SavedModel, graph: Graph, run: Runner, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Outputs and decisions on all batches, as the fields of `Check`."""
    difference, counts = Difference(), _Decisions()
    for number, batch in enumerate(batches):
        inputs = inputs_of(saved, batch, seed=number)
        expected, found = _both(graph, run, inputs)
        difference = difference.plus(found, expected)
        if saved.kind in DECIDES:
            counts.add(saved.kind, {**batch, **inputs}, expected[0], found[0])
    fields: dict[str, Any] = {"difference": difference, "decisions": counts.total}
    if counts.total:
        fields["agreement"] = counts.same / counts.total
    if counts.labelled:
        fields["eager_accuracy"], fields["accuracy"] = (
            counts.right[name] / counts.labelled for name in ("eager", "exported")
        )
    return fields


def compare_other_size(
    saved: SavedModel, graph: Graph, run: Runner, batch: Mapping[str, Tensor], shapes: Shapes
) -> tuple[Difference, str]:
    """The difference at another image size, one patch higher and two wider; or on texts of half the length, with the
    first one a token shorter than the others."""
    if shapes.patch is None:
        length = max(1, batch["input_ids"].shape[1] // 2)
        inputs = {name: value[:, :length].clone() for name, value in inputs_of(saved, batch).items()}
        if length > 1:
            inputs["attention_mask"][0, -1] = 0
        words = f"{length} tokens"
        real = inputs["attention_mask"].bool()
        expected, found = _both(graph, run, inputs)
        if graph.outputs[0] in ("logits", "last_hidden_state"):
            expected, found = ((one[0][real], *one[1:]) for one in (expected, found))
        return Difference().plus(found, expected), words
    pixels, (rows, columns) = batch["pixel_values"].float(), shapes.patch
    size = (pixels.shape[-2] + rows, pixels.shape[-1] + 2 * columns)
    other = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    expected, found = _both(graph, run, inputs_of(saved, {"pixel_values": other}))
    return Difference().plus(found, expected), f"{size[0]}x{size[1]} pixels"


def time_both(
    saved: SavedModel, graph: Graph, run: Runner, batch: Mapping[str, Tensor], repeats: int
) -> tuple[Speed, ...]:
    """Both on one input and on a whole batch, in turns after two calls of each."""
    found = []
    for count in sorted({1, len(next(iter(batch.values())))}):
        inputs = tuple(inputs_of(saved, {name: value[:count] for name, value in batch.items()}).values())

        def eager(inputs: tuple[Tensor, ...] = inputs) -> object:
            with torch.no_grad():
                return graph(*inputs)

        def exported(inputs: tuple[Tensor, ...] = inputs) -> object:
            return run(*inputs)

        times = in_turns({"eager": eager, "exported": exported}, repeats, warm_up=2)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio = quartiles(pair_ratios(times["eager"], times["exported"]))
        found.append(Speed(count, medians["eager"], medians["exported"], ratio, repeats))
    return tuple(found)


def _both(graph: Graph, run: Runner, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the eager model gives, and what the exported one does."""
    given = tuple(inputs[name].contiguous() for name in graph.inputs)
    with torch.no_grad():
        return graph(*given), run(*given)
