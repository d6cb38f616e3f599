"""What masks reach that look at no image: the floor under every number of segmentation."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .arrays import Array, Grid, check_share

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Sizes of the ellipse to choose from, on other images: shares of the image's area."""
_SMOOTH = 0.15


def whole_image(size: tuple[int, int]) -> Array:
    """A mask that covers everything, bool `(height, width)`."""
    return np.ones(size, dtype=bool)


def centred_ellipse(size: tuple[int, int], share: float) -> Array:
    """An ellipse in the middle, as wide to high as the image, over a share of its area: bool `(height, width)`.

    Above π/4 = 0.785 the image's border cuts it, and it covers less than the share.
    """
    check_share(share, "share")
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in size)
    return rows[:, None] ** 2 + columns[None] ** 2 <= share / np.pi


def smooth_random_maps(num_heads: int, grid: Grid, seed: int, smooth: float = _SMOOTH) -> Array:
    """Attention maps that show nothing: softmax rows `(K, N)` of smoothed noise, float64.

    As many heads as the model has make a fair floor for the best head by an oracle. White noise in place of smooth maps
    would be a weaker one, since masks of objects are smooth.

    Args:
        num_heads: K.
        grid: rows and columns.
        seed: of the noise; another for every image.
        smooth: standard deviation of the Gaussian filter in widths of the grid.

    Raises:
        ValueError: an argument outside its range.
    """
    if num_heads < 1 or min(grid) < 1 or smooth <= 0:
        raise ValueError(f"num_heads={num_heads!r}, grid={grid!r}, smooth={smooth!r}: must all be above 0")
    noise = np.random.default_rng(seed).standard_normal((num_heads, *grid))
    maps = ndimage.gaussian_filter(noise, (0, smooth * grid[0], smooth * grid[1]), mode="reflect").reshape(
        num_heads, -1
    )
    deviation = maps.std(1, keepdims=True)
    weights = np.exp((maps - maps.mean(1, keepdims=True)) / np.where(deviation == 0, 1, deviation))
    return weights / weights.sum(1, keepdims=True)
