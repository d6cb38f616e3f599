"""What a training run came to: its curves, its results on held-out data, samples, and its layers over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from ..analysis.layers.registry import MEASURES
from ..stats.intervals import ABOVE, BELOW, UNDECIDED, sign
from ..stats.words import duration, listing, percent
from . import figures, tables
from .html import HOW, MEASURED, PREDICTED, Figure, Part, Table
from .reconstruction import ReconstructedImage, plot_grid

_BASELINES = {"mean_colour": "the mean colour of the visible patches", "nearest_visible": "the nearest visible patch"}


@dataclass(frozen=True)
class TrainingHistory:
    """What was logged while one model trained: (epoch, value) pairs, each possibly empty.

    Losses of training batches and of held-out inputs in one unit, and held-out accuracy as a fraction.
    """

    train_loss: tuple[tuple[float, float], ...] = ()
    eval_loss: tuple[tuple[float, float], ...] = ()
    eval_accuracy: tuple[tuple[float, float], ...] = ()
    unit: str = "nats per image"

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], unit: str = "nats per image") -> TrainingHistory:
        """The history in a run's `metrics.json`."""
        names = ("train_loss", "validation_loss", "validation_accuracy")
        return cls(*(tuple((row["epoch"], row[name]) for row in rows if name in row) for name in names), unit=unit)


@dataclass(frozen=True)
class RunResults:
    """What a run without classes came to: of a language model, or of a masked autoencoder.

    `metrics` are the run's `metrics.json`, `samples` (beginning, how the model continues it), and `images` a few
    held-out ones, masked and reconstructed; `seed` is of samples and masks.
    """

    name: str
    num_parameters: int
    metrics: Mapping[str, Any]
    samples: tuple[tuple[str, str], ...] = ()
    images: tuple[ReconstructedImage, ...] = ()
    seed: int = 0

    @property
    def reads(self) -> str:
        """ "text" or "images"."""
        return "text" if "perplexity" in self.metrics else "images"

    @property
    def errors(self) -> Mapping[str, Any]:
        """What was measured of a masked autoencoder on its test images."""
        return self.metrics.get("test", {}) if self.reads == "images" else {}

    @property
    def history(self) -> TrainingHistory:
        """The training curves."""
        unit = "nats per token" if self.reads == "text" else "squared error"
        return TrainingHistory.of(self.metrics.get("history", ()), unit)


def describe_results(found: RunResults) -> str:
    """One sentence on how well a run does its task on held-out data."""
    metrics = found.metrics
    if found.reads == "text":
        what = "the next token" if "bits_per_byte" in metrics else "masked tokens"
        text = (
            f"{found.name} predicts {what} of held-out text with a loss of {metrics['loss']:.3f} nats per token: "
            f"perplexity {metrics['perplexity']:.1f}"
        )
        bits = f", {metrics['bits_per_byte']:.2f} bits per byte" if "bits_per_byte" in metrics else ""
        right = (
            f"; its first guess is right for {percent(metrics['accuracy'])} of tokens" if "accuracy" in metrics else ""
        )
        return f"{text}{bits}{right}."
    if "error_model" not in found.errors:
        loss = f"a loss of {metrics['loss']:.3f}" if "loss" in metrics else "a loss that was not measured"
        return f"{found.name} reconstructs held-out images with {loss}."
    words = {ABOVE: "below", BELOW: "above", UNDECIDED: "not significantly different from"}
    parts = [
        f"{words[sign(*found.errors[f'below_{key}']['interval'])]} that of copying {name} "
        f"({found.errors[f'error_{key}']['mean']:.3g})"
        for key, name in _BASELINES.items()
    ]
    error = found.errors["error_model"]["mean"]
    return f"{found.name} fills in masked patches with a squared error of {error:.3g}, {listing(parts)}."


def results_table(results: Sequence[RunResults]) -> Table:
    """One row per run: size, training time and what was measured on held-out data."""
    rows = []
    for one in results:
        row: dict[str, Any] = {"model": one.name, "parameters": f"{one.num_parameters:,}"}
        if one.reads == "text":
            row |= {"loss (nats per token)": f"{one.metrics['loss']:.4f}"}
            row |= {"perplexity": f"{one.metrics['perplexity']:.2f}"}
            for key, head in (("bits_per_byte", "bits per byte"), ("accuracy", "accuracy (fraction of tokens)")):
                row[head] = f"{one.metrics[key]:.3f}" if key in one.metrics else None
        else:
            heads = {"error_model": "error on masked patches", "error_mean_colour": "error of the mean colour"}
            heads |= {"error_nearest_visible": "error of the nearest patch", "psnr_masked": "PSNR, masked patches (dB)"}
            row |= {head: _with_interval(one.errors[key]) for key, head in heads.items() if key in one.errors}
        seconds = one.metrics.get("seconds")
        rows.append({**row, "training": None if seconds is None else duration(seconds)})
    text = results[0].reads == "text"
    note = (
        f"On the {results[0].metrics.get('part', 'held-out')} part of the run's own text, once, after training."
        if text
        else "Test images, looked at once, after training; in brackets: 95 % bootstrap interval over images."
    )
    return Table("Results on held-out text" if text else "Results on held-out images", tables.frame(rows), note)


def _with_interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.3g} ({low:.3g} to {high:.3g})"


def results_items(results: Sequence[RunResults]) -> list[Figure | Table | Markup]:
    """The table, the curves, and each run's samples or reconstructions."""
    histories = {one.name: one.history for one in results if len(one.history.train_loss) > 1}
    items: list[Figure | Table | Markup] = [results_table(results)]
    items += [training_figure(histories)] if histories else []
    for number, one in enumerate(results, 1):
        whose = f": {one.name}" if len(results) > 1 else ""
        if one.images:
            items.append(_reconstructions(one, f"reconstructions_{number}", whose))
        if one.samples:
            items.append(_samples(one, whose))
    return items


