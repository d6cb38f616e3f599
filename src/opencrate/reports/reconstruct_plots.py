"""Figures of the reconstruct experiment: error and bound over the depth, and over each sweep."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..studies.experiments.base import Row, select
from .figures import COLOURS, _style

_MARKERS = ("o", "s", "^", "D")


def plot_depth(rows: list[Row], cases: Mapping[str, str]) -> Figure:
    """Error (solid) and bound (dashed) of the first ℓ layers, one colour per case (key and words)."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (case, words) in enumerate(cases.items()):
        _pair(axes, [row for row in select(rows, sweep="depth", case=case, of="first ℓ layers")], index, words)
    _finish(axes, "first ℓ layers, encoded and decoded (dashed: bound)")
    _style(axes, columns=1)
    return figure


def plot_sweeps(rows: list[Row], cases: Mapping[str, str], sweeps: Mapping[str, str]) -> Figure:
    """Error (solid) and bound (dashed) over each sweep (key and axis label), one colour per case."""
    figure = Figure(figsize=(7.4, 5.0), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, (sweep, label) in zip(panels, sweeps.items()):
        for index, (case, words) in enumerate(cases.items()):
            _pair(axes, select(rows, sweep=sweep, case=case), index, words)
        _finish(axes, label)
        if sweep == "condition":
            axes.set_xscale("log")
        if sweep == "lam":
            _price_axis(axes, sorted({row["value"] for row in select(rows, sweep=sweep)}))
        if not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
        _style(axes)
        axes.get_legend().remove()
    last = figure.axes[-1]
    last.set_axis_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    last.legend(
        handles,
        names,
        loc="center",
        fontsize=8.5,
        frameon=False,
        title="whole network\nsolid: error, dashed: bound",
        title_fontsize=8.5,
    )
    return figure


def _pair(axes, rows: list[Row], index: int, name: str) -> None:
    """Error and bound of one case."""
    for what, line in (("error", "-"), ("bound", "--")):
        found = select(rows, what=what)
        if not found:
            continue
        x, style = [row["value"] for row in found], {"color": COLOURS[index], "linestyle": line, "linewidth": 1.4}
        marker = _MARKERS[index] if what == "error" else None
        axes.plot(
            x, [row["mean"] for row in found], marker=marker, markersize=3.5, label=name if marker else None, **style
        )
        low, high = [max(row["low"], 1e-4) for row in found], [row["high"] for row in found]
        axes.fill_between(x, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)


def _price_axis(axes, values: list[float]) -> None:
    """λ on a scale that is logarithmic but shows 0."""
    axes.set_xscale("symlog", linthresh=max(values[min(1, len(values) - 1)], 1e-9))
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8, rotation=45)
    axes.minorticks_off()


def _finish(axes, label: str) -> None:
    axes.set_yscale("log")
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel("error relative to ‖Z‖")
