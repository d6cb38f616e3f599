"""The objective of CRATE and its parts: coding rates, rate reduction, sparsity.

Symbols: N tokens, d width, K subspaces of dimension p. Tokens are rows: Z is (..., N, d), the paper's matrix
transposed. U is (K, d, p), one basis per subspace. eps is the distortion, never its square. Rates are in
nats, per set of tokens (per image), never averaged over tokens.

    R(Z)       = 1/2 logdet(I + d/(N eps^2) Z^T Z)
    R^c(Z | U) = sum_k 1/2 logdet(I + p/(N eps^2) (Z U_k)^T (Z U_k))
    objective  = R(Z) - R^c(Z | U) - lambda ||Z||_0, maximised            [CRATE, arXiv:2306.01129, Eq. (1)]

Numerics. Everything inside runs in float64, in slices that stay in cache. Each matrix takes one of two ways,
whatever the others in its batch do: a Cholesky factorisation of the smaller Gram matrix while its trace,
which bounds the error, is small enough, otherwise the singular values. Without gradients, on a CPU and for the
shorter types, the Gram matrix is summed in float32 first and kept where the factor shows that this suffices.
"""

from __future__ import annotations

import contextlib
import math
from numbers import Real

import torch
from torch import Tensor

# Float64 elements worked on at a time: 8 MB, so that the float64 copy of a large batch stays in cache.
_SLICE = 1 << 20
# Largest tr(alpha Z^T Z) that goes to Cholesky, whose error is about trace * 2^-53: 1e-10 for float64 input,
# and 1e-7 for the shorter types: they promise 1e-6, which allows the cheaper way longer.
_TRACE_LIMIT_FLOAT64 = 1e6
_TRACE_LIMIT = 1e9
# Rows of a Gram matrix computed at once: fewer save work above the diagonal, more make the products efficient.
_ROWS = 66
# A Gram matrix summed in float32 is kept while _CAUTION times its estimated error is below this times max(1, R).
_FLOAT32_ERROR = 1e-6
_CAUTION = 8
_PROBES = 8
# Below this trace, 1/2 trace equals the rate, and its gradient, to a relative 1e-9; 1 + trace would begin to lose it.
_TRACE_LINEAR = 1e-9


