"""Tokens and dictionaries whose truth is known: subspaces at a stated angle, codes of stated sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...analysis.maths.mixtures import LowRankMixture


@dataclass(frozen=True)
class UnionOfSubspaces:
    """Float64 tokens `(N, d)` of length 1, orthonormal bases `(K, d, p)`, and the subspace of every token `(N)`."""

    tokens: Tensor
    bases: Tensor
    membership: Tensor


@dataclass(frozen=True)
class SparseSignals:
    """Float64 signals `(N, d)`, their codes `(N, m)` >= 0, and the dictionary `(d, m)` with columns of length 1."""

    signals: Tensor
    codes: Tensor
    dictionary: Tensor


def generator(seed: int) -> torch.Generator:
    """A CPU generator with this seed."""
    return torch.Generator().manual_seed(seed)


def random_orthonormal(d: int, columns: int, seed: int) -> Tensor:
    """Uniformly random orthonormal columns, `(d, columns)` float64."""
    Q, R = torch.linalg.qr(torch.randn(d, columns, generator=generator(seed), dtype=torch.float64))
    return Q * R.diagonal().sign()


def bases_at_angle(num_subspaces: int, dim: int, ambient: int, angle: float, seed: int) -> Tensor:
    """K bases `(K, d, p)` of which every two meet at one angle: all p principal angles are `angle` degrees.

    U_k = a C + b Q_k with C and all Q_k mutually orthonormal, a² = cos(angle), b² = 1 − a²; then
    U_iᵀU_j = a² I = cos(angle) I for i ≠ j.
    """
    for name, value in (("num_subspaces", num_subspaces), ("dim", dim), ("ambient", ambient)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not 0 <= angle <= 90:
        raise ValueError(f"angle={angle:g}: must be between 0 and 90 degrees")
    blocks = num_subspaces + (angle < 90)
    if blocks * dim > ambient:
        raise ValueError(
            f"ambient={ambient}: {num_subspaces} subspaces of dimension {dim} at {angle:g} degrees need "
            f"{blocks * dim} dimensions; raise ambient or lower the others"
        )
    Q = random_orthonormal(ambient, blocks * dim, seed).unflatten(1, (blocks, dim)).movedim(1, 0)
    if angle == 90:
        return Q
    common = math.cos(math.radians(angle))
    return common**0.5 * Q[:1] + (1 - common) ** 0.5 * Q[1:]


def union_of_subspaces(
    num_subspaces: int = 4,
    dim: int = 8,
    ambient: int = 64,
    num_tokens: int = 128,
    noise: float = 0.0,
    angle: float = 90.0,
    seed: int = 0,
    nonnegative: bool = False,
) -> UnionOfSubspaces:
    """Tokens u = (s + noise · w) / ‖s + noise · w‖ with s a random unit vector of one subspace, E‖w‖² = 1.

    Tokens are dealt to the subspaces in turn; `nonnegative` makes their coordinates in the basis >= 0.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: must be at least 1")
    bases = bases_at_angle(num_subspaces, dim, ambient, angle, seed)
    source = generator(seed + 1_000_003)
    membership = torch.arange(num_tokens) % num_subspaces
    coordinates = torch.randn(num_tokens, dim, generator=source, dtype=torch.float64)
    coordinates = coordinates.abs() if nonnegative else coordinates
    signal = normalize((bases[membership] @ coordinates.unsqueeze(-1)).squeeze(-1), dim=-1)
    return UnionOfSubspaces(normalize(_disturbed(signal, noise, source), dim=-1), bases, membership)


def mixture_of_subspaces(
    num_subspaces: int = 4, dim: int = 4, ambient: int = 32, angle: float = 90.0, seed: int = 0
) -> LowRankMixture:
    """K equally likely Gaussians, each uniform in all directions of its own subspace and 0 outside; E‖z‖² = 1."""
    bases = bases_at_angle(num_subspaces, dim, ambient, angle, seed)
    return LowRankMixture(
        weights=bases.new_full((num_subspaces,), 1 / num_subspaces),
        means=bases.new_zeros(num_subspaces, ambient),
        bases=bases,
        variances=bases.new_full((num_subspaces, dim), 1 / dim),
        noise=bases.new_zeros(num_subspaces),
        num_parameters=0,
    )


def sparse_signals(
    ambient: int, num_atoms: int, num_tokens: int, num_active: int, noise: float, seed: int
) -> SparseSignals:
    """Signals A Dᵀ + noise · w, E‖w‖² = 1, Gaussian atoms of length 1.

    Every code has `num_active` positive entries, uniform in [0.5, 1.5].
    """
    if not (ambient >= 1 and num_tokens >= 1 and 1 <= num_active <= num_atoms):
        raise ValueError(
            f"ambient={ambient}, num_atoms={num_atoms}, num_tokens={num_tokens}, num_active={num_active}: "
            "sizes must be at least 1, and active at most the number of atoms"
        )
    source = generator(seed)
    D = normalize(torch.randn(ambient, num_atoms, generator=source, dtype=torch.float64), dim=0)
    places = torch.rand(num_tokens, num_atoms, generator=source, dtype=torch.float64).topk(num_active).indices
    values = 0.5 + torch.rand(num_tokens, num_active, generator=source, dtype=torch.float64)
    codes = torch.zeros(num_tokens, num_atoms, dtype=torch.float64).scatter(1, places, values)
    return SparseSignals(_disturbed(codes @ D.mT, noise, source), codes, D)


def _disturbed(signals: Tensor, noise: float, source: torch.Generator) -> Tensor:
    """Signals `(N, d)` + noise · w with w Gaussian, E‖w‖² = 1."""
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise!r}: must be a finite number >= 0")
    w = torch.randn(signals.shape, generator=source, dtype=torch.float64) / signals.shape[-1] ** 0.5
    return signals + noise * w


def dictionary_with_condition(d: int, condition: float, seed: int) -> Tensor:
    """Square D = P diag(s) Qᵀ, P and Q random orthogonal, s geometric from c^½ to c^−½; D is orthogonal for c = 1."""
    if not 1 <= condition < math.inf:
        raise ValueError(f"condition={condition!r}: must be a finite number >= 1")
    P, Q = random_orthonormal(d, d, seed), random_orthonormal(d, d, seed + 1)
    s = torch.logspace(0.5, -0.5, d, base=condition, dtype=torch.float64) if condition > 1 else torch.ones(d).double()
    return P * s @ Q.mT
