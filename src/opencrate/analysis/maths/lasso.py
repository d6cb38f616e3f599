"""The converged solution of the LASSO that an ISTA layer takes one or two steps towards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...operators import ista, lasso_objective

_CHECK_EVERY = 10


@dataclass(frozen=True)
class LassoSolution:
    """A certified solution: no code has an objective lower than `objective - gap`.

    Attributes:
        code: `(..., N, m)`, float64.
        objective, gap: of every token, `(..., N)`; the duality gap is >= 0 up to rounding.
        num_steps, converged: steps taken, and whether every token's gap reached the tolerance.
    """

    code: Tensor
    objective: Tensor
    gap: Tensor
    num_steps: int
    converged: bool


def token_objective(A: Tensor, X: Tensor, D: Tensor, lam: float | Tensor) -> Tensor:
    """The LASSO objective of every token: `A (..., N, m)`, `X (..., N, d)`, `D (d, m)` -> `(..., N)`. [N, Eq. 16]"""
    return lasso_objective(A.unsqueeze(-2), X.unsqueeze(-2), D, lam)


def duality_gap(A: Tensor, X: Tensor, D: Tensor, lam: float | Tensor, signed: bool = False) -> Tensor:
    """Objective minus the dual one at the residual scaled into the dual's allowed set, `(..., N)`.

    The dual of min ½‖x − Da‖² + Σ_j λ_j|a_j| is max ½‖x‖² − ½‖x − θ‖² over (Dᵀθ)_j <= λ_j (|·| when `signed`).
    """
    residual = X - A @ D.mT
    correlation = residual @ D
    weights = torch.as_tensor(lam, dtype=X.dtype, device=X.device)
    excess = ((correlation.abs() if signed else correlation) / weights).amax(-1, keepdim=True)
    dual = residual / excess.clamp_min(1) if (weights > 0).all() else torch.zeros_like(residual)
    return token_objective(A, X, D, lam) - (X.square() - (X - dual).square()).sum(-1) / 2


def fista(
    X: Tensor, D: Tensor, lam: float | Tensor, *, signed: bool = False, tol: float = 1e-8, max_steps: int = 20_000
) -> LassoSolution:
    """Accelerated proximal gradient from zero with restart, in float64, until the duality gap is small.

    Each step is `operators.ista` with η = 1/‖D‖² from the extrapolated point; the momentum restarts for all tokens
    when the total objective rises [Beck and Teboulle 2009; O'Donoghue and Candès 2015].

    Args:
        X, D: signals `(..., N, d)` and dictionary `(d, m)`.
        lam: sparsity weight, > 0: a number, or one for each atom `(m)`.
        signed: codes of both signs instead of codes >= 0.
        tol: gap of every token relative to ½‖x‖².
        max_steps: upper bound; see `converged`.

    Raises:
        ValueError: lam <= 0, which has no dual certificate.
    """
    if not (torch.as_tensor(lam) > 0).all():
        raise ValueError(f"lam={lam!r}: must be > 0; without a penalty this is least squares")
    X, D = X.double(), D.double()
    lam = lam.to(X) if isinstance(lam, Tensor) else lam
    eta = 1 / torch.linalg.matrix_norm(D, 2).square().item()
    limit = tol * X.square().sum(-1) / 2
    A = X.new_zeros(*X.shape[:-1], D.shape[1])
    gap = torch.full_like(limit, torch.inf)
    lookahead, momentum, last = A, 1.0, torch.inf
    for step in range(1, max_steps + 1):
        new = ista(X, D, eta, lam, 1, lookahead, signed)
        if step % _CHECK_EVERY == 0 or step == max_steps:
            gap = duality_gap(new, X, D, lam, signed)
            if (gap <= limit).all():
                return LassoSolution(new, token_objective(new, X, D, lam), gap, step, True)
        value = lasso_objective(new, X, D, lam).sum().item()
        following = 1.0 if value > last else (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        weight = 0.0 if value > last else (momentum - 1) / following
        lookahead, A, momentum, last = new + weight * (new - A), new, following, value
    return LassoSolution(A, token_objective(A, X, D, lam), gap, max_steps, False)
