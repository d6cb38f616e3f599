"""What the audit measures of one layer's tokens: where they lie relative to subspaces, and densities fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...stats.intervals import Interval, bootstrap_mean
from ..maths.geometry import orthonormal_bases
from ..maths.mixtures import bic, cluster_shares, fit_gaussian, fit_isotropic, fit_mixture, fit_on_subspaces
from ..maths.spectra import effective_rank, gram_eigenvalues

FITS = {
    "learned": "mixture on the learned subspaces",
    "random": "mixture on random subspaces",
    "subspaces": "mixture with fitted subspaces",
    "clusters": "mixture with fitted subspaces and means",
    "gaussian": "one full Gaussian",
    "isotropic": "one isotropic Gaussian",
}
_SUPPORT = 1e-9  # directions with less than this times the largest variance hold no information, only rounding


@dataclass(frozen=True)
class Fit:
    """One density fitted to tokens of even-numbered images.

    Attributes:
        held_out: `(n)`, mean log-likelihood per token of each held-out image, nats.
        bic: of the fitted tokens, taken as independent (tokens of one image are not); lower is better.
        draws: of a fit that is the mean over random subspaces, the mean log-likelihood of each draw; else `None`.
    """

    held_out: Tensor
    bic: float
    num_parameters: int
    draws: Tensor | None = None

    @property
    def log_likelihood(self) -> Interval:
        """Mean over held-out images with its bootstrap interval, nats per token."""
        return bootstrap_mean(self.held_out)


@dataclass(frozen=True)
class Sample:
    """Tokens of one layer: `tokens (n, d)`, of image number `images (n)`, and the layer's `subspaces (K, d, p)`."""

    tokens: Tensor
    images: Tensor
    subspaces: Tensor


def random_bases(subspaces: Tensor, seed: int) -> Tensor:
    """Orthonormal bases of random subspaces, as many and as large as `subspaces (K, d, p)`, float64."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal_bases(torch.randn(subspaces.shape, generator=generator, dtype=torch.float64))


def random_measures(tokens: Tensor, draws: Sequence[Tensor]) -> dict[str, Tensor]:
    """Where sampled tokens `(n, d)` lie relative to random subspaces, float64 `(draws)` each."""
    energy = tokens.square().sum(-1).clamp_min(torch.finfo(tokens.dtype).tiny)
    shares = [_energy_shares(tokens[None], draw.float(), energy[None]) for draw in draws]
    return {
        "outside_nearest_random": torch.stack([(1 - one.amax(-1)).double().mean() for one in shares]),
        "membership_entropy_random": torch.stack([_entropy(one).double().mean() for one in shares]),
    }


def token_measures(tokens: Tensor, mask: Tensor, learned: Tensor) -> dict[str, Tensor]:
    """Where the tokens `(B, N, d)` of each image lie, float64 `(B)` each."""
    energy = tokens.square().sum(-1).clamp_min(torch.finfo(tokens.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return (values.double() * mask).sum(1) / mask.sum(1)

    shares = _energy_shares(tokens, learned, energy)
    joint = orthonormal_bases(learned.movedim(0, 1).flatten(1)[None])[0].float()
    inside = (tokens @ joint).square().sum(-1) / energy
    spans_all = int((joint.square().sum(0) > 0.5).sum()) == tokens.shape[-1]
    unit = (tokens / energy.sqrt()[..., None] * mask[..., None]).double()
    return {
        "outside_nearest": mean((1 - shares.amax(-1)).clamp_min(0)),
        "outside_joint": mean(torch.zeros_like(inside) if spans_all else (1 - inside).clamp_min(0)),
        "membership_entropy": mean(_entropy(shares)),
        **_dispersion(unit, mask.sum(1)),
        "effective_rank": effective_rank(gram_eigenvalues(tokens * mask[..., None])),
    }


def _energy_shares(tokens: Tensor, bases: Tensor, energy: Tensor) -> Tensor:
    """‖Q_k^T z‖² / ‖z‖², `(B, N, K)`."""
    return torch.einsum("bnd,kdp->bnkp", tokens, bases).square().sum(-1) / energy[..., None]


def _entropy(shares: Tensor) -> Tensor:
    """Entropy of the shares over the last axis, as a fraction of its largest value; NaN for one subspace."""
    if shares.shape[-1] == 1:
        return torch.full_like(shares[..., 0], math.nan)
    total = shares.sum(-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return torch.special.entr(shares / total).sum(-1) / math.log(shares.shape[-1])


def _dispersion(unit: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Mean cosine and uniformity [Wang & Isola 2020] of unit-norm tokens `(B, N, d)`, masked ones zero."""
    cosines = unit @ unit.mT
    pairs = (count * (count - 1)).double()
    mean_cosine = (cosines.sum((1, 2)) - count) / pairs
    closeness = (-4 * (1 - cosines)).exp()
    real = unit.square().sum(-1) > 0.5
    both = real[:, :, None] & real[:, None, :]
    uniformity = (((closeness * both).sum((1, 2)) - count) / pairs).log()
    return {"mean_cosine": mean_cosine, "uniformity": uniformity}


