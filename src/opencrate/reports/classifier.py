"""What only a classifier's page has: accuracy beside other models, and what it confuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.figure

from ..evaluation.classifier import Evaluation
from ..stats.words import percent, plural
from . import figures, tables
from .html import HOW, MEASURED, Figure, Part, Report, Table
from .training import TrainingHistory


@dataclass(frozen=True)
class TrainedModel:
    """One trained classifier, a row of the comparison; the seconds are wall clock of the training alone."""

    name: str
    num_parameters: int
    evaluation: Evaluation
    training_seconds: float | None = None
    history: TrainingHistory | None = None


def page(evaluation: Evaluation) -> Report:
    """The page of an evaluation alone."""
    part = Part("Results", (describe_accuracy("The model", evaluation, "images"),), (confusion_figure(evaluation),))
    return Report("Evaluation", plural(evaluation.num_images, "image"), part.sentences, (part,))


def comparison_table(models: Sequence[TrainedModel]) -> Table:
    """One row per model; the first is what the others' parameter counts are set against."""
    top5 = any(model.evaluation.top5 is not None for model in models)
    rows = []
    for model in models:
        found = model.evaluation
        ratio = model.num_parameters / models[0].num_parameters - 1
        row: dict[str, str | None] = {
            "model": model.name,
            "parameters": f"{model.num_parameters:,}" + (f" ({100 * ratio:+.1f} %)" if model is not models[0] else ""),
            "accuracy": percent(found.top1),
            "95 % interval": f"{percent(found.interval[0])} to {percent(found.interval[1])}",
        }
        if top5:
            row["top-5"] = None if found.top5 is None else percent(found.top5)
        row["loss (nats per image)"] = f"{found.loss:.4f}"
        row["training (s)"] = None if model.training_seconds is None else f"{model.training_seconds:.1f}"
        row["images/s (forward)"] = f"{found.images_per_second:,.0f}"
        rows.append(row)
    return Table("Accuracy, size and speed", tables.frame(rows))


def amount(count: int, data: str) -> str:
    """'360 held-out images of digits', or '1 held-out image of digits'."""
    one = re.sub("(image|text)s", r"\1", data, count=1)
    return f"{count:,} {one if count == 1 else data}"


def describe_accuracy(name: str, evaluation: Evaluation, data: str) -> str:
    """One sentence with accuracy, its 95 % interval and n."""
    low, high = evaluation.interval
    return (
        f"{name} gives the right class for {percent(evaluation.top1)} of {amount(evaluation.num_images, data)} "
        f"({evaluation.num_correct:,} right; 95 % interval {percent(low)} to {percent(high)})."
    )


def describe_difference(name: str, evaluation: Evaluation, other_name: str, other: Evaluation) -> str:
    """One sentence that compares two accuracies, with what the intervals allow to be said."""
    points = 100 * (evaluation.top1 - other.top1)
    apart = evaluation.interval[0] > other.interval[1] or other.interval[0] > evaluation.interval[1]
    verdict = "their 95 % intervals do not overlap" if apart else "their 95 % intervals overlap"
    gap = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if points else "level with"
    return f"{name} is {gap} {other_name} ({percent(other.top1)}); {verdict}. One training run each."


def confusion_figure(found: Evaluation) -> Figure:
    """Confusion matrix of a model, with its most frequent mistake in words."""
    wrong = found.confusion.clone().fill_diagonal_(0)
    count = found.num_images - found.num_correct
    measured = f"{count:,} of {plural(found.num_images, 'image')} {'is' if count == 1 else 'are'} given a wrong class."
    if int(wrong.max()) > 0:
        true, guess = divmod(int(wrong.argmax()), len(wrong))
        times = "once" if int(wrong.max()) == 1 else f"{int(wrong.max())} times"
        measured += f" Most often: {found.labels[true]} taken for {found.labels[guess]} ({times})."
    how = f"Largest logit on {plural(found.num_images, 'image')}, one crop."
    alt = "Confusion matrix of the trained model, true classes in rows"
    title = "Which classes are confused"
    return Figure("confusion", title, plot_confusion(found), alt, {MEASURED: measured, HOW: how})


def plot_confusion(evaluation: Evaluation) -> matplotlib.figure.Figure:
    """The confusion matrix: colour is the fraction of the true class; counts are written up to 12 classes."""
    counts = evaluation.confusion
    classes = len(counts)
    fraction = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    figure, (axes,) = figures.panels(height=3.3)
    image = axes.imshow(fraction.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("fraction of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= 20:
        names = [figures.short(label, 16) for label in evaluation.labels]
        axes.set_xticks(range(classes), names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names, fontsize=8)
    if classes <= 12:
        size = 8 if counts.max() < 1000 else 6
        for row, column in counts.nonzero().tolist():
            ink = "white" if fraction[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=size, color=ink)
    return figure
