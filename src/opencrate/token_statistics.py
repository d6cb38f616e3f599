"""TSSA: compression by second moments of the tokens, linear in their number. [2412.17810]

Shapes: B batch, N tokens, K subspaces of dimension p; ``V (B, K, N, p)`` are the tokens in the subspaces, U_k^T Z.
"""

import torch
from torch import Tensor, nn

from ._hf import init
from .attention import attended
from .compression import Subspaces


def token_memberships(V: Tensor, temperature: Tensor, causal: bool = False, bias: Tensor | None = None) -> Tensor:
    """Pi ``(B, K, N)``: how much each token belongs to each subspace; sums to 1 over K. [2412.17810]

        Pi_kn = softmax over k of  temperature_k sum_q (v_knq^2 / sum_n' v_kn'q^2)

    Args:
        V: ``(B, K, N, p)``.
        temperature: ``(K, 1)``.
        causal: the sum over n' goes up to n, as in the published language model.
        bias: ``(K, N, 1)`` or ``(B, K, N, 1)``, added to the share of every feature (published language model).
    """
    squares = V.square()
    total = squares.cumsum(-2) if causal else squares.sum(-2, keepdim=True)
    shares = squares / total.clamp(min=1e-12 if causal else 1e-24)
    return ((shares if bias is None else shares + bias).sum(-1) * temperature).softmax(dim=-2)


def token_statistics_attention(V: Tensor, memberships: Tensor, causal: bool = False) -> Tensor:
    """``-Pi_kn v_kn / (1 + sum_n Pi_kn v_kn^2 / sum_n Pi_kn)``, feature by feature. [2412.17810]

    A gradient step, up to factors, down a bound on the coding rate by second moments; they take the place of an N x N
    map. ``causal`` sums up to each token. ``V (B, K, N, p)``, memberships ``(B, K, N)`` -> ``(B, K, N, p)``.
    """
    Pi = memberships.unsqueeze(-1)
    moments = Pi * V.square()
    if causal:
        second = moments.cumsum(-2) / (Pi.cumsum(-2) + 1e-8)
    else:
        second = moments.sum(-2, keepdim=True) / (Pi.sum(-2, keepdim=True) + 1e-8)
    return -Pi * V / (1 + second)


class TSSA(Subspaces):
    """Token statistics self-attention: MSSA's parameters and a temperature for each subspace. [2412.17810]

    Args:
        projection_bias: a bias of U^T Z, as the published models have.
        position_bias: a number for each subspace and place inside the memberships, as the published language model
            has; the text is then at most as long as the context.
    """

    def __init__(self, config, layer_idx: int = 0, projection_bias: bool = False, position_bias: bool = False):
        super().__init__(config, layer_idx)
        heads, inner = config.num_attention_heads, config.num_attention_heads * config.head_dim
        self.temperature = nn.Parameter(torch.empty(heads, 1))
        if projection_bias:
            self.projection_bias = nn.Parameter(torch.empty(inner))
        if position_bias:
            places = getattr(config, "max_position_embeddings", None)
            if places is None:
                raise ValueError("compression_options: position_bias=True is for texts, which have a longest length")
            self.position_bias = nn.Parameter(torch.empty(heads, places, 1))
        self.reset_own()

    def reset_own(self) -> None:
        """Temperatures of 1, biases of 0."""
        init.ones_(self.temperature)
        for name in ("projection_bias", "position_bias"):
            if hasattr(self, name):
                init.zeros_(getattr(self, name))

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False, **kwargs
    ) -> tuple[Tensor, None]:
        """``(B, N, d)`` -> the update ``(B, N, d)``; there are no maps. The mask ``(B, N)`` is 0 for padding."""
        projected, U = self.project(tokens, getattr(self, "projection_bias", None))
        kept = attended(attention_mask)
        V = projected.to(torch.promote_types(projected.dtype, torch.float32))  # sums over tokens
        V = V if kept is None else V * kept
        bias = self._bias(V.shape[-2], kept) if hasattr(self, "position_bias") else None
        memberships = token_memberships(V, self.temperature, self.is_causal, bias)
        if kept is not None:
            memberships = memberships * kept.squeeze(-1)
        heads = token_statistics_attention(V, memberships, self.is_causal).to(projected.dtype)
        return self.combine(heads.transpose(1, 2).flatten(-2), U), None

    def _bias(self, num_tokens: int, kept: Tensor | None) -> Tensor:
        """``(K, N, 1)``, or ``(B, K, N, 1)`` where padding takes no place."""
        if kept is None:
            return self.position_bias[:, :num_tokens]
        places = (kept[:, 0, :, 0].cumsum(-1) - 1).clamp(min=0)
        return self.position_bias[:, places].movedim(0, 1)
