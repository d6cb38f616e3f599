"""What the functions of this folder accept, checked in one place: arrays or tensors, whole grids, shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[Any]
Grid = tuple[int, int]
"""Rows and columns of tokens; tokens are numbered row by row."""


def as_array(values: Tensor | Array | Sequence) -> Array:
    """A NumPy array of a tensor on any device, an array or a list; half types as float32."""
    if isinstance(values, Tensor):
        values = values.detach()
        return (values.float() if values.dtype.itemsize < 4 and values.is_floating_point() else values).cpu().numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_features(features: Tensor | Array) -> Array:
    """Features `(N, d)` of at least two tokens in float32 or float64.

    Raises:
        ValueError: another shape, or an entry that is no finite number.
    """
    array = as_array(features)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise ValueError(f"features: shape {array.shape}; need (N, d), one row for each of N >= 2 tokens")
    array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    bad = ~np.isfinite(array).all(1)
    if bad.any():
        raise ValueError(
            f"features: {bad.sum()} of {len(array)} tokens hold NaN or infinite values, the first is token "
            f"{int(bad.argmax())}; compute the features in float32, and look at the model's weights"
        )
    return array


def as_mask(mask: Tensor | Array, name: str = "mask") -> Array:
    """A bool array `(rows, columns)`: what is not 0 is inside.

    Raises:
        ValueError: not two axes, or one without entries.
    """
    array = as_array(mask)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: shape {array.shape}; need (rows, columns), both at least 1")
    return array.astype(bool, copy=False)


def check_grid(grid: Grid, num_tokens: int) -> Grid:
    """The grid, if it has as many places as there are tokens.

    Raises:
        ValueError: it has not.
    """
    rows, columns = (int(side) for side in grid)
    if rows < 1 or columns < 1 or rows * columns != num_tokens:
        raise ValueError(
            f"grid={(rows, columns)}: has {rows * columns} places for {num_tokens} tokens; give rows and columns of "
            "the patches, and leave the class token out of the features"
        )
    return rows, columns


def check_share(value: float, name: str) -> float:
    """A share above 0 and at most 1.

    Raises:
        ValueError: outside these bounds.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: must be above 0 and at most 1, such as 0.6 for 60 %")
    return float(value)
