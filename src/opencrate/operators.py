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

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "attention_maps",
    "coding_rate_gradient",
    "complete_ista_matrix",
    "complete_ista_prefers_one_matrix",
    "gamma",
    "ista",
    "ista_complete",
    "known",
    "lasso_objective",
    "linear",
    "mlp",
    "mssa",
    "multi_head_attention",
    "neumann_coding_rate_gradient",
    "orthogonality_penalty",
    "orthonormalize",
    "project",
    "shrink",
    "subspace_attention",
    "traced",
]

FEW_TOKENS = 16  # below it, on a CPU, reading a matrix costs more than multiplying by it
PARTS = 8  # of a matrix that is multiplied by a few tokens
LARGE = 2**22  # entries of a matrix from which on its parts pay


# --- Sizes in a graph that is being traced --------------------------------------------------------------------


def traced() -> bool:
    """Whether a graph is being recorded (torch.compile, torch.export, torch.jit.trace), to be run at other sizes too.

    What is chosen by the number of tokens, for speed, is then chosen without it.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def known(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds; in a traced graph, whether it does at all sizes that the graph is made for.

    A plain ``if`` would tie the graph to the sizes it is traced with.
    """
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


# --- Products of a few tokens ---------------------------------------------------------------------------------


def linear(X: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """``X W^T + b``: ``F.linear``, but faster where a CPU without gradients has few rows and a large W, as generation.

    The library's product of fewer than 16 rows leaves threads idle; one product for each of 8 parts of a W of 2^22
    entries or more uses all of them.

    Args:
        X: ``(..., n)``.
        W: ``(m, n)``.
        b: ``(m,)``.

    Returns:
        ``(..., m)``, equal to ``F.linear`` to rounding.
    """
    if not _splits(X, W):
        return F.linear(X, W, b)
    rows, part = X.shape[:-1].numel(), W.shape[0] // PARTS
    columns = X.reshape(rows, -1).mT
    parts = torch.bmm(W[: part * PARTS].unflatten(0, (PARTS, part)), columns.expand(PARTS, -1, -1)).flatten(0, 1)
    product = parts if W.shape[0] == part * PARTS else torch.cat((parts, W[part * PARTS :] @ columns))
    product = product.mT.reshape(*X.shape[:-1], -1)
    return product if b is None else product + b


def _splits(X: Tensor, W: Tensor) -> bool:
    if traced() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    plain = type(W) in (Tensor, torch.nn.Parameter)  # a quantised weight is a class of its own, with its own product
    fast = X.device.type == "cpu" and X.dtype in (torch.float32, torch.float64)
    return plain and fast and 0 < X.shape[:-1].numel() < FEW_TOKENS and W.numel() >= LARGE and W.shape[0] >= PARTS


# --- Compression: one step down R^c ---------------------------------------------------------------------------


def project(Z: Tensor, U: Tensor) -> Tensor:
    """Coordinates of the tokens in every subspace, ``V_k = Z U_k`` (the paper's ``U_k^T Z``).

    Args:
        Z: tokens ``(..., N, d)``.
        U: bases ``(K, d, p)``.

    Returns:
        ``(..., K, N, p)``.
    """
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
        ``(..., K, N, N)`` in V's dtype, rows sum to 1; softmax statistics in float32 or better.
    """
    scores = V @ (V if keys is None else keys).transpose(-1, -2) * (V.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row without any key stays finite
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    stats = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=stats).to(V.dtype)


def subspace_attention(V: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """``SSA_k = softmax(scale V_k V_k^T) V_k`` for all subspaces at once. [N, Eq. 11]

    Shapes as in :func:`attention_maps`; returns ``(..., K, N, p)``.
    """
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
        scale: see :func:`attention_maps`.
        mask: see :func:`attention_maps`.
        factor: factor in front of a tied output; the paper's is ``gamma = p/(N eps^2)``.

    Returns:
        ``(..., N, d)``.
    """
    heads = subspace_attention(project(Z, U), scale, mask)
    if W is None:
        return factor * (heads @ U.transpose(-1, -2)).sum(-3)
    return F.linear(heads.transpose(-3, -2).flatten(-2), W, b)


def multi_head_attention(
    Z: Tensor,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    W: Tensor,
    b: Tensor | None = None,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Ordinary attention, ``W [head_1; ...; head_K] + b`` with ``head_k = softmax(scale Z Q_k (Z K_k)^T) Z V_k``.

    What :func:`mssa` is compared with in ablations, and equals where ``Q = K = V = U``. [1706.03762, Sec. 3.2]

    Args:
        Z: tokens ``(..., N, d)``, already normalised where the model does so.
        Q: query projections ``(K, d, p)``.
        K: key projections, of the same shape.
        V: value projections, of the same shape.
        W: output map ``(d, K p)``.
        b: output bias ``(d,)``.
        scale: see :func:`attention_maps`.
        mask: see :func:`attention_maps`.

    Returns:
        ``(..., N, d)``.
    """
    heads = attention_maps(project(Z, Q), scale, mask, keys=project(Z, K)) @ project(Z, V)
    return F.linear(heads.transpose(-3, -2).flatten(-2), W, b)


def gamma(num_tokens: int, dim: int, eps: float) -> float:
    """``gamma = p/(N eps^2)`` (or alpha, given d): the factor inside the log-determinants. [N, Eq. 8]"""
    if not eps > 0:
        raise ValueError(f"eps must be > 0, got {eps!r}; it is epsilon, not its square (reports use 0.5)")
    return dim / (num_tokens * eps**2)


def coding_rate_gradient(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """Exact gradient of R^c: ``gamma sum_k V_k (I + gamma V_k^T V_k)^-1 U_k^T``. [N, Eq. 9 and 66]

    Written on the p x p side, where the inverse is small; equals autograd of ``subspace_coding_rate``.

    Args:
        Z: tokens ``(..., N, d)``.
        U: bases ``(K, d, p)``, any (not only orthonormal).
        eps: quantisation error, > 0.

    Returns:
        ``(..., N, d)``, nats per unit of Z.
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


def shrink(A: Tensor, threshold: float, signed: bool = False) -> Tensor:
    """Proximal map of ``threshold ||A||_1``: ``ReLU(A - t)`` on A >= 0 [N, Eq. 17], or signed soft-threshold."""
    return F.softshrink(A, threshold) if signed else F.relu(A - threshold)


def ista(
    X: Tensor,
    D: Tensor,
    eta: float,
    lam: float,
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
        eta: step size; descent is guaranteed for ``eta <= 1/||D||^2``.
        lam: sparsity weight.
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
        zero = X.new_zeros(()) if signed else X.new_full((), -threshold)
        A = _shrunk(_plus_product(zero, X, D, eta), threshold, signed)
    else:
        A = A0
    for _ in range(num_steps - (A0 is None)):
        A = _shrunk(_plus_product(A if signed else A - threshold, X - F.linear(A, D), D, eta), threshold, signed)
    return A


def _plus_product(A: Tensor, R: Tensor, D: Tensor, eta: float) -> Tensor:
    """``A + eta R D`` in one pass over the result; ``A`` is a number or ``(..., N, m)``, ``R (..., N, d)``."""
    if torch.is_autocast_enabled(R.device.type) or A.dtype != R.dtype:  # autocast would round A to half precision
        return A + eta * (R @ D)
    flat = A if A.ndim == 0 else A.flatten(0, -2)
    return torch.addmm(flat, R.flatten(0, -2), D, alpha=eta).unflatten(0, R.shape[:-1])


def _shrunk(A: Tensor, threshold: float, signed: bool) -> Tensor:
    """:func:`shrink`, of an ``A`` from which a one-sided threshold was taken already."""
    return F.softshrink(A, threshold) if signed else F.relu(A)


def complete_ista_matrix(D: Tensor, eta: float) -> Tensor:
    """``M = I + eta D - eta D^T D``: a complete step from A = X is affine before the shrinkage, ``X M``.

    ``D`` is ``(d, d)``; costs one product of d^3 and replaces the two GEMMs over the tokens by one.
    """
    M = eta * (D - D.mT @ D)
    return M + torch.eye(D.shape[0], dtype=M.dtype, device=M.device)


def complete_ista_prefers_one_matrix(num_tokens: int, dim: int) -> bool:
    """Whether building M (2 d^3 FLOPs) beats the second GEMM over all B N tokens (2 B N d^2 FLOPs)."""
    return num_tokens >= dim


def ista_complete(X: Tensor, D: Tensor, eta: float, lam: float, signed: bool = False) -> Tensor:
    """One ISTA step from ``A = X`` with a square dictionary, in the cheaper of its two algebraic forms.

    ``shrink(X M, eta lam)`` with :func:`complete_ista_matrix`, or ``ista(X, D, eta, lam, 1, X)``; they agree to
    rounding. [N, Eq. 17] ``X (..., N, d)``, ``D (d, d)`` -> ``(..., N, d)``.
    """
    if not complete_ista_prefers_one_matrix(X.shape[:-1].numel(), X.shape[-1]):
        return ista(X, D, eta, lam, 1, X, signed)
    M = complete_ista_matrix(D, eta)
    if signed:
        return shrink(X @ M, eta * lam, signed)
    return F.relu(F.linear(X, M.mT, M.new_full((M.shape[0],), -eta * lam)))


def lasso_objective(A: Tensor, X: Tensor, D: Tensor, lam: float) -> Tensor:
    """``1/2 ||X - A D^T||_F^2 + lam ||A||_1`` over the last two axes, the objective ISTA lowers. [N, Eq. 16]"""
    residual = (X - A @ D.mT).square().sum((-2, -1)) / 2
    return residual + lam * A.abs().sum((-2, -1))


def mlp(X: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Two linear maps with a GELU between them: what the ISTA step is compared with in ablations.

    Args:
        X: tokens ``(..., N, d)``, normalised.
        W1: ``(m, d)``, with its bias ``b1 (m,)``.
        b1: bias of the hidden layer.
        W2: ``(d, m)``, with its bias ``b2 (d,)``.
        b2: bias of the output.

    Returns:
        the output ``GELU(X W1^T + b1) W2^T + b2`` ``(..., N, d)``, and the hidden activations ``(..., N, m)``.
    """
    hidden = F.gelu(F.linear(X, W1, b1))
    return F.linear(hidden, W2, b2), hidden


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


def orthogonality_penalty(M: Tensor) -> Tensor:
    """``||M^T M - I||_F^2`` summed over leading axes; ``M (..., n, k)``. Zero iff all columns are orthonormal.

    With ``U (K, d, p)``: each subspace on its own; with ``U`` as ``(d, K p)``: also their mutual incoherence.
    """
    gram = M.mT @ M
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum()
