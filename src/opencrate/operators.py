"""The two steps of a CRATE layer, and the exact gradients they approximate, as pure functions.

Legend (tokens are rows: ``Z`` is the transpose of the paper's matrix):

    B batch   N tokens   d width   K subspaces   p subspace dimension   m atoms of the dictionary (d when complete)

    Z (..., N, d)     tokens                       U (K, d, p)   bases U_1 ... U_K of the subspaces
    V (..., K, N, p)  projected tokens, Z U_k      D (d, m)      dictionary: X is close to A D^T
    X (..., N, d)     input of the ISTA step       A (..., N, m) sparse code
    eta step size,    lam sparsity weight,         eps quantisation error (never squared by the caller)
    alpha = d/(N eps^2),  gamma = p/(N eps^2)

Equations: [N] = arXiv 2306.01129 (NeurIPS 2023; the same numbers are kept in the journal version 2311.13110),
[A] = CRATE-alpha (2405.20299). This file needs torch only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._graph import autocasts, in_full
from .calibration import plain_work
from .products import linear, plus_product

# --- Compression: one step down R^c ---------------------------------------------------------------------------


def project(Z: Tensor, U: Tensor) -> Tensor:
    """Coordinates of tokens in every subspace, ``V_k = Z U_k (..., K, N, p)`` (the paper's ``U_k^T Z``)."""
    return Z.unsqueeze(-3) @ U


def attention_maps(
    V: Tensor, scale: float | None = None, mask: Tensor | None = None, keys: Tensor | None = None
) -> Tensor:
    """Softmax maps ``softmax(scale V_k V_k^T)`` of subspace self-attention; queries = keys. [N, Eq. 11]

    Args:
        V: projected tokens ``(..., K, N, p)``.
        scale: factor before the softmax; ``None`` is the published code's ``1/sqrt(p)`` (the paper has 1).
        mask: boolean (True = attend) or additive, broadcastable to ``(..., K, N, N)``.
        keys: ``(..., K, N, p)``, of ordinary attention, whose queries are then ``V``; ``None`` is ``V``.

    Returns:
        ``(..., K, N, N)`` in V's dtype, rows sum to 1; the softmax adds up in float32 or better.
    """
    scores = V @ (V if keys is None else keys).transpose(-1, -2) * (V.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row without any key stays finite
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1).to(V.dtype)  # half types are added up in float32 inside; autocast may widen them


def subspace_attention(V: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """``SSA_k = softmax(scale V_k V_k^T) V_k (..., K, N, p)``, arguments as in :func:`attention_maps`. [N, Eq. 11]"""
    return attention_maps(V, scale, mask) @ V


def mssa(
    Z: Tensor,
    U: Tensor,
    W: Tensor | None = None,
    b: Tensor | None = None,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Multi-head subspace self-attention: ``W [SSA_1; ...; SSA_K] + b``, or ``factor sum_k SSA_k U_k^T``.

    Args:
        Z: tokens ``(..., N, d)``, already normalised where the model does so.
        U: bases ``(K, d, p)``.
        W: learned output map ``(d, K p)`` [N, Eq. 115]; ``None`` ties it to the bases [N, Eq. 12].
        b: output bias ``(d,)``, only with ``W``.
        scale, mask: see :func:`attention_maps`.
        factor: factor in front of a tied output; the paper's is ``gamma = p/(N eps^2)``.

    Returns:
        ``(..., N, d)``.
    """
    heads = subspace_attention(project(Z, U), scale, mask)
    if W is None:
        return factor * (heads @ U.transpose(-1, -2)).sum(-3)
    return F.linear(heads.transpose(-3, -2).flatten(-2), W, b)


def gamma(num_tokens: Any, dim: int, eps: float) -> Any:
    """``gamma = p/(N eps^2)`` (or alpha, given d): the factor inside the log-determinants. [N, Eq. 8]

    N a number, or a tensor of numbers.
    """
    if not eps > 0:
        raise ValueError(f"eps must be > 0, got {eps!r}; it is epsilon, not its square (reports use 0.5)")
    return dim / (num_tokens * eps**2)


def coding_rate_gradient(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """Exact gradient of R^c: ``gamma sum_k V_k (I + gamma V_k^T V_k)^-1 U_k^T``. [N, Eq. 9 and 66]

    Written on the p x p side, where the inverse is small; equals autograd of ``subspace_coding_rate``. Any bases, not
    only orthonormal; eps > 0. Returns ``(..., N, d)``, nats per unit of Z.
    """
    V = project(Z, U)
    g = gamma(V.shape[-2], V.shape[-1], eps)
    gram = g * V.transpose(-1, -2) @ V
    gram.diagonal(dim1=-2, dim2=-1).add_(1)
    inner = torch.linalg.solve(gram, V.transpose(-1, -2)).transpose(-1, -2)
    return g * (inner @ U.transpose(-1, -2)).sum(-3)


def neumann_coding_rate_gradient(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """First-order Neumann form ``gamma sum_k (V_k - gamma V_k V_k^T V_k) U_k^T``. [N, Eq. 69]

    What softmax MSSA starts from: the paper then replaces ``V_k V_k^T`` by its row softmax (Eq. 71) and
    ``sum_k Z U_k U_k^T`` by ``Z`` (Eq. 74). Valid for ``gamma ||V_k||^2 < 1`` only; outside it diverges from
    :func:`coding_rate_gradient`. Arguments and result as there.
    """
    V = project(Z, U)
    g = gamma(V.shape[-2], V.shape[-1], eps)
    inner = V - g * V @ (V.transpose(-1, -2) @ V)
    return g * (inner @ U.transpose(-1, -2)).sum(-3)


# --- Sparsification: proximal gradient steps of a LASSO -------------------------------------------------------


def shrink(A: Tensor, threshold: float | Tensor, signed: bool = False) -> Tensor:
    """Proximal map of ``threshold ||A||_1``: ``ReLU(A - t)`` on A >= 0 [N, Eq. 17], or signed soft-threshold.

    A threshold for each atom is a tensor ``(m,)``.
    """
    return _shrunk(A, threshold, True) if signed else F.relu(A - threshold)


def ista(
    X: Tensor,
    D: Tensor,
    eta: float | Tensor,
    lam: float | Tensor,
    num_steps: int = 1,
    A0: Tensor | None = None,
    signed: bool = False,
) -> Tensor:
    """``num_steps`` ISTA steps on ``1/2 ||X - A D^T||^2 + lam ||A||_1`` (A >= 0 unless ``signed``).

    One step: ``A <- shrink(A + eta (X - A D^T) D, eta lam)``; two GEMMs, one for the first step from zero.
    CRATE: ``num_steps=1, A0=X``, D square [N, Eq. 17]. CRATE-alpha and CRATE-LM: 2 steps from zero with
    ``D (d, 4d)``. [A, Sec. 3.1]

    Args:
        X: signal ``(..., N, d)``.
        D: dictionary ``(d, m)``.
        eta: step size; descent from a feasible start is guaranteed for ``eta < 2/||D||^2``. A number or ``(1,)``.
        lam: sparsity weight; a number, ``(1,)``, or ``(m,)``: one for each atom.
        num_steps: at least 1.
        A0: start ``(..., N, m)``; ``None`` is zero.
        signed: two-sided soft-threshold instead of ReLU.

    Returns:
        code ``(..., N, m)``.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    threshold = eta * lam
    if A0 is None:
        zero = X.new_zeros(()) if signed else _number(-threshold, X)
        A = _shrunk(_plus_product(zero, X, D, eta), threshold, signed).to(X.dtype)
    else:
        A = A0
    for _ in range(num_steps - (A0 is None)):
        kept = A if signed else A - threshold  # a threshold that is a tensor widens half types, up to here
        A = _shrunk(_plus_product(kept, X - linear(A, D), D, eta), threshold, signed).to(X.dtype)
    return A


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype) if isinstance(value, Tensor) else like.new_full((), value)


def _plus_product(A: Tensor, R: Tensor, D: Tensor, eta: float | Tensor) -> Tensor:
    """``A + eta R D`` in one pass over the result; ``A`` a number, ``(m,)`` or ``(..., N, m)``, ``R (..., N, d)``."""
    if isinstance(eta, Tensor):
        return A + eta * linear(R, D.mT)
    if autocasts(R.device.type) or A.dtype != R.dtype:  # autocast would round A to half precision
        return A + eta * (R @ D)
    flat = A if A.ndim <= 1 else A.flatten(0, -2)
    return plus_product(flat, R.flatten(0, -2), D, eta).unflatten(0, R.shape[:-1])


def _shrunk(A: Tensor, threshold: float | Tensor, signed: bool) -> Tensor:
    """:func:`shrink`, of an ``A`` from which a one-sided threshold was taken already."""
    if not signed:
        return F.relu(A)
    return A - A.clamp(-threshold, threshold) if isinstance(threshold, Tensor) else F.softshrink(A, threshold)


def complete_ista_matrix(D: Tensor, eta: float | Tensor, identity: bool = True) -> Tensor:
    """``M = I + eta D - eta D^T D``: a complete step from A = X is affine before the shrinkage, ``X M``.

    ``D`` is ``(d, d)``; costs one product of d^3 and replaces the two GEMMs over the tokens by one. Without the
    ``identity`` it is ``G = M - I``.
    """
    gram: Any = Gram.apply(D) if plain_work(D) else D.mT @ D
    G = (eta * (D - gram)).to(D.dtype)
    return G + torch.eye(D.shape[0], dtype=G.dtype, device=G.device) if identity else G


class Gram(torch.autograd.Function):
    """``D^T D (m, m)`` of ``D (d, m)``, with one product in its backward, ``D (g + g^T)``, where autograd makes two."""

    @staticmethod
    def forward(ctx, D: Tensor) -> Tensor:
        ctx.save_for_backward(D)
        return D.mT @ D

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (D,) = ctx.saved_tensors
        return (D.to(gradient.dtype) @ (gradient + gradient.mT)).to(D.dtype)  # a half type under autocast


def in_half(X: Tensor) -> bool:
    """Whether products of X are computed in a half type: its own, or autocast's."""
    return X.dtype in (torch.bfloat16, torch.float16) or autocasts(X.device.type)


def ista_complete(
    X: Tensor, D: Tensor, eta: float | Tensor, lam: float | Tensor, signed: bool = False, matrix: Tensor | None = None
) -> Tensor:
    """``ista(X, D, eta, lam, 1, X)`` with a square dictionary as one product, ``shrink(X M, eta lam)``. [N, Eq. 17]

    In half types it is ``shrink(X + X G, eta lam)``: the identity inside M would lose most of its precision there.
    Under autocast the sum has X's own type. All agree to rounding. ``X (..., N, d)``, ``D (d, d)`` -> ``(..., N, d)``;
    ``matrix`` is :func:`complete_ista_matrix` where the caller has it, without the identity where :func:`in_half`.
    """
    half = in_half(X)
    W = (complete_ista_matrix(D, eta, not half) if matrix is None else matrix).mT
    # in memory number by number: the libraries' fused products of a bias want it so
    bias = None if signed else _number(-eta * lam, W).expand(W.shape[:1]).contiguous()
    product = linear(X, W, bias)
    A = X + product if half else product
    return _shrunk(A, eta * lam, True).to(A.dtype) if signed else F.relu(A, inplace=half or not torch.is_grad_enabled())


def lasso_objective(A: Tensor, X: Tensor, D: Tensor, lam: float | Tensor) -> Tensor:
    """``1/2 ||X - A D^T||_F^2 + lam ||A||_1`` over the last two axes, the objective ISTA lowers. [N, Eq. 16]"""
    residual = (X - A @ D.mT).square().sum((-2, -1)) / 2
    return residual + (lam * A.abs()).sum((-2, -1))


# --- The assumptions on U and D -------------------------------------------------------------------------------


def orthonormalize(M: Tensor) -> Tensor:
    """Orthonormal columns spanning those of ``M (..., n, k)``, k <= n, by QR with a positive diagonal of R.

    The sign convention makes it the identity on matrices whose columns already are orthonormal. Half types are
    factored in float32.
    """
    if M.shape[-1] > M.shape[-2]:
        raise ValueError(f"cannot orthonormalise {M.shape[-1]} columns in {M.shape[-2]} dimensions")
    Q, R = torch.linalg.qr(M.to(torch.promote_types(M.dtype, torch.float32)))
    flip = R.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) < 0
    return torch.where(flip, -Q, Q).to(M.dtype)


def squared_norm_bound(M: Tensor) -> Tensor:
    """An upper bound of ``||M||_2^2``, differentiable: ``tr((M^T M)^16)^(1/16)``, at most n^(1/16) times as large.

    ``M (n', n)`` with any sides; the smaller one counts. Three products of n x n matrices after the Gram matrix. Half
    types are computed in float32.
    """
    M = M.to(torch.promote_types(M.dtype, torch.float32))
    with in_full(M.device.type):
        A = M.mT @ M if M.shape[-1] <= M.shape[-2] else M @ M.mT
        smallest = torch.finfo(A.dtype).tiny
        trace = A.diagonal().sum().clamp(min=smallest)
        bound, A = trace, A / trace
        for power in (2, 4, 8, 16):
            trace = A.square().sum().clamp(min=smallest)  # that of A A: A is symmetric
            bound = bound * trace ** (1 / power)
            if power < 16:
                A = A @ A / trace
    return bound.clamp(min=torch.finfo(A.dtype).eps)  # a step is divided by it


def orthogonality_penalty(M: Tensor) -> Tensor:
    """``||M^T M - I||_F^2`` summed over leading axes; ``M (..., n, k)``. Zero iff all columns are orthonormal.

    With ``U (K, d, p)``: each subspace on its own; with ``U`` as ``(d, K p)``: also their mutual incoherence.
    """
    gram = M.mT @ M
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum()
