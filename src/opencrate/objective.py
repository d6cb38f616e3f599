"""The objective of CRATE and its parts: coding rates, rate reduction, sparsity.

N tokens, d width, K subspaces of dimension p. Tokens are rows: Z is (..., N, d), the paper's matrix transposed. U is
(K, d, p). eps is the distortion, never its square. Rates are in nats per set of tokens (image), never averaged over it.

    R(Z)       = 1/2 logdet(I + d/(N eps^2) Z^T Z)
    R^c(Z | U) = sum_k 1/2 logdet(I + p/(N eps^2) (Z U_k)^T (Z U_k))
    objective  = R(Z) - R^c(Z | U) - lambda ||Z||_0, maximised            [CRATE, arXiv:2306.01129, Eq. (1)]

Everything inside runs in float64; `_logdet.py` says how, and how exactly.
"""

from __future__ import annotations

import contextlib
import math
from numbers import Real

import torch
from torch import Tensor

from ._logdet import half_logdet


def coding_rate(Z: Tensor, eps: float) -> Tensor:
    """Coding rate R(Z) = 1/2 logdet(I + d/(N eps^2) Z^T Z) [CRATE, Eq. (1)].

    From tokens that are already projected, V of shape (..., K, N, p), `coding_rate(V, eps).sum(-1)` is R^c.

    Accuracy, with x^2 = d/(N eps^2) * sigma_max(Z)^2 and u = 2^-53. Float64 input: within 1e-9 max(1, R) while
    x^2 <= 1e6, beyond it within min(N, d) * log1p(4 max(N, d) u x) nats. Shorter types: within 1e-6 max(1, R) while
    x^2 <= 1e6, beyond it within the sum of the two. Singular values below 2 max(N, d) u sigma_max are rounding noise
    and count as zero there, so that duplicated tokens and missing directions add nothing at any scale.

    Value and gradient are finite for every finite float32 or bfloat16 input; the gradient's entries are at most
    sqrt(d / N) / (2 eps), which float16 may not hold. Second derivatives are supported while d/(N eps^2) ||Z||_F^2 <=
    1e6 (1e9 for the shorter types). A matrix with a NaN or an infinity gives NaN, and leaves the others alone.

    Args:
        Z: tokens (..., N, d), any floating dtype, N >= 1, d >= 1; the leading shape may be empty of elements.
        eps: distortion, a number in [1e-150, 1e150].

    Returns:
        Rates in nats, shape (...), in Z's dtype (float32 for float16 and bfloat16).

    Raises:
        ValueError: Z has a wrong shape or dtype, or eps is not such a number.

    >>> coding_rate(torch.eye(2), eps=1.0)  # two eigenvalues 1 + 2/2 * 1
    tensor(0.6931)
    """
    N, d = _checked_tokens(Z)
    return half_logdet(Z, d / (N * _checked_eps(eps) ** 2)).to(_result_dtype(Z))


def subspace_coding_rate(Z: Tensor, U: Tensor, eps: float, per_subspace: bool = False) -> Tensor:
    """Coding rate against the subspaces, R^c(Z | U) = sum_k R(Z U_k) [CRATE, Eq. (1)].

    The projection is done in float64 too; the accuracy is that of `coding_rate` for each Z U_k as float64 holds it
    (rounding can leave a trace of tokens that are exactly orthogonal to U_k).

    Args:
        Z, eps: as for `coding_rate`.
        U: bases (K, d, p), any floating dtype, on Z's device; they need not be orthonormal.
        per_subspace: keep the K terms apart.

    Returns:
        Rates in nats, shape (...), or (..., K) with `per_subspace`, in Z's dtype (float32 for half types).

    Raises:
        ValueError: Z or U has a wrong shape or dtype, or eps is not such a number.
    """
    N, p = _checked_tokens(Z)[0], _checked_bases(U, Z)
    rates = half_logdet(Z, p / (N * _checked_eps(eps) ** 2), U)
    return (rates if per_subspace else rates.sum(-1)).to(_result_dtype(Z))