def _reconstructions(found: RunResults, name: str, whose: str) -> Figure:
    how = f"The first {len(found.images)} test images, not chosen; masks drawn with seed {found.seed}."
    alt = "Images, what the model sees of them, and what it makes of the rest"
    figure = plot_grid(found.images)
    return Figure(name, f"What the model makes of masked images{whose}", figure, alt, {HOW: how})


def _samples(found: RunResults, whose: str) -> Markup:
    head = Markup("<h3>How the model continues a text{}</h3>\n").format(whose)
    note = Markup('<p class="note">In bold, the beginning of held-out texts; then what the model adds, one draw each ')
    note += Markup("(temperature 1, seed {}).</p>\n").format(found.seed)
    quotes = (Markup("<blockquote><b>{}</b>{}</blockquote>\n").format(*map(escape, pair)) for pair in found.samples)
    return head + note + Markup("").join(quotes)


def training_figure(histories: Mapping[str, TrainingHistory]) -> Figure:
    """Training curves of one or more models, by name."""
    alt = "Loss and held-out accuracy over the epochs of training"
    how = "Training loss as logged, a mean since the point before; held-out values as logged."
    return Figure("training", "Training", plot_training(histories), alt, {HOW: how})


def plot_training(histories: Mapping[str, TrainingHistory]) -> matplotlib.figure.Figure:
    """Loss (training dashed, held-out solid) over the epochs, one colour per model; held-out accuracy if logged."""
    rows = 2 if any(history.eval_accuracy for history in histories.values()) else 1
    figure, panels = figures.panels(rows, height=2.6 * rows + 0.4)
    for index, (name, history) in enumerate(histories.items()):
        _curve(panels[0], history.train_loss, f"{name}, training", index, dashed=True)
        _curve(panels[0], history.eval_loss, f"{name}, held-out", index)
        if rows == 2:
            _curve(panels[1], history.eval_accuracy, name, index)
    losses = [value for history in histories.values() for _, value in history.train_loss]
    if losses and 0 < 5 * min(losses) < max(losses):
        panels[0].set_yscale("log")
    figures.finish(panels, "epoch", columns=1, whole=False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylabel(f"loss ({next(iter(histories.values())).unit})")
    panels[-1].set_ylabel("accuracy (fraction)" if rows == 2 else panels[0].get_ylabel())
    return figure


def _curve(axes: Any, points: Sequence[tuple[float, float]], name: str, index: int, dashed: bool = False) -> None:
    """One logged quantity over the epochs."""
    if points:
        marker = None if dashed else figures.MARKERS[index % len(figures.MARKERS)]
        style = {"color": figures.COLOURS[index % len(figures.COLOURS)], "linestyle": "--" if dashed else "-"}
        axes.plot(*zip(*points), label=name, marker=marker, markersize=3, linewidth=1.4, **style)


def measures_part(white_box: Mapping[str, Any], name: str, key: str) -> Part:
    """What the layers did while a model was trained, from `white_box` of its `metrics.json`; `key` names the file."""
    first, last = (sum(white_box["history"][index]["subspace_rate"]) for index in (0, -1))
    inputs = f"{white_box['images']} {white_box['split']} {white_box.get('inputs', 'images')}"
    symbol = MEASURES["subspace_rate"].symbol
    figure = Figure(
        name=f"training_measures_{key}",
        title="The layers from epoch to epoch",
        figure=plot_training_measures(white_box),
        alt="R^c after compression and the non-zero fraction after sparsification, per layer, against the epoch",
        notes={
            PREDICTED: "Training is end to end. Its loss does not contain R^c; theory only predicts that R^c falls.",
            MEASURED: f"Summed over the layers, {symbol} went from {first:.1f} to {last:.1f} nats during training.",
            HOW: f"{inputs} at the end of epochs, the same ones each time; ε = {white_box['eps']:g}.",
        },
    )
    return Part(f"While training: {name}", (), (figure,))


def plot_training_measures(
    white_box: Mapping[str, Any], keys: Sequence[str] = ("subspace_rate", "nonzero_fraction")
) -> matplotlib.figure.Figure:
    """One panel per key of `MEASURES`, one line per layer over the epochs; a measure not logged is refused."""
    rows = white_box["history"]
    for key in keys:
        if not rows or key not in rows[0]:
            raise ValueError(f"white_box: no measure '{key}' in it; train with logging.measure_inputs above 0")
    epochs, layers = [row["epoch"] for row in rows], len(rows[0][keys[0]])
    each = white_box.get("inputs", "images").removesuffix("s")
    colours = [colormaps["viridis"](0.9 * layer / max(1, layers - 1)) for layer in range(layers)]
    figure, panels = figures.panels(len(keys), height=2.5 * len(keys) + 0.3)
    for axes, key in zip(panels, keys):
        for layer, colour in enumerate(colours):
            axes.plot(epochs, [row[key][layer] for row in rows], color=colour, linewidth=1.3, label=f"{layer + 1}")
    figures.finish(panels, "epoch", columns=min(10, layers), whole=False, together=True, note="layer")
    panels[-1].xaxis.set_major_locator(MaxNLocator(5))
    for axes, key in zip(panels, keys):
        measure = MEASURES[key]
        axes.set_ylabel(f"{figures.math(measure.symbol)}\n({measure.unit.replace('image', each)})", fontsize=9)
    return figure
