"""Masks of many image files, those together that the model reads at one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..._files import shown
from .overlap import check_stride
from .pictures import grid_of
from .segment import Segmented, Segmenter

_TOKENS = 8192
"""Patches of a batch, so that its states stay a few hundred MB at ViT-B's size."""


@dataclass(frozen=True)
class SegmentedFile:
    """An image file, its picture (upright, `L` or `RGB`), and what was found."""

    file: Path
    picture: Image.Image
    found: Segmented


def segment_files(
    segmenter: Segmenter,
    files: Sequence[Path],
    *,
    batch_size: int = 8,
    skipped: list[str] | None = None,
    **wanted: bool,
) -> Iterator[SegmentedFile]:
    """Segment image files, in their order.

    Args:
        segmenter: model and options.
        files: images.
        batch_size: of neighbours that the model reads at one size; fewer where they have more than 8,192 patches.
        skipped: takes the reasons for files that cannot be read or segmented at this size; without it they are raised.
        wanted: `maps` and `masks`, as the segmenter takes them.

    Raises:
        ValueError: a bad file, named, unless `skipped` is given.
    """
    batch: list[tuple[Path, Image.Image]] = []
    size: Any = None
    for file in files:
        try:
            picture = segmenter.transform.read({"path": str(file), "bytes": None})
            own = _size_of(segmenter, picture, file)
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        if batch and (own != size or len(batch) >= min(batch_size, _together(segmenter, size))):
            yield from _found(segmenter, batch, wanted)
            batch = []
        size = own
        batch.append((file, picture))
    if batch:
        yield from _found(segmenter, batch, wanted)


def _size_of(segmenter: Segmenter, picture: Image.Image, file: Path) -> tuple[int, int]:
    try:
        return segmenter.size_of(picture)
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error


def _together(segmenter: Segmenter, size: tuple[int, int]) -> int:
    rows, columns = grid_of(size, segmenter.patch, check_stride(segmenter.options.stride, segmenter.patch))
    return max(1, _TOKENS // (rows * columns))


def _found(
    segmenter: Segmenter, batch: list[tuple[Path, Image.Image]], wanted: dict[str, bool]
) -> Iterator[SegmentedFile]:
    for (file, picture), found in zip(batch, segmenter([picture for _, picture in batch], **wanted)):
        yield SegmentedFile(file, picture, found)
