"""MaskCut: one mask per normalised cut, each cut without the tokens of the masks before it.

The procedure of [CutLER, 2301.11320, Sec. 3.2] and of CRATE's tables [2308.16271, App. B.4], written from its
description and checked against its outputs. With `published` the masks are those of the published code on the same
tokens. Without it three things differ, each of which makes a later stage waste its cut:

1. A dropped mask is painted out like a kept one. Published, it stays, so that the next stage makes the same cut again.
2. A mask is compared with every earlier mask that was kept. Published, it is compared with that of the stage before
   only; where that one was dropped it is empty, so that the mask dropped a stage ago is kept at the second try.
3. A graph without parts (λ₂ = 1), or with fewer than two tokens left, ends the search. Published, the next stage
   returns a mask that depends on the solver.

In both, the eigenvector's sign is fixed: its entry of largest size is positive. In the published code it is the
solver's, and where the corner rule applies the mask depends on it. Resizing an image to a square is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from .affinity import Affinity, affinity
from .arrays import Array, Grid, as_features, check_grid
from .ncut import Cut, normalised_cut

CORNERS = 3
"""A side of the cut with as many corners of the grid is the background."""
ALIKE = 0.5
"""A mask whose IoU with an earlier one is above this is dropped."""
SMALL = 0.01
"""A mask that covers no more of the grid than this is dropped, unless it is the first."""
_NO_PARTS = 1e-9


@dataclass(frozen=True)
class CutMask:
    """A mask on the grid of tokens.

    Attributes:
        mask: bool `(rows, columns)`, without the tokens of earlier masks.
        score: 1 − λ₂ of its cut.
        stage: which cut it comes from, counted from 0.
        vector: float64 `(rows, columns)`, the cut's eigenvector with its foreground positive.
    """

    mask: Array
    score: float
    stage: int
    vector: Array


@dataclass(frozen=True)
class Foreground:
    """The side of a cut that is taken for an object.

    Attributes:
        side: bool `(rows, columns)`.
        vector: float64 `(rows, columns)`, the eigenvector with the sign that makes `side` positive.
        seed: the token of its largest entry (the first of equals).
        component: bool `(rows, columns)`, what of the side is connected with the seed through the sides of tokens.
    """

    side: Array
    vector: Array
    seed: int
    component: Array


def maskcut(
    features: Tensor | Array, grid: Grid, *, num_masks: int = 3, tau: float = 0.15, published: bool = False
) -> list[CutMask]:
    """Up to `num_masks` masks of objects, in the order of the cuts; those that are dropped leave a gap in `stage`.

    Args:
        features: (N, d), one row for each patch, row by row; keys or UᵀLN(Z) of all heads, without the class token.
        grid: rows and columns of the patches.
        num_masks: cuts that are made, at least 1; 3 in the published tables.
        tau: the cosine above which tokens are alike, in [0, 1): 0.15 in the paper's tables.
        published: the published code's masks, with the differences that the module's head lists.

    Raises:
        ValueError: an argument outside its range, or features that are no finite numbers.
        ArithmeticError: the eigenvector of a large graph was not found.
    """
    array = as_features(features)
    rows, columns = check_grid(grid, len(array))
    if not isinstance(num_masks, int) or num_masks < 1:
        raise ValueError(f"num_masks={num_masks!r}: must be an integer >= 1, such as 3")
    graph = affinity(array, tau)
    stages = _published_stages(graph, (rows, columns)) if published else _stages(graph, (rows, columns))
    return [mask for _, mask in zip(range(num_masks), stages) if mask.mask.any()]


def foreground(cut: Cut, grid: Grid, corners: bool = True) -> Foreground:
    """The side of a cut that is an object: above the vector's mean, and with the entry of largest size.

    Args:
        cut: of N tokens; its sign is used as it is.
        grid: rows and columns.
        corners: take the other side if three or more corners of the grid are on this one, whatever the sizes are.
    """
    vector = cut.vector.reshape(grid)
    side = vector > vector.mean()
    background = corners and side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= CORNERS
    if background or not side.flat[np.abs(vector).argmax()]:
        side, vector = ~side, -vector
    seed = int(vector.argmax())
    labels = np.empty(side.shape, dtype=np.int32)
    ndimage.label(side, output=labels)
    return Foreground(side, vector, seed, side & (labels == labels.flat[seed]))


def mask_iou(first: Array, second: Array) -> float:
    """Intersection over union of two bool arrays of one shape; 0 where both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0


def _small(mask: Array) -> bool:
    return bool(mask.mean() <= SMALL)


def _stages(graph: Affinity, grid: Grid) -> Iterator[CutMask]:
    """Our masks without end, dropped ones empty, until there is nothing left to cut."""
    kept: list[Array] = []
    stage, taken = 0, np.zeros(grid, dtype=bool)
    while graph.present.sum() >= 2 and (cut := normalised_cut(graph)).score > _NO_PARTS:
        found = foreground(cut, grid)
        drop = any(mask_iou(found.component, mask) > ALIKE for mask in kept) or (stage > 0 and _small(found.component))
        yield CutMask(np.zeros(grid, dtype=bool) if drop else found.component & ~taken, cut.score, stage, found.vector)
        if not drop:
            kept.append(found.component)
            taken = taken | found.component
        graph = graph.without(found.component.ravel())
        stage += 1


def _published_stages(graph: Affinity, grid: Grid) -> Iterator[CutMask]:
    """The masks of the published code without end, dropped ones empty."""
    previous = taken = np.zeros(grid, dtype=bool)
    stage = 0
    while True:
        cut = normalised_cut(graph)
        found = foreground(cut, grid)
        drop = stage > 0 and (mask_iou(found.component, previous) > ALIKE or _small(found.component))
        previous = np.zeros(grid, dtype=bool) if drop else found.component
        yield CutMask(previous & ~taken, cut.score, stage, found.vector)
        taken = taken | previous
        graph = graph.without(previous.ravel())
        stage += 1
