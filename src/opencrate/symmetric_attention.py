"""Subspace self-attention that lowers R^c by construction: its maps are symmetric, and so shrink every direction.

Shapes: B batch, N tokens, d width, K subspaces of dimension p; ``V (B, K, N, p)`` are the tokens in the subspaces.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._hf import init
from .attention import attended
from .compression import Subspaces
from .positions import Places, relative_bias, rotate


def symmetric_maps(scores: Tensor) -> Tensor:
    """``D^-1/2 W D^-1/2`` of ``W = exp(scores)``, symmetric ``(..., N, N)``, with D the sums of its rows.

    It has the eigenvalues of the softmax ``D^-1 W``, between -1 and 1, but is symmetric as W is: no vector gets longer.
    A score of -inf is an entry of 0. [the normalisation of normalised cuts: Shi & Malik 2000]
    """
    half = scores.logsumexp(-1, keepdim=True) / 2
    return (scores - half - half.mT).exp()


class SymmetricMSSA(Subspaces):
    """``Z + sum_k a_k (M_k - I) V_k U_k^T``: MSSA whose maps M_k are symmetric, of the tokens themselves.

    Queries = keys makes the scores symmetric; divided by the root of both sums and not by one, so are the maps. For
    orthonormal ``[U_1 ... U_K]`` each ``V_k`` becomes ``P_k V_k`` with ``P_k = (1 - a_k) I + a_k M_k`` and ``||P_k|| <=
    1``, so that ``V_k^T V_k`` shrinks in every direction, and with it every term of R^c, whatever the weights and the
    input. The scores are ``tau_k`` times the cosine of two tokens in the subspace, and positions inside the attention:
    rotations, and the mean of the biases of (i, j) and (j, i). Learned: ``0 < a_k < 1`` and ``tau_k > 0``.

    Args:
        start: a_k at first.
    """

    def __init__(self, config, layer_idx: int = 0, start: float = 0.5):
        super().__init__(config, layer_idx)
        self.start = start
        self.relative = relative_bias(config)
        self.raw_step = nn.Parameter(torch.empty(config.num_attention_heads))
        self.log_temperature = nn.Parameter(torch.empty(config.num_attention_heads))

    def reset_own(self) -> None:
        """The step as the options say; a temperature of the root of p, as tokens after LN have it."""
        init.constant_(self.raw_step, math.log(self.start / (1 - self.start)))
        init.constant_(self.log_temperature, math.log(self.config.head_dim) / 2)

    def always_descends(self) -> bool:
        """Whether R^c falls on every input: with orthonormal bases, tied to the output."""
        return self.output_kind == "tied" and self.constraint == "joint"

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        places: Places | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, d)`` -> the update ``(B, N, d)``, and on request the maps as a softmax has them ``(B, K, N, N)``.

        The mask ``(B, N)`` is 0 for padding.
        """
        V, U = self.project(tokens)
        scores = self._scores(V, places)
        kept = attended(attention_mask)
        if kept is not None:
            scores = scores.masked_fill(~kept.mT, -torch.inf)
        step = self.raw_step.sigmoid()[:, None, None].to(V.dtype)
        heads = step * (symmetric_maps(scores).to(V.dtype) @ V - V)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), scores.softmax(-1) if output_attentions else None

    def class_maps(self, tokens: Tensor, places: Places | None = None) -> Tensor:
        """The first token's row of each softmax map, ``(B, K, N)``, of tokens ``(B, N, d)``."""
        return self._scores(self.project(tokens)[0], places)[..., 0, :].softmax(-1)

    def _scores(self, V: Tensor, places: Places | None) -> Tensor:
        """Symmetric ``(B, K, N, N)``, float32 or wider."""
        wide = V.to(torch.promote_types(V.dtype, torch.float32))
        scaled = F.normalize(wide, dim=-1) * (self.log_temperature / 2).exp()[:, None, None].to(wide.dtype)
        scaled = rotate(scaled, None if places is None else places.rotation)
        scores = scaled @ scaled.mT
        if self.relative is None:
            return scores.to(wide.dtype)
        if places is None:
            raise ValueError("places: positions inside the attention need the places of the tokens; call the model")
        bias = self.relative(places, V.shape[-2], V.shape[-2]).to(wide.dtype)
        return scores + (bias + bias.mT) / 2
