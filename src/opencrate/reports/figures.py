"""Drawing: the colours, the line with its interval, the panels and the legend of every figure; no global state.

Figures of a page are 3.9 inches wide, so that their text stays legible when a phone shows them across its width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 3.9
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito: safe for colour-blind eyes
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#555555"


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = WIDTH,
    height: float | None = None,
    sharex: bool = True,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` by `height` inches (by default 3 high, 2.5 per row of several) and its axes, row by row."""
    height = height or (3.0 if rows == 1 else 0.4 + 2.5 * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).flat)


def band(
    axes: Axes,
    x: Sequence[float],
    interval: Any,
    label: str | None,
    index: int,
    line: str = "-",
    *,
    marker: bool = True,
    floor: float | None = None,
) -> None:
    """A mean over `x` with its interval as a band, in colour and marker `index`; markers are open unless `line` is "-".

    `interval` is an `Interval` over x, or per x one `Interval` or mapping with `mean`, `low` and `high`; NaN bounds
    draw no band, and none lies below `floor`, for logarithmic axes.
    """
    mean, low, high = _bounds(interval)
    colour = COLOURS[index % len(COLOURS)]
    style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.4, "label": label}
    if marker:
        style |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        style["markerfacecolor"] = colour if line == "-" else "white"
    axes.plot(x, mean, **style)
    axes.fill_between(x, low if floor is None else np.maximum(low, floor), high, color=colour, alpha=0.2, linewidth=0)


def bars(axes: Axes, x: Sequence[float], interval: Any, label: str | None, index: int, **style: Any) -> None:
    """Means with their intervals as bars (`horizontal=True`: to the right); `style` as in matplotlib's `errorbar`."""
    mean, low, high = _bounds(interval)
    spread = None if np.isnan([low, high]).any() else np.stack([mean - low, high - mean])
    look = {"fmt": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)], "markersize": 4, "capsize": 3}
    if style.pop("horizontal", False):
        axes.errorbar(mean, x, xerr=spread, label=label, **look | style)
    else:
        axes.errorbar(x, mean, yerr=spread, label=label, **look | style)


def _bounds(interval: Any) -> list[np.ndarray]:
    """Mean, lower and upper bound, one value per x."""
    names = ("mean", "low", "high")
    if hasattr(interval, "mean"):
        return [np.asarray(getattr(interval, name), dtype=float) for name in names]
    read = (lambda one, name: one[name]) if isinstance(interval[0], dict) else getattr
    return [np.asarray([float(read(one, name)) for one in interval]) for name in names]


def rule(axes: Axes, y: float | None = None, x: float | None = None, line: str = "-", label: str | None = None) -> None:
    """A thin grey line across the axes: a zero, a limit, a chance level."""
    style: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": line, "label": label, "zorder": 1}
    if y is not None:
        axes.axhline(y, **style)
    if x is not None:
        axes.axvline(x, **style)


def finish(
    drawn: Axes | Sequence[Axes],
    xlabel: str = "layer ℓ",
    ylabel: str = "",
    *,
    columns: int | None = None,
    whole: bool = True,
    together: bool = False,
    note: str = "",
) -> None:
    """Grid of all axes of a figure, `xlabel` of the lowest and `ylabel` of all, and legends.

    Args:
        columns: of the legend; by default 1 where the names are long, else 3.
        whole: ticks of x at whole numbers only, as for layers.
        together: one legend above all axes, below the line `note`, instead of one above each.
    """
    drawn = [drawn] if isinstance(drawn, Axes) else list(drawn)
    for axes in drawn:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        if ylabel:
            axes.set_ylabel(ylabel, fontsize=9)
        place = axes.get_subplotspec()
        if xlabel and place is not None and place.is_last_row():
            axes.set_xlabel(xlabel, fontsize=9)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if not together:
            _legend(axes, axes, columns, loc="lower left", bbox_to_anchor=(0, 1))
    if together:
        _legend(drawn[0].figure, drawn[0], columns, loc="outside upper left", title=note or None, title_fontsize=8)


def _legend(owner: Any, named: Axes, columns: int | None, **place: Any) -> None:
    """A legend of everything in `named` that has a name."""
    handles, names = named.get_legend_handles_labels()
    if names:
        columns = columns or (1 if sum(len(name) + 6 for name in names) > 44 else 3)
        spacing = {"handlelength": 1.5, "columnspacing": 1.0, "borderpad": 0.1}
        owner.legend(handles, names, ncols=columns, fontsize=8.5, frameon=False, **spacing, **place)


def show_image(axes: Axes, image: Any, title: str = "", **style: Any) -> None:
    """One picture `(C, H, W)` in [0, 1] without ticks; anything but three channels is shown in grey (their mean)."""
    if image.shape[0] == 3:
        axes.imshow(image.permute(1, 2, 0).numpy(), **style)
    else:
        axes.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1, **style)
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=8, pad=2)


def short(text: str, limit: int) -> str:
    """The text, cut where it would not fit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def math(symbol: str) -> str:
    """A measure's symbol in matplotlib's math notation: words upright, plain spaces kept."""
    symbol = re.sub(r"[A-Za-z]{3,}(?: [A-Za-z]+)*", lambda words: rf"\mathrm{{{words[0]}}}", symbol)
    return "$" + symbol.replace(" | ", r"\,|\,").replace(" ", r"\ ").replace("½", "1/2") + "$"
