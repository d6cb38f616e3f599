"""Drawing: the colours, the line with its interval, the panels and the legend of every figure; no global state.

Figures of a page are 3.9 inches wide, so that their text stays legible when a phone shows them across its width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..analysis.layers.registry import MEASURES, STATES, measure_key
from ..analysis.layers.result import LayerMeasures
from ..analysis.record.attention import AttentionMaps
from ..analysis.record.states import LEARNED
from ..evaluation.classifier import Evaluation
from ..stats.words import UNTRAINED
from .findings import Change, against, mean_and_bounds

WIDTH = 3.9
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe-Ito: safe for colour-blind eyes
MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#555555"


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = WIDTH,
    height: float | None = None,
    sharex: bool = True,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row.

    Args:
        width, height: of the whole figure, in inches; by default 3 high, and 2.5 per row where there are several.
        sharex, sharey: as matplotlib's `subplots`.
    """
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
    """A mean over `x` with its interval as a band.

    Args:
        interval: an `Interval` over x; one `Interval`, or mapping with `mean`, `low`, `high`, per x; NaN bounds draw
            no band.
        index: of the colour and the marker.
        line: matplotlib's style; the markers of any other than "-" are open.
        floor: lowest bound drawn, for logarithmic axes.
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
    """Means with their intervals as bars; `interval` and `index` as in `band`, `style` as in matplotlib's `errorbar`.

    With `horizontal=True` the values run to the right and `x` upwards.
    """
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
    style: dict[str, Any] = {"color": _GREY, "linewidth": 0.8, "linestyle": line, "label": label, "zorder": 1}
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
    """Labels, grid and legend of all axes of a figure.

    Args:
        drawn: the axes, all of one figure.
        xlabel, ylabel: where not empty, of the lowest axes and of all axes.
        columns: of the legend; by default 1 where the names are long, else 3.
        whole: ticks of x at whole numbers only, as for layers.
        together: one legend above all axes instead of one above each.
        note: a line above that legend.
    """
    drawn = [drawn] if isinstance(drawn, Axes) else list(drawn)
    for axes in drawn:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        if ylabel:
            axes.set_ylabel(ylabel, fontsize=9)
        if xlabel and axes.get_subplotspec().is_last_row():
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


# --- Figures that move to their pages ---


_HEADS_PER_ROW = 6
_LEGEND = {"handlelength": 1.5, "columnspacing": 1.0, "borderpad": 0.1}


@dataclass(frozen=True)
class TrainingHistory:
    """What was logged while one model trained: (epoch, value) pairs, each possibly empty.

    Attributes:
        train_loss: on training batches, nats per image.
        eval_loss: on held-out images, nats per image.
        eval_accuracy: on held-out images, fraction.
    """

    train_loss: tuple[tuple[float, float], ...] = ()
    eval_loss: tuple[tuple[float, float], ...] = ()
    eval_accuracy: tuple[tuple[float, float], ...] = ()


def plot_measure(series: Mapping[str, LayerMeasures], key: str, kinds: Mapping[str, str] | None = None) -> Figure:
    """One measure over the layers, one line with the 95 % interval of its mean as a band per entry of `series`.

    A rate against subspaces gets one panel per kind of subspaces, so that no two kinds share an axis. Names that end
    in ", untrained" take the colour of the line before and are dashed.

    Args:
        series: measures by name; those that lack `key` are left out.
        kinds: what the subspaces are, by name; learned U where a name is missing.
    """
    measure = MEASURES[key]
    figure, panels = _panels_by_kind(series, measure.symbol, kinds)
    for name, colour, dashed in _styles(series):
        if key in series[name].values or key in series[name].totals:
            _layer_line(panels[name], series[name], key, name, colour, dashed)
    words = f"{measure.words}\n" if measure.words else ""
    _finish_panels(panels, measure.symbol, f"\n{words}({_unit(measure.unit)})", kinds)
    return figure


def plot_half_steps(
    series: Mapping[str, LayerMeasures], quantity: str, kinds: Mapping[str, str] | None = None
) -> Figure:
    """One quantity at every half-step: at ℓ−1 what goes into layer ℓ, at ℓ−½ Z^{ℓ+½}, at ℓ what comes out.

    What is taken against U^ℓ is drawn layer by layer, because the next layer has another U. Panels and dashes as in
    `plot_measure`.

    Args:
        series: measures by name; states that were not measured are left out.
        quantity: as `Measure.quantity`, such as "rate".
        kinds: as in `plot_measure`.
    """
    symbol = MEASURES[measure_key(quantity, "before")].symbol.replace("Z^ℓ", "Z")
    figure, panels = _panels_by_kind(series, symbol, kinds)
    for name, colour, dashed in _styles(series):
        points = _half_step_points(series[name], quantity)
        label = name
        for part in points if _needs_subspaces(symbol) else [_merged(points)]:
            if part:
                _line(panels[name], *zip(*part), label, colour, dashed)
                label = None
    _finish_panels(panels, symbol, f"\n({_unit(MEASURES[quantity].unit)})", kinds, "layers done (½: after attention)")
    return figure


def _half_step_points(measures: LayerMeasures, quantity: str) -> list[list[tuple[float, float, float, float]]]:
    """Per layer (position, mean, low, high) of each measured state."""
    places = dict(zip(STATES, (-1.0, -0.5, 0.0)))
    keys = {state: measure_key(quantity, state) for state in STATES}
    numbers = {
        state: list(zip(*mean_and_bounds(measures, key))) for state, key in keys.items() if key in measures.values
    }
    return [
        [(layer + places[state], *values[index]) for state, values in numbers.items()]
        for index, layer in enumerate(measures.layer_numbers)
    ]


def _merged(points: Sequence[Sequence[tuple[float, ...]]]) -> list[tuple[float, ...]]:
    """All layers in one line; a layer's output is the next one's input and is drawn once."""
    return sorted({point[0]: point for layer in points for point in layer}.values())


def plot_changes(changes: Mapping[str, Sequence[Change]], kinds: Mapping[str, str] | None = None) -> Figure:
    """What each layer's half-step does to R^c: the mean change with its 95 % interval, one colour per model.

    Args:
        changes: by the model's name.
        kinds: what the subspaces are, by name, one panel each; learned U where a name is missing.
    """
    symbol = "R^c( · | U^ℓ)"
    figure, panels = _panels_by_kind(changes, symbol, kinds)
    for index, (name, found) in enumerate(changes.items()):
        together = [other for other in changes if panels[other] is panels[name]]
        offset = 0.16 * (together.index(name) - (len(together) - 1) / 2)
        bars = [[c.mean - c.low for c in found], [c.high - c.mean for c in found]]
        style = {"fmt": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)], "markersize": 4}
        known = not any(np.isnan(c.low) for c in found)
        panels[name].errorbar(
            [c.layer + offset for c in found],
            [c.mean for c in found],
            yerr=bars if known else None,
            capsize=3,
            label=name,
            **style,
        )
    for axes in set(panels.values()):
        axes.axhline(0, color="#555555", linewidth=0.8, zorder=1)
        axes.set_xmargin(0.08)
    _finish_panels(panels, symbol, "\n(nats)", kinds, before="change of ")
    return figure


def plot_rates(measures: LayerMeasures, subspace_kind: str = LEARNED) -> Figure:
    """R, R^c and ΔR of Z^{ℓ+½} over the layers of one model, with the 95 % intervals of their means as bands."""
    figure, axes = _figure()
    for index, key in enumerate(("rate", "subspace_rate", "rate_reduction")):
        symbol = against(MEASURES[key].symbol.split(" = ")[0], subspace_kind)
        _layer_line(axes, measures, key, math(symbol), index)
    _finish_layers(axes, "coding rate (nats)", columns=1 if _long(axes) else 3)
    return figure


def plot_attention(attention: AttentionMaps, layer: int = -1) -> Figure:
    """Every head's class-token attention in one layer (negative: from the end), the image beside it.

    Each map is stretched from 0 to its own largest value. Heads wrap after six, so that panels stay visible.
    """
    images, heads = attention.maps.shape[0], attention.maps.shape[2]
    columns = min(heads, _HEADS_PER_ROW)
    lines = -(-heads // columns)
    cell = WIDTH / (columns + 1)
    figure = Figure(figsize=(WIDTH, images * (lines * (cell + 0.12) + 0.24)), layout="constrained")
    for row, block in enumerate(_blocks(figure, images)):
        block.suptitle(short(attention.titles[row], 60), fontsize=9, x=0.01, ha="left")
        grid = block.subplots(lines, columns + 1, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        _show_image(grid[0, 0], attention.images[row])
        for head in range(heads):
            axes = grid[head // columns, 1 + head % columns]
            axes.imshow(attention.maps[row, layer, head].numpy(), cmap="viridis", vmin=0)
            axes.set_title(f"head {head + 1}", fontsize=8, pad=2)
    return figure


def plot_confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix: colour is the fraction of the true class; counts are written up to 12 classes."""
    counts = evaluation.confusion
    classes = len(counts)
    fraction = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fraction.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("fraction of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= 20:
        names = [short(label, 16) for label in evaluation.labels]
        axes.set_xticks(range(classes), names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names, fontsize=8)
    if classes <= 12:
        size = 8 if counts.max() < 1000 else 6
        for row, column in counts.nonzero().tolist():
            ink = "white" if fraction[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=size, color=ink)
    return figure


def plot_training(histories: Mapping[str, TrainingHistory]) -> Figure:
    """Loss (training dashed, held-out solid) over the epochs, one colour per model; held-out accuracy if logged."""
    panels = 2 if any(history.eval_accuracy for history in histories.values()) else 1
    figure = Figure(figsize=(WIDTH, 2.6 * panels + 0.4), layout="constrained")
    loss, *rest = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for index, (name, history) in enumerate(histories.items()):
        _curve(loss, history.train_loss, f"{name}, training", index, dashed=True)
        _curve(loss, history.eval_loss, f"{name}, held-out", index)
        for accuracy in rest:
            _curve(accuracy, history.eval_accuracy, name, index)
            accuracy.set_ylabel("accuracy (fraction)")
    loss.set_ylabel("loss (nats per image)")
    if any(value > 0 for history in histories.values() for _, value in history.train_loss):
        loss.set_yscale("log")
    (rest or [loss])[-1].set_xlabel("epoch")
    for axes in (loss, *rest):
        _style(axes, columns=1)
    return figure


def _figure() -> tuple[Figure, Axes]:
    """An empty figure with one set of axes."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    return figure, figure.add_subplot()


def _blocks(figure: Figure, count: int) -> list:
    """`count` sub-figures below one another."""
    return list(figure.subfigures(count, 1, squeeze=False)[:, 0])


def _layer_line(axes: Axes, measures: LayerMeasures, key: str, name: str, index: int, dashed: bool = False) -> None:
    """Mean over the layers with its 95 % bootstrap interval as a band."""
    mean, low, high = mean_and_bounds(measures, key)
    _line(axes, measures.layer_numbers, mean, low, high, name, index, dashed)


def _line(
    axes: Axes,
    x: Sequence[float],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    name: str | None,
    index: int,
    dashed: bool = False,
) -> None:
    """A mean over `x` with its interval as a band."""
    colour = COLOURS[index % len(COLOURS)]
    style = {"linestyle": "--" if dashed else "-", "markersize": 4, "markerfacecolor": "white" if dashed else colour}
    axes.plot(x, mean, color=colour, marker=MARKERS[index % len(MARKERS)], label=name, **style)
    axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], name: str, index: int, dashed: bool = False) -> None:
    """One logged quantity over the epochs."""
    if points:
        epochs, values = zip(*points)
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": "--" if dashed else "-",
            "linewidth": 1.4,
        }
        marker = None if dashed else MARKERS[index % len(MARKERS)]
        axes.plot(epochs, values, label=name, marker=marker, markersize=3, **style)


def _styles(names: Iterable[str]) -> list[tuple[str, int, bool]]:
    """(name, colour, dashed) per curve: an untrained model takes the colour of the trained one before it."""
    found, colour = [], -1
    for name in names:
        dashed = name.endswith(UNTRAINED) and colour >= 0
        colour += not dashed
        found.append((name, colour, dashed))
    return found


def _unit(unit: str) -> str:
    """A unit for an axis, the same for images and texts."""
    return unit.removesuffix(" per image")


def _needs_subspaces(symbol: str) -> bool:
    return "U^ℓ" in symbol or "R^c" in symbol


def _panels_by_kind(
    names: Iterable[str], symbol: str, kinds: Mapping[str, str] | None
) -> tuple[Figure, dict[str, Axes]]:
    """Axes below one another over the same layers, one per kind of subspaces if the symbol needs any; by name."""
    wanted = {name: (kinds or {}).get(name, LEARNED) if _needs_subspaces(symbol) else "" for name in names}
    different = list(dict.fromkeys(wanted.values()))
    figure = Figure(figsize=(WIDTH, 3.0 if len(different) == 1 else 0.4 + 2.5 * len(different)), layout="constrained")
    axes = figure.subplots(len(different), 1, sharex=True, squeeze=False)[:, 0]
    return figure, {name: axes[different.index(kind)] for name, kind in wanted.items()}


def _finish_panels(
    panels: Mapping[str, Axes],
    symbol: str,
    after: str,
    kinds: Mapping[str, str] | None,
    xlabel: str = "layer ℓ",
    before: str = "",
) -> None:
    """Labels and look of `_panels_by_kind`; the lowest panel alone names the layers."""
    last = None
    for name, axes in panels.items():
        words = math(against(symbol, (kinds or {}).get(name, LEARNED)))
        _finish_layers(axes, f"{before}{words}{after}", columns=1 if _long(axes) else 3)
        axes.set_xlabel("")
        last = axes
    last.set_xlabel(xlabel)


def _long(axes: Axes) -> bool:
    """Whether the curves' names are too long to stand beside one another."""
    return sum(len(name) + 6 for name in axes.get_legend_handles_labels()[1]) > 44


def _finish_layers(axes: Axes, ylabel: str, columns: int = 3) -> None:
    """Labels and look of a figure over the layers."""
    axes.set_xlabel("layer ℓ")
    axes.set_ylabel(ylabel, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _style(axes, columns)


def _style(axes: Axes, columns: int = 3) -> None:
    """Light grid, no box, and above the axes a legend of everything that has a name."""
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8.5, frameon=False, **_LEGEND)


def _show_image(axes: Axes, image: torch.Tensor) -> None:
    """One picture `(C, H, W)` in [0, 1]; anything but three channels is shown in grey (their mean)."""
    if image.shape[0] == 3:
        axes.imshow(image.permute(1, 2, 0).numpy())
    else:
        axes.imshow(image.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title("image", fontsize=8, pad=2)