def rate_reduction(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """Rate reduction R(Z) - R^c(Z | U) [CRATE, Eq. (1)]; negative where the subspaces overlap enough.

    Args, errors and dtypes are those of `subspace_coding_rate`; the difference is taken in float64.

    Returns:
        Differences in nats, shape (...).
    """
    return _rate_reduction(Z, U, eps).to(_result_dtype(Z))


def sparse_rate_reduction(Z: Tensor, U: Tensor, lam: float, eps: float, norm: str = "l0", tol: float = 0.0) -> Tensor:
    """The objective of CRATE, to be maximised: R(Z) - R^c(Z | U) - lambda ||Z|| [CRATE, Eq. (1)].

    Args:
        Z, U, eps: as for `subspace_coding_rate`.
        lam: lambda >= 0, the price of a non-zero entry (or of one unit of absolute value with "l1"), in nats.
        norm: "l0", the number of entries with |z| > tol (without gradient), or "l1", the sum of absolute values.
        tol: tolerance of "l0", >= 0.

    Returns:
        Objective values in nats, shape (...), in Z's dtype (float32 for half types).

    Raises:
        ValueError: as for `subspace_coding_rate`; norm unknown; lam or tol negative or not finite; tol with "l1".
    """
    reduction = _rate_reduction(Z, U, eps)
    _check_choice("norm", norm, ("l0", "l1"))
    _check_nonnegative("lam", lam)
    _check_tol(tol, "norm", norm)
    count = _nonzero(Z, tol) if norm == "l0" else Z.to(torch.float64).abs()
    return (reduction - lam * count.sum((-2, -1))).to(_result_dtype(Z))


def sparsity(Z: Tensor, measure: str = "l0", tol: float = 0.0) -> Tensor:
    """How sparse the entries of Z are, over its last two axes.

    "gini" and "hoyer" grow with sparsity, "l0" and "l1" fall. With c_(1) <= ... <= c_(n) the n = N d absolute values c:

    - "l0": fraction of entries with c > tol, in [0, 1]; no gradient.
    - "l1": sum of c.
    - "gini": 1 - 2 sum_k c_(k)/||c||_1 (n - k + 1/2)/n, in [0, 1 - 1/n] (Hurley & Rickard, arXiv:0811.4706).
    - "hoyer": (sqrt(n) - ||c||_1/||c||_2) / (sqrt(n) - 1), in [0, 1] (Hoyer 2004, JMLR 5:1457-1469).

    All-zero input is taken as uniform: every measure gives 0, as do "gini" and "hoyer" for one entry. NaN gives NaN.

    Args:
        Z: (..., N, d), any floating dtype.
        measure: one of the four names.
        tol: tolerance of "l0", >= 0.

    Returns:
        Shape (...), in Z's dtype (float32 for half types).

    Raises:
        ValueError: Z has a wrong shape or dtype; measure unknown; tol negative or not finite, or not with "l0".
    """
    _checked_tokens(Z)
    _check_choice("measure", measure, tuple(_MEASURES))
    _check_tol(tol, "measure", measure)
    value = _l0(Z, tol) if measure == "l0" else _MEASURES[measure](Z.to(_result_dtype(Z)).abs())
    return value.to(_result_dtype(Z))


def _rate_reduction(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """In float64."""
    (N, d), p, scale = _checked_tokens(Z), _checked_bases(U, Z), _checked_eps(eps) ** 2
    return half_logdet(Z, d / (N * scale)) - half_logdet(Z, p / (N * scale), U).sum(-1)


def _l0(Z: Tensor, tol: float) -> Tensor:
    """Fraction of entries with |z| > tol; counts per token are exact in float32."""
    c = Z.detach().to(_result_dtype(Z)).abs()
    broken = c.sum((-2, -1)).isnan()
    return torch.where(broken, math.nan, c.gt_(tol).sum(-1).to(torch.float64).mean(-1) / Z.shape[-1])


def _l1(c: Tensor) -> Tensor:
    """Sum per token in the type of c, over tokens in float64."""
    return c.sum(-1).to(torch.float64).sum(-1)


def _gini(c: Tensor) -> Tensor:
    ordered = _ascending(c.flatten(-2)).to(torch.float64)
    n = ordered.shape[-1]
    weights = (n - torch.arange(1, n + 1, dtype=ordered.dtype, device=c.device) + 0.5) / n
    total = ordered.sum(-1)
    gini = 1 - 2 * (ordered * weights).sum(-1) / torch.where(total == 0, 1, total)
    return torch.where(total == 0, 0, gini)


def _ascending(c: Tensor) -> Tensor:
    """Sorted along the last axis; on a CPU by NumPy where there is one, ten times faster than torch."""
    if c.device.type == "cpu" and not (c.requires_grad and torch.is_grad_enabled()):
        with contextlib.suppress(RuntimeError):  # torch says "Numpy is not available"
            values = c.detach().numpy().copy()
            values.sort(-1)
            return torch.from_numpy(values)
    return c.sort(-1).values


def _hoyer(c: Tensor) -> Tensor:
    c = c.flatten(-2).to(torch.float64)
    root = math.sqrt(c.shape[-1])
    norm = torch.linalg.vector_norm(c, dim=-1)
    hoyer = (root - c.sum(-1) / torch.where(norm == 0, 1, norm)) / (root - 1 or 1.0)
    return torch.where(norm == 0, 0, hoyer)


_MEASURES = {"l0": _l0, "l1": _l1, "gini": _gini, "hoyer": _hoyer}


def _nonzero(Z: Tensor, tol: float) -> Tensor:
    """1 where |z| > tol, 0 elsewhere, NaN kept; float64, no gradient."""
    entries = Z.detach().to(torch.float64)
    return torch.where(entries.isnan(), entries, (entries.abs() > tol).to(torch.float64))


def _result_dtype(Z: Tensor) -> torch.dtype:
    return Z.dtype if Z.dtype in (torch.float32, torch.float64) else torch.float32


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of a floating dtype, got a {got}; convert it, e.g. {name}.float()")


def _checked_tokens(Z: Tensor) -> tuple[int, int]:
    """(N, d)."""
    _check_floating("Z", Z)
    if Z.ndim < 2 or 0 in Z.shape[-2:]:
        raise ValueError(
            f"Z must have shape (..., N, d) with N >= 1 tokens as rows and d >= 1, got {tuple(Z.shape)}; "
            "a single token is Z[None]"
        )
    return Z.shape[-2], Z.shape[-1]


def _checked_bases(U: Tensor, Z: Tensor) -> int:
    """p."""
    _check_floating("U", U)
    if U.ndim != 3 or 0 in U.shape or U.shape[1] != Z.shape[-1]:
        raise ValueError(
            f"U must have shape (K, d, p) with d = {Z.shape[-1]}, the width of Z {tuple(Z.shape)}, "
            f"got {tuple(U.shape)}; a single basis is U[None]"
        )
    return U.shape[-1]


def _checked_eps(eps: float) -> float:
    if not isinstance(eps, Real) or not 1e-150 <= eps <= 1e150:
        raise ValueError(
            f"eps must be a number in [1e-150, 1e150] (the distortion itself, not its square), got {eps!r}; "
            "reports use 0.5"
        )
    return float(eps)


def _check_nonnegative(name: str, value: float) -> None:
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}; pass e.g. {name}=0.1")


def _check_tol(tol: float, field: str, choice: str) -> None:
    _check_nonnegative("tol", tol)
    if tol != 0 and choice != "l0":
        raise ValueError(f'tol applies to {field}="l0" only, got tol={tol!r} with {field}={choice!r}; leave tol out')


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
