"""Which predictions of CRATE's theory held in a model whose layers were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...stats.intervals import ABOVE, BELOW, trend
from ...stats.words import plural
from .result import LayerMeasures


@dataclass(frozen=True)
class Claim:
    """One prediction of the theory.

    Attributes:
        about: key of `MEASURES`.
        text: what is predicted.
        held: whether it held; `None` where the intervals do not decide it.
        measured: what was found, in numbers.
    """

    about: str
    text: str
    held: bool | None
    measured: str


def claims(series: Mapping[str, LayerMeasures]) -> list[Claim]:
    """The predictions for a trained CRATE, each checked on the means over inputs, the first on its intervals.

    Args:
        series: as `LayerAnalysis.series`, "trained" first. Predictions about what was not measured are left out.
    """
    measures, initial = next(iter(series.values())), series.get("initialisation")
    known, found = measures.values, []
    if {"subspace_rate", "subspace_rate_before"} <= known.keys():
        found.append(_attention_lowers(measures))
    if measures.num_layers > 1:
        for key, text, style, unit in (
            ("subspace_rate", "R^c falls from every layer to the next", ".1f", " nats"),
            ("rate_reduction", "ΔR rises from every layer to the next", ".1f", " nats"),
            ("nonzero_fraction", "the tokens get sparser from every layer to the next", ".3f", ""),
        ):
            if key in known:
                curve = trend(measures.mean(key))
                right = curve.steps - curve.falls if key == "rate_reduction" else curve.falls
                numbers = f"{curve.first:{style}} to {curve.last:{style}}{unit}, at {right} of "
                found.append(Claim(key, text, right == curve.steps, numbers + plural(curve.steps, "step")))
    if initial is not None and "subspace_rate" in known:
        now, start = (float(one.mean("subspace_rate")[-1]) for one in (measures, initial))
        text = "training lowers R^c of the last layer"
        found.append(Claim("subspace_rate", text, now < start, f"{now:.1f} nats, {start:.1f} before training"))
    return found


def _attention_lowers(measures: LayerMeasures) -> Claim:
    signs = measures.compression_changes().signs
    lowered, raised = signs.count(BELOW), signs.count(ABOVE)
    held = True if lowered == len(signs) else False if raised else None
    counts = {"lowered in": lowered, "raised in": raised, "undecided in": len(signs) - lowered - raised}
    found = ", ".join(f"{words} {count}" for words, count in counts.items() if count)
    found += f" of {plural(len(signs), 'layer')}"
    return Claim("compression", "attention lowers R^c in every layer", held, found)