def shuffled(sample: Sample, seed: int) -> Sample:
    """Every coordinate permuted over the tokens of a half on its own: the same marginals, no joint structure."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sample.tokens.clone()
    for rest in (0, 1):
        rows = (sample.images % 2 == rest).nonzero()[:, 0]
        order = torch.rand(len(rows), tokens.shape[1], generator=generator).argsort(0)
        tokens[rows] = tokens[rows].gather(0, order)
    return Sample(tokens, sample.images, sample.subspaces)


def fit_all(sample: Sample, draws: Sequence[Tensor], iterations: int, seed: int) -> tuple[dict[str, Fit], int]:
    """Every density of one condition, and in how many dimensions."""
    fitted = sample.images % 2 == 0
    X, held_out = sample.tokens[fitted].double(), sample.tokens[~fitted].double()
    width = X.shape[1]
    if len(X) < 2 * width:
        raise ValueError(
            f"{len(X)} tokens to fit in {width} dimensions: a covariance needs at least {2 * width}; give more images "
            "(num_images) or take more tokens of each (num_tokens)"
        )
    centre, support = _support(X)
    X, held_out = (X - centre) @ support, (held_out - centre) @ support
    dimensions = support.shape[1]
    bases = orthonormal_bases(support.mT @ sample.subspaces.double())
    rank = min(bases.shape[2], dimensions - 1)
    images = sample.images[~fitted]
    options: dict[str, Any] = {"iterations": iterations, "tolerance": 1e-3}

    learned = fit_on_subspaces(X, bases, **options).mixture
    random = [fit_on_subspaces(X, orthonormal_bases(support.mT @ draw), **options).mixture for draw in draws]
    shares, clusters = learned.responsibilities(X), cluster_shares(X, len(bases), seed)
    models: dict[str, Any] = {
        "learned": learned,
        "subspaces": fit_mixture(X, rank, shares, X.new_zeros(dimensions), seed=seed, **options).mixture,
        "clusters": fit_mixture(X, rank, clusters, seed=seed, **options).mixture,
        "gaussian": fit_gaussian(X),
        "isotropic": fit_isotropic(X),
    }

    def judged(model: Any) -> Fit:
        scores = _per_image(model.log_prob(held_out), images)
        return Fit(scores, bic(model.log_prob(X), model.num_parameters), model.num_parameters)

    fits = {name: judged(model) for name, model in models.items()}
    if random:
        fits["random"] = _mean_fit([judged(model) for model in random])
    return {name: fits[name] for name in FITS if name in fits}, dimensions


def _mean_fit(draws: Sequence[Fit]) -> Fit:
    """Several fits of one kind as one: the mean of each image's log-likelihood, and every draw's mean."""
    held_out = torch.stack([fit.held_out for fit in draws])
    mean_bic = sum(fit.bic for fit in draws) / len(draws)
    return Fit(held_out.mean(0), mean_bic, draws[0].num_parameters, held_out.mean(1))


def _support(X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(d)` and an orthonormal basis `(d, r)` of the directions in which the tokens vary.

    LN(Z) has no variance along one direction, and dead coordinates have none: a Gaussian would be infinitely likely
    there, so such directions are left out, for all densities alike.
    """
    mean = X.mean(0)
    centred = X - mean
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    kept = values > _SUPPORT * values[-1]
    if not values[-1] > 0 or int(kept.sum()) < 2:
        raise ValueError("the tokens do not vary: all images give the same states, so there is nothing to fit")
    return mean, vectors[:, kept]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Mean of the values of each image, in the order of the images."""
    _, index = images.unique(return_inverse=True)
    sums = torch.zeros(int(index.max()) + 1, dtype=values.dtype).index_add(0, index, values)
    return sums / torch.bincount(index)
