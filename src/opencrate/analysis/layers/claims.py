"""Which predictions of CRATE's theory held in a model whose layers were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...stats import words
from ...stats.intervals import ABOVE, BELOW, UNDECIDED, Interval, bootstrap_mean, paired_difference
from ...stats.words import plural
from .result import LayerMeasures

CODES, TOKENS = "code_nonzero_fraction", "nonzero_fraction"
NONE = "none"


@dataclass(frozen=True)
class Claim:
    """One prediction of the theory.

    Attributes:
        about: key of `MEASURES`.
        text: what is predicted.
        held: whether it held: true where the 95 % interval of every change lies on the predicted side of 0, false where
            nothing of one does (none at all, on any input, included); `None` where the intervals do not decide it.
        measured: what was found, in numbers.
        weakest: the change that fits the prediction least, with its interval, in words.
    """

    about: str
    text: str
    held: bool | None
    measured: str
    weakest: str = ""


def claims(series: Mapping[str, LayerMeasures]) -> list[Claim]:
    """The predictions for a trained CRATE, each judged by bootstrap intervals of its changes over the inputs.

    Args:
        series: as `LayerAnalysis.series`, "trained" first, all on the same inputs. Predictions about what was not
            measured are left out.
    """
    measures, initial = next(iter(series.values())), series.get("initialisation")
    known, found = measures.values, []
    if {"subspace_rate", "subspace_rate_before"} <= known.keys():
        found.append(_attention_lowers(measures))
    if measures.num_layers > 1:
        sparse = sparsity_key(measures)
        what = "sparse codes" if sparse == CODES else "tokens"
        for key, text, digits, unit in (
            ("subspace_rate", "R^c falls from every layer to the next", 1, " nats"),
            ("rate_reduction", "ΔR rises from every layer to the next", 1, " nats"),
            (sparse, f"the {what} get sparser from every layer to the next", 3, ""),
        ):
            if key in known:
                found.append(_moves(measures, key, text, digits, unit, falls=key != "rate_reduction"))
    if initial is not None and "subspace_rate" in known:
        found.append(_training_lowers(measures, initial))
    return found


def sparsity_key(measures: LayerMeasures) -> str:
    """What gets sparser: the code where it was measured and the tokens are made from it, else the tokens."""
    return CODES if measures.decoded and CODES in measures.values else TOKENS


def _attention_lowers(measures: LayerMeasures) -> Claim:
    changes = measures.compression_changes()
    signs = _signs(changes)
    counts = {"lowered in": BELOW, "raised in": ABOVE, "unchanged in": NONE, "undecided in": UNDECIDED}
    parts = [f"{verb} {signs.count(side)}" for verb, side in counts.items() if side in signs]
    measured = f"{', '.join(parts)} of {plural(len(signs), 'layer')}"
    text = "attention lowers R^c in every layer"
    return Claim("compression", text, _held(changes, BELOW), measured, _weakest(changes, 1, " nats", BELOW))


def _moves(measures: LayerMeasures, key: str, text: str, digits: int, unit: str, falls: bool) -> Claim:
    """Of a quantity that should fall, or rise, from every layer to the next."""
    values, mean = measures.values[key], measures.mean(key)
    changes, side = bootstrap_mean(values[:, 1:] - values[:, :-1]), BELOW if falls else ABOVE
    signs = _signs(changes)
    undecided = signs.count(UNDECIDED)
    measured = f"{mean[0]:.{digits}f} to {mean[-1]:.{digits}f}{unit}, at {signs.count(side)} of "
    measured += plural(len(signs), "step") + (f", undecided at {undecided}" if undecided else "")
    return Claim(key, text, _held(changes, side), measured, _weakest(changes, digits, unit, side))


def _training_lowers(measures: LayerMeasures, initial: LayerMeasures) -> Claim:
    now, start = (one.values["subspace_rate"][:, -1:] for one in (measures, initial))
    changes = paired_difference(now, start)
    measured = f"{now.mean():.1f} nats, {start.mean():.1f} before training"
    text = "training lowers R^c of the last layer"
    return Claim("subspace_rate", text, _held(changes, BELOW), measured, _weakest(changes, 1, " nats", BELOW))


def _signs(changes: Interval) -> list[str]:
    """The sign of every change; `NONE` where no input has any."""
    still = ((changes.low == 0) & (changes.high == 0)).tolist()
    return [NONE if none else sign for none, sign in zip(still, changes.signs)]


def _held(changes: Interval, side: str) -> bool | None:
    """Whether all changes are on one side of 0; `None` where that is undecided."""
    signs = set(_signs(changes))
    if signs == {side}:
        return True
    return False if signs - {side, UNDECIDED} else None


def _weakest(changes: Interval, digits: int, unit: str, side: str) -> str:
    index = int(changes.mean.argmax() if side == BELOW else changes.mean.argmin())
    head = "weakest change " if len(changes.signs) > 1 else "change "
    return head + words.interval(changes[index], digits, signed=True) + unit
