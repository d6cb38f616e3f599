"""How well a feature's activation is predicted from the current and the previous token: pure functions on arrays.

The explanation is a table of mean activations by (previous token, token), of the half of a text that explains. With n
pairs of one kind, their mean m, and the mean b of the table below, which is by token, then of all: (n m + b) / (n + 1).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

STRONG = 0.99
"""A feature fires strongly where it is above this quantile of its activations in the explaining half (and above 0)."""
LEAST = 5
"""Strong positions that the detection score needs."""


class TokenTables:
    """The explanation of several features by their activations `values (n, F)` at token ids `(n,)` of a text.

    `previous` are the ids before them; `base (F,)` is predicted for a token that was not seen, by default the mean.
    """

    def __init__(
        self, tokens: np.ndarray, previous: np.ndarray, values: np.ndarray, base: np.ndarray | None = None
    ) -> None:
        self.base = values.mean(0) if base is None else base
        self.tokens, of_token = np.unique(tokens, return_inverse=True)
        self.by_token = _shrunk(of_token, values, np.broadcast_to(self.base, (len(self.tokens), values.shape[1])))
        self.pairs, first, of_pair = np.unique(_pairs(tokens, previous), return_index=True, return_inverse=True)
        self.by_pair = _shrunk(of_pair, values, self.by_token[of_token[first]])

    def predict(self, tokens: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Predicted activations, `(n, F)`."""
        found = np.broadcast_to(self.base, (len(tokens), len(self.base))).copy()
        pairs = _pairs(tokens, previous)
        for known, table, asked in ((self.tokens, self.by_token, tokens), (self.pairs, self.by_pair, pairs)):
            place = np.searchsorted(known, asked).clip(max=len(known) - 1)
            hit = known[place] == asked
            found[hit] = table[place[hit]]
        return found


def _pairs(tokens: np.ndarray, previous: np.ndarray) -> np.ndarray:
    return (previous.astype(np.int64) + 1 << 32) + tokens  # previous may be -1: nothing before


def _shrunk(groups: np.ndarray, values: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Means of the rows of each group, drawn towards `below` as if by one more row."""
    ones = np.ones(len(groups))
    members = sparse.csr_matrix((ones, (groups, np.arange(len(groups)))), shape=(len(below), len(groups)))
    return (members @ values + below) / (members @ ones + 1)[:, None]


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each column, `(F,)`; NaN where one of them does not vary."""
    first, second = (part.astype(np.float64) - part.mean(0, dtype=np.float64) for part in (first, second))
    scale = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (first * second).sum(0) / scale, np.nan)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation of each column, `(F,)`; NaN where one of them does not vary."""
    return pearson(rankdata(first, axis=0), rankdata(second, axis=0))


def detection(predicted: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column of `(n, F)`: how often a strong position is predicted above another one.

    `(F,)`, 0.5 by chance; NaN with fewer than `LEAST` strong positions, or others.
    """
    ranks = rankdata(predicted, axis=0)
    positive = strong.sum(0)
    negative = len(strong) - positive
    area = (np.where(strong, ranks, 0).sum(0) - positive * (positive + 1) / 2) / np.maximum(positive * negative, 1)
    return np.where((positive >= LEAST) & (negative >= LEAST), area, np.nan)


def strong_positions(explaining: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Where a feature fires strongly in the held-out half, `(n, F)` bool."""
    return held_out > np.maximum(np.quantile(explaining, STRONG, axis=0), 0)
