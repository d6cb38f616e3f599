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
    maps = _smooth_noise(num_heads, grid, seed, smooth)
    weights = np.exp(maps)
    return weights / weights.sum(1, keepdims=True)


def smooth_random_features(grid: Grid, seed: int, width: int = 64, smooth: float = _SMOOTH) -> Array:
    """Features that show nothing but where a token is: smoothed noise `(N, width)`, float64.

    Cuts of them give connected, compact masks; what a model's masks reach above those comes from the image.

    Args:
        grid: rows and columns.
        seed: of the noise; another for every image.
        width: d, the features of a token.
        smooth: as for :func:`smooth_random_maps`.

    Raises:
        ValueError: an argument outside its range.
    """
    return np.ascontiguousarray(_smooth_noise(width, grid, seed, smooth).T)


def _smooth_noise(count: int, grid: Grid, seed: int, smooth: float) -> Array:
    """Smoothed Gaussian noise `(count, N)`, each of mean 0 and standard deviation 1."""
    if count < 1 or min(grid) < 1 or smooth <= 0:
        raise ValueError(f"num_heads={count!r}, grid={grid!r}, smooth={smooth!r}: must all be above 0")
    noise = np.random.default_rng(seed).standard_normal((count, *grid))
    maps = ndimage.gaussian_filter(noise, (0, smooth * grid[0], smooth * grid[1]), mode="reflect").reshape(count, -1)
    deviation = maps.std(1, keepdims=True)
    return (maps - maps.mean(1, keepdims=True)) / np.where(deviation == 0, 1, deviation)
