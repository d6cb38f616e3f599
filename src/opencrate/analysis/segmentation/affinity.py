"""Which tokens are alike: a graph whose N × N matrix is never stored.

A = ε 11ᵀ + (1 − ε) S: S is 1 where the cosine of two tokens is above τ and sparse, ε joins all others weakly
[TokenCut, 2202.11539, Sec. 3.1]. What MaskCut calls painting out a token (its features become zero, its cosines too)
takes its row and column out of S.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from torch import Tensor

from .arrays import Array, as_features

FLOOR = 1e-5
"""ε, the weight between tokens that are not alike. [TokenCut]"""
_BLOCK = 1 << 21  # cosines held at a time: 8 MB of float32
_SAMPLE = 64  # rows that show whether most tokens are alike


@dataclass(frozen=True)
class Affinity:
    """The graph of N tokens.

    Attributes:
        upper: float64 CSR `(N, N)`, 1 where two tokens i < j are alike, or with `inverted` where they are not.
        present: float64 `(N)`, 1 where a token has features, 0 where they are zero or painted out.
        inverted: whether `upper` holds the pairs that are not alike: whichever was expected to be fewer.
    """

    upper: sparse.csr_array
    present: Array
    inverted: bool = False

    def __len__(self) -> int:
        return len(self.present)

    def neighbours(self, x: Array) -> Array:
        """S x of a vector `(N)`, float64 `(N)`."""
        x = x * self.present
        pairs = self.upper @ x + self.upper.T @ x
        return self.present * (x.sum() - pairs if self.inverted else pairs + x)

    def times(self, x: Array) -> Array:
        """A x of a vector `(N)`, float64 `(N)`."""
        return FLOOR * x.sum() + (1 - FLOOR) * self.neighbours(x)

    def degrees(self) -> Array:
        """A 1, the sums of the rows, float64 `(N)`."""
        return self.times(np.ones(len(self)))

    def without(self, tokens: Array) -> Affinity:
        """The graph with the features of some tokens, a bool array `(N)`, set to zero."""
        return replace(self, present=np.where(tokens, 0.0, self.present))

    def dense(self) -> Array:
        """A as an array `(N, N)`, float64: 8 N² bytes, for small graphs."""
        pairs = (self.upper + self.upper.T).toarray()
        alike = 1 - pairs if self.inverted else pairs + np.eye(len(self))
        return FLOOR + (1 - FLOOR) * alike * np.outer(self.present, self.present)


def affinity(features: Tensor | Array, tau: float) -> Affinity:
    """The graph of tokens `(N, d)` that are alike where the cosine of their features is above τ.

    Cosines are computed in the features' dtype, float32 for half types. A token whose features are all zero is like
    no token, not even itself.

    Args:
        features: (N, d), N >= 2.
        tau: τ in [0, 1): 0.15 in the paper's tables and 0.2 in TokenCut.

    Raises:
        ValueError: a shape, a value or a τ outside its range.
    """
    if not 0 <= tau < 1:
        raise ValueError(f"tau={tau!r}: must be at least 0 and below 1, such as 0.15; it is a cosine")
    array = as_features(features)
    length = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    unit = (array / np.where(length == 0, 1, length)).astype(array.dtype)
    rows = np.linspace(0, len(unit) - 1, min(_SAMPLE, len(unit))).astype(int)
    inverted = bool((unit[rows] @ unit.T > tau).mean() > 0.5)
    return Affinity(_upper_pairs(unit, tau, inverted), (length[:, 0] > 0).astype(np.float64), inverted)


def graph_bytes(num_tokens: int) -> int:
    """Bytes that a graph takes at most, when half of all pairs of tokens are alike: 3 N²."""
    return 3 * num_tokens**2


def _upper_pairs(unit: Array, tau: float, inverted: bool) -> sparse.csr_array:
    """CSR of the pairs i < j with cosine above τ, or with `inverted` of the others, a block of rows at a time."""
    count = len(unit)
    counts, columns = [np.zeros(1, dtype=np.int64)], []
    height = max(1, _BLOCK // count)
    for start in range(0, count, height):
        alike = unit[start : start + height] @ unit[start:].T > tau
        wanted = np.triu(alike != inverted, 1)
        counts.append(wanted.sum(1))
        columns.append((np.flatnonzero(wanted) % wanted.shape[1] + start).astype(np.int32))
    indices = np.concatenate(columns)
    bounds = np.cumsum(np.concatenate(counts))
    bounds = bounds.astype(np.int32) if len(indices) < np.iinfo(np.int32).max else bounds
    return sparse.csr_array((np.ones(len(indices)), indices, bounds), shape=(count, count))
