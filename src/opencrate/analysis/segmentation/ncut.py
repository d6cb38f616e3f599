"""Normalised cut: the second smallest eigenpair of (D − A) x = λ D x [Shi & Malik, TPAMI 2000, Eq. 5].

With y = D^½ x it is the second largest of B = D^-½ A D^-½, whose largest eigenvalue is 1 with y₀ ∝ D^½ 1. B − 2 y₀y₀ᵀ
moves that one to −1, so that Lanczos looks for a single eigenvalue: as exact, and quicker where λ₂ is close to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from .affinity import Affinity
from .arrays import Array

RESIDUAL = 1e-9
"""The largest ‖By − (1 − λ₂)y‖ of an accepted pair, ‖y‖ = 1."""
_DENSE = 96  # tokens up to which LAPACK is quicker
_DENSE_MOST = 2000  # tokens up to which LAPACK may stand in: 64 MB and some seconds
_SEED = 0


@dataclass(frozen=True)
class Cut:
    """How a graph falls in two.

    Attributes:
        vector: x, float64 `(N)`, with xᵀDx = 1; its entry of largest size is positive (the first of equals).
        eigenvalue: λ₂ in [0, 2): 0 where the graph is in two pieces, 1 or more where it has no parts.
        residual: ‖By − (1 − λ₂)y‖.
    """

    vector: Array
    eigenvalue: float
    residual: float

    @property
    def score(self) -> float:
        """1 − λ₂, large where the two parts have little in common."""
        return 1 - self.eigenvalue


def normalised_cut(graph: Affinity) -> Cut:
    """The second smallest eigenpair of a graph, from a fixed start vector: the same arguments give the same cut.

    Where λ₂ is a multiple eigenvalue, any vector of its space is a solution, and which one comes out is fixed by the
    start vector only.

    Raises:
        ArithmeticError: the solver did not converge, on a graph too large for LAPACK.
    """
    operator = _Deflated(graph)
    y = None if len(graph) <= _DENSE else _lanczos(operator)
    if y is None or operator.residual(y)[1] > RESIDUAL:
        if len(graph) > _DENSE_MOST:
            raise ArithmeticError(
                f"graph: the eigenvector of its {len(graph)} tokens was not found to {RESIDUAL:g}; λ₂ and λ₃ are "
                "nearly equal: use another tau, or a smaller image"
            )
        y = operator.solved_densely()
    value, residual = operator.residual(y)
    x = y / operator.root
    return Cut(x * np.sign(x[np.abs(x).argmax()]), 1 - value, residual)


class _Deflated(LinearOperator):
    """B − 2 y₀y₀ᵀ of a graph, by products with vectors."""

    def __init__(self, graph: Affinity) -> None:
        super().__init__(np.dtype(np.float64), (len(graph), len(graph)))
        self.graph = graph
        self.root = np.sqrt(graph.degrees())
        self.trivial = self.root / np.linalg.norm(self.root)

    def _matvec(self, x: Array) -> Array:
        y = x.ravel()
        return self.graph.times(y / self.root) / self.root - 2 * self.trivial * (self.trivial @ y)

    def residual(self, y: Array) -> tuple[float, float]:
        """The Rayleigh quotient of a vector of length 1, and how far the vector is from an eigenvector."""
        product = self._matvec(y)
        value = float(y @ product)
        return value, float(np.linalg.norm(product - value * y))

    def solved_densely(self) -> Array:
        """The eigenvector of the largest eigenvalue, of length 1, by LAPACK."""
        matrix = self.graph.dense() / np.outer(self.root, self.root) - 2 * np.outer(self.trivial, self.trivial)
        last = len(self.root) - 1
        return linalg.eigh(matrix, subset_by_index=[last, last], overwrite_a=True, check_finite=False)[1][:, 0]


def _lanczos(operator: _Deflated) -> Array | None:
    """The same eigenvector by Lanczos iteration; None where it does not converge."""
    trivial = operator.trivial
    start = np.random.default_rng(_SEED).standard_normal(len(trivial))
    start -= trivial * (trivial @ start)
    try:
        return eigsh(operator, k=1, which="LA", v0=start, ncv=32, maxiter=300)[1][:, 0]
    except ArpackNoConvergence:
        return None
