"""Compression that is the exact gradient of R^c and descends by construction; linear in the number of tokens.

Shapes: B batch, N tokens, d width, K subspaces of dimension p; ``V (B, K, N, p)`` are the tokens in the subspaces.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import in_full, traced
from ._hf import init
from .attention import attended
from .calibration import plain_work
from .compression import Subspaces
from .operators import gamma, squared_norm_bound

CHUNK = 64
"""Tokens whose prefixes are whitened by one Cholesky factor."""

LARGEST_STEP = 1.9
"""Of what ``max_step`` may be; from 2 on, steps need not descend."""


def whitened(V: Tensor, g: float | Tensor) -> Tensor:
    """``V_k (I + g V_k^T V_k)^-1 (B, K, N, p)``: with g = gamma, the heads of grad R^c. [2306.01129, Eq. 9 and 66]"""
    return V @ positive_inverse(plus_identity(g * V.mT @ V))


def positive_inverse(M: Tensor) -> Tensor:
    """Inverse of symmetric positive definite matrices."""
    inverse: Any = PositiveInverse.apply(M) if plain_work(M) else torch.linalg.inv_ex(M)[0]
    return inverse


class PositiveInverse(torch.autograd.Function):
    """Inverse of symmetric positive definite matrices by their Cholesky factors: a third of the time of an LU's."""

    @staticmethod
    def forward(ctx, M: Tensor) -> Tensor:
        inverse = torch.cholesky_inverse(_factor(M))
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors
        return -inverse @ gradient @ inverse


def causally_whitened(V: Tensor, g: float) -> Tensor:
    """``v_i (I + g sum_{j <= i} v_j^T v_j)^-1``: each token's row of :func:`whitened` of the tokens up to it.

    Linear in N. Before each chunk, the moments of all earlier ones ``I + g S = R R^T (p, p)``; inside it, with
    ``W = V R^-T`` and ``I + g W W^T = L L^T (chunk, chunk)``, whose leading blocks factor its prefixes, the result is
    ``(L^-1 W)_i / L_ii R^-1``.
    """
    num_tokens = V.shape[-2]
    size = CHUNK if traced() else min(CHUNK, num_tokens)
    chunks = F.pad(V, (0, 0, 0, -num_tokens % size)).unflatten(-2, (-1, size))
    moments = g * chunks.mT @ chunks
    R = _factor(plus_identity(moments.cumsum(-3) - moments))
    W = torch.linalg.solve_triangular(R, chunks.mT, upper=False).mT
    L = _factor(plus_identity(g * W @ W.mT))
    rows = torch.linalg.solve_triangular(L, W, upper=False) / L.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return torch.linalg.solve_triangular(R, rows, upper=False, left=False).flatten(-3, -2)[..., :num_tokens, :]


def _factor(M: Tensor) -> Tensor:
    """The Cholesky factor, without the check that an accelerator would wait for: NaN where there is none."""
    return torch.linalg.cholesky_ex(M)[0]


def plus_identity(M: Tensor) -> Tensor:
    """``M + I``."""
    return M + torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)


class RateGradient(Subspaces):
    """``-kappa grad R^c(Z | U)``, of the tokens themselves, without a norm before it.

    R^c is a sum of ``1/2 logdet(I + gamma C_k)``, concave in ``C_k = V_k^T V_k``; its tangent in C at Z bounds it from
    above by a quadratic function of Z of curvature ``L = gamma ||U||^2`` at most. So every step with kappa < 2/L
    lowers R^c on every input, by at least ``kappa (1 - kappa L/2) ||grad R^c||^2``. Here ``kappa gamma = r / b`` with
    ``b >= ||U||^2`` and a learned ``0 < r < max_step``. The proof is for a tied output; a learned map W in place of
    U^T has no guarantee. In a causal model each token takes the step of R^c of the tokens up to it.

    Args:
        max_step: largest r; below 2.
        start: r/max_step at first.
    """

    def __init__(self, config, layer_idx: int = 0, max_step: float = 1.0, start: float = 0.5):
        super().__init__(config, layer_idx)
        self.max_step, self.start = max_step, start
        self.raw_step = nn.Parameter(torch.empty(1))
        self.reset_own()

    def reset_own(self) -> None:
        """The step size that the options say."""
        init.constant_(self.raw_step, math.log(self.start / (1 - self.start)))

    @torch.no_grad()
    def release_constraint(self) -> None:
        """As of other operators; the bound of a free U is larger, and the largest step is raised by as much."""
        joint = self.constraint == "joint"
        super().release_constraint()
        if not joint:
            return
        largest = self.max_step * squared_norm_bound(self.joined_weight()).item()
        if largest > LARGEST_STEP:
            raise ValueError(
                f"compression_options: max_step={self.max_step} cannot be kept without subspace_constraint='joint'; "
                f"it would have to be {largest:.3g}, and at most {LARGEST_STEP} descends"
            )
        self.max_step = largest
        self.config.compression_options = {**self.config.compression_options, "max_step": largest}

    def always_descends(self, own_eps: bool = True) -> bool:
        """Whether R^c falls on every input: of the eps that it steps down, tied to U, within the bound, not causal."""
        return own_eps and self.output_kind == "tied" and self.max_step < 2 and not self.is_causal

    def step_size(self, U: Tensor | None = None) -> Tensor:
        """``kappa gamma (1,)``, below ``max_step/||U||^2``; ``U (d, K p)`` where the caller has it."""
        bound: float | Tensor = 1.0  # of orthonormal columns
        if self.constraint != "joint":
            bound = squared_norm_bound(self._constrained(self.joined_weight()) if U is None else U)
        return self.max_step * self.raw_step.float().sigmoid() / bound

    def gamma_of(self, num_tokens: int | Tensor) -> Any:
        """gamma of so many tokens; in a causal model of a full context, so that it is the same for all prefixes."""
        number = self.config.max_position_embeddings if self.is_causal else num_tokens
        return gamma(number, self.config.head_dim, self.config.compression_eps)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False, **kwargs
    ) -> tuple[Tensor, None]:
        """``(B, N, d)`` -> the update ``(B, N, d)``; there are no maps. The mask ``(B, N)`` is 0 for padding."""
        V, U = self.project(tokens)
        kept = attended(attention_mask)
        number: int | Tensor = V.shape[-2]
        if kept is not None:
            V, number = V * kept, kept.sum(-2, keepdim=True).clamp(min=1)
        with in_full(V.device.type):  # the inverse needs all digits
            wide = V.to(torch.promote_types(V.dtype, torch.float32))
            g = self.gamma_of(number)
            heads = causally_whitened(wide, g) if self.is_causal else whitened(wide, g)
            heads = -self.step_size(U) * heads
        return self.combine(heads.to(V.dtype).transpose(1, 2).flatten(-2), U), None
