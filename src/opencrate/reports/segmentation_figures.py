"""Figures of an evaluation of masks: examples, heads by class, and scores under noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..analysis.segmentation.class_table import ClassTable
from ..analysis.segmentation.evaluation import FLOOR, MODEL, UNTRAINED, Example, Measure, SegmentationScores
from ..analysis.segmentation.scores import CONSTANT
from . import figures
from .html import HOW, MEASURED, Figure
from .segmentation import overlay

_CLASSES = 30


def examples_figure(found: SegmentationScores, model: str) -> Figure:
    """Pictures beside their truth, and a model's MaskCut and mean attention."""
    return Figure(
        f"examples-{file_name(model)}",
        f"Masks beside the truth: {model}",
        plot_examples(found.examples, model),
        "Pictures, true instances, MaskCut's masks and the mean attention map",
        {HOW: "First images with an object. Colours number instances and cuts, and do not belong together."},
    )


def plot_examples(examples: Sequence[Example], model: str) -> Drawing:
    """One row per image: the picture, the truth, MaskCut's masks and the heads' mean map."""
    titles = ["image", "truth", "MaskCut"] + (["attention, mean"] if model in examples[0].maps else [])
    rows = []
    for one in examples:
        shown: list[Any] = [
            one.picture,
            *(overlay(one.picture, [*masks]) for masks in (one.instances, one.masks[model])),
        ]
        rows.append(shown + ([one.maps[model].mean(0)] if model in one.maps else []))
    return plot_rows(rows, titles)


def plot_rows(rows: Sequence[Sequence[Any]], titles: Sequence[str]) -> Drawing:
    """A grid of pictures: in every row a PIL image, then PIL images or maps `(rows, columns)` of its aspect."""
    tall = [min(1.5, row[0].height / row[0].width) for row in rows]
    size = (figures.WIDTH, figures.WIDTH / len(titles) * sum(tall) + 0.03 * len(rows) + 0.25)
    drawing = Drawing(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.01, wspace=0.01, hspace=0.01))
    grid = drawing.subplots(len(rows), len(titles), squeeze=False, height_ratios=tall)
    for places, row in zip(grid, rows):
        for axes, shown in zip(places, row):
            extent = (0, row[0].width, row[0].height, 0)
            axes.imshow(np.asarray(shown), extent=extent, cmap="viridis", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=7 if len(titles) < 6 else 5, pad=2)
    return drawing


def classes_figure(table: ClassTable, floor: ClassTable | None, name: str, rule: str) -> Figure:
    """Mean IoU by class and head, those of most images first."""
    order = sorted(range(len(table.classes)), key=lambda place: (-table.counts[place], place))[:_CLASSES]
    best = max(order, key=lambda place: table.means[place].max())
    measured = (
        f"Highest: head {table.best[best] + 1} for {table.names[best]}, "
        f"{100 * table.means[best].max():.1f} % on {table.counts[best]}."
    )
    many = f" The {_CLASSES} most frequent classes of {len(table.classes)}." if len(order) < len(table.classes) else ""
    return Figure(
        f"classes-{file_name(name)}-{rule.partition(':')[0]}",
        f"Mean IoU of every head with every class: {name}, {rule}",
        plot_classes(table, floor, order),
        "Heat map of mean IoU, classes in rows and heads in columns, beside that of random maps",
        {MEASURED: measured, HOW: f"Masks at the image's size. Right: random maps with as many heads.{many}"},
    )


def plot_classes(table: ClassTable, floor: ClassTable | None, order: list[int]) -> Drawing:
    """Heat maps of a model's table and of the floor's, on one scale."""
    shown = [("model", table)] + ([("random maps", floor)] if floor is not None else [])
    high = max(float(one.means[order].max()) for _, one in shown)
    height = 1.0 + 0.17 * len(order)
    drawing, panels = figures.panels(1, len(shown), height=height, sharey=True)
    image = None
    for axes, (title, one) in zip(panels, shown):
        image = axes.imshow(100 * one.means[order], cmap="Blues", vmin=0, vmax=100 * high, aspect="auto")
        axes.set_title(title, fontsize=8)
        heads = one.means.shape[1]
        step = max(1, heads // 6)
        axes.set_xticks(range(0, heads, step), [str(head + 1) for head in range(0, heads, step)], fontsize=7)
        axes.set_xlabel("head", fontsize=8)
    labels = [f"{figures.short(table.names[place], 14)} ({table.counts[place]})" for place in order]
    panels[0].set_yticks(range(len(order)), labels, fontsize=6.5)
    assert image is not None
    bar = drawing.colorbar(image, ax=panels, shrink=0.9)
    bar.set_label("mean IoU, %", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return drawing


def noise_figure(found: SegmentationScores) -> Figure:
    """Scores against the noise on the images."""
    return Figure(
        "noise",
        "Scores against noise",
        plot_noise(found),
        "Scores with intervals over the standard deviation of the noise, one line per model, and floors as grey lines",
        {HOW: f"Bands: 95 % bootstrap intervals over {found.unit}s. Floors: dashed, the highest on clean images."},
    )


def plot_noise(found: SegmentationScores) -> Drawing:
    """One panel per measure: a line with its band for every model, and the highest floor on clean images."""
    measures = _shown_measures(found)
    drawing, panels = figures.panels(len(measures), 1, height=0.5 + 2.1 * len(measures))
    for axes, measure in zip(panels, measures):
        for index, model in enumerate(found.of(MODEL)):
            line = []
            for sigma in found.sigmas:
                same = next(one for one in found.of(MODEL, sigma) if one.name == model.name)
                interval = found.interval(same, measure)
                if interval is not None:
                    ends = ("mean", "low", "high")
                    line.append((sigma, {end: 100 * float(getattr(interval, end)) for end in ends}))
            if line:
                figures.band(axes, [x for x, _ in line], [y for _, y in line], model.name, index)
        floors = [found.interval(one, measure) for role in (UNTRAINED, FLOOR) for one in found.of(role)]
        highest = [float(one.mean) for one in floors if one is not None and float(one.mean) == float(one.mean)]
        if highest:
            figures.rule(axes, y=100 * max(highest), line="--", label="highest floor")
        axes.set_ylim(bottom=0)
    figures.finish(panels, "σ of the noise, pixel values of 0 to 255", whole=False, together=True)
    for axes, measure in zip(panels, measures):
        axes.set_ylabel(_axis(measure), fontsize=8)
    return drawing


def _shown_measures(found: SegmentationScores) -> list[Measure]:
    """Attention by mass with either choice of the head, one object, and masks by average precision."""
    rules = found.settings.get("rules", ())
    wanted = [
        ("attention", f"{rule}, {choice}") for rule in rules[-1:] for choice in ("best head", "head of other images")
    ]
    wanted += [("object", name) for name in ("CorLoc, TokenCut", "J, TokenCut")]
    wanted += [("box", f"AP50, {CONSTANT}"), ("mask", f"AP50, {CONSTANT}")]
    return [measure for measure in wanted if measure in found.measures]


def _axis(measure: Measure) -> str:
    short = {"attention": "mIoU, %", "object": "%", "box": "boxes, %", "mask": "masks, %"}[measure[0]]
    return f"{measure[1]}\n{short}"


def file_name(name: str) -> str:
    """A name for a file, of plain letters."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in name)
