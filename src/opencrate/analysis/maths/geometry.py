"""The geometry of the learned matrices: how far subspaces U and dictionary D are from what the derivation assumes.

CRATE's layer is derived for orthonormal, mutually incoherent U_k and for orthonormal D [2306.01129, Sec. 2 and
Approximation 4]; nothing in training enforces it. Everything here is float64 and exact (singular values).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from ...sparsification import ISTA
from .spectra import effective_rank


@dataclass(frozen=True)
class SubspaceGeometry:
    """K subspaces of a layer, basis U_k `(d, p)` each.

    Attributes:
        ranks, effective_ranks: numerical rank (int) and `spectra.effective_rank` of every U_k, `(K)`.
        joint_rank: numerical rank of [U_1 ... U_K]; at most min(d, K p).
        orthonormality: ‖U_k^T U_k / c - I‖_F / sqrt(p) with c the mean squared column norm, `(K)`; 0 is orthogonal
            columns of one length.
        scale: sqrt(c), `(K)`; 1 for an orthonormal U_k.
        block_norms: ‖U_i^T U_j‖_F, `(K, K)`, of the matrices as learned.
        overlaps: mean squared cosine of the principal angles between the spans, `(K, K)`: 1 one span holds the other,
            0 orthogonal, p/d on average for random spans.
        smallest_angles, mean_angles: of the principal angles between the spans, degrees `(K, K)`; 0 on the diagonal.
        coherence: largest |cosine| between a column of one basis and a column of another; NaN for K = 1.
        width: d.
    """

    ranks: Tensor
    effective_ranks: Tensor
    joint_rank: int
    orthonormality: Tensor
    scale: Tensor
    block_norms: Tensor
    overlaps: Tensor
    smallest_angles: Tensor
    mean_angles: Tensor
    coherence: float
    width: int

    def pairs(self, values: Tensor) -> Tensor:
        """The entries above the diagonal of a `(K, K)` map; empty for K = 1."""
        row, column = torch.triu_indices(len(values), len(values), offset=1)
        return values[row, column]


@dataclass(frozen=True)
class DictionaryGeometry:
    """A dictionary D `(d, m)`.

    Attributes:
        overcomplete: m > d. Then a tight frame D D^T = c I is the nearest thing to orthonormal.
        gram_error: ‖D^T D - I‖_F / ‖I‖_F; for an overcomplete D of ‖D D^T - c I‖_F / ‖c I‖_F with c = tr(D D^T)/d.
        scaled_gram_error: the same against c I in both cases, so that a wrong scale alone does not count.
        coherence: largest |cosine| between two atoms (columns); NaN for one atom.
        nearest: of every atom the largest |cosine| with another one, `(m)`; 0 for a single atom.
        condition: largest over smallest of the min(d, m) singular values; infinite when one is 0.
        squared_norm: ‖D‖_2^2.
        step: η ‖D‖_2^2. A gradient step on the quadratic part descends below 2 and is proven for <= 1.
        step_size: η.
    """

    overcomplete: bool
    gram_error: float
    scaled_gram_error: float
    coherence: float
    nearest: Tensor
    condition: float
    squared_norm: float
    step: float
    step_size: float


def orthonormal_bases(U: Tensor) -> Tensor:
    """Orthonormal columns `(K, d, p)` spanning each U_k `(d, p)`; zeros beyond its numerical rank. Float64."""
    left, values, _ = torch.linalg.svd(U.double(), full_matrices=False)
    return left * _above_noise(values, U)[:, None, :]


def subspace_geometry(U: Tensor) -> SubspaceGeometry:
    """Ranks, angles and overlaps of one layer's U `(K, d, p)`; numerical ranks at the precision of its dtype."""
    U = U.detach().cpu()
    bases, K = orthonormal_bases(U), len(U)
    exact = U.double()
    values = torch.linalg.svdvals(exact)
    joint = exact.movedim(0, 1).flatten(1)
    ranks = _above_noise(values, U).sum(-1)
    energy = exact.square().sum((1, 2)) / U.shape[2]
    gram = exact.mT @ exact / torch.where(energy == 0, 1, energy)[:, None, None]
    smallest, mean, overlaps = torch.zeros(3, K, K, dtype=torch.float64)
    overlaps.fill_diagonal_(1)
    for i, j in itertools.combinations(range(K), 2):
        first, second = (bases[k][:, : int(ranks[k])].numpy() for k in (i, j))
        if first.shape[1] == 0 or second.shape[1] == 0:
            smallest[i, j] = mean[i, j] = overlaps[i, j] = math.nan
        else:
            angles = torch.from_numpy(subspace_angles(first, second).copy())
            smallest[i, j], mean[i, j] = angles.min().rad2deg(), angles.mean().rad2deg()
            overlaps[i, j] = angles.cos().square().mean()
        for table in (smallest, mean, overlaps):
            table[j, i] = table[i, j]
    return SubspaceGeometry(
        ranks=ranks,
        effective_ranks=effective_rank(values.square()),
        joint_rank=int(_above_noise(torch.linalg.svdvals(joint), U).sum()),
        orthonormality=(gram - torch.eye(U.shape[2])).square().sum((1, 2)).sqrt() / math.sqrt(U.shape[2]),
        scale=energy.sqrt(),
        block_norms=torch.einsum("idp,jdq->ijpq", exact, exact).square().sum((2, 3)).sqrt(),
        overlaps=overlaps,
        smallest_angles=smallest,
        mean_angles=mean,
        coherence=_cross_coherence(exact),
        width=U.shape[1],
    )


