"""CBSA: compression of a few representatives of the tokens, linear in their number. [2509.16875]

Shapes: B batch, N tokens, K subspaces of dimension p, m representatives.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ._hf import init
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
        self.contraction_step = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
        self.broadcast_step = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
        self.reset_own()

    def reset_own(self) -> None:
        """Steps of 1."""
        init.ones_(self.contraction_step)
        init.ones_(self.broadcast_step)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        places: Places | None = None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        """``(B, N, d)`` -> the update ``(B, N, d)``; there are no N x N maps. The mask ``(B, N)`` is 0 for padding."""
        V, U = self.project(tokens)
        kept = attended(attention_mask)
        R0 = self._representatives(V, places, kept)
        heads = contract_and_broadcast(V, R0, self.contraction_step, self.broadcast_step, self.scaling, kept)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), None

    def _representatives(self, V: Tensor, places: Places | None, kept: Tensor | None) -> Tensor:
        """``(B, K, m, p)``: means of the tokens in V ``(B, K, N, p)``."""
        if places is None or not places.whole:
            return self._segments(V, kept)
        first = 0 if self.pool == "published" else 1
        own = None if kept is None else kept[..., first : kept.shape[-2] - 1 + first, :]
        return self._cells(V[..., first : V.shape[-2] - 1 + first, :], places.grid, own)

    def _cells(self, V: Tensor, grid: tuple[int, int], kept: Tensor | None) -> Tensor:
        """Means over the cells of a division of the grid; of a cell with padding alone 0."""
        sides: Any = (self.side, self.side)
        if self.pool == "patches":  # a small grid has one representative for each patch at most
            sides = tuple(torch.sym_min(self.side, patches) for patches in grid)
        of_rows, of_columns = (
            even_shares(torch.arange(patches, device=V.device), patches, side, V.dtype)
            for patches, side in zip(grid, sides)
        )

        def means(one: Tensor) -> Tensor:
            cells = torch.einsum("ar,bc,...rcp->...abp", of_rows, of_columns, one.unflatten(-2, grid))
            return cells.flatten(-3, -2)

        return means(V) if kept is None else means(V * kept) / means(kept.to(V.dtype)).clamp(min=1e-6)

    def _segments(self, V: Tensor, kept: Tensor | None) -> Tensor:
        """Means over equal segments of the tokens that are no padding."""
        if kept is None:
            every = torch.arange(V.shape[-2], device=V.device)
            return even_shares(every, V.shape[-2], self.side**2, V.dtype) @ V
        counted = kept[:, 0, :, 0]
        place = torch.where(counted, counted.cumsum(-1) - 1, -1)
        shares = even_shares(place, counted.sum(-1, keepdim=True), self.side**2, V.dtype)
        return shares.unsqueeze(1) @ V


def even_shares(place: Tensor, count: Any, number: Any, dtype: torch.dtype) -> Tensor:
    """The matrix of means over ``number`` equal parts of ``count`` places in a row, ``(..., number, N)``.

    Part i has the places from ``floor(i count/number)`` on and below ``ceil((i + 1) count/number)``, as in adaptive
    pooling; parts overlap where they do not divide evenly. ``place (..., N)`` is -1 for what is in no part.
    """
    part = torch.arange(number, device=place.device)
    first, after = part * count // number, ((part + 1) * count + number - 1) // number
    inside = (place.unsqueeze(-2) >= first.unsqueeze(-1)) & (place.unsqueeze(-2) < after.unsqueeze(-1))
    return inside.to(dtype) / (after - first).clamp(min=1).unsqueeze(-1)
