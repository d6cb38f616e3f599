"""TokenCut: one object per image from one normalised cut. [2202.11539, Sec. 3]"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .affinity import affinity
from .arrays import Array, Grid, as_features, check_grid
from .boxes import Box, mask_box
from .maskcut import foreground
from .ncut import normalised_cut


@dataclass(frozen=True)
class Object:
    """The object of an image, on the grid of tokens.

    Attributes:
        mask: bool `(rows, columns)`: the connected part of the foreground that holds the seed.
        box: around the mask, `(left, top, right, bottom)`.
        score: 1 − λ₂ of the cut.
        side: bool `(rows, columns)`, the whole foreground.
        vector: float64 `(rows, columns)`, the eigenvector with its foreground positive.
    """

    mask: Array
    box: Box
    score: float
    side: Array
    vector: Array


def tokencut(features: Tensor | Array, grid: Grid, *, tau: float = 0.2) -> Object:
    """The object of an image: the side of the cut that holds the eigenvector's entry of largest size.

    MaskCut's corner rule is not applied. A graph without parts (λ₂ = 1, score 0) gives one too, without meaning.

    Args:
        features: (N, d), one row for each patch, row by row, without the class token.
        grid: rows and columns of the patches.
        tau: the cosine above which tokens are alike, in [0, 1).

    Raises:
        ValueError: an argument outside its range, or features that are no finite numbers.
        ArithmeticError: the eigenvector of a large graph was not found.
    """
    array = as_features(features)
    grid = check_grid(grid, len(array))
    cut = normalised_cut(affinity(array, tau))
    found = foreground(cut, grid, corners=False)
    box = mask_box(found.component)
    assert box is not None  # it holds the seed
    return Object(found.component, box, cut.score, found.side, found.vector)
