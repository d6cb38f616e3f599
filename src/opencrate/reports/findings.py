"""What the numbers say, in words: every sentence is computed, also when a prediction does not hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..analysis.layers.result import LayerMeasures
from ..analysis.record.states import LEARNED
from ..evaluation.classifier import Evaluation
from ..stats.intervals import FALLS, RISES, UNKNOWN, Interval, paired_difference, trend
from ..stats.words import layers, percent


def against(text: str, subspace_kind: str) -> str:
    """A formula with U^ℓ replaced by what the subspaces are, where they are no learned U."""
    return text if subspace_kind == LEARNED else text.replace("U^ℓ", subspace_kind.removesuffix(" per head"))


@dataclass(frozen=True)
class Change:
    """What one layer's Z^ℓ → Z^{ℓ+½} does to R^c under that layer's own subspaces.

    Attributes:
        layer: its number, from 1.
        mean: change of R^c in nats, mean over inputs.
        low, high: 95 % bootstrap interval of the mean; NaN for one input.
    """

    layer: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Where the interval lies: `FALLS` (below 0), `RISES` (above), or `UNKNOWN` (it holds 0)."""
        if self.high < 0:
            return FALLS
        return RISES if self.low > 0 else UNKNOWN


def compression_changes(measures: LayerMeasures) -> list[Change]:
    """The change of R^c by each layer's half-step, paired input by input."""
    found: Interval = paired_difference(measures.values["subspace_rate"], measures.values["subspace_rate_before"])
    columns = (measures.layer_numbers, found.mean.tolist(), found.low.tolist(), found.high.tolist())
    return [Change(*values) for values in zip(*columns)]


def mean_and_bounds(measures: LayerMeasures, key: str) -> tuple[list[float], list[float], list[float]]:
    """Per layer the mean over inputs and its 95 % bootstrap bounds; NaN bounds for what all inputs give together."""
    if key in measures.totals:
        unknown = [math.nan] * measures.num_layers
        return measures.totals[key].tolist(), unknown, unknown
    found = measures.interval(key)
    return found.mean.tolist(), found.low.tolist(), found.high.tolist()


def describe_compression(measures: LayerMeasures, subspace_kind: str = LEARNED) -> str:
    """One sentence on whether each layer's Z^ℓ → Z^{ℓ+½} lowers R^c under that layer's own subspaces."""
    changes = compression_changes(measures)
    means = [change.mean for change in changes]
    style = "+.1f" if max(map(abs, means)) >= 1 else "+.2g"
    sizes = f"mean changes from {min(means):{style}} to {max(means):{style}} nats"
    what = against("R^c( · | U^ℓ)", subspace_kind)
    head = f"Inside a layer, the step Z^ℓ → Z^{{ℓ+½}} lowers {what}"
    if measures.num_inputs == 1:
        return f"{head} by the mean alone in {sum(m < 0 for m in means)} of {len(means)} layers ({sizes}); one input."
    groups = {word: [c.layer for c in changes if c.verdict == word] for word in (FALLS, RISES, UNKNOWN)}
    if len(groups[FALLS]) == len(changes):
        return f"{head} in all {len(changes)} layers ({sizes}; every 95 % interval lies below 0)."
    if len(groups[RISES]) == len(changes):
        raising = head.replace(" lowers ", " raises ")
        return f"{raising} in all {len(changes)} layers ({sizes}; every 95 % interval lies above 0): no descent step."
    count = (
        f"in {len(groups[FALLS])} of {len(changes)} layers" if groups[FALLS] else f"in none of {len(changes)} layers"
    )
    rest = []
    if groups[RISES]:
        rest.append(f"in {layers(groups[RISES])} it raises it")
    if groups[UNKNOWN]:
        rest.append(f"in {layers(groups[UNKNOWN])} the 95 % interval holds 0, so it cannot be told")
    return f"{head} {count} ({sizes}); {'; '.join(rest)}."


@dataclass(frozen=True)
class Claim:
    """One prediction of CRATE's theory and whether it held: true, false, or `None` where it cannot be told."""

    text: str
    held: bool | None


def claims(series: Mapping[str, LayerMeasures]) -> list[Claim]:
    """The predictions for a trained CRATE, each checked on the means over inputs, the first on its intervals.

    Args:
        series: as `LayerAnalysis.series`, "trained" first.
    """
    measures = next(iter(series.values()))
    verdicts = {change.verdict for change in compression_changes(measures)}
    lowered = True if verdicts == {FALLS} else (False if RISES in verdicts else None)
    found = [Claim("attention lowers R^c inside every layer", lowered)]
    if measures.num_layers > 1:
        rate, gain, code = (
            trend(measures.mean(key)) for key in ("subspace_rate", "rate_reduction", "nonzero_fraction")
        )
        found += [
            Claim("R^c falls from every layer to the next", rate.falls == rate.steps),
            Claim("ΔR rises from every layer to the next", gain.falls == 0),
            Claim("the code gets sparser from every layer to the next", code.falls == code.steps),
        ]
    if "initialisation" in series:
        start = float(series["initialisation"].mean("subspace_rate")[-1])
        found.append(Claim("R^c of the last layer ends below its value before training", trend_last(measures) < start))
    return found


def trend_last(measures: LayerMeasures) -> float:
    """R^c of the last measured layer, mean over inputs."""
    return float(measures.mean("subspace_rate")[-1])


def describe_claims(found: Sequence[Claim]) -> str:
    """One sentence: which predictions held and which did not."""
    words = ((True, "Held"), (False, "Did not hold"), (None, "Cannot be told"))
    parts = [f"{word}: {'; '.join(c.text for c in found if c.held is held)}." for held, word in words]
    kept = [part for part, (held, _) in zip(parts, words) if any(c.held is held for c in found)]
    held = sum(claim.held is True for claim in found)
    return f"Of {len(found)} predictions of the theory, {held} held on these inputs. {' '.join(kept)}"


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
