"""What the numbers say, in words: every sentence is computed, also when a prediction does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .evaluation import Evaluation
from .rates import LayerMeasures


@dataclass(frozen=True)
class Trend:
    """How a quantity moves over the layers.

    Attributes:
        first: its value at layer 1.
        last: its value at the last layer.
        falls: at how many of the `steps` it is lower than one layer before.
        steps: L - 1.
        rises_at: layers (from 1) at which it is not lower than one layer before.
    """

    first: float
    last: float
    falls: int
    steps: int
    rises_at: tuple[int, ...]


def trend(values: Tensor) -> Trend:
    """The trend of one value per layer, `(L)`."""
    lower = (values[1:] < values[:-1]).tolist()
    rises = tuple(layer for layer, fell in enumerate(lower, start=2) if not fell)
    return Trend(float(values[0]), float(values[-1]), sum(lower), len(lower), rises)


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
    where = f"at {found.falls} of {found.steps} steps from layer to layer, not at {_layers(found.rises_at)}"
    if found.last < found.first:
        return f"{name} falls from {first} to {last} overall, {where}."
    return f"{name} does not fall overall: it goes from {first} to {last}. It falls {where}."


def describe_compression(measures: LayerMeasures) -> str:
    """One sentence on whether each layer's Z^ℓ → Z^{ℓ+½} lowers R^c under that layer's own U^ℓ."""
    change = measures.mean("subspace_rate") - measures.mean("subspace_rate_before")
    raised = [layer for layer, rises in enumerate((change >= 0).tolist(), start=1) if rises]
    sizes = f"mean changes from {float(change.min()):+.1f} to {float(change.max()):+.1f} nats"
    head = "Inside a layer, the step Z^ℓ → Z^{ℓ+½}"
    if not raised:
        return f"{head} lowers R^c( · | U^ℓ) in all {len(change)} layers ({sizes})."
    if len(raised) == len(change):
        return f"{head} lowers R^c( · | U^ℓ) in none of the {len(change)} layers ({sizes}): it is no descent step."
    return (
        f"{head} lowers R^c( · | U^ℓ) in {len(change) - len(raised)} of {len(change)} layers ({sizes}); "
        f"in {_layers(raised)} it is no descent step."
    )


def describe_against_start(name: str, trained: Tensor, initial: Tensor, unit: str = "", digits: int = 1) -> str:
    """One sentence that sets the last layer and the trend against the same model at initialisation."""
    start = trend(initial)
    where = f"from {start.first:.{digits}f} to {start.last:.{digits}f}{' ' + unit if unit else ''}"
    side = "below" if float(trained[-1]) < start.last else "not below"
    return (
        f"At initialisation {name} goes {where} (falling at {start.falls} of {start.steps} steps); "
        f"after training the last layer is {side} that."
    )


def describe_accuracy(name: str, evaluation: Evaluation, data: str) -> str:
    """One sentence with accuracy, its 95 % interval and n."""
    low, high = evaluation.interval
    return (
        f"{name} names the right class for {percent(evaluation.top1)} of {evaluation.num_images:,} {data} "
        f"({evaluation.num_correct:,} right; 95 % interval {percent(low)} to {percent(high)})."
    )


def describe_difference(name: str, evaluation: Evaluation, other_name: str, other: Evaluation) -> str:
    """One sentence that compares two accuracies, with what the intervals allow to be said."""
    points = 100 * (evaluation.top1 - other.top1)
    apart = evaluation.interval[0] > other.interval[1] or other.interval[0] > evaluation.interval[1]
    verdict = "their 95 % intervals do not overlap" if apart else "their 95 % intervals overlap"
    gap = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if points else "level with"
    return f"{name} is {gap} {other_name} ({percent(other.top1)}); {verdict}. One training run each."


def percent(fraction: float) -> str:
    """A fraction in per cent, one digit."""
    return f"{100 * fraction:.1f} %"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes above."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _layers(numbers: Sequence[int]) -> str:
    """'layer 3' or 'layers 3, 5 and 6'."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"layers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
