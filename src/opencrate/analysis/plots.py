"""Figures of the analysis dataclasses: pure functions, no global drawing state.

All figures are 3.9 inches wide, so that their text stays legible when a phone shows them across its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .attention_maps import AttentionMaps
from .evaluation import Evaluation
from .rates import MEASURES, LayerMeasures

WIDTH = 3.9
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe-Ito: safe for colour-blind eyes
_MARKERS = ("o", "s", "^", "D", "v", "P")
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


def plot_measure(series: Mapping[str, LayerMeasures], key: str) -> Figure:
    """One measure over the layers, one line with a ± 1 standard deviation band per entry of `series`."""
    figure, axes = _figure()
    for index, (name, measures) in enumerate(series.items()):
        _layer_line(axes, measures, key, name, index)
    measure = MEASURES[key]
    words = f", {measure.words}" if measure.words else ""
    _finish_layers(axes, f"{_math(measure.symbol)}{words}\n({measure.unit})")
    return figure


def plot_rates(measures: LayerMeasures) -> Figure:
    """R, R^c and ΔR of Z^{ℓ+½} over the layers of one model, with ± 1 standard deviation bands."""
    figure, axes = _figure()
    for index, key in enumerate(("rate", "subspace_rate", "rate_reduction")):
        _layer_line(axes, measures, key, _math(MEASURES[key].symbol.split(" = ")[0]), index)
    _finish_layers(axes, "coding rate (nats per image)")
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
        block.suptitle(_short(attention.titles[row], 60), fontsize=9, x=0.01, ha="left")
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
        names = [_short(label, 16) for label in evaluation.labels]
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


def _layer_line(axes: Axes, measures: LayerMeasures, key: str, name: str, index: int) -> None:
    """Mean over the layers with a ± 1 standard deviation band."""
    layers = range(1, measures.num_layers + 1)
    mean, std = measures.mean(key), measures.std(key)
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(layers, mean.numpy(), color=colour, marker=_MARKERS[index % len(_MARKERS)], markersize=4, label=name)
    axes.fill_between(layers, (mean - std).numpy(), (mean + std).numpy(), color=colour, alpha=0.2, linewidth=0)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], name: str, index: int, dashed: bool = False) -> None:
    """One logged quantity over the epochs."""
    if points:
        epochs, values = zip(*points)
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": "--" if dashed else "-",
            "linewidth": 1.4,
        }
        marker = None if dashed else _MARKERS[index % len(_MARKERS)]
        axes.plot(epochs, values, label=name, marker=marker, markersize=3, **style)


def _finish_layers(axes: Axes, ylabel: str) -> None:
    """Labels and look of a figure over the layers."""
    axes.set_xlabel("layer ℓ")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _style(axes)


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


def _short(text: str, limit: int) -> str:
    """The text, cut where it would not fit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _math(symbol: str) -> str:
    """A measure's symbol in matplotlib's math notation, which drops plain spaces."""
    return "$" + symbol.replace(" | ", r"\,|\,").replace(" ", r"\ ").replace("½", "1/2") + "$"
