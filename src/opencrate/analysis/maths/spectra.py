"""Singular values of a matrix of tokens, and the ranks that are read from them."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_eigenvalues(Z: Tensor) -> Tensor:
    """Eigenvalues of the smaller Gram matrix of each Z `(..., N, d)`, ascending, float64 `(..., min(N, d))`.

    They are the squared singular values up to rounding, which may leave a zero slightly above or below 0. Rows of
    zeros add none.
    """
    Z = Z.double()
    return torch.linalg.eigvalsh(Z @ Z.mT if Z.shape[-2] < Z.shape[-1] else Z.mT @ Z)


def squared_singular_values(Z: Tensor) -> Tensor:
    """`gram_eigenvalues`, with exact zeros for those that are no more than rounding."""
    values = gram_eigenvalues(Z)
    noise = values.shape[-1] * torch.finfo(torch.float64).eps * values[..., -1:]
    return torch.where(values > noise, values, 0)


def effective_rank(squared: Tensor) -> Tensor:
    """exp(−Σ_i p_i log p_i) with p_i = σ_i / Σ_j σ_j [Roy & Vetterli, EUSIPCO 2007]; between 1 and the rank.

    Of σ_i² `(..., n)`, negative ones counted as zero: `(...)`, 0 where all are zero.
    """
    sigma = squared.clamp_min(0).sqrt()
    total = sigma.sum(-1, keepdim=True)
    share = sigma / torch.where(total == 0, 1, total)
    return torch.where(total[..., 0] == 0, 0, torch.special.entr(share).sum(-1).exp())


def stable_rank(squared: Tensor) -> Tensor:
    """Σ_i σ_i² / max_i σ_i², between 1 and the rank, of σ_i² `(..., n)`: `(...)`, 0 where all are zero."""
    largest = squared.amax(-1)
    return squared.sum(-1) / torch.where(largest == 0, 1, largest)
