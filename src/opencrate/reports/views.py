"""A picture of the views that a self-supervised objective compares: one row per image, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from .._outputs import write_whole
from ..data.draws import Draw
from ..data.images.tensors import to_array
from ..data.images.views import MultiViewImages
from .figures import show_image
from .html import picture

_CELL, _DPI = 1.0, 150


def plot_views(images: MultiViewImages, draws: Sequence[Draw]) -> Figure:
    """One row per draw: the whole image, its global views and, in proportion smaller, its local views."""
    items = images.__getitems__(draws)
    numbered = [(name, number, kind) for name, kinds in images.kinds.items() for number, kind in enumerate(kinds, 1)]
    titles = ["image", *(f"{name.removesuffix('_views')} {number}" for name, number, _ in numbered)]
    height, width = images.shape[1:]
    widths = [1.0, *(kind.size[1] / width for *_, kind in numbered)]
    size = (_CELL * sum(widths) + 0.05 * len(widths), len(draws) * _CELL * height / width + 0.25)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.01, wspace=0.01, hspace=0.01))
    grid = figure.subplots(len(draws), len(widths), squeeze=False, width_ratios=widths)
    for row, draw, item in zip(grid, draws, items):
        whole = torch.tensor(to_array(images.image(draw.index))) / 255
        pictures = [whole, *(view for name in images.kinds for view in _pixels(images, item[name]))]
        for axes, shown in zip(row, pictures):
            show_image(axes, shown, interpolation="nearest")
            axes.set_anchor("N")
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(f"image {draw.index}", fontsize=6, labelpad=2)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=6, pad=2)
    return figure


def write_views(path: Path, images: MultiViewImages, draws: Sequence[Draw]) -> None:
    """Write the figure as PNG, whole or not at all; a file that is there is replaced."""
    write_whole(path, picture(plot_views(images, draws), dpi=_DPI))


def _pixels(images: MultiViewImages, views: Tensor) -> Tensor:
    """Normalised views `(V, C, h, w)` as they were before: in [0, 1]."""
    processor = images.transform.processor
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (views * std + mean).clamp(0, 1)
