"""Outlines to masks. The masks must not depend on which packages are installed, so there is one way, without any.

A pixel is inside where its centre is. pycocotools rounds corners to fifths of a pixel and draws the outline's pixels by
a rule of its own; PIL adds the whole outline. Both differ from this in pixels of the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._values import shown_value


def fill_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[Any]:
    """What lies in any of some polygons: bool `(height, width)`.

    Args:
        polygons: each `[x0, y0, x1, y1, ...]`, at least three corners, in pixels from the image's upper left corner.
        size: height and width.

    Raises:
        ValueError: an odd number of coordinates, fewer than three corners, or one that is no finite number.
    """
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        mask |= _filled(_corners(polygon), size)
    return mask


def _corners(polygon: Sequence[float]) -> NDArray[Any]:
    try:
        corners = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"segmentation: a polygon {shown_value(polygon)}; need numbers") from error
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError(
            f"segmentation: a polygon of {corners.size} numbers; need x and y of three corners or more, all finite"
        )
    return corners.reshape(-1, 2)


def _filled(corners: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Pixels with an odd number of edges to the left of their centre, in their row."""
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, 0).T
    centres = np.arange(size[0])[None] + 0.5
    low, high = np.minimum(y0, y1)[:, None], np.maximum(y0, y1)[:, None]
    edge, row = np.nonzero((low <= centres) & (centres < high))
    cut = x0[edge] + (centres[0, row] - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    first = np.ceil(cut - 0.5).clip(0, size[1]).astype(int)  # the first pixel with its centre at or right of the cut
    cuts = np.zeros((size[0], size[1] + 1), dtype=np.int32)
    np.add.at(cuts, (row, first), 1)
    return cuts.cumsum(1)[:, : size[1]] % 2 == 1
