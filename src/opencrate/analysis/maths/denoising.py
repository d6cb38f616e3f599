"""Denoising of a mixture of low-rank Gaussians: the best any denoiser can do, what attention does, and sampling.

x = z + σw with z of the mixture and w standard normal. The best guess of z in mean square is E[z | x]; for zero means,
equal weights and small σ it becomes attention of one token over K subspaces [N, Eq. 38]. Everything is float64; tokens
are rows. N = arXiv 2306.01129 (the journal version 2311.13110 keeps the numbers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ...operators import mssa, project
from .mixtures import LowRankMixture

Denoiser = Callable[[Tensor, float], Tensor]
"""(X `(n, d)`, σ) -> guesses of z `(n, d)`."""


def posterior_mean(mixture: LowRankMixture, X: Tensor, sigma: float) -> Tensor:
    """E[z | x], exact: Σ_k r_k(x) (m_k + Q_k diag(v/(v + σ²)) Q_kᵀ(x − m_k) + s/(s + σ²) (I − Q_kQ_kᵀ)(x − m_k)).

    r_k(x) are the posterior probabilities of the components given x, by log-sum-exp over all of them; the mixture's
    noise s may be 0. `(n, d)` float64 -> `(n, d)`; σ <= 0 is a `ValueError`, here as in the other denoisers.
    """
    _check_sigma(sigma)
    shares = mixture.noised(sigma).responsibilities(X)
    guess = torch.zeros_like(X)
    parts = zip(shares.mT, mixture.means, mixture.bases, mixture.variances, mixture.noise)
    for share, mean, Q, variances, noise in parts:
        centred = X - mean
        coordinates = centred @ Q
        kept, outside = variances / (variances + sigma**2), noise / (noise + sigma**2)
        inside = (coordinates * (kept - outside)) @ Q.mT  # the span's share over what all directions keep
        guess += share[:, None] * (mean + inside + outside * centred)
    return guess


def score(mixture: LowRankMixture, X: Tensor, sigma: float) -> Tensor:
    """∇log q(x) of the noisy tokens, `(n, d)`: (E[z | x] − x) / σ², Tweedie's formula. Arguments as `posterior_mean`.

    For zero means and equal weights and determinants it is [N, Eq. 21].
    """
    return (posterior_mean(mixture, X, sigma) - X) / sigma**2


def linear_denoiser(mixture: LowRankMixture, X: Tensor, sigma: float) -> Tensor:
    """The best affine guess, m + (x − m)(Σ + σ²I)⁻¹Σ with the mixture's mean and covariance (Wiener's filter)."""
    _check_sigma(sigma)
    mean, covariance = mixture.weights @ mixture.means, mixture.covariance()
    noisy = covariance + sigma**2 * torch.eye(len(mean), dtype=X.dtype)
    return mean + (X - mean) @ torch.linalg.solve(noisy, covariance)


def one_token_attention(X: Tensor, U: Tensor, sigma: float) -> Tensor:
    """Σ_k softmax_k(‖U_kᵀx‖² / 2σ²) U_kU_kᵀx: the posterior mean as σ → 0. [N, Eq. 38]

    Attention of every token `(n, d)` to the K subspaces, not to other tokens: what motivates MSSA's form. The columns
    of U_k `(K, d, p)` are orthonormal.
    """
    _check_sigma(sigma)
    V = project(X, U)
    shares = (V.square().sum(-1) / (2 * sigma**2)).softmax(0)
    return (shares[..., None] * (V @ U.mT)).sum(0)


def mssa_denoiser(X: Tensor, U: Tensor, sigma: float, key_lengths: bool = False) -> Tensor:
    """MSSA(X) with its output tied to U and softmax scale 1/σ²: [N, Eq. 76] at κγ = 1, where the skip vanishes.

    Why that scale: row i of SSA_k is Σ_j softmax_j(⟨v_i, v_j⟩/σ²) v_j. With −‖v_j‖²/2σ² added to every score it is
    Σ_j softmax_j(−‖v_i − v_j‖²/2σ²) v_j, the posterior mean of v_i in subspace k under the prior that is the tokens
    themselves. Scores of MSSA lack that term, which does not matter where all v_j are of one length; tokens of a union
    of subspaces are long in one subspace and short in the others. `key_lengths` adds it. X `(n, d)`, U `(K, d, p)`.
    """
    _check_sigma(sigma)
    bias = -project(X, U).square().sum(-1)[:, None] / (2 * sigma**2) if key_lengths else None
    return mssa(X, U, scale=sigma**-2, mask=bias)


def noise_schedule(largest: float, smallest: float, steps: int) -> tuple[float, ...]:
    """`steps` >= 2 noise levels in geometric order from the largest to the smallest > 0, and 0 at the end."""
    if not largest > smallest > 0 or steps < 2:
        raise ValueError(
            f"largest={largest:g}, smallest={smallest:g}, steps={steps}: need largest > smallest > 0, at least 2 steps"
        )
    ratio = (smallest / largest) ** (1 / (steps - 1))
    return (*(largest * ratio**i for i in range(steps)), 0.0)


def sample(denoise: Denoiser, X: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Follow the probability flow dx/dσ = (x − D(x, σ))/σ from noise to samples by Heun's method.

    With D the posterior mean, x at every σ has the density of z + σw [Song et al. 2021, 2011.13456, Eq. 13; the
    form and the method are 2206.00364, Eq. 1 and Algorithm 1]. The last step, to 0, is Euler's: it returns D.
    X `(n, d)` starts as the first σ times standard normal draws; `sigmas` fall, the last is 0.
    """
    for sigma, following in itertools.pairwise(sigmas):
        slope = (X - denoise(X, sigma)) / sigma
        ahead = X + (following - sigma) * slope
        if following > 0:
            slope = (slope + (ahead - denoise(ahead, following)) / following) / 2
            ahead = X + (following - sigma) * slope
        X = ahead
    return X


