"""CBSA: compression of a few representatives of the tokens, linear in their number. [2509.16875]

Shapes: B batch, N tokens, K subspaces of dimension p, m representatives.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attended
from .compression import Subspaces
from .positions import Places


def contract_and_broadcast(
    V: Tensor, R0: Tensor, contraction: Tensor, broadcast: Tensor, scale: float, keys: Tensor | None = None
) -> Tensor:
    """Contract representatives towards the tokens, attend among them, and broadcast the result to the tokens.

        A = softmax(scale R0 V^T),   R = R0 + contraction A V,   out = broadcast A^T softmax(scale R R^T) R

    [2509.16875]. Nothing is larger than tokens times representatives.

    Args:
        V: tokens ``(B, K, N, p)``.
        R0: representatives at the start ``(B, K, m, p)``.
        contraction, broadcast: step sizes ``(K, 1, 1)``.
        scale: factor before both softmaxes.
        keys: ``(B, 1, N, 1)``, True for tokens that count; ``None``: all.

    Returns:
        ``(B, K, N, p)``.
    """
    scores = scale * R0 @ V.mT
    if keys is not None:
        scores = scores.masked_fill(~keys.mT, torch.finfo(scores.dtype).min)
    A = scores.softmax(dim=-1)
    R = R0 + contraction * (A @ V)
    return broadcast * (A.mT @ ((scale * R @ R.mT).softmax(dim=-1) @ R))


class CBSA(Subspaces):
    """Contract-and-broadcast self-attention: MSSA's parameters and two step sizes for each subspace. [2509.16875]

    The representatives start as means over an even division of the patch grid; where there is no grid (texts, an
    autoencoder's visible tokens) over equal segments.

    Args:
        num_representatives: m, a square number.
        pool: ``patches``: of the patches; ``published``: the class token takes the place of the last patch, by an
            error in the published code that its weights have learned with.
    """

    def __init__(self, config, layer_idx: int = 0, num_representatives: int = 64, pool: str = "patches"):
        super().__init__(config, layer_idx)
        self.side = round(num_representatives**0.5)
        if self.side**2 != num_representatives:
            near = f"{self.side**2} or {(self.side + 1) ** 2}"
            raise ValueError(
                f"compression_options: num_representatives={num_representatives} is not allowed; it must be a square "
                f"number: {near}"
            )
        self.pool, self.scaling = pool, config.head_dim**-0.5
        self.scaling = self.scaling if config.attention_scale is None else config.attention_scale
        self.contraction_step = nn.Parameter(torch.ones(config.num_attention_heads, 1, 1))
        self.broadcast_step = nn.Parameter(torch.ones(config.num_attention_heads, 1, 1))

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Any = None,
        output_attentions: bool = False,
        places: Places | None = None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        """``(B, N, d)`` -> the update ``(B, N, d)``; there are no N x N maps. A mask may only leave out padding."""
        V, U = self.project(tokens)
        kept = attended(self, attention_mask, V)
        R0 = self._representatives(V, places, kept)
        heads = contract_and_broadcast(V, R0, self.contraction_step, self.broadcast_step, self.scaling, kept)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), None

    def _representatives(self, V: Tensor, places: Places | None, kept: Tensor | None) -> Tensor:
        """``(B, K, m, p)``: means of the tokens in V ``(B, K, N, p)``."""
        if places is None or not places.whole:
            return self._segments(V, kept)
        rows, columns = places.grid
        patches = V[..., :-1, :] if self.pool == "published" else V[..., 1:, :]
        grid = patches.mT.flatten(0, 1).unflatten(-1, (rows, columns))
        side = (min(self.side, rows), min(self.side, columns)) if self.pool == "patches" else (self.side, self.side)
        return F.adaptive_avg_pool2d(grid, side).flatten(2).mT.unflatten(0, V.shape[:2])

    def _segments(self, V: Tensor, kept: Tensor | None) -> Tensor:
        number = min(self.side**2, V.shape[-2])

        def means(one: Tensor) -> Tensor:
            return F.adaptive_avg_pool1d(one.mT.flatten(0, 1), number).mT.unflatten(0, one.shape[:2])

        if kept is None:
            return means(V)
        return means(V * kept) / means(kept.to(V.dtype)).clamp(min=1e-6)
