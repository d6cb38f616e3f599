"""The picture, table and record of a reconstruction, written beside one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from .._outputs import claim
from ..evaluation.reconstruction import QUALITY, Reconstruction
from . import tables
from .figures import show_image
from .html import picture, write_files

NAME = "reconstruction"
COLUMNS = ("original", "masked", "reconstruction", "visible pasted in")
ERRORS = {
    "model_error": "mean squared error on masked patches, pixel values as the model reads them",
    "mean_colour_error": "the same of the visible patches' mean colour",
    "nearest_visible_error": "the same of a copy of the nearest visible patch",
}
MOMENTS_NOTE = (
    "the model predicts patches standardised by their own mean and deviation (norm_pix_loss): pictures and numbers "
    "use those of the original patch, which the model does not predict, and so do the baselines"
)
_CELL, _DPI = 1.15, 150


@dataclass(frozen=True)
class ReconstructedImage:
    """One image read from `file`, and its numbers.

    Attributes:
        pictures: `(4, C, H, W)` in [0, 1], in the order of `COLUMNS`; `None` where the grid has no place for it.
        numbers: by the keys of `QUALITY` and `ERRORS`, and `masked_patches`; NaN where undefined.
    """

    file: str
    pictures: Tensor | None
    numbers: dict[str, float]


def images_of(found: Reconstruction, files: Sequence[str], keep: int) -> list[ReconstructedImage]:
    """The images of a batch one by one, the first `keep` with their pictures."""
    quality = found.quality()
    pictures = torch.stack((found.original, found.masked, found.predicted, found.pasted), dim=1).float()
    errors = found.errors
    columns = (None,) * 3 if errors is None else (errors.model, errors.mean_colour, errors.nearest_visible)
    values = dict(zip(ERRORS, columns))
    images = []
    for index, file in enumerate(files):
        numbers = {name: float(column[index]) for name, column in quality.items()}
        numbers |= {name: math.nan if column is None else float(column[index]) for name, column in values.items()}
        numbers["masked_patches"] = int(found.mask[index].sum())
        images.append(ReconstructedImage(file, pictures[index] if index < keep else None, numbers))
    return images


def mean_numbers(images: Sequence[ReconstructedImage]) -> dict[str, float]:
    """Mean over the images of every number that all of them have, by name."""
    return {
        name: math.fsum(one.numbers[name] for one in images) / len(images)
        for name in images[0].numbers
        if all(math.isfinite(one.numbers[name]) for one in images)
    }


def plot_grid(images: Sequence[ReconstructedImage], title: str = "") -> Figure:
    """One row per image that has pictures: original, masked, reconstruction, visible pasted in."""
    kept = [(one, one.pictures) for one in images if one.pictures is not None]
    aspect = kept[0][1].shape[-2] / kept[0][1].shape[-1]
    size = (len(COLUMNS) * _CELL + 0.1, len(kept) * (_CELL * aspect + 0.06) + 0.4)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.01, wspace=0.01, hspace=0.01))
    if title:
        figure.suptitle(title, fontsize=7)
    grid = figure.subplots(len(kept), len(COLUMNS), squeeze=False)
    for row, (one, pictures) in zip(grid, kept):
        for axes, shown in zip(row, pictures):
            show_image(axes, shown, interpolation="nearest")
            axes.spines[:].set_color("#bbbbbb")
        psnr = one.numbers["psnr_masked"]
        words = Path(one.file).name[-28:] + (f"\nmasked: {psnr:.1f} dB" if math.isfinite(psnr) else "")
        row[0].set_ylabel(words, fontsize=5.5, labelpad=2)
    for axes, column in zip(grid[0], COLUMNS):
        axes.set_title(column, fontsize=7, pad=3)
    return figure


def write_reconstruction(
    folder: Path, images: Sequence[ReconstructedImage], facts: Mapping[str, Any], title: str = ""
) -> list[Path]:
    """Write `reconstruction.png`, `.csv` and, last, `.json` with the run's `facts`; each whole or not at all.

    At least one of the images has pictures. Gives the paths written.
    """
    rows = tables.frame({"file": one.file, **one.numbers} for one in images)
    record = {**facts, "columns": {**QUALITY, **ERRORS}, "mean": mean_numbers(images), "images": rows}
    files = {
        f"{NAME}.png": picture(plot_grid(images, title), dpi=_DPI),
        f"{NAME}.csv": rows,
        f"{NAME}.json": tables.to_json(record, indent=1),
    }
    return write_files(claim(folder), files)
