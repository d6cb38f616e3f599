"""Foreground and colours of tokens by two principal component analyses. [2308.16271, App. B.2]

The paper takes the first eigenvector u₀ of Z Zᵀ, without centring, keeps the tokens with ⟨u₀, z⟩ ≥ ½, and shows the
first three principal components of those as red, green and blue. The threshold is in the features' own unit, and u₀
has no sign: here the sign is taken for which fewer corner patches of the images are kept; where both keep as many, that
with the larger sum of what is kept; and never one that keeps nothing where the other keeps some.

The published notebooks do something else, `published` here: the first component of centred tokens, stretched to [0, 1]
image by image; what is above 0.4, holes filled; colours stretched image by image. Their sign is the solver's; here the
same rule fixes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from .arrays import Array, Grid, as_array, as_features, check_grid

THRESHOLDS = {False: 0.5, True: 0.4}
"""On ⟨u₀, z⟩, in the features' unit; on the stretched component with `published`."""
COLOURS = 3


@dataclass(frozen=True)
class Components:
    """The tokens of M images on one grid.

    Attributes:
        foreground: bool `(M, rows, columns)`.
        first: float64 `(M, rows, columns)`, what the threshold was applied to.
        colours: float64 `(M, rows, columns, 3)` in [0, 1]: three components of the foreground of all images, each
            stretched from its least to its largest value, over all images or with `published` in each; 0 outside.
    """

    foreground: Array
    first: Array
    colours: Array


def principal_components(
    features: Tensor | Array, grid: Grid, *, threshold: float | None = None, published: bool = False
) -> Components:
    """Foreground and colours of images that are analysed together, such as some of one class.

    Args:
        features: (M, N, d) or (N, d), one row for each patch, row by row, without class tokens.
        grid: rows and columns of the patches.
        threshold: on ⟨u₀, z⟩, 0.5 where left out; with `published` on the stretched component, below 1, 0.4.
        published: the published notebooks' form.

    Raises:
        ValueError: a shape, a value or a threshold outside its range.
    """
    array = as_array(features)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(f"features: shape {array.shape}; need (M, N, d), or (N, d) of one image")
    rows, columns = check_grid(grid, array.shape[1])
    threshold = THRESHOLDS[published] if threshold is None else check_threshold(threshold, published)
    shape = (len(array), rows, columns)
    tokens = as_features(array.reshape(-1, array.shape[2])).astype(np.float64)
    first = _centred_first(tokens, shape) if published else _first(tokens, shape)
    first = _better((first, 1 - first if published else -first), threshold)
    inside = first > threshold if published else first >= threshold
    if published:
        inside = np.stack([np.asarray(ndimage.binary_fill_holes(one)) for one in inside])
    colours = np.zeros((*shape, COLOURS))
    colours[inside] = _components(tokens[inside.ravel()])
    for part, where in zip(colours, inside) if published else [(colours, inside)]:
        part[where] = _stretched(part[where])
    return Components(inside, first, colours)


def check_threshold(threshold: float, published: bool = False) -> float:
    """A threshold of :func:`principal_components`.

    Raises:
        ValueError: outside its range.
    """
    if not 0 <= threshold < (1 if published else np.inf):
        raise ValueError(f"threshold={threshold!r}: must be at least 0{' and below 1' * published}; leave it out")
    return threshold


def _first(tokens: Array, shape: tuple[int, int, int]) -> Array:
    """⟨u₀, z⟩, u₀ of the Gram matrix that is not centred."""
    return (tokens @ _directions(tokens, 1)).reshape(shape)


def _centred_first(tokens: Array, shape: tuple[int, int, int]) -> Array:
    """The first principal component, stretched to [0, 1] in every image."""
    first = _first(tokens - tokens.mean(0), shape)
    return np.stack([_stretched(one.reshape(-1, 1)).reshape(one.shape) for one in first])


def _better(candidates: tuple[Array, Array], threshold: float) -> Array:
    """Of `(M, rows, columns)` with either sign, the one that keeps fewer corner patches, or by the next rules."""
    ranks = []
    for one in candidates:
        kept = one >= threshold
        ranks.append((not kept.any(), kept[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(), -one[kept].sum()))
    return candidates[int(ranks[1] < ranks[0])]


def _components(tokens: Array) -> Array:
    """The first three principal components of tokens `(n, d)`: `(n, 3)`, 0 for those that they do not have.

    The largest weight of each component is positive.
    """
    if len(tokens) < 2:
        return np.zeros((len(tokens), COLOURS))
    centred = tokens - tokens.mean(0)
    directions = _directions(centred, COLOURS)
    signs = np.sign(np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0))
    found = centred @ (directions * signs)
    # What is left of a component that the tokens do not have is rounding.
    found = np.where(np.ptp(found, axis=0) > 1e-9 * np.abs(tokens).max(), found, 0)
    return np.pad(found, ((0, 0), (0, COLOURS - found.shape[1])))


def _directions(tokens: Array, count: int) -> Array:
    """The first right singular vectors of tokens `(n, d)`, by descending singular value: `(d, min(count, d))`."""
    return np.linalg.eigh(tokens.T @ tokens)[1][:, ::-1][:, :count]


def _stretched(values: Array) -> Array:
    """Every column of `(n, columns)` from its least to its largest value: [0, 1]; 0 where they are equal."""
    if not len(values):
        return values
    low, span = values.min(0), np.ptp(values, axis=0)
    return np.where(span == 0, 0, (values - low) / np.where(span == 0, 1, span))
