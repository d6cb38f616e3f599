"""The table and the figure of a sweep: mean, spread and interval over seeds, and paired differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .._outputs import claim, write_json, write_text, write_whole
from ..stats.intervals import paired_difference, seed_interval
from ..store.environment import environment
from ..studies.sweep import ArmRun, Match, Sweep
from ..studies.sweep_measures import HEADLINES, MEASURES, Measure
from .figures import COLOURS

FILES = {"csv": "ablation.csv", "json": "ablation.json", "markdown": "ablation.md", "figure": "ablation.png"}
_COSTS = ("operations", "parameters", "seconds")
_RATES = ("compression", "subspace_rate", "rate_reduction")
_PANEL = (3.2, 1.0)  # inches: width, and height without the arms


@dataclass(frozen=True)
class Cell:
    """One measure of one arm over the seeds; bounds are of 95 % t-intervals, and `None` where there is one seed.

    Attributes:
        values: one per seed, in the order of the seeds.
        difference, difference_low, difference_high: to the reference, seed by seed; `None` for the reference, and for
            rates against other subspaces than the reference's.
    """

    arm: str
    measure: str
    unit: str
    values: tuple[float, ...]
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def verdict(self) -> str:
        """What the interval of the difference says."""
        if self.difference is None:
            return "not compared"
        if self.difference_low is None or self.difference_low <= 0 <= self.difference_high:
            return "cannot tell"
        return "higher" if self.difference > 0 else "lower"


def summarise(sweep: Sweep, found: Sequence[ArmRun]) -> list[Cell]:
    """Every measure of every arm, in the units that tables show; measures without meaning for an arm are left out.

    Rates are not subtracted where they are taken against other subspaces than the reference's, by kind or by size.
    """
    values = {(run.arm, key): [] for run in found for key in MEASURES}
    for run in sorted(found, key=lambda run: sweep.seeds.index(run.seed)):
        for key, measure in MEASURES.items():
            value = run.values.get(key)
            if value is not None:
                values[run.arm, key].append(value * measure.scale)
    against = {run.arm: (run.subspaces, run.shape) for run in found}

    def comparable(arm: str, key: str) -> bool:
        same = key not in _RATES or against[arm] == against[sweep.reference]
        return arm != sweep.reference and same

    return [
        _cell(arm, key, values[arm, key], values[sweep.reference, key] if comparable(arm, key) else None)
        for arm in sweep.arms
        for key in MEASURES
        if values[arm, key]
    ]


def headline(cells: Sequence[Cell]) -> str:
    """The measure that arms are compared by first."""
    return next(key for key in HEADLINES if any(cell.measure == key for cell in cells))


def _measured(cells: Sequence[Cell], costs: bool = True) -> list[str]:
    """The measures that some arm has, in the order of the tables."""
    found = {cell.measure for cell in cells}
    return [key for key in MEASURES if key in found and (costs or key not in _COSTS)]


def write_ablation(
    folder: Path, sweep: Sweep, found: Sequence[ArmRun], command: str, match: Match = "parameters"
) -> list[Cell]:
    """Write the table as CSV, JSON and Markdown and the figure as PNG, each whole or not at all.

    They follow from the runs alone, so they are written anew each time.
    """
    cells = summarise(sweep, found)
    picture = io.BytesIO()
    plot_ablation(sweep, cells).savefig(picture, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    claim(folder)
    write_whole(folder / FILES["figure"], picture.getvalue())
    write_text(folder / FILES["csv"], _csv(cells))
    write_text(folder / FILES["markdown"], markdown(sweep, cells, found, command, match))
    content = {
        "command": command,
        "match": match,
        "sweep": asdict(sweep),
        "environment": environment(),
        "measures": {key: asdict(measure) for key, measure in MEASURES.items()},
        "runs": [asdict(run) for run in found],
        "table": [{**asdict(cell), "verdict": cell.verdict} for cell in cells],
    }
    write_json(folder / FILES["json"], content)
    return cells


def markdown(sweep: Sweep, cells: Sequence[Cell], found: Sequence[ArmRun], command: str, match: Match) -> str:
    """The tables as Markdown: values, then differences to the reference, then what each column is."""
    table = {(cell.arm, cell.measure): cell for cell in cells}
    seeds = ", ".join(map(str, sweep.seeds))
    measured, compared = _measured(cells), _measured(cells, costs=False)
    against = {run.arm: run.subspaces for run in found}
    lines = [f"# {sweep.name}", "", f"{sweep.description}", "", f"`{command}`; seeds {seeds}; matched {match}.", ""]
    lines += ["Mean ± standard deviation over the seeds, and the 95 % t-interval of the mean.", ""]
    lines += _rows(
        sweep,
        ["rates against", *(_heading(MEASURES[key]) for key in measured)],
        lambda arm: [against[arm], *(_value(table.get((arm, key)), MEASURES[key]) for key in measured)],
    )
    lines += [
        "",
        f"Difference to `{sweep.reference}`, seed by seed, with its 95 % t-interval; bold where it excludes 0.",
    ]
    lines += ["The intervals are not corrected for the number of comparisons. Rates against other subspaces than the"]
    lines += [f"reference's (other projections, width d or dimension p) are not compared: {_sizes(sweep, found)}.", ""]
    lines += _rows(
        sweep,
        [_heading(MEASURES[key]) for key in compared],
        lambda arm: [_difference(table.get((arm, key)), MEASURES[key]) for key in compared],
    )
    lines += ["", *(sentences(sweep, cells)), ""]
    lines += [f"- {_heading(MEASURES[key])}: {MEASURES[key].how}." for key in measured]
    return "\n".join(lines) + "\n"


def sentences(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    """One sentence per arm about its accuracy or error, from the numbers."""
    key, words = headline(cells), []
    unit = "points" if key == "accuracy" else MEASURES[key].unit
    for cell in cells:
        if cell.measure != key or cell.difference is None:
            continue
        difference = _difference(cell, MEASURES[key]).strip("*")
        verdict = {"cannot tell": "no difference can be told", "higher": "higher", "lower": "lower"}[cell.verdict]
        number, _, interval = difference.partition(" ")
        difference = " ".join(part for part in (number, unit, interval) if part)
        words.append(f"- `{cell.arm}`: {MEASURES[key].title} {difference} to `{sweep.reference}`: {verdict}.")
    return words


def plot_ablation(sweep: Sweep, cells: Sequence[Cell]) -> Figure:
    """One panel per measure: every run a dot, the mean and its 95 % t-interval a bar; the reference's mean dashed."""
    table = {(cell.arm, cell.measure): cell for cell in cells}
    arms = list(sweep.arms)
    shown = _measured(cells, costs=False)
    rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(2 * _PANEL[0], rows * (_PANEL[1] + 0.16 * len(arms))), layout="constrained")
    grid = figure.subplots(rows, 2, sharey=True, squeeze=False).flatten()
    for axes, key in zip(grid, shown):
        for row, arm in enumerate(arms):
            cell = table.get((arm, key))
            if cell is None:
                continue
            colour = COLOURS[0] if arm == sweep.reference else COLOURS[1]
            axes.plot(cell.values, [row] * len(cell.values), "o", color=colour, alpha=0.35, markersize=3)
            if cell.low is not None:
                axes.plot([cell.low, cell.high], [row, row], color=colour, linewidth=1.6)
            axes.plot(cell.mean, row, "D", color=colour, markersize=4)
        if (sweep.reference, key) in table:
            axes.axvline(table[sweep.reference, key].mean, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_xlabel(_math_heading(MEASURES[key]), fontsize=9)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    grid[0].invert_yaxis()
    return figure


def _cell(arm: str, key: str, values: list[float], reference: list[float] | None) -> Cell:
    found = seed_interval(values)
    difference = {}
    if reference and len(reference) == len(values):
        paired = paired_difference(values, reference, seed_interval)
        difference = {
            "difference": paired.mean.item(),
            "difference_low": _known(paired.low.item()),
            "difference_high": _known(paired.high.item()),
        }
    return Cell(
        arm=arm,
        measure=key,
        unit=MEASURES[key].unit,
        values=tuple(values),
        mean=found.mean.item(),
        sd=_known(found.std.item()),
        low=_known(found.low.item()),
        high=_known(found.high.item()),
        **difference,
    )


def _sizes(sweep: Sweep, found: Sequence[ArmRun]) -> str:
    """d, K and p of every arm."""
    shapes = {run.arm: run.shape for run in found}
    return ", ".join(f"`{arm}` d = {shapes[arm][1]}, K = {shapes[arm][0]}, p = {shapes[arm][2]}" for arm in sweep.arms)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rows(sweep: Sweep, columns: Sequence[str], cells_of) -> list[str]:
    rows = [["arm", *columns], ["---"] * (len(columns) + 1)]
    rows += [[f"`{arm}`", *cells_of(arm)] for arm in sweep.arms]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _heading(measure: Measure) -> str:
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


def _math_heading(measure: Measure) -> str:
    text = _heading(measure)
    return text.replace("R^c(Z^{ℓ+½}) − R^c(Z^ℓ)", r"$R^c(Z^{\ell+1/2}) - R^c(Z^\ell)$").replace("R^c,", "$R^c$,")


def _value(cell: Cell | None, measure: Measure) -> str:
    if cell is None:
        return "–"
    if cell.sd is None:
        return f"{cell.mean:.{measure.digits}f}"
    if cell.sd == 0:
        return f"{cell.mean:,.{measure.digits}f}"
    digits = measure.digits
    return f"{cell.mean:.{digits}f} ± {cell.sd:.{digits}f} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def _difference(cell: Cell | None, measure: Measure) -> str:
    if cell is None or cell.difference is None:
        return "–"
    digits = measure.digits
    if cell.difference_low is None:
        return f"{cell.difference:+.{digits}f}"
    text = f"{cell.difference:+.{digits}f} [{cell.difference_low:+.{digits}f}, {cell.difference_high:+.{digits}f}]"
    return text if cell.verdict == "cannot tell" else f"**{text}**"


def _csv(cells: Sequence[Cell]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("mean", "sd", "low", "high", "difference", "difference_low", "difference_high", "verdict")
    writer.writerow(["arm", "measure", "unit", "seeds", *names])
    for cell in cells:
        writer.writerow(
            [cell.arm, cell.measure, cell.unit, len(cell.values)]
            + ["" if getattr(cell, name) is None else getattr(cell, name) for name in names]
        )
    return text.getvalue()
