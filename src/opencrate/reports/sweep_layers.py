"""A sweep's layers: rates and sparsity by layer and arm, and which predictions of the theory held, over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..stats.intervals import Interval
from ..stats.words import number
from ..studies.sweep import ArmRun, Sweep
from ..studies.sweep_measures import LAYERS, MEASURES
from ..studies.sweep_table import RATES, Cell, by_layer, comparable, headlines, held
from . import figures

FEW_SEEDS = 2
"""Up to so many, a bar is the range of the seeds: their t-interval would hide all else."""


def plot_layers(sweep: Sweep, cells: Sequence[Cell], found: Sequence[ArmRun]) -> Figure:
    """What arms are compared by first, beside their rates and sparsity over the layers; one colour per arm.

    The arms of a layer stand side by side, so that their bars do not hide each other.
    """
    figure, grid = figures.panels(3, 2, width=7.2, height=8.4, sharex=False)
    _plot_headlines(grid[0], sweep, cells)
    alike, layers = comparable(sweep, found), by_layer(sweep, found)
    for axes, (key, measure) in zip(grid[1:], LAYERS.items()):
        for arm, aside in zip(sweep.names, _spread(len(sweep.names), 0.5)):
            if (arm, key) in layers and (key not in RATES or arm in alike):
                values = [run.layers[key] for run in found if run.arm == arm and run.layers]
                shown = _bounded(layers[arm, key], measure.scale * torch.tensor(values, dtype=torch.float64))
                x = [layer + aside for layer in range(1, len(shown.mean) + 1)]
                size = {"linewidth": 1.2, "markersize": 3, "elinewidth": 0.8, "capsize": 0}
                figures.bars(axes, x, shown, arm, 0, **_look(sweep, arm), **size)
        if key == "compression":
            figures.rule(axes, y=0)
        axes.set_title(f"{figures.math(measure.symbol)} ({measure.unit})", fontsize=9, loc="left")
    bars = "range of the seeds" if len(sweep.seeds) <= FEW_SEEDS else "95 % t-intervals over the seeds"
    figures.finish(grid[1:], together=True, columns=4, note=f"bars: {bars}; the arms of a layer side by side")
    figures.finish(grid[0], "", whole=False, together=False)
    return figure


def _plot_headlines(axes: Axes, sweep: Sweep, cells: Sequence[Cell]) -> None:
    """One row per arm, in its colour; a filled circle and an open square where there are two measures."""
    keys, arms = headlines(cells), sweep.names
    table = {(cell.arm, cell.measure): cell for cell in cells}
    for index, (key, aside) in enumerate(zip(keys, _spread(len(keys), 0.3))):
        for row, arm in enumerate(arms):
            if (cell := table.get((arm, key))) is not None:
                look = {"color": (colour := _look(sweep, arm)["color"]), "fmt": figures.MARKERS[index], "capsize": 0}
                look["markerfacecolor"] = "white" if index else colour
                label = MEASURES[key].title if row == 0 else None
                shown = _bounded(cell.found, cell.values)
                figures.bars(axes, [row + aside], [shown], label, 0, horizontal=True, elinewidth=0.8, **look)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set_title(", ".join(sorted({MEASURES[key].unit for key in keys})), fontsize=9, loc="right")


def _look(sweep: Sweep, arm: str) -> dict[str, Any]:
    """An arm's colour, marker and line: the reference grey and dashed, dotted where the colours begin again."""
    if arm == sweep.reference:
        return {"color": figures.GREY, "fmt": "o--", "markerfacecolor": "white"}
    index = [name for name in sweep.names if name != sweep.reference].index(arm)
    rounds, index = divmod(index, len(figures.COLOURS))
    colour = figures.COLOURS[index]
    line, face = ("-", colour) if rounds == 0 else (":", "white")
    return {"color": colour, "fmt": figures.MARKERS[index] + line, "markerfacecolor": face}


def _spread(count: int, width: float) -> list[float]:
    """Places around 0 side by side, over `width`."""
    return [width * (index / (count - 1) - 0.5) for index in range(count)] if count > 1 else [0.0]


def _bounded(found: Interval, values: Tensor | Sequence[float]) -> Interval:
    """With the range of the seeds for bounds, where there are few: their t-interval would hide all else."""
    if found.count > FEW_SEEDS:
        return found
    values = torch.as_tensor(values, dtype=torch.float64)
    return replace(found, low=values.amin(0), high=values.amax(0))


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
    """A table in Markdown; a bar inside a cell, as in R^c(Z | U), does not end it."""
    lines = (heads, ["---"] * len(heads), *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]