def dictionary_geometry(D: Tensor, step_size: float) -> DictionaryGeometry:
    """How far a dictionary `(d, m)` is from orthonormal, and whether an ISTA step of size η on it is stable."""
    D = D.detach().cpu().double()
    d, m = D.shape
    values = torch.linalg.svdvals(D)
    gram = D @ D.mT if m > d else D.mT @ D
    identity = torch.eye(len(gram), dtype=gram.dtype)
    scale = gram.diagonal().mean()
    scaled = float((gram - scale * identity).norm() / (scale * identity).norm()) if scale > 0 else math.inf
    cosines = _cosines(D)
    others = ~torch.eye(m, dtype=torch.bool)
    return DictionaryGeometry(
        overcomplete=m > d,
        gram_error=scaled if m > d else float((gram - identity).norm() / identity.norm()),
        scaled_gram_error=scaled,
        coherence=float(cosines[others].max()) if m > 1 else math.nan,
        nearest=(cosines * others).amax(0),
        condition=float(values[0] / values[-1]) if values[-1] > 0 else math.inf,
        squared_norm=float(values[0] ** 2),
        step=float(step_size * values[0] ** 2),
        step_size=step_size,
    )


@torch.no_grad()
def dictionary_of(step: ISTA) -> DictionaryGeometry:
    """`dictionary_geometry` of a layer's D and η."""
    D = step.effective_dictionary()
    return dictionary_geometry(D, float(step.step_size(D)))


def _above_noise(values: Tensor, matrix: Tensor) -> Tensor:
    """Which singular values `(..., r)` of a matrix are more than rounding at the precision it was given in."""
    tolerance = max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    return values > tolerance * values[..., :1]


def _cosines(columns: Tensor) -> Tensor:
    """|cosine| between the columns of `(d, m)`, `(m, m)`; a zero column has cosine 0 with all."""
    unit = columns / columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    return (unit.mT @ unit).abs()


def _cross_coherence(U: Tensor) -> float:
    """Largest |cosine| between columns of different bases `(K, d, p)`."""
    K, d, p = U.shape
    if K == 1:
        return math.nan
    cosines = _cosines(U.movedim(0, 1).reshape(d, K * p))
    same = torch.block_diag(*[torch.ones(p, p)] * K).bool()
    return float(cosines[~same].max())
