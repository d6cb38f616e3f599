"""Subspace self-attention that lowers R^c by construction: its maps are symmetric, and so lengthen no direction.

Shapes: B batch, N tokens, d width, K subspaces of dimension p; ``V (B, K, N, p)`` are the tokens in the subspaces.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._hf import init
from .attention import attended, blocks_of, by_batch, by_head
from .calibration import plain_work
from .compression import Subspaces
from .positions import Places, bias_at, relative_bias, rotate


def symmetric_maps(scores: Tensor) -> Tensor:
    """``D^-1/2 W D^-1/2`` of ``W = exp(scores)``, symmetric ``(..., N, N)``, with D the sums of its rows.

    It has the eigenvalues of the softmax ``D^-1 W``, between -1 and 1, but is symmetric as W is: no vector gets longer.
    A very low score is an entry of 0. [the normalisation of normalised cuts: Shi & Malik 2000]
    """
    half = scores.logsumexp(-1, keepdim=True) / 2
    return (scores - half - half.mT).exp()


def symmetric_attention(X: Tensor, V: Tensor, bias: Tensor | None = None) -> Tensor:
    """``M V (..., K, N, p)`` with the :func:`symmetric_maps` of ``X X^T + bias``, a symmetric ``(K, N, N)``."""
    return symmetric_maps(_scores(X @ X.mT, bias)).to(V.dtype) @ V


def _scores(products: Tensor, bias: Tensor | None) -> Tensor:
    """Products and bias, float32 or wider: the sums of rows are of these same numbers, so that M stays symmetric."""
    wide = products.to(torch.promote_types(products.dtype, torch.float32))
    return wide if bias is None else wide + bias.to(wide.dtype)


class BlockedSymmetricAttention(torch.autograd.Function):
    """:func:`symmetric_attention` by block after block of the maps, computed again in the backward; no map is kept.

    With L the logarithms of the sums of the rows, ``M_ij = exp(S_ij - L_i/2 - L_j/2)``, E = M * (dO V^T) and the
    softmax ``P_ij = exp(S_ij - L_i)``:

        dV = M dO,   dL_i = -1/2 sum_j (E_ij + E_ji),   dS = E + dL P,   dX = (dS + dS^T) X
    """

    @staticmethod
    def forward(ctx, X: Tensor, V: Tensor, bias: Tensor | None) -> Tensor:
        flat, values = by_head(X), by_head(V)
        sums = flat.new_empty(*flat.shape[:-1], 1, dtype=torch.promote_types(X.dtype, torch.float32))
        blocks = list(blocks_of(X, causal=False, one_head=bias is not None))
        out, whole = torch.empty_like(values), _whole(blocks)
        for head, heads, rows, _ in blocks:
            scores = _block(flat, bias, head, heads, rows)
            torch.logsumexp(scores, -1, keepdim=True, out=sums[heads, rows])
            if whole:
                torch.bmm(_map(scores, sums, heads, rows).to(V.dtype), values[heads], out=out[heads, rows])
        for head, heads, rows, _ in [] if whole else blocks:
            maps = _map(_block(flat, bias, head, heads, rows), sums, heads, rows)
            torch.bmm(maps.to(V.dtype), values[heads], out=out[heads, rows])
        ctx.save_for_backward(X, V, bias, sums)
        return by_batch(out, V)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        X, V, bias, sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            inputs = [one for one in (X, V, bias) if one is not None]
            out = symmetric_attention(X, V, bias)
            found = torch.autograd.grad(out, inputs, gradient, create_graph=True, allow_unused=True)
            return *found, *[None] * (3 - len(found))
        flat, values, of_out = by_head(X), by_head(V), by_head(gradient)
        of_x, of_v, of_sums = torch.zeros_like(flat), torch.zeros_like(values), torch.zeros_like(sums)
        blocks = list(blocks_of(X, causal=False, one_head=bias is not None))
        whole = _whole(blocks)

        def maps_and_gradient(head: int, heads: slice, rows: slice) -> tuple[Tensor, Tensor]:
            maps = _map(_block(flat, bias, head, heads, rows), sums, heads, rows)
            return maps, maps * torch.bmm(of_out[heads, rows], values[heads].mT)

        def add_to_sums(maps: Tensor, of_maps: Tensor, heads: slice, rows: slice) -> None:
            of_v[heads].baddbmm_(maps.to(V.dtype).mT, of_out[heads, rows])
            of_sums[heads, rows] -= of_maps.sum(-1, keepdim=True) / 2
            of_sums[heads] -= of_maps.sum(-2).unsqueeze(-1) / 2

        if not whole:  # the sums over all rows come first
            for head, heads, rows, _ in blocks:
                add_to_sums(*maps_and_gradient(head, heads, rows), heads, rows)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=sums.dtype)
        for head, heads, rows, _ in blocks:
            maps, of_scores = maps_and_gradient(head, heads, rows)
            if whole:
                add_to_sums(maps, of_scores, heads, rows)
            scale = ((sums[heads].mT - sums[heads, rows]) / 2).exp_().mul_(of_sums[heads, rows])
            of_scores.addcmul_(maps, scale)
            narrow = of_scores.to(X.dtype)
            of_x[heads, rows].baddbmm_(narrow, flat[heads])
            of_x[heads].baddbmm_(narrow.mT, flat[heads, rows])
            if of_bias is not None:
                of_bias[head, rows] += of_scores.sum(0)
        if bias is not None and of_bias is not None:
            of_bias = of_bias.to(bias.dtype)
        return by_batch(of_x, X), by_batch(of_v, V), of_bias


def _whole(blocks: list[tuple[int, slice, slice, slice]]) -> bool:
    """Whether each block has all rows of its heads, so that their sums are known with it."""
    return len({rows.start for _, _, rows, _ in blocks}) == 1


def _block(flat: Tensor, bias: Tensor | None, head: int, heads: slice, rows: slice) -> Tensor:
    """Scores of some rows with all tokens; of one head, where there is a bias."""
    return _scores(torch.bmm(flat[heads, rows], flat[heads].mT), None if bias is None else bias[head, rows])


def _map(scores: Tensor, sums: Tensor, heads: slice, rows: slice) -> Tensor:
    """The block of M; in place of the scores."""
    return scores.sub_(sums[heads, rows] / 2).sub_(sums[heads].mT / 2).exp_()


SHORT = 1e-3
"""Length below which a token in a subspace counts as none: its cosines go to 0, and their gradients stay finite."""


class SymmetricMSSA(Subspaces):
    """``Z + sum_k a_k (M_k - I) V_k U_k^T``: MSSA whose maps M_k are symmetric, of the tokens themselves.

    Queries = keys makes the scores symmetric; divided by the root of both sums and not by one, so are the maps. For
    orthonormal ``[U_1 ... U_K]`` each ``V_k`` becomes ``P_k V_k`` with ``P_k = (1 - a_k) I + a_k M_k`` and ``||P_k|| <=
    1``, so that ``V_k^T V_k`` grows in no direction, and no term of R^c rises, whatever the weights and the input. The
    scores are ``tau_k`` times the cosine of two tokens in the subspace, and positions inside the attention:
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

    def always_descends(self, own_eps: bool = True) -> bool:
        """Whether R^c, of any eps, falls on every input: with orthonormal bases, tied to the output."""
        return self.output_kind == "tied" and self.has_orthonormal_bases()

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
        X, bias = self._turned(V, places), self._bias(V, places)
        if attention_mask is None and not output_attentions and plain_work(X) and (bias is None or bias.ndim == 3):
            mixed: Any = BlockedSymmetricAttention.apply(X, V, bias)
            maps = None
        else:
            scores = _scores(X @ X.mT, bias)
            kept = attended(attention_mask)
            scores = scores if kept is None else scores.masked_fill(~kept.mT, torch.finfo(scores.dtype).min)
            mixed = symmetric_maps(scores).to(V.dtype) @ V
            maps = scores.softmax(-1) if output_attentions else None
        heads = self.raw_step.sigmoid()[:, None, None].to(V.dtype) * (mixed - V)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), maps

    def class_maps(self, tokens: Tensor, places: Places | None = None) -> Tensor:
        """The first token's row of each softmax map, ``(B, K, N)``, of tokens ``(B, N, d)``."""
        V, _ = self.project(tokens)
        X, bias = self._turned(V, places), self._bias(V, places)
        first = None if bias is None else bias[..., :1, :]
        return _scores(X[..., :1, :] @ X.mT, first).softmax(-1).squeeze(-2)

    def _turned(self, V: Tensor, places: Places | None) -> Tensor:
        """X ``(B, K, N, p)``: V of length 1 (less below ``SHORT``) by the root of the temperature, turned by places."""
        root = (self.log_temperature / 2).exp()[:, None, None].to(V.dtype)
        squares = V.square().sum(-1, keepdim=True, dtype=torch.promote_types(V.dtype, torch.float32)) + SHORT**2
        return rotate(V * squares.rsqrt().to(V.dtype) * root, None if places is None else places.rotation)

    def _bias(self, V: Tensor, places: Places | None) -> Tensor | None:
        """Symmetric ``(K, N, N)``, or for each image ``(B, K, N, N)``."""
        bias = bias_at(self.relative, places, V.shape[-2], V.shape[-2])
        return None if bias is None else (bias + bias.mT) / 2
