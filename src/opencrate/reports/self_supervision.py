"""What a training without labels came to: readings with their healthy values, its curves, k-NN and linear probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
from matplotlib.ticker import MaxNLocator

from . import figures, tables
from .html import HOW, MEASURED, Figure, Part, Table

_NOT_PARTS = ("epoch", "step", "effective_rank", "spread", "teacher_temperature", "teacher_momentum", "constant_share")
_EVALUATIONS = {
    "knn": "k-NN, votes exp(cos/0.07)",
    "knn_majority": "k-NN, majority",
    "linear": "linear probe",
    "linear_patches": "linear probe, mean of the patch tokens",
    "linear_last_two": "linear probe, class tokens of the last two layers",
}


def self_supervision_part(metrics: Mapping[str, Any], name: str, key: str) -> Part:
    """Of a run's `metrics.json`; `key` names the file of the figure."""
    seen = metrics["self_supervision"]
    items: list[Figure | Table] = [readings_table(seen)]
    if "test" in metrics and "knn" in metrics:
        items.append(evaluations_table(metrics))
    collapsed = seen["collapsed"]
    words = f"Collapsed ({collapsed['kind']}) by step {collapsed['step']}: {collapsed['advice']}." if collapsed else ""
    notes = {
        **({MEASURED: words} if words else {}),
        HOW: f"Parts of the loss ({seen['objective']}), means since the point before; projections of "
        f"{seen['images']} {seen['split']} images, the same ones each time.",
    }
    alt = "Effective rank, the parts of the loss, and k-NN and linear probe against the epoch"
    figure = plot_self_supervision(seen)
    items.append(Figure(f"self_supervision_{key}", "Training without labels", figure, alt, notes))
    return Part(f"Training without labels: {name}", (), tuple(items))


def readings_table(seen: Mapping[str, Any]) -> Table:
    """The last readings, each with its healthy value."""
    rows = [
        {
            "reading": one["name"],
            "value": f"{one['value']:.3g}",
            "healthy": one["healthy"],
            "verdict": "as it should be" if one["fine"] else one["advice"],
        }
        for one in seen["readings"]
    ]
    return Table("Readings at the end of training", tables.frame(rows), "Healthy values are rules of thumb.")


def evaluations_table(metrics: Mapping[str, Any]) -> Table:
    """Accuracies on the test split, of the trained and of the untrained model."""
    rows = []
    for key, title in _EVALUATIONS.items():
        low, high = metrics["test"][key]["interval"]
        accuracy = f"{100 * metrics[key]:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        rows.append({"": title, "trained (%)": accuracy, "untrained (%)": f"{100 * metrics['untrained'][key]:.2f}"})
    one = metrics["test"]["knn"]
    counts = f"fitted on {one['train_images']:,} training images, counted on {one['test_images']:,} test images"
    note = f"Features of the frozen model, {counts}; in brackets: 95 % Wilson interval."
    return Table("Accuracy of its features", tables.frame(rows), note)


def plot_self_supervision(seen: Mapping[str, Any]) -> matplotlib.figure.Figure:
    """Effective rank, each part of the loss, and the evaluations, one panel each over the epochs."""
    rows, evaluations = seen["history"], seen["evaluations"]
    names = [name for name in rows[-1] if name not in _NOT_PARTS]
    count = 1 + len(names) + bool(evaluations)
    figure, panels = figures.panels(count, height=1.7 * count + 0.4)
    _curve(panels[0], rows, "effective_rank", "", 0)
    panels[0].set_ylabel("effective rank", fontsize=9)
    for axes, name in zip(panels[1:], names):
        _curve(axes, rows, name, "", 1)
        axes.set_ylabel(name.replace("_", " "), fontsize=9)
    for index, (key, label) in enumerate({"knn": "k-NN", "linear": "linear probe"}.items()):
        if evaluations:
            _curve(panels[-1], evaluations, key, label, index)
    figures.finish(panels, "epoch", columns=2, whole=False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5))
    if evaluations:
        panels[-1].set_ylabel("accuracy (fraction)", fontsize=9)
    return figure


def _curve(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, label: str, index: int) -> None:
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points), color=figures.COLOURS[index], linewidth=1.4, marker="o", markersize=3, label=label or None)
