"""A sweep's layers: rates and sparsity by layer and arm, and which predictions of the theory held, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis.layers.registry import Measure
from ..stats.intervals import Interval
from ..stats.words import number
from ..studies.sweep import ArmRun, Sweep
from ..studies.sweep_measures import LAYERS, MEASURES
from ..studies.sweep_table import RATES, Cell, by_layer, comparable, headlines, held
from . import figures

FEW_SEEDS = 2
"""Up to so many, a band is the range of the seeds: their t-interval would hide all else."""


def plot_layers(sweep: Sweep, cells: Sequence[Cell], found: Sequence[ArmRun]) -> Figure:
    """What arms are compared by first, beside their rates and sparsity over the layers; one line per arm."""
    figure, grid = figures.panels(3, 2, width=7.2, height=8.4, sharex=False)
    _plot_headlines(grid[0], sweep, cells)
    alike, layers = comparable(sweep, found), by_layer(sweep, found)
    for axes, (key, measure) in zip(grid[1:], LAYERS.items()):
        for index, arm in enumerate(sweep.names):
            if (arm, key) in layers and (key not in RATES or arm in alike):
                shown = layers[arm, key]
                numbers = range(1, len(shown.mean) + 1)
                figures.band(axes, numbers, _band(shown, found, arm, key), arm, index, _line(sweep, index))
        if key == "compression":
            figures.rule(axes, y=0)
        axes.set_title(f"{_in_math(measure)} ({measure.unit})", fontsize=9, loc="left")
    few = len(sweep.seeds) <= FEW_SEEDS
    note = "bands: range of the seeds" if few else "bands: 95 % t-intervals over the seeds"
    figures.finish(grid[1:], together=True, columns=4, note=note)
    figures.finish(grid[0], "", whole=False, together=False)
    return figure


def _plot_headlines(axes: Axes, sweep: Sweep, cells: Sequence[Cell]) -> None:
    """One row per arm: every seed a dot, the mean a bar with its 95 % t-interval from three seeds on."""
    keys, arms = headlines(cells), sweep.names
    table = {(cell.arm, cell.measure): cell for cell in cells}
    for index, key in enumerate(keys):
        for row, arm in enumerate(arms):
            if (cell := table.get((arm, key))) is not None:
                place, colour = row + 0.28 * (index - (len(keys) - 1) / 2), figures.COLOURS[index]
                axes.plot(cell.values, [place] * len(cell.values), "o", color=colour, alpha=0.35, markersize=3)
                label = MEASURES[key].title if row == 0 else None
                found = cell.found if len(cell.values) > FEW_SEEDS else _without_bounds(cell.found)
                figures.bars(axes, [place], [found], label, index, horizontal=True)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(", ".join(sorted({MEASURES[key].unit for key in keys})), fontsize=9, loc="right")


def _band(shown: Interval, found: Sequence[ArmRun], arm: str, key: str) -> Interval:
    """With the range of the seeds for bounds, where there are few."""
    if shown.count > FEW_SEEDS:
        return shown
    values = [run.layers[key] for run in found if run.arm == arm and run.layers]
    scaled = LAYERS[key].scale * torch.tensor(values, dtype=torch.float64)
    return replace(shown, low=scaled.amin(0), high=scaled.amax(0))


def _without_bounds(found: Interval) -> Interval:
    nan = torch.full_like(found.mean, math.nan)
    return replace(found, low=nan, high=nan)


def _line(sweep: Sweep, index: int) -> str:
    """Dashed for the reference, dotted where the colours begin again."""
    if sweep.names[index] == sweep.reference:
        return "--"
    return "-" if index < len(figures.COLOURS) else ":"


def _in_math(measure: Measure) -> str:
    return figures.math(measure.symbol)


def layer_lines(sweep: Sweep, found: Sequence[ArmRun]) -> list[str]:
    """Markdown: a table for each of `LAYERS`, arms by layers, mean ± standard deviation over the seeds."""
    layers = by_layer(sweep, found)
    lines = ["## Layers", "", "Mean ± standard deviation over the seeds; intervals are in the CSV file."]
    for key, measure in LAYERS.items():
        rows = {arm: layers[arm, key] for arm in sweep.names if (arm, key) in layers}
        depth = max((len(one.mean) for one in rows.values()), default=0)
        heads = [measure.heading, *(f"layer {layer}" for layer in range(1, depth + 1))]
        cells = [[f"`{arm}`", *_cells(one, measure.digits)] for arm, one in rows.items()]
        lines += ["", *table_lines(heads, [row + ["–"] * (len(heads) - len(row)) for row in cells])]
    return lines


def _cells(one: Interval, digits: int) -> list[str]:
    pairs = zip(one.mean.tolist(), one.std.tolist())
    return [number(mean, digits) + (f" ± {number(std, digits)}" if std > 0 else "") for mean, std in pairs]


def claim_lines(sweep: Sweep, found: Sequence[ArmRun]) -> list[str]:
    """Markdown: in how many seeds each prediction of the theory held, by arm; nothing where none was judged."""
    table = held(found)
    if not table:
        return []
    judged = [arm for arm in sweep.names if any(arm in by_arm for by_arm in table.values())]
    rows = [[text, *(_verdicts(by_arm.get(arm, [])) for arm in judged)] for text, by_arm in table.items()]
    return [
        "## Predictions of the theory",
        "",
        "In how many seeds each held, of how many; a prediction is undecided where the 95 % bootstrap intervals over",
        "the images do not decide it.",
        "",
        *table_lines(["prediction", *(f"`{arm}`" for arm in judged)], rows),
    ]


def _verdicts(verdicts: list[bool | None]) -> str:
    """'2 of 3, 1 undecided'; a dash where it was not judged."""
    if not verdicts:
        return "–"
    undecided = verdicts.count(None)
    return f"{verdicts.count(True)} of {len(verdicts)}" + (f", {undecided} undecided" if undecided else "")


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
