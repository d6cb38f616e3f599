"""What a run found: one line for each form, with every single time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from ..store.environment import environment
from .machine import machine_line
from .timing import pair_ratios, quartiles


@dataclass
class BenchLine:
    """One form in one mode and data type.

    Attributes:
        form, mode, dtype, compiled: see `settings.Case`.
        samples: images or tokens of one call.
        parameters: of the model.
        seconds: of every timed call, in order.
        reference: seconds of what it is compared with, call by call beside its own; its own where it is that.
        flops: of one call, see `flops.flops_of`; `None` where a product's rate says nothing.
        gemm_flops_per_second: rate of the model's main product alone, in the same turns.
        memory: bytes at the peak of a call above what was there before it, in a process of its own; not measured: None.
        failure: why there are no times (a form that `torch.compile` does not take).
        point: where on a curve it lies: `tokens`, `depth`.
    """

    form: str
    mode: str
    dtype: str = "float32"
    compiled: str | None = None
    samples: int = 1
    parameters: int = 0
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    flops: float | None = None
    gemm_flops_per_second: float | None = None
    memory: int | None = None
    failure: str | None = None
    point: dict[str, int] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds of a call; NaN where there are none."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def ratios(self) -> list[float]:
        """How many times as long as the reference, pair by pair."""
        return pair_ratios(self.seconds, self.reference)

    @property
    def gemm_share(self) -> float | None:
        """Of the measured GEMM rate, the part that the maths' products make up."""
        if self.flops is None or self.gemm_flops_per_second is None or not self.seconds:
            return None
        return self.flops / self.median / self.gemm_flops_per_second

    def record(self) -> dict[str, Any]:
        """Plain values: the raw times and what follows from them."""
        names = ("form", "mode", "dtype", "compiled", "samples", "parameters", "seconds", "flops")
        found = {**self.point, **{name: getattr(self, name) for name in names}}
        if self.seconds:
            low, middle, high = quartiles(self.seconds)
            found |= {"median_seconds": middle, "lower_quartile": low, "upper_quartile": high}
            found["samples_per_second"] = self.samples / middle
        if self.seconds and self.reference:
            found |= {"ratio": statistics.median(self.ratios), "ratio_min": min(self.ratios)}
            found["ratio_max"] = max(self.ratios)
        rest = {"gemm_flops_per_second": self.gemm_flops_per_second, "gemm_share": self.gemm_share}
        return found | rest | {"memory": self.memory, "failure": self.failure}


@dataclass
class BenchResult:
    """A run: what was asked for, where it ran, what was found.

    Attributes:
        name: the subcommand or function.
        settings: plain values.
        machine: the processor, its instructions and threads, in one line.
        environment: see `store.environment`.
        lines: one for each form, mode and data type.
        reference: what the ratios are to, in words.
        unit: what `samples` counts.
    """

    name: str
    settings: dict[str, Any]
    lines: list[BenchLine]
    reference: str = "ours"
    unit: str = "images"
    environment: dict[str, Any] = field(default_factory=environment)
    machine: str = ""

    def __post_init__(self) -> None:
        self.machine = self.machine or machine_line(self.environment["cpu"])

    def records(self) -> list[dict[str, Any]]:
        """One mapping for each line, with raw times: what `pandas.DataFrame` takes."""
        return [line.record() for line in self.lines]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        head = {"bench": self.name, "machine": self.machine, "environment": self.environment}
        return head | {
            "settings": self.settings,
            "reference": self.reference,
            "unit": self.unit,
            "lines": self.records(),
        }
