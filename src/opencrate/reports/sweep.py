"""The tables and the figures of a sweep: mean, spread and interval over seeds, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .._outputs import claim
from ..analysis.layers.registry import Measure
from ..stats.words import interval, number
from ..store.environment import environment
from ..studies.sweep import ArmRun, Match, Sweep
from ..studies.sweep_measures import MEASURES
from ..studies.sweep_table import Cell, comparable, headlines, layer_rows, measured, summarise
from .figures import COLOURS, finish, panels, rule
from .html import picture, write_files
from .sweep_layers import claim_lines, layer_lines, plot_layers, table_lines
from .tables import frame, to_json

FILES = {"csv": "ablation.csv", "json": "ablation.json", "markdown": "ablation.md", "figure": "ablation.png"}
FILES |= {"layers_csv": "ablation-layers.csv", "layers_figure": "ablation-layers.png"}
_SAID = {"cannot tell": "no significant difference", "higher": "higher", "lower": "lower"}


def write_ablation(
    folder: Path, sweep: Sweep, found: Sequence[ArmRun], command: str, match: Match = "parameters"
) -> list[Cell]:
    """Write the tables as CSV, JSON and Markdown and the figures as PNG, each whole or not at all.

    They follow from the runs alone, so they are written anew each time.
    """
    cells = summarise(sweep, found)
    rows = [cell.to_row() for cell in cells]
    shown = ("title", "unit", "how", "scale", "digits")
    content = {
        "command": command,
        "match": match,
        "sweep": sweep,
        "environment": environment(),
        "measures": {key: {name: getattr(one, name) for name in shown} for key, one in MEASURES.items()},
        "runs": found,
        "table": rows,
    }
    table = frame(rows).rename(columns={"values": "seeds"})
    table["seeds"] = table["seeds"].map(len)
    files = {
        FILES["figure"]: picture(plot_ablation(sweep, cells)),
        FILES["layers_figure"]: picture(plot_layers(sweep, cells, found)),
        FILES["csv"]: table,
        FILES["layers_csv"]: frame(layer_rows(sweep, found)),
        FILES["markdown"]: markdown(sweep, cells, found, command, match),
        FILES["json"]: to_json(content, indent=2) + "\n",
    }
    write_files(claim(folder), files)
    return cells


def markdown(sweep: Sweep, cells: Sequence[Cell], found: Sequence[ArmRun], command: str, match: Match) -> str:
    """The page: what the arms differ in, layer by layer, then every measure, its differences, and what each is."""
    columns = measured(cells)
    seeds, matched_in = ", ".join(map(str, sweep.seeds)), f"; matched {match}" if "operations" in columns else ""
    lines = [
        f"# {sweep.name}",
        "",
        sweep.description,
        "",
        f"`{command}`; seeds {seeds}{matched_in}.",
        "",
        *sentences(sweep, cells),
        "",
        f"![layer by layer]({FILES['layers_figure']})",
        *(["", *claims] if (claims := claim_lines(sweep, found)) else []),
        "",
        *_measure_lines(sweep, cells, found),
        "",
        *(f"- {MEASURES[key].heading}: {MEASURES[key].how}." for key in columns),
        "",
        f"![every measure]({FILES['figure']})",
        "",
        *layer_lines(sweep, found),
    ]
    return "\n".join(lines) + "\n"


def _measure_lines(sweep: Sweep, cells: Sequence[Cell], found: Sequence[ArmRun]) -> list[str]:
    """Two tables, measures by arms: values, and differences to the reference where any was taken."""
    table = {(cell.arm, cell.measure): cell for cell in cells}
    against = {run.arm: run.subspaces for run in found}
    others = [arm for arm in sweep.names if arm != sweep.reference]
    compared = {cell.measure for cell in cells if cell.difference is not None}
    values = [
        [MEASURES[key].heading, *(_value(table.get((arm, key))) for arm in sweep.names)] for key in measured(cells)
    ]
    differences = [
        [MEASURES[key].heading, *(_difference(table.get((arm, key)), bold=True) for arm in others)]
        for key in measured(cells, costs=False)
        if key in compared
    ]
    return [
        "## Measures",
        "",
        "Mean ± standard deviation over the seeds, and the 95 % t-interval of the mean.",
        "",
        *table_lines(
            ["measure", *(f"`{arm}`" for arm in sweep.names)],
            [["rates against", *(against[arm] for arm in sweep.names)], *values],
        ),
        "",
        f"Difference to `{sweep.reference}`, seed by seed, with its 95 % t-interval; bold where it excludes 0.",
        "The intervals are not corrected for the number of comparisons.",
        *_not_compared(sweep, found),
        "",
        *table_lines(["measure", *(f"`{arm}`" for arm in others)], differences),
    ]


def _not_compared(sweep: Sweep, found: Sequence[ArmRun]) -> list[str]:
    """What is not subtracted and why; nothing where all arms have subspaces of one size."""
    if len(comparable(sweep, found)) == len(sweep.names):
        return []
    shapes = {run.arm: run.shape for run in found}
    sizes = (f"`{arm}` d = {shapes[arm][1]}, K = {shapes[arm][0]}, p = {shapes[arm][2]}" for arm in sweep.names)
    return [
        "Rates against other subspaces than the reference's (other projections, width d or dimension p) are not",
        f"compared: {', '.join(sizes)}.",
    ]


def _value(cell: Cell | None) -> str:
    """'91.0 ± 1.0 (88.5 to 93.5)'; the mean alone where the seeds do not differ."""
    if cell is None:
        return "–"
    digits, spread = MEASURES[cell.measure].digits, float(cell.found.std)
    if not spread > 0:
        return f"{float(cell.found.mean):,.{digits}f}"
    mean, bounds = interval(cell.found, digits).split(" ", 1)
    return f"{mean} ± {number(spread, digits)} {bounds}"


def _difference(cell: Cell | None, bold: bool = False) -> str:
    if cell is None or cell.difference is None:
        return "–"
    text = interval(cell.difference, MEASURES[cell.measure].digits, signed=True)
    return f"**{text}**" if bold and cell.verdict in ("higher", "lower") else text


def sentences(sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
    """One sentence per arm about its accuracy or error, from the numbers; of encoders for both of their accuracies."""
    words = []
    for key in headlines(cells):
        measure = MEASURES[key]
        unit = "points" if measure.unit == "%" else measure.unit
        for cell in cells:
            if cell.measure == key and cell.difference is not None:
                size, _, bounds = _difference(cell).partition(" ")
                gap = " ".join(part for part in (size, unit, bounds) if part)
                words.append(f"- `{cell.arm}`: {measure.title} {gap} to `{sweep.reference}`: {_SAID[cell.verdict]}.")
    return words


def plot_ablation(sweep: Sweep, cells: Sequence[Cell]) -> Figure:
    """One panel per measure: every run a dot, the mean and its 95 % t-interval a bar; the reference's mean dashed."""
    table = {(cell.arm, cell.measure): cell for cell in cells}
    shown, arms = measured(cells, costs=False), sweep.names
    rows = -(-len(shown) // 2)
    figure, grid = panels(rows, 2, width=6.4, height=rows * (1.0 + 0.16 * len(arms)), sharex=False, sharey=True)
    for axes, key in zip(grid, shown):
        for row, arm in enumerate(arms):
            cell = table.get((arm, key))
            if cell is not None:
                colour = COLOURS[arm != sweep.reference]
                axes.plot(cell.values, [row] * len(cell.values), "o", color=colour, alpha=0.35, markersize=3)
                axes.plot([cell.found.low, cell.found.high], [row, row], color=colour, linewidth=1.6)
                axes.plot(cell.found.mean, row, "D", color=colour, markersize=4)
        if (sweep.reference, key) in table:
            rule(axes, x=float(table[sweep.reference, key].found.mean), line="--")
        axes.set_xlabel(_math_heading(MEASURES[key]), fontsize=9)
    finish(grid, "", whole=False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    grid[0].set_yticks(range(len(arms)), arms)
    grid[0].invert_yaxis()
    return figure


def _math_heading(measure: Measure) -> str:
    text = measure.heading.replace("R^c(Z^{ℓ+½}) − R^c(Z^ℓ)", r"$R^c(Z^{\ell+1/2}) - R^c(Z^\ell)$")
    return text.replace("R^c,", "$R^c$,")
