"""The log-determinants of the coding rates: exact to rounding, finite for every finite input.

In float64, in slices that stay in a CPU's cache or fit an accelerator's memory. Each matrix, whatever the others in its
batch do, goes by a Cholesky factorisation of the smaller Gram matrix while its trace, which bounds the error, is small
enough, else by the singular values. This file needs torch only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Float64 elements worked on at a time: 8 MB, so that the float64 copy of a large batch stays in cache.
_SLICE = 1 << 20
# The same on an accelerator, which many matrices keep busy: 1 GB, or this share of the free memory if that is less.
_SLICE_ON_ACCELERATOR, _FREE_SHARE = 1 << 27, 1 / 32
# Devices where reading a flag does not wait.
_READ_AT_ONCE = ("cpu",)
# Largest tr(alpha V^T V) that goes to Cholesky, whose error is about trace * 2^-53: 1e-10 for float64 input,
# and 1e-7 for the shorter types: they promise 1e-6, which allows the cheaper way longer.
_TRACE_LIMIT_FLOAT64 = 1e6
_TRACE_LIMIT = 1e9
# Rows of a Gram matrix computed at once: fewer save work above the diagonal, more make the products efficient.
_ROWS = 66
# Below this trace, 1/2 trace equals the rate, and its gradient, to a relative 1e-9; 1 + trace would begin to lose it.
_TRACE_LINEAR = 1e-9


def half_logdet(V: Tensor, alpha: float, U: Tensor | None = None) -> Tensor:
    """``1/2 logdet(I + alpha V^T V)`` of each matrix, or with U of each projection ``V U_k``.

    ``V (..., N, d)`` and ``U (K, d, p)`` of any floating dtype, alpha > 0 -> float64 ``(...)``, or ``(..., K)`` with U.
    A matrix with a NaN or an infinity gives NaN.
    """
    shape = V.shape[:-2] if U is None else (*V.shape[:-2], U.shape[0])
    limit = _TRACE_LIMIT_FLOAT64 if V.dtype == torch.float64 else _TRACE_LIMIT
    if U is not None:
        U = U.to(torch.float64)
    if V.ndim == 2:
        V = V.unsqueeze(0)

    def matrices(part: Tensor) -> Tensor:
        part = part.to(torch.float64, memory_format=torch.contiguous_format)
        return (part if U is None else torch.einsum("...nd,kdp->...knp", part, U)).flatten(0, -3)

    parts = V.split(max(1, _slice(V.device) // max(1, math.prod(V.shape[1:]))))
    if V.device.type in _READ_AT_ONCE:
        return torch.cat([_of_matrices(matrices(part), alpha, limit) for part in parts]).reshape(shape)
    found = [_if_easy(matrices(part), alpha, limit) for part in parts]
    easy = torch.stack([flag for _, flag in found]).tolist()  # the one time that an accelerator is waited for
    values = [
        value if flag else _one_by_one(matrices(part), alpha, limit)
        for part, (value, _), flag in zip(parts, found, easy)
    ]
    return torch.cat(values).reshape(shape)


def _slice(device: torch.device) -> int:
    """Float64 elements to be worked on at a time."""
    if device.type == "cpu":
        return _SLICE
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 << 30
    return min(_SLICE_ON_ACCELERATOR, int(free * _FREE_SHARE) // 8)


def _if_easy(V: Tensor, alpha: float, limit: float) -> tuple[Tensor, Tensor]:
    """The values ``(M)`` of V ``(M, N, d)`` if all of them go by Cholesky, and whether they do, a scalar."""
    gram, trace = _gram(V, alpha)
    return _by_cholesky(gram, trace), (trace <= limit).all()


def _gram(V: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """alpha times the smaller Gram matrix of V ``(M, N, d)``, and its trace ``(M)``."""
    gram = _products(V.mT if V.shape[-2] >= V.shape[-1] else V).mul_(alpha)
    return gram, gram.diagonal(dim1=-2, dim2=-1).sum(-1)


def _of_matrices(V: Tensor, alpha: float, limit: float) -> Tensor:
    """The values ``(M)`` of V ``(M, N, d)``, float64."""
    gram, trace = _gram(V, alpha)
    if bool((trace <= limit).all()):
        return _by_cholesky(gram, trace)
    return _one_by_one(V, alpha, limit, gram, trace)


def _one_by_one(
    V: Tensor, alpha: float, limit: float, gram: Tensor | None = None, trace: Tensor | None = None
) -> Tensor:
    """The same, each matrix by the way that it needs."""
    if V.shape[-2] < V.shape[-1]:
        V = V.mT
    if gram is None or trace is None:
        gram, trace = _gram(V, alpha)
    easy = trace <= limit
    finite = V.isfinite().all(-1).all(-1)
    groups = [g.nonzero().squeeze(-1) for g in (easy, finite & ~easy, ~finite)]
    values = torch.cat(
        [
            _by_cholesky(gram[groups[0]], trace[groups[0]]),
            _by_singular_values(V[groups[1]], alpha),
            V[groups[2]].sum((-2, -1)) * math.nan,  # NaN in the value and in the gradient
        ]
    )
    return values[torch.cat(groups).argsort()]


def _products(W: Tensor) -> Tensor:
    """W W^T of W (M, n, N), where no gradient is needed on and below the diagonal only: all that Cholesky reads."""
    n = W.shape[-2]
    with torch.autocast(W.device.type, enabled=False):
        if n <= _ROWS or W.device.type != "cpu" or (W.requires_grad and torch.is_grad_enabled()):
            return torch.bmm(W, W.mT)
        products = W.new_zeros(W.shape[0], n, n)
        for top in range(0, n, _ROWS):
            end = min(top + _ROWS, n)
            products[:, top:end, :end] = torch.bmm(W[:, top:end], W[:, :end].mT)
        return products


def _by_cholesky(gram: Tensor, trace: Tensor) -> Tensor:
    """From gram = alpha V^T V (M, n, n) of bounded trace: I + gram is then positive definite in float64."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, _ = torch.linalg.cholesky_ex(gram + eye)
    values = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(trace < _TRACE_LINEAR, trace / 2, values)


def _by_singular_values(V: Tensor, alpha: float) -> Tensor:
    """sum_i 1/2 log(1 + alpha sigma_i^2) for V (M, N, n) finite and not all-zero, N >= n.

    With c = sqrt(alpha) * peak and s = sigma / peak, a term is log hypot(s, 1/c) + log c: nothing overflows.
    """
    peak = V.detach().abs().amax((-2, -1)).unsqueeze(-1)
    sigma = torch.linalg.svdvals(V / peak.unsqueeze(-1))
    noise = V.shape[-2] * torch.finfo(sigma.dtype).eps * sigma.detach()[..., :1]
    inverse = 1 / math.sqrt(alpha) / peak
    terms = torch.hypot(sigma, inverse).log() + (peak.log() + 0.5 * math.log(alpha))
    return torch.where(sigma > noise, terms, 0).sum(-1)
