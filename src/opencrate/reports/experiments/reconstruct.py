"""The reconstruct experiment: error and bound over the depth, and over each sweep."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from ...stats.words import interval
from ...studies.experiments.base import Experiment, Row, select
from ...studies.experiments.reconstruct import CASES, NETWORK, SWEEPS
from ..figures import band, finish, panels, rule
from ..tables import frame


def describe(found: Experiment) -> list[str]:
    """What was run, whether the bound holds, the error of every case and over every sweep."""
    s, bound = found.settings, found.facts["bound"]
    holds = f"is broken at {bound['broken']} of {bound['points']} points"
    if not bound["broken"]:
        holds = f"holds at all {bound['points']} points"
    sentences = [
        f"{s.seeds} seeds; {s.tokens} tokens of length 1 from {s.subspaces} subspaces of dimension {s.dim} in "
        f"{s.ambient} dimensions; MSSA tied to U with factor γ = {s.factor:.3g}, softmax scale 1/√p; λ = "
        f"{s.base_lam:g}, η‖D‖² = {s.base_step_size:g}; errors relative to ‖Z‖.",
        f"The bound {holds}, on every seed; it is below 100 %, and so says something, at {bound['useful']} of them.",
    ]
    for case, words in CASES.items():
        one, whole = _of_depth(found, case, "layer ℓ", "error", 1), _of_depth(found, case, _FIRST, "error", s.layers)
        sentences.append(
            f"{words[0].upper()}{words[1:]}: one layer is undone up to {_percent(one)}, {s.layers} layers up to "
            f"{_percent(whole)}."
        )
    for sweep, words in SWEEPS.items():
        rows = found.select(sweep=sweep, case="soft", of=NETWORK, what="error")
        path = ", ".join(f"{row['value']:g}: {100 * row['mean']:.3g} %" for row in rows)
        sentences.append(f"Network error by {words}, soft threshold: {path}.")
    return sentences


_FIRST = "first ℓ layers"


def _of_depth(found: Experiment, case: str, of: str, what: str, depth: int) -> Row | None:
    rows = found.select(sweep="depth", value=float(depth), case=case, of=of, what=what)
    return rows[0] if rows else None


def _percent(row: Row | None) -> str:
    """'1.2 % (1.1 to 1.3)', the mean and its interval over seeds."""
    return "–" if row is None else interval(SimpleNamespace(**row), 3, percent=True, significant=True)


def table(found: Experiment) -> pandas.DataFrame:
    """One line per case: error and bound of one layer and of all."""
    layers = found.settings.layers
    return frame(
        {
            "case": words,
            "one layer: error": _percent(_of_depth(found, case, "layer ℓ", "error", 1)),
            "its bound": _percent(_of_depth(found, case, "layer ℓ", "bound", 1)),
            f"{layers} layers: error": _percent(whole := _of_depth(found, case, _FIRST, "error", layers)),
            "their bound": _percent(_of_depth(found, case, _FIRST, "bound", layers)),
            "over half lost": "yes" if whole and whole["mean"] > 0.5 else "no",
        }
        for case, words in CASES.items()
    )


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    return {"reconstruct": plot_depth(found), "reconstruct_sweeps": plot_sweeps(found)}


def plot_depth(found: Experiment) -> Drawing:
    """Error (solid) and bound (dashed) of the first ℓ layers, one colour per case."""
    figure, (axes,) = panels(width=6.4, height=4.2)
    _pairs(axes, found.select(sweep="depth", of=_FIRST))
    finish(axes, "first ℓ layers, encoded and decoded (dashed: bound)", "error relative to ‖Z‖", columns=1)
    return figure


def plot_sweeps(found: Experiment) -> Drawing:
    """Error (solid) and bound (dashed) of the whole network over each sweep, one colour per case."""
    figure, drawn = panels(2, 3, width=7.4, height=5.4, sharex=False, sharey=True)
    for axes, (sweep, label) in zip(drawn, SWEEPS.items()):
        rows = found.select(sweep=sweep, of=NETWORK)
        _pairs(axes, rows)
        axes.set_xlabel(label)
        if sweep == "condition":
            axes.set_xscale("log")
        if sweep == "lam":
            _price_axis(axes, sorted({row["value"] for row in rows}))
    for axes in drawn[::3]:
        axes.set_ylabel("error relative to ‖Z‖")
    for axes in drawn[len(SWEEPS) :]:
        axes.set_axis_off()
    note = "whole network; solid: error, dashed: bound"
    finish(drawn[: len(SWEEPS)], "", columns=2, whole=False, together=True, note=note)
    return figure


def _pairs(axes: Axes, rows: Iterable[Row]) -> None:
    """Error and bound of every case that has them, on a logarithmic axis."""
    for index, (case, words) in enumerate(CASES.items()):
        for what, line in (("error", "-"), ("bound", "--")):
            found = select(rows, case=case, what=what)
            if found:
                label, x = words if what == "error" else None, [row["value"] for row in found]
                band(axes, x, found, label, index, line, marker=what == "error", floor=1e-4)
    axes.set_yscale("log")
    rule(axes, y=1)


def _price_axis(axes: Axes, values: list[float]) -> None:
    """λ on a scale that is logarithmic but shows 0."""
    axes.set_xscale("symlog", linthresh=max(values[min(1, len(values) - 1)], 1e-9))
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8, rotation=45)
    axes.minorticks_off()
