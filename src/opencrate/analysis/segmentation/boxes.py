"""Boxes `(left, top, right, bottom)` in places of the grid or pixels; right and bottom are the first outside."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .arrays import Array, as_mask

Box = tuple[int, int, int, int]


def mask_box(mask: Tensor | Array) -> Box | None:
    """The smallest box around a mask `(rows, columns)`; None where nothing is inside.

    >>> mask_box([[0, 0, 0], [0, 1, 1]])
    (1, 1, 3, 2)
    """
    inside = as_mask(mask)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scaled_box(box: Box, grid: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box on a grid of `(rows, columns)` in pixels of an image of `(height, width)`."""
    across, down = size[1] / grid[1], size[0] / grid[0]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def box_ious(first: Array, second: Array) -> Array:
    """Intersection over union of every box of `(n, 4)` with every one of `(m, 4)`: float64 `(n, m)`.

    0 for two boxes without area.
    """
    inner, union = box_overlaps(first, second)
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def box_overlaps(first: Array, second: Array) -> tuple[Array, Array]:
    """Areas that every box of `(n, 4)` shares with every one of `(m, 4)`, and of both together: float64 `(n, m)`."""
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inner = corner.clip(0).prod(-1)
    return inner, box_areas(a)[:, None] + box_areas(b)[None] - inner


def box_areas(boxes: Array) -> Array:
    """Width times height of boxes `(n, 4)`, float64 `(n)`."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1)
