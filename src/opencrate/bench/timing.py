"""Timing in turns: whatever else the machine does weighs on all that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional as F


def device_of_bench() -> torch.device:
    """Where everything is timed: the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for what the accelerator was given to do, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, with all that it started on an accelerator."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def in_turns(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    told: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, by name: a warm-up of each function, then the functions called in turns.

    Args:
        functions: by name.
        repeats: timed calls of each.
        warm_up: calls of each before the first timed one.
        told: is called with the number of every round before it begins.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats):
        if told is not None:
            told(number)
        for name, function in functions.items():
            times[name].append(seconds_of(function))
    return times


def pair_ratios(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """What was timed side by side, call by call: how many times as long as the reference.

    >>> pair_ratios([2.0, 6.0], [1.0, 2.0])
    [2.0, 3.0]
    """
    return [one / other for one, other in zip(seconds, reference)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of one value that value.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def gemm(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], float]:
    """A linear map of ``(rows, width)`` by ``(width, width)``, a model's main product, as a function; and its FLOPs."""
    a, b = (torch.randn(count, width, dtype=dtype, device=device) for count in (rows, width))
    return lambda: F.linear(a, b), 2.0 * rows * width**2
