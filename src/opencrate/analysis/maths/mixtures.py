"""Gaussian mixtures whose covariances are low-rank plus noise, fitted by EM in float64.

    p(x) = sum_k w_k N(x; m_k, Q_k S_k Q_k^T + s_k I),   Q_k (d, q) orthonormal, S_k >= 0

With Q_k the learned subspaces and one common mean it is the signal model of CRATE [2306.01129, Sec. 2.2]; with Q_k and
m_k fitted the mixture of probabilistic principal component analysers [Tipping & Bishop 1999, Neural Computation 11(2)].
Inverse and determinant of a d x d covariance are never formed: in the basis that diagonalises S_k, Woodbury leaves

    (x - m)^T C^-1 (x - m) = (|x - m|^2 - |a|^2) / s + sum_j a_j^2 / v_j,   log det C = sum_j log v_j + (d - q) log s

with a = Q^T (x - m) and v_j >= s the total variance along basis vector j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from torch import Tensor

NOISE_FLOOR = 1e-6
"""Noise variances stay above this times the mean variance per dimension, so that densities stay finite."""
_START_POWER_STEPS = 8


@dataclass(frozen=True)
class LowRankMixture:
    """A mixture of K Gaussians in d dimensions; all tensors float64.

    Attributes:
        weights: `(K)`, sum to 1.
        means: `(K, d)`.
        bases: Q `(K, d, q)`, orthonormal columns; a column of zeros marks a missing direction.
        variances: v `(K, q)`, total variance along each column, at least `noise`.
        noise: s `(K)`, variance of every direction outside the span.
        num_parameters: that were fitted.
    """

    weights: Tensor
    means: Tensor
    bases: Tensor
    variances: Tensor
    noise: Tensor
    num_parameters: int

    def log_prob_components(self, X: Tensor) -> Tensor:
        """log(w_k N(x; ...)) `(n, K)` in nats, for X `(n, d)` float64."""
        columns = []
        parts = zip(self.weights, self.means, self.bases, self.variances, self.noise)
        for weight, mean, basis, variances, noise in parts:
            centred = X - mean
            densities = _log_density(centred @ basis, centred.square().sum(-1), variances, noise, X.shape[1])
            columns.append(weight.log() + densities)
        return torch.stack(columns, dim=1)

    def log_prob(self, X: Tensor) -> Tensor:
        """log p(x) `(n)` in nats, for X `(n, d)` float64."""
        return self.log_prob_components(X).logsumexp(1)

    def responsibilities(self, X: Tensor) -> Tensor:
        """Posterior probability `(n, K)` of every component."""
        return self.log_prob_components(X).softmax(1)

    def noised(self, sigma: float) -> LowRankMixture:
        """The mixture of x = z + σw for z of this one and w standard normal; its noise may then have been 0."""
        return replace(self, variances=self.variances + sigma**2, noise=self.noise + sigma**2)

    def covariance(self) -> Tensor:
        """Covariance `(d, d)` of all components together."""
        mean = self.weights @ self.means
        centred = self.means - mean
        inside = (self.bases * (self.variances - self.noise[:, None])[:, None]) @ self.bases.mT
        within = (self.weights[:, None, None] * inside).sum(0) + (self.weights @ self.noise) * torch.eye(len(mean))
        return within + (self.weights[:, None] * centred).mT @ centred

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws `(count, d)` and the component of each, `(count)`."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        d, q = self.bases.shape[1:]
        inside = torch.randn(count, q, generator=generator, dtype=torch.float64)
        outside = torch.randn(count, d, generator=generator, dtype=torch.float64)
        Q, noise = self.bases[component], self.noise[component, None]
        outside = noise.sqrt() * (outside - _along(Q, torch.einsum("nd,ndq->nq", outside, Q)))
        return self.means[component] + _along(Q, inside * self.variances[component].sqrt()) + outside, component


def _along(Q: Tensor, a: Tensor) -> Tensor:
    """Tokens `(n, d)` from coordinates a `(n, q)`, each row in its own basis `(n, d, q)`."""
    return torch.einsum("nq,ndq->nd", a, Q)


@dataclass(frozen=True)
class GaussianFit:
    """One Gaussian with a full covariance; float64."""

    mean: Tensor
    covariance: Tensor
    num_parameters: int

    def log_prob(self, X: Tensor) -> Tensor:
        """log p(x) `(n)` in nats, for X `(n, d)` float64."""
        factor = torch.linalg.cholesky(self.covariance)
        white = torch.linalg.solve_triangular(factor, (X - self.mean).mT, upper=False)
        log_det = 2 * factor.diagonal().log().sum()
        return -0.5 * (white.square().sum(0) + log_det + X.shape[1] * math.log(2 * math.pi))


@dataclass(frozen=True)
class MixtureFit:
    """A fitted mixture, and its mean log-likelihood per fitted token in nats after each M-step, which never falls."""

    mixture: LowRankMixture
    history: tuple[float, ...]


def fit_gaussian(X: Tensor) -> GaussianFit:
    """One full-covariance Gaussian with Ledoit and Wolf's shrinkage, well-posed also for few tokens; X `(n, d)`."""
    found = LedoitWolf().fit(X.numpy())
    d = X.shape[1]
    covariance = torch.from_numpy(found.covariance_)
    floor = NOISE_FLOOR * covariance.diagonal().mean()
    return GaussianFit(torch.from_numpy(found.location_), covariance + floor * torch.eye(d), d + d * (d + 1) // 2)


def fit_isotropic(X: Tensor) -> LowRankMixture:
    """One Gaussian with one variance for all directions; X `(n, d)`."""
    d = X.shape[1]
    mean = X.mean(0)
    noise = (X - mean).square().mean().clamp_min(torch.finfo(X.dtype).tiny)
    return LowRankMixture(X.new_ones(1), mean[None], X.new_zeros(1, d, 0), X.new_zeros(1, 0), noise[None], d + 1)


def fit_on_subspaces(
    X: Tensor, bases: Tensor, mean: Tensor | None = None, *, iterations: int = 100, tolerance: float = 1e-5
) -> MixtureFit:
    """Fit weights, S_k and s_k of a mixture whose subspaces and mean are given; X `(n, d)` float64.

    The columns of `bases (K, d, q)` are orthonormal, or zeros. The mean `(d)`, common to all components, is that of X
    where not given; zero is CRATE's model to the letter. EM stops at a gain below `tolerance` nats per token.
    """
    d = X.shape[1]
    counted = d if mean is None else 0
    mean = X.mean(0) if mean is None else mean
    centred = X - mean
    energy = centred.square().sum(-1)
    floor = _noise_floor(centred)
    coordinates = torch.einsum("nd,kdq->knq", centred, bases)
    outside = (energy - coordinates.square().sum(-1)).clamp_min(0).mT
    noise = (outside.mean() / max(1, d - bases.shape[2])).clamp_min(floor)
    shares = (-0.5 * outside / noise).softmax(1)
    history: list[float] = []
    while True:
        steps = [_fit_component(a, energy, share, d, floor) for a, share in zip(coordinates, shares.mT)]
        weights = shares.mean(0)
        densities = [
            _log_density(a @ rotation, energy, variances, noise, d)
            for a, (rotation, variances, noise) in zip(coordinates, steps)
        ]
        joint = torch.stack(densities, dim=1) + weights.log()
        history.append(float(joint.logsumexp(1).mean()))
        if _finished(history, iterations, tolerance):
            break
        shares = joint.softmax(1)
    ranks = (bases.square().sum(1) > 0.5).sum(1)
    counted += len(bases) - 1 + int((ranks * (ranks + 1) // 2 + 1).sum())
    mixture = LowRankMixture(
        weights=weights,
        means=mean.expand(len(bases), d),
        bases=torch.stack([basis @ rotation for basis, (rotation, _, _) in zip(bases, steps)]),
        variances=torch.stack([variances for _, variances, _ in steps]),
        noise=torch.stack([noise for _, _, noise in steps]),
        num_parameters=counted,
    )
    return MixtureFit(mixture, tuple(history))


def fit_mixture(
    X: Tensor,
    rank: int,
    shares: Tensor,
    mean: Tensor | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> MixtureFit:
    """Fit a mixture of probabilistic principal component analysers: subspaces included, and means where not given.

    The M-step of a component takes one step of orthogonal iteration, Q <- orth(S Q) with S its weighted scatter, and
    then the exact optimum in the new span. For S >= 0 that step lowers no Ritz value, so the likelihood never falls
    (a generalised EM), and it costs O(n d q) instead of the O(n d^2 + d^3) of an eigenvalue problem.

    X is `(n, d)` float64; `rank` is q < d; `shares (n, K)` are responsibilities to start from. Where no common mean
    `(d)` is given, every component has its own, fitted. EM stops at a gain below `tolerance` nats per token.
    """
    d = X.shape[1]
    if not 1 <= rank < d:
        raise ValueError(f"rank={rank}: must be at least 1 and below the {d} dimensions of the tokens")
    floor = _noise_floor(X - X.mean(0))
    generator = torch.Generator().manual_seed(seed)
    bases = torch.randn(shares.shape[1], d, rank, generator=generator, dtype=X.dtype)
    counted = len(bases) * (2 + d * rank - rank * (rank - 1) // 2) - 1 + d * (len(bases) if mean is None else 0)
    history: list[float] = []
    power_steps = _START_POWER_STEPS
    while True:
        parts = [_fit_free(X, basis, share, mean, floor, power_steps) for basis, share in zip(bases, shares.mT)]
        means, bases, variances, noise = (torch.stack(column) for column in zip(*parts))
        mixture = LowRankMixture(shares.mean(0), means, bases, variances, noise, counted)
        joint = mixture.log_prob_components(X)
        history.append(float(joint.logsumexp(1).mean()))
        if _finished(history, iterations, tolerance):
            return MixtureFit(mixture, tuple(history))
        shares, power_steps = joint.softmax(1), 1


def cluster_shares(X: Tensor, num_components: int, seed: int = 0) -> Tensor:
    """Responsibilities `(n, K)` to start EM from: k-means clusters of X, softened by a tenth."""
    start: Any = 3  # runs; the stub knows words only
    labels = KMeans(num_components, n_init=start, random_state=seed).fit(X.numpy()).labels_
    hard = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), num_components).to(X.dtype)
    return 0.9 * hard + 0.1 / num_components


def bic(log_prob: Tensor, num_parameters: int) -> float:
    """Bayesian information criterion -2 sum log p + m log n of n fitted tokens in nats [Schwarz 1978]; low is good."""
    return float(-2 * log_prob.sum()) + num_parameters * math.log(len(log_prob))


def _log_density(a: Tensor, energy: Tensor, variances: Tensor, noise: Tensor, d: int) -> Tensor:
    """log N `(n)` from coordinates a `(n, q)` in the component's basis and |x - m|^2 `(n)`."""
    outside = (energy - a.square().sum(-1)).clamp_min(0)
    distance = outside / noise + (a.square() / variances).sum(-1)
    log_det = variances.log().sum() + (d - a.shape[1]) * noise.log()
    return -0.5 * (distance + log_det + d * math.log(2 * math.pi))


def _fit_component(a: Tensor, energy: Tensor, share: Tensor, d: int, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum-likelihood rotation `(q, q)`, variances `(q)` and noise `()` of one component in a given span.

    Eigenvalues of the scatter that lie below the noise are pooled with it: the optimum under v_j >= s.
    """
    mass = share.sum().clamp_min(torch.finfo(a.dtype).tiny)
    scatter = (a * share[:, None]).mT @ a / mass
    eigenvalues, vectors = torch.linalg.eigh(scatter)
    values, rotation = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    total = (energy * share).sum() / mass
    kept = torch.arange(min(len(values), d - 1) + 1)
    within = torch.cat([values.new_zeros(1), values.cumsum(0)])[: len(kept)]
    noises = ((total - within) / (d - kept)).clamp_min(floor)
    smallest = torch.cat([values.new_full((1,), math.inf), values])[: len(kept)]
    noise = noises[(smallest >= noises).nonzero().max()]
    return rotation, values.clamp_min(noise), noise


def _fit_free(
    X: Tensor, basis: Tensor, share: Tensor, mean: Tensor | None, floor: Tensor, power_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, basis, variances and noise of one component, one generalised M-step on."""
    mass = share.sum().clamp_min(torch.finfo(X.dtype).tiny)
    mean = share @ X / mass if mean is None else mean
    centred = X - mean
    for _ in range(power_steps):
        basis = torch.linalg.qr(centred.mT @ (share[:, None] * (centred @ basis) / mass)).Q
    rotation, variances, noise = _fit_component(centred @ basis, centred.square().sum(-1), share, X.shape[1], floor)
    return mean, basis @ rotation, variances, noise


def _noise_floor(centred: Tensor) -> Tensor:
    return (NOISE_FLOOR * centred.square().mean()).clamp_min(torch.finfo(centred.dtype).tiny)


def _finished(history: list[float], iterations: int, tolerance: float) -> bool:
    gained = math.inf if len(history) < 2 else history[-1] - history[-2]
    return len(history) >= iterations or gained < tolerance