def coding_rate(Z: Tensor, eps: float) -> Tensor:
    """Coding rate R(Z) = 1/2 logdet(I + d/(N eps^2) Z^T Z) [CRATE, Eq. (1)].

    From tokens that are already projected, V of shape (..., K, N, p), `coding_rate(V, eps).sum(-1)` is R^c.

    Accuracy, with x^2 = d/(N eps^2) * sigma_max(Z)^2 and u = 2^-53. Float64 input: within 1e-9 max(1, R)
    while x^2 <= 1e6, beyond it within min(N, d) * log1p(4 max(N, d) u x) nats. Shorter types: within 1e-6
    max(1, R) while x^2 <= 1e6, beyond it within the sum of the two. By singular values, those below
    2 max(N, d) u sigma_max are rounding noise and count as zero, so that duplicated tokens and missing
    directions add nothing at any scale.

    Value and gradient are finite for every finite float32 or bfloat16 input; the gradient's entries are at
    most sqrt(d / N) / (2 eps), which float16 may not hold. Second derivatives are supported while
    d/(N eps^2) ||Z||_F^2 <= 1e6 (1e9 for the shorter types). A matrix with a NaN or an infinity gives NaN,
    and leaves the others in its batch alone.

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
    _check_tokens(Z)
    return _rates(Z, _check_eps(eps)).to(_result_dtype(Z))


def subspace_coding_rate(Z: Tensor, U: Tensor, eps: float, per_subspace: bool = False) -> Tensor:
    """Coding rate against the subspaces, R^c(Z | U) = sum_k R(Z U_k) [CRATE, Eq. (1)].

    The projection is done in float64 too; the accuracy is that of `coding_rate` for each Z U_k as float64
    holds it (rounding can leave a trace of tokens that are exactly orthogonal to U_k).

    Args:
        Z: tokens (..., N, d), any floating dtype.
        U: bases (K, d, p), any floating dtype, on Z's device; they need not be orthonormal.
        eps: distortion, a number in [1e-150, 1e150].
        per_subspace: keep the K terms apart.

    Returns:
        Rates in nats, shape (...), or (..., K) with `per_subspace`, in Z's dtype (float32 for half types).

    Raises:
        ValueError: Z or U has a wrong shape or dtype, or eps is not such a number.
    """
    _check_tokens(Z)
    _check_bases(U, Z)
    rates = _rates(Z, _check_eps(eps), U)
    return (rates if per_subspace else rates.sum(-1)).to(_result_dtype(Z))


def rate_reduction(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """Rate reduction R(Z) - R^c(Z | U) [CRATE, Eq. (1)]; negative where the subspaces overlap enough.

    Args, errors and dtypes are those of `subspace_coding_rate`; the difference is taken in float64.

    Returns:
        Differences in nats, shape (...).
    """
    _check_tokens(Z)
    _check_bases(U, Z)
    return _rate_reduction(Z, U, _check_eps(eps)).to(_result_dtype(Z))


def sparse_rate_reduction(Z: Tensor, U: Tensor, lam: float, eps: float, norm: str = "l0", tol: float = 0.0) -> Tensor:
    """The objective of CRATE, to be maximised: R(Z) - R^c(Z | U) - lambda ||Z|| [CRATE, Eq. (1)].

    Args:
        Z: tokens (..., N, d), any floating dtype.
        U: bases (K, d, p), any floating dtype, on Z's device.
        lam: lambda >= 0, the price of a non-zero entry (or of one unit of absolute value with "l1"), in nats.
        eps: distortion, a number in [1e-150, 1e150].
        norm: "l0", the number of entries with |z| > tol over all tokens (a count, without gradient), or "l1",
            the sum of absolute values.
        tol: tolerance of "l0", >= 0.

    Returns:
        Objective values in nats, shape (...), in Z's dtype (float32 for half types).

    Raises:
        ValueError: as for `subspace_coding_rate`; norm unknown; lam or tol negative or not finite; tol with
            "l1".
    """
    _check_tokens(Z)
    _check_bases(U, Z)
    _check_choice("norm", norm, ("l0", "l1"))
    _check_nonnegative("lam", lam)
    _check_tol(tol, "norm", norm)
    count = _nonzero(Z, tol) if norm == "l0" else Z.to(torch.float64).abs()
    return (_rate_reduction(Z, U, _check_eps(eps)) - lam * count.sum((-2, -1))).to(_result_dtype(Z))


def sparsity(Z: Tensor, measure: str = "l0", tol: float = 0.0) -> Tensor:
    """How sparse the entries of Z are, over its last two axes.

    "gini" and "hoyer" grow with sparsity, "l0" and "l1" fall.
    With c the n = N d absolute values, c_(1) <= ... <= c_(n):

    - "l0": fraction of entries with c > tol, in [0, 1]; no gradient.
    - "l1": sum of c.
    - "gini": 1 - 2 sum_k c_(k)/||c||_1 (n - k + 1/2)/n, in [0, 1 - 1/n] [Hurley & Rickard,
      arXiv:0811.4706].
    - "hoyer": (sqrt(n) - ||c||_1/||c||_2) / (sqrt(n) - 1), in [0, 1] [Hoyer 2004, JMLR 5:1457-1469].

    All-zero input is taken as uniform: every measure gives 0, as do "gini" and "hoyer" for a single entry.
    An input with a NaN gives NaN.

    Args:
        Z: (..., N, d), any floating dtype.
        measure: one of the four names.
        tol: tolerance of "l0", >= 0.

    Returns:
        Shape (...), in Z's dtype (float32 for half types).

    Raises:
        ValueError: Z has a wrong shape or dtype; measure unknown; tol negative or not finite, or not with
            "l0".
    """
    _check_tokens(Z)
    _check_choice("measure", measure, tuple(_MEASURES))
    _check_tol(tol, "measure", measure)
    value = _l0(Z, tol) if measure == "l0" else _MEASURES[measure](Z.to(_result_dtype(Z)).abs())
    return value.to(_result_dtype(Z))


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


def _rate_reduction(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    return _rates(Z, eps) - _rates(Z, eps, U).sum(-1)


def _rates(Z: Tensor, eps: float, U: Tensor | None = None) -> Tensor:
    """Float64 rates of Z, shape (...), or with U of its projections, shape (..., K); slice by slice."""
    shape = Z.shape[:-2] if U is None else (*Z.shape[:-2], U.shape[0])
    dim = Z.shape[-1] if U is None else U.shape[-1]
    alpha = dim / (Z.shape[-2] * eps**2)
    limit = _TRACE_LIMIT_FLOAT64 if Z.dtype == torch.float64 else _TRACE_LIMIT
    if U is not None:
        U = U.to(torch.float64)
    if Z.ndim == 2:
        Z = Z.unsqueeze(0)
    step = max(1, _SLICE // max(1, math.prod(Z.shape[1:])))
    rates = []
    for part in Z.split(step):
        if U is None and _may_use_float32(part):
            V = part.to(torch.float32, memory_format=torch.contiguous_format)
            rates.append(_rates_by_float32(V.flatten(0, -3), alpha, limit))
            continue
        V = part.to(torch.float64, memory_format=torch.contiguous_format)
        if U is not None:
            V = torch.einsum("...nd,kdp->...knp", V, U)
        rates.append(_matrix_rates(V.flatten(0, -3), alpha, limit))
    return torch.cat(rates).reshape(shape)


def _may_use_float32(Z: Tensor) -> bool:
    """Whether float32 products are float32 (and not TF32 or bfloat16 under that name), and need no gradient."""
    plain = Z.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return plain and Z.dtype != torch.float64 and not (Z.requires_grad and torch.is_grad_enabled())


def _rates_by_float32(V: Tensor, alpha: float, limit: float) -> Tensor:
    """`_matrix_rates` of V (M, N, d), float32: products in float32, and again in float64 where that is not enough."""
    rates, error = _float32_rates(V, alpha)
    doubtful = ~(_CAUTION * error <= _FLOAT32_ERROR * rates.clamp_min(1))  # a NaN is doubtful
    if bool(doubtful.any()):
        rates[doubtful] = _matrix_rates(V[doubtful].to(torch.float64), alpha, limit)
    return rates


def _float32_rates(V: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Rates from a Gram matrix summed in float32, and an estimate of their error; NaN where it does not apply.

    The products P = alpha V^T V are off by E with |E_ij| of order u sqrt(P_ii P_jj), u = 2^-24, and the rate of
    G = I + P by 1/2 tr(G^-1 E), of order u/2 sum_i P_ii (G^-1)_ii or less. The sum is the mean of
    |L^-1 diag(P)^(1/2) s|^2 over random signs s, L the Cholesky factor of G: a few of them cost little.
    """
    if V.shape[-2] < V.shape[-1]:
        V = V.mT
    gram = _products(V.mT).to(torch.float64).mul_(alpha)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    lengths = diagonal.sqrt()
    trace = diagonal.sum(-1)
    diagonal.add_(1)
    factor, info = torch.linalg.cholesky_ex(gram)
    rates = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    signs = torch.randint(2, (gram.shape[-1], _PROBES), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    spread = torch.linalg.solve_triangular(factor, lengths.unsqueeze(-1) * signs, upper=False)
    error = 2.0**-25 * spread.square().sum((-2, -1)) / _PROBES
    # Far inside the range of float32, and of the ways below: neither underflow nor a rate that 1 + trace rounds off.
    known = (info == 0) & (trace > 1e-25 * alpha) & (trace < 1e35 * alpha) & (trace > 1e-6) & (trace < _TRACE_LIMIT)
    return rates, torch.where(known, error, math.nan)


def _products(W: Tensor) -> Tensor:
    """W W^T of W (M, n, N), where no gradient is needed on and below the diagonal only: all that Cholesky reads."""
    n = W.shape[-2]
    with torch.autocast(W.device.type, enabled=False):
        if n <= _ROWS or (W.requires_grad and torch.is_grad_enabled()):
            return torch.bmm(W, W.mT)
        products = W.new_zeros(W.shape[0], n, n)
        for top in range(0, n, _ROWS):
            end = min(top + _ROWS, n)
            products[:, top:end, :end] = torch.bmm(W[:, top:end], W[:, :end].mT)
        return products


def _matrix_rates(V: Tensor, alpha: float, limit: float) -> Tensor:
    """1/2 logdet(I + alpha V^T V) for each matrix of V (M, N, d), float64, shape (M)."""
    if V.shape[-2] < V.shape[-1]:
        V = V.mT
    gram = _products(V.mT).mul_(alpha)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    easy = trace <= limit
    if bool(easy.all()):
        return _cholesky_rates(gram, trace)
    finite = V.isfinite().all(-1).all(-1)
    groups = [g.nonzero().squeeze(-1) for g in (easy, finite & ~easy, ~finite)]
    rates = torch.cat(
        [
            _cholesky_rates(gram[groups[0]], trace[groups[0]]),
            _singular_value_rates(V[groups[1]], alpha),
            V[groups[2]].sum((-2, -1)) * math.nan,  # NaN in the value and in the gradient
        ]
    )
    return rates[torch.cat(groups).argsort()]


def _cholesky_rates(gram: Tensor, trace: Tensor) -> Tensor:
    """From gram = alpha V^T V (M, n, n) of bounded trace: I + gram is then positive definite in float64."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, _ = torch.linalg.cholesky_ex(gram + eye)
    rates = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(trace < _TRACE_LINEAR, trace / 2, rates)


def _singular_value_rates(V: Tensor, alpha: float) -> Tensor:
    """sum_i 1/2 log(1 + alpha sigma_i^2) for V (M, N, n) finite and not all-zero, N >= n.

    With c = sqrt(alpha) * peak and s = sigma / peak, a term is log hypot(s, 1/c) + log c: nothing overflows.
    """
    peak = V.detach().abs().amax((-2, -1)).unsqueeze(-1)
    sigma = torch.linalg.svdvals(V / peak.unsqueeze(-1))
    noise = V.shape[-2] * torch.finfo(sigma.dtype).eps * sigma.detach()[..., :1]
    inverse = 1 / math.sqrt(alpha) / peak
    terms = torch.hypot(sigma, inverse).log() + (peak.log() + 0.5 * math.log(alpha))
    return torch.where(sigma > noise, terms, 0).sum(-1)


def _result_dtype(Z: Tensor) -> torch.dtype:
    return Z.dtype if Z.dtype in (torch.float32, torch.float64) else torch.float32


def _check_tokens(Z: Tensor) -> None:
    if not isinstance(Z, Tensor) or not Z.is_floating_point():
        got = f"{Z.dtype} tensor" if isinstance(Z, Tensor) else type(Z).__name__
        raise ValueError(f"Z must be a tensor of a floating dtype, got a {got}; convert it, e.g. Z.float()")
    if Z.ndim < 2 or 0 in Z.shape[-2:]:
        raise ValueError(
            f"Z must have shape (..., N, d) with N >= 1 tokens as rows and d >= 1, got {tuple(Z.shape)}; "
            "a single token is Z[None]"
        )


def _check_bases(U: Tensor, Z: Tensor) -> None:
    if not isinstance(U, Tensor) or not U.is_floating_point():
        got = f"{U.dtype} tensor" if isinstance(U, Tensor) else type(U).__name__
        raise ValueError(f"U must be a tensor of a floating dtype, got a {got}; convert it, e.g. U.float()")
    if U.ndim != 3 or 0 in U.shape or U.shape[1] != Z.shape[-1]:
        raise ValueError(
            f"U must have shape (K, d, p) with d = {Z.shape[-1]}, the width of Z {tuple(Z.shape)}, "
            f"got {tuple(U.shape)}; a single basis is U[None]"
        )


def _check_eps(eps: float) -> float:
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
