"""Figures of the denoise experiment: error over noise, and what the samplers make."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

from matplotlib.figure import Figure

from ..studies.experiments.base import Row, select
from .figures import COLOURS, _style

_LINES = ("-", "--", ":")


def plot_errors(rows: list[Row], forms: Mapping[str, str]) -> Figure:
    """Error of every form over the noise level, both logarithmic, with intervals over seeds."""
    figure = Figure(figsize=(7.0, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (form, words) in enumerate(forms.items()):
        found = select(rows, form=form)
        colour, line = COLOURS[index % len(COLOURS)], _LINES[index // len(COLOURS)]
        x = [row["noise"] for row in found]
        axes.plot(
            x, [row["mean"] for row in found], color=colour, linestyle=line, marker="o", markersize=3, label=words
        )
        low = [max(row["low"], 1e-6) for row in found]
        axes.fill_between(x, low, [row["high"] for row in found], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.set_xlabel("noise level σ√d, relative to the tokens")
    axes.set_ylabel("squared error, relative to the tokens' energy")
    _style(axes, columns=2)
    return figure


def plot_samples(rows: list[Row], forms: Mapping[str, str], measures: Mapping[str, str]) -> Figure:
    """One panel per measure, one row per sampler: mean and interval over seeds; a line where true draws are."""
    figure = Figure(figsize=(9.0, 0.4 * len(forms) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True)
    places = range(len(forms))[::-1]
    for axes, (measure, words) in zip(panels, measures.items()):
        found = [select(rows, form=form, measure=measure)[0] for form in forms]
        means = [row["mean"] for row in found]
        bars = [[row["mean"] - row["low"] for row in found], [row["high"] - row["mean"] for row in found]]
        axes.errorbar(means, list(places), xerr=bars, fmt="o", color=COLOURS[0], markersize=4, capsize=3)
        axes.axvline(1, color="#555555", linewidth=0.8)
        if max(means) > 5:
            axes.set_xscale("log")
        axes.set_title("\n".join(wrap(words, 22)), fontsize=8.5)
        axes.set_ylim(-0.5, len(forms) - 0.5)
        _style(axes)
    panels[0].set_yticks(list(places), list(forms.values()))
    return figure
