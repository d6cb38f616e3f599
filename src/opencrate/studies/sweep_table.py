"""The numbers of a sweep: every measure of every arm over the seeds, and its difference to the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..stats.intervals import ABOVE, BELOW, UNDECIDED, Interval, paired_difference, seed_interval
from .sweep import ArmRun, Sweep
from .sweep_measures import HEADLINES, LAYERS, MEASURES

RATES = ("compression", "subspace_rate", "rate_reduction")
"""What is taken against the arm's own subspaces."""
COSTS = ("operations", "parameters", "seconds")
_VERDICTS = {BELOW: "lower", ABOVE: "higher", UNDECIDED: "cannot tell"}


@dataclass(frozen=True)
class Cell:
    """One measure of one arm over the seeds, in the unit that tables show.

    Attributes:
        values: one per seed, in the order of the seeds.
        found: their mean with its 95 % t-interval; bounds are NaN where there is one seed.
        difference: to the reference, seed by seed; `None` for the reference, for rates against other subspaces than
            the reference's, and for predictions of which the reference has others.
    """

    arm: str
    measure: str
    values: tuple[float, ...]
    found: Interval
    difference: Interval | None = None

    @property
    def verdict(self) -> str:
        """What the interval of the difference says: "lower", "higher", "cannot tell" or "not compared"."""
        return "not compared" if self.difference is None else _VERDICTS[self.difference.sign]

    def to_row(self) -> dict[str, Any]:
        """Its numbers; `None` for what is not known."""
        row = {"arm": self.arm, "measure": self.measure, "unit": MEASURES[self.measure].unit, "values": self.values}
        found, gap = self.found, self.difference
        numbers: dict[str, Any] = {"mean": found.mean, "sd": found.std, "low": found.low, "high": found.high}
        bounds = (None, None, None) if gap is None else (gap.mean, gap.low, gap.high)
        numbers |= zip(("difference", "difference_low", "difference_high"), bounds)
        known = {key: None if one is None or math.isnan(one) else float(one) for key, one in numbers.items()}
        return {**row, **known, "verdict": self.verdict}


def summarise(sweep: Sweep, found: Sequence[ArmRun]) -> list[Cell]:
    """Every measure of every arm; measures without meaning for an arm are left out.

    Rates are not subtracted where they are taken against other subspaces than the reference's, by kind or by size, nor
    numbers of predictions where others were judged: an untrained network has one less.
    """
    runs = sorted(found, key=lambda run: sweep.seeds.index(run.seed))
    same = dict.fromkeys(RATES, comparable(sweep, found)) | {"held": _judged_alike(sweep, found)}
    cells: list[Cell] = []
    for arm in sweep.names:
        for key in MEASURES:
            values = _values(runs, arm, key)
            if values:
                compared = arm != sweep.reference and arm in same.get(key, sweep.names)
                reference = _values(runs, sweep.reference, key) if compared else ()
                paired = len(reference) == len(values)
                gap = paired_difference(values, reference, seed_interval) if paired else None
                cells.append(Cell(arm, key, values, seed_interval(values), gap))
    return cells


def _values(runs: Sequence[ArmRun], arm: str, key: str) -> tuple[float, ...]:
    """One per run of the arm that has this measure."""
    values = [run.values.get(key) for run in runs if run.arm == arm]
    return tuple(value * MEASURES[key].scale for value in values if value is not None)


def headlines(cells: Sequence[Cell]) -> list[str]:
    """The measures that arms are compared by first."""
    found = {cell.measure for cell in cells}
    return [key for key in HEADLINES if key in found]


def measured(cells: Sequence[Cell], costs: bool = True) -> list[str]:
    """The measures that some arm has, in the order of the tables."""
    found = {cell.measure for cell in cells}
    return [key for key in MEASURES if key in found and (costs or key not in COSTS)]


def by_layer(sweep: Sweep, found: Sequence[ArmRun]) -> dict[tuple[str, str], Interval]:
    """(arm, key of `LAYERS`) -> its mean over the seeds with the 95 % t-interval, one entry per layer, `(L)`.

    In the unit that tables show; bounds are NaN where there is one seed.
    """
    runs = {arm: [run for run in found if run.arm == arm and run.layers] for arm in sweep.names}
    return {
        (arm, key): seed_interval([[LAYERS[key].scale * one for one in run.layers[key]] for run in of_arm])
        for arm, of_arm in runs.items()
        if of_arm
        for key in LAYERS
    }


def layer_rows(sweep: Sweep, found: Sequence[ArmRun]) -> list[dict[str, Any]]:
    """One row per arm, measure and layer; `None` for what is not known."""
    against = {run.arm: run.subspaces for run in found}
    rows = []
    for (arm, key), one in by_layer(sweep, found).items():
        measure = LAYERS[key]
        bounds = torch.stack([one.mean, one.std, one.low, one.high], dim=1).tolist()
        for layer, numbers in enumerate(bounds, start=1):
            known = (None if math.isnan(value) else value for value in numbers)
            row = {"arm": arm, "measure": key, "quantity": measure.title, "unit": measure.unit, "layer": layer}
            row |= {"subspaces": against[arm], "seeds": one.count}
            rows.append({**row, **dict(zip(("mean", "sd", "low", "high"), known))})
    return rows


def comparable(sweep: Sweep, found: Sequence[ArmRun]) -> list[str]:
    """The arms whose rates are taken against subspaces of the reference's kind and size."""
    against = {run.arm: (run.subspaces, run.shape) for run in found}
    return [arm for arm in sweep.names if against[arm] == against[sweep.reference]]


def _judged_alike(sweep: Sweep, found: Sequence[ArmRun]) -> list[str]:
    """The arms of which the same predictions were judged as of the reference."""
    judged = {run.arm: run.claims.keys() for run in found}
    return [arm for arm in sweep.names if judged[arm] == judged[sweep.reference]]


def held(found: Sequence[ArmRun]) -> dict[str, dict[str, list[bool | None]]]:
    """Prediction of the theory -> arm -> whether it held, one entry per run."""
    table: dict[str, dict[str, list[bool | None]]] = {}
    for run in found:
        for text, verdict in run.claims.items():
            table.setdefault(text, {}).setdefault(run.arm, []).append(verdict)
    return table
