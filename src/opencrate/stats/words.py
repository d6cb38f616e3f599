"""Numbers, intervals and trends in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .intervals import trend

UNTRAINED = ", untrained"
"""How the names of untrained models end."""


def number(
    value: Tensor | float, digits: int, signed: bool = False, percent: bool = False, significant: bool = False
) -> str:
    """A number in words, "–" for NaN; `digits` after the point or `significant`; `percent`: times 100, no sign."""
    value = float(value) * (100 if percent else 1)
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}{'g' if significant else 'f'}}"


def interval(found: Any, digits: int, **style: bool) -> str:
    """'1.20 (1.10 to 1.30)' of what has `mean`, `low`, `high`, or the mean alone where the bounds are NaN or `None`."""
    low, high = (math.nan if bound is None else float(bound) for bound in (found.low, found.high))
    text = number(found.mean, digits, **style) + (" %" if style.get("percent") else "")
    return text if math.isnan(low) else f"{text} ({number(low, digits, **style)} to {number(high, digits, **style)})"


def span(values: Iterable[Tensor | float], digits: int, **style: bool) -> str:
    """'1.0 to 2.0', the smallest and the largest of some numbers, or one number where both read the same."""
    values = [float(value) for value in values]
    low, high = (number(value, digits, **style) for value in (min(values), max(values)))
    return (low if low == high else f"{low} to {high}") + (" %" if style.get("percent") else "")


def listing(names: Iterable[object]) -> str:
    """'3', '3 and 5' or '3, 5 and 6'."""
    *rest, last = map(str, names)
    return f"{', '.join(rest)} and {last}" if rest else last


def describe_trend(name: str, values: Tensor, unit: str = "", digits: int = 1) -> str:
    """One sentence on how a quantity that should fall moves over the layers, one of `values` each; `unit` in words."""
    found = trend(values)
    first, last = f"{found.first:.{digits}f}", f"{found.last:.{digits}f}{' ' + unit if unit else ''}"
    if found.steps == 0:
        return f"{name} is {last} at the only layer."
    if found.falls == found.steps:
        every = f"all {found.steps} steps" if found.steps > 1 else "the only step"
        return f"{name} falls from {first} to {last}, at {every} from layer to layer."
    if found.steps == 1:
        return f"{name} does not fall at the only step from layer to layer: it goes from {first} to {last}."
    where = f"at {found.falls} of {found.steps} steps from layer to layer, not at {layers(found.rises_at)}"
    if found.last < found.first:
        return f"{name} falls from {first} to {last} overall, {where}."
    return f"{name} does not fall overall: it goes from {first} to {last}. It falls {where}."


def percent(fraction: float) -> str:
    """A fraction in per cent, one digit."""
    return f"{100 * fraction:.1f} %"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes above."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def plural(count: int, name: str) -> str:
    """'1 layer' or '3 layers'."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def layers(numbers: Sequence[int]) -> str:
    """'layer 3' or 'layers 3, 5 and 6'."""
    return f"layer{'s' * (len(numbers) > 1)} {listing(numbers)}"
