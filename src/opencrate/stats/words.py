"""Numbers, intervals and trends in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .intervals import trend


def describe_trend(name: str, values: Tensor, unit: str = "", digits: int = 1) -> str:
    """One sentence on how a quantity that should fall moves over the layers.

    Args:
        name: of the quantity.
        values: `(L)`, one per layer.
        unit: written after the numbers.
        digits: after the decimal point.
    """
    found = trend(values)
    first, last = f"{found.first:.{digits}f}", f"{found.last:.{digits}f}{' ' + unit if unit else ''}"
    if found.steps == 0:
        return f"{name} is {last} at the only layer."
    if found.falls == found.steps:
        return f"{name} falls from {first} to {last}, at all {found.steps} steps from layer to layer."
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


def layers(numbers: Sequence[int]) -> str:
    """'layer 3' or 'layers 3, 5 and 6'."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"layers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
