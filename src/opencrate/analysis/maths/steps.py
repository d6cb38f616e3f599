"""The compression step in the forms that its derivation passes through: pure functions of tokens and bases.

Tokens are rows, U as learned (not made orthonormal), rates in nats per image. Equations: [N] = arXiv 2306.01129. The
derivations are in docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...objective import coding_rate
from ...operators import coding_rate_gradient, gamma, mssa, neumann_coding_rate_gradient, project
from .inverse import relative_error


@dataclass(frozen=True)
class Form:
    """One way to write the compression step: Z + Δ, tokens as rows; what it is; whether it has a step size κ."""

    formula: str
    words: str
    sized: bool = False


FORMS: dict[str, Form] = {
    "exact": Form("Z − κ ∇R^c", "exact gradient step", sized=True),
    "neumann": Form("Z − κγ Σ (V_k − γ V_kV_kᵀV_k) U_kᵀ", "first-order Neumann step", sized=True),
    "softmax": Form("Z − κγ Σ (V_k − γ softmax(V_kV_kᵀ)V_k) U_kᵀ", "Neumann step with a softmax", sized=True),
    "paper": Form("(1 − κγ) Z + κγ MSSA(Z)", "the paper's step", sized=True),
    "plus": Form("Z + MSSA(Z)", "skip plus MSSA, output tied to U"),
    "minus": Form("Z − MSSA(Z)", "skip minus MSSA, output tied to U"),
    "model": Form("Z + MSSA(LN(Z))", "the model's own step"),
    "model_minus": Form("Z − MSSA(LN(Z))", "the model's own update, sign reversed"),
}
"""Every form by its key. [N, Eq. 9, 69, 71, 76, 12 and 18, 115]"""

OWN = ("exact", "model", "model_minus")
"""The forms of a compression that is not derived as MSSA is."""


def gradient_lipschitz(U: Tensor, num_tokens: int, eps: float) -> float:
    """L = γ ‖[U_1 … U_K]‖²: ∇R^c is L-Lipschitz, so that a gradient step with 0 < κ < 2/L lowers R^c.

    Proved in docs/theory.md. `U (K, d, p)`; γ = p/(Nε²). [N, Eq. 8]
    """
    joined = U.movedim(0, 1).flatten(1)
    return gamma(num_tokens, U.shape[-1], eps) * torch.linalg.matrix_norm(joined.double(), 2).square().item()


def step_directions(X: Tensor, U: Tensor, eps: float) -> dict[str, Tensor]:
    """Δ/κ of the sized forms and Δ of "plus" and "minus", from the operators. [N, Eq. 9, 69, 71, 76, 12]

    The factor γ of a tied MSSA and the softmax without 1/√p are the paper's. Of tokens X `(..., N, d)`, bases U
    `(K, d, p)` and ε > 0: six updates `(..., N, d)` by the keys of `FORMS`.
    """
    g = gamma(X.shape[-2], U.shape[-1], eps)
    attention = mssa(X, U, scale=1.0, factor=g)
    return {
        "exact": -coding_rate_gradient(X, U, eps),
        "neumann": -neumann_coding_rate_gradient(X, U, eps),
        "softmax": g * (attention - _reprojected(X, U)),
        "paper": g * (attention - X),
        "plus": attention,
        "minus": -attention,
    }


def approximation_errors(X: Tensor, U: Tensor, eps: float) -> dict[str, Tensor]:
    """Relative error of each approximation between ∇R^c and the paper's step, `(...)` each. [N, Eq. 66 to 76]

    Arguments as :func:`step_directions`; keys are those of `QUANTITIES`.
    """
    found, g = step_directions(X, U, eps), gamma(X.shape[-2], U.shape[-1], eps)
    radius = g * torch.linalg.matrix_norm(project(X, U), 2).square().amax(-1)
    return {
        "neumann_radius": radius,
        "neumann_error": relative_error(found["neumann"], found["exact"]),
        "softmax_error": relative_error(found["softmax"], found["neumann"]),
        "identity_error": relative_error(_reprojected(X, U), X),
        "paper_error": relative_error(found["paper"], found["exact"]),
    }


def coherence(U: Tensor) -> float:
    """max_{i≠j} ‖U_iᵀU_j‖, the cosine of the smallest angle when every U_k is orthonormal; 0 for one subspace."""
    if len(U) == 1:
        return 0.0
    first, second = torch.triu_indices(len(U), len(U), 1)
    return torch.linalg.matrix_norm(U[first].mT @ U[second], 2).max().item()


def best_gradient_step(V: Tensor, H: Tensor, eps: float, lipschitz: float) -> tuple[Tensor, Tensor]:
    """κL (0.01 to 1000) and change of R^c in nats, `(...)` each, of the best step along a direction, by two grids.

    V and H are projected tokens and direction `(..., K, N, p)`; `lipschitz` is L, the unit of the step size.
    """
    start = projected_rate(V, eps)

    def changes(sizes: Tensor) -> Tensor:
        """Changes for step sizes `(S, ...)`, one size at a time."""
        return torch.stack([projected_rate(V + s[..., None, None, None] / lipschitz * H, eps) - start for s in sizes])

    def grid(low: float, high: float, count: int) -> Tensor:
        return torch.logspace(low, high, count, dtype=V.dtype, device=V.device).reshape(-1, *(1,) * start.ndim)

    coarse = grid(-2, 3, 21).expand(-1, *start.shape)
    centre = coarse.gather(0, changes(coarse).argmin(0, keepdim=True))
    fine = centre * grid(-0.25, 0.25, 11)
    found = changes(fine).min(0)
    return fine.gather(0, found.indices[None])[0], found.values


def projected_rate(V: Tensor, eps: float) -> Tensor:
    """R^c from projected tokens `(..., K, N, p)`."""
    return coding_rate(V, eps).sum(-1)


def scaled_to_unit(V: Tensor, length: Tensor) -> Tensor:
    """Projected tokens `(..., K, N, p)` of tokens that are scaled from `length (..., N)` to 1."""
    return V / length.clamp_min(torch.finfo(V.dtype).tiny)[..., None, :, None]


def _reprojected(X: Tensor, U: Tensor) -> Tensor:
    """Σ_k X U_k U_kᵀ, `(..., N, d)`."""
    return (project(X, U) @ U.mT).sum(-3)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last two axes; NaN where one is zero."""
    return (a * b).sum((-2, -1)) / (a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1)))