@dataclass(frozen=True)
class SampleQuality:
    """How far samples are from the mixture they should come from.

    Attributes:
        in_subspace: energy within a sample's nearest subspace over all its energy, mean over samples; 1 for a
            mixture without noise.
        energy: mean ‖x‖² over that of the mixture.
        chi_square: of the counts of nearest subspaces against the weights, over its degrees of freedom; about 1 where
            they agree.
        p_value: of that statistic.
        distance: sliced 2-Wasserstein distance to draws of the mixture, over that of two sets of draws from one
            another (root mean square over directions); about 1 where they agree.
    """

    in_subspace: float
    energy: float
    chi_square: float
    p_value: float
    distance: float


def sample_quality(
    X: Tensor, mixture: LowRankMixture, generator: torch.Generator, directions: int = 128
) -> SampleQuality:
    """Compare samples `(n, d)` with a zero-mean mixture of at least two subspaces."""
    inside = project(X, mixture.bases).square().sum(-1)
    energy = X.square().sum(-1)
    nearest, component = inside.max(0)
    expected = len(X) * mixture.weights
    statistic, p_value = stats.chisquare(component.bincount(minlength=len(expected)).numpy(), expected.numpy())
    one, other = (mixture.sample(len(X), generator)[0] for _ in range(2))
    distances = sliced_wasserstein(X, one, generator, directions), sliced_wasserstein(other, one, generator, directions)
    return SampleQuality(
        in_subspace=float((nearest / energy.clamp_min(torch.finfo(X.dtype).tiny)).mean()),
        energy=float(energy.mean() / mixture.covariance().trace()),
        chi_square=float(statistic) / (len(expected) - 1),
        p_value=float(p_value),
        distance=distances[0] / distances[1],
    )


def sliced_wasserstein(X: Tensor, Y: Tensor, generator: torch.Generator, directions: int = 128) -> float:
    """Root mean square over random directions of the 2-Wasserstein distance of projections; X, Y `(n, d)` alike.

    [Bonneel et al. 2015, J. Math. Imaging Vision 51, Sec. 3]
    """
    if X.shape != Y.shape:
        raise ValueError(f"Y: shape {tuple(Y.shape)} is not that of X, {tuple(X.shape)}; compare equally many samples")
    axes = torch.randn(X.shape[1], directions, generator=generator, dtype=X.dtype)
    axes = axes / axes.norm(dim=0)
    gaps = (X @ axes).sort(dim=0).values - (Y @ axes).sort(dim=0).values
    return float(gaps.square().mean().sqrt())


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma!r}: must be a finite number > 0")
