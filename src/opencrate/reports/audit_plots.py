"""The audit's figures: fits, gains and energy over the layers, overlaps of the subspaces, the dictionary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..analysis.audit.audit import OUTSIDE, AuditReport
from ..analysis.audit.fits import FITS
from ..stats.intervals import Interval
from .figures import COLOURS, WIDTH, _figure, _finish_layers

_MARKERS = ("o", "s", "^", "D", "v")
_SHORT = {
    "learned": "learned",
    "random": "random",
    "subspaces": "fitted",
    "clusters": "fitted, own means",
    "gaussian": "one Gaussian",
    "isotropic": "isotropic",
}


def plot_fits(report: AuditReport) -> Figure:
    """Held-out log-likelihood of every density on the model's tokens over the layers, with 95 % intervals."""
    figure, axes = _figure()
    for index, name in enumerate(name for name in FITS if name in report.layers[0].fits["trained"]):
        intervals = [layer.fits["trained"][name].log_likelihood for layer in report.layers]
        _line(axes, report, intervals, _SHORT[name], index)
    _finish_layers(axes, "held-out log-likelihood\n(nats per token)", columns=2)
    return figure


def plot_gains(report: AuditReport) -> Figure:
    """Gain over one full Gaussian, with learned and with fitted subspaces, on the model's tokens and the controls'."""
    figure, axes = _figure()
    axes.axhline(0, color="#555555", linewidth=0.8)
    styles = {"trained": "-", "shuffled": ":", "untrained": "--"}
    for colour, name in enumerate(("learned", "subspaces")):
        for condition in report.layers[0].fits:
            intervals = [layer.gain(name, condition=condition) for layer in report.layers]
            words = f"{_SHORT[name]}, {condition}"
            _line(axes, report, intervals, words, colour, styles[condition])
    _finish_layers(axes, "gain over one Gaussian\n(nats per token)", columns=2)
    return figure


def plot_outside(report: AuditReport) -> Figure:
    """Energy outside the nearest subspace over the layers, learned and random subspaces."""
    figure, axes = _figure()
    for index, (key, words) in enumerate(zip(OUTSIDE, ("of the model", "random subspaces"))):
        _line(axes, report, [layer.token(key) for layer in report.layers], words, index)
    axes.set_ylim(0, 1)
    _finish_layers(axes, "energy outside the nearest\nsubspace (fraction)")
    return figure


def plot_blocks(report: AuditReport) -> Figure:
    """The K x K map of overlaps between the subspaces, one panel per layer on one scale."""
    columns = min(3, len(report.layers))
    rows = -(-len(report.layers) // columns)
    figure = Figure(figsize=(WIDTH, 0.35 + rows * (WIDTH / columns + 0.05)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    maps = [layer.subspaces.overlaps for layer in report.layers]
    top = max((float(_off_diagonal(one).max()) for one in maps if len(one) > 1), default=1.0)
    for axes, layer, overlaps in zip(grid.flat, report.layers, maps):
        axes.set_axis_on()
        shown = overlaps.clone().fill_diagonal_(math.nan).numpy()
        image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=max(top, 1e-6))
        axes.set_facecolor("#dddddd")
        ticks = range(len(overlaps)) if len(overlaps) <= 6 else range(0, len(overlaps), 4)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_title(f"layer {layer.layer}", fontsize=8, pad=3)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.8, aspect=30)
    bar.set_label("overlap of subspaces i and j", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_dictionary(report: AuditReport) -> Figure:
    """η‖D‖² and the distance of the dictionary's Gram matrix from a multiple of I over the layers."""
    figure, axes = _figure()
    layers = [layer.layer for layer in report.layers]
    found = [layer.dictionary for layer in report.layers]
    axes.axhline(2, color="#555555", linewidth=0.8, linestyle="--", label="stable below 2")
    for index, (field, words) in enumerate(
        (("step", "η‖D‖²"), ("scaled_gram_error", "distance of $D^TD$ from $c\\,I$"))
    ):
        values = [getattr(one, field) for one in found]
        axes.plot(layers, values, color=COLOURS[index], marker=_MARKERS[index], markersize=4, label=words)
    axes.set_ylim(bottom=0)
    _finish_layers(axes, "ratio", columns=2)
    return figure


def _line(axes: Axes, report: AuditReport, found: Sequence[Interval], words: str, index: int, style: str = "-") -> None:
    layers = [layer.layer for layer in report.layers]
    mean, low, high = (torch.stack([getattr(one, name) for one in found]).numpy() for name in ("mean", "low", "high"))
    colour = COLOURS[index % len(COLOURS)]
    marker = _MARKERS[index % len(_MARKERS)]
    face = colour if style == "-" else "white"
    axes.plot(layers, mean, style, color=colour, marker=marker, markersize=4, markerfacecolor=face, label=words)
    axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)


def _off_diagonal(values: Tensor) -> Tensor:
    return values[~torch.eye(len(values), dtype=torch.bool)].nan_to_num(0)
