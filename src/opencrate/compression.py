"""Compression operators: what a layer adds to its tokens to step down R^c. Formulas: see operators.py.

Shapes: B batch, N tokens, d width, K subspaces of dimension p.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._hf import one_cache
from .attention import attention_function, dense_mask, with_bias
from .linear_maps import affine_of, has_plain_weight
from .operators import attention_maps, gamma, orthogonality_penalty, orthonormalize
from .positions import Places, Rotation, bias_at, relative_bias, rotate
from .products import apply_linear
from .recording import record


class Heads(nn.Module):
    """Without parameters: ``(B, N, K p)`` -> ``(B, K, N, p)``, the tokens in each subspace."""

    def __init__(self, config):
        super().__init__()
        self.shape = config.num_attention_heads, config.head_dim

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, self.shape).transpose(-3, -2)


class Subspaces(nn.Module):
    """What every operator on K subspaces has: U^T with its constraint, and the map from the heads to an update.

    ``subspaces`` is the linear map U^T, its weight ``(K p, d)`` being [U_1 ... U_K]^T. Under a constraint it gives the
    matrix whose orthonormalisation is U: it then is given the unit vectors in place of the tokens.
    """

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.is_causal = bool(getattr(config, "is_causal", False))
        self.dropout, self.output_kind = config.dropout, config.attention_output
        self.constraint = config.subspace_constraint
        inner = config.num_attention_heads * config.head_dim
        self.subspaces = nn.Linear(config.hidden_size, inner, bias=False)
        self.heads = Heads(config)
        if config.attention_output == "learned":
            output: Any = nn.Linear(inner, config.hidden_size, bias=config.attention_output_bias)
            output.is_output_map = True  # some initialisers treat it apart
            self.output = output

    def bases(self) -> Tensor:
        """U as ``(K, d, p)``, with what an adapter or a hook does to it."""
        return self._constrained(self.joined_weight()).unflatten(1, self.heads.shape).movedim(1, 0)

    def joined_weight(self) -> Tensor:
        """``[U_1 ... U_K]`` as ``(d, K p)``, before a constraint."""
        return self.subspaces.weight.mT if has_plain_weight(self.subspaces) else self._asked_weight()

    def _asked_weight(self) -> Tensor:
        return affine_of(self.subspaces, self.config.hidden_size)[0]

    def _constrained(self, joined: Tensor) -> Tensor:
        """``(d, K p)`` -> the same, orthonormal where the configuration says so."""
        if self.constraint == "none":
            return joined
        if self.constraint == "joint":
            return orthonormalize(joined)
        return orthonormalize(joined.unflatten(1, self.heads.shape).movedim(1, 0)).movedim(0, 1).flatten(1)

    @torch.no_grad()
    def release_constraint(self) -> None:
        """Put the orthonormal matrix in use in the place of the weight."""
        self.subspaces.weight.copy_(self.bases().movedim(0, 1).flatten(1).mT)
        self.constraint = "none"

    @torch.no_grad()
    def has_orthonormal_bases(self) -> bool:
        """Whether ``[U_1 ... U_K]`` is orthonormal: by its constraint, or, where that was released, to rounding."""
        if self.constraint == "joint":
            return True
        joined = self._constrained(self.joined_weight())
        rounding = 64 * torch.finfo(torch.promote_types(joined.dtype, torch.float32)).eps
        return orthogonality_penalty(joined.double()).item() <= joined.shape[1] * rounding**2

    def project(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``(B, N, d)`` -> V = Z U_k ``(B, K, N, p)``, which is recorded, and U ``(d, K p)`` under a constraint.

        A ``bias (K p)`` is added to the coordinates.
        """
        U = None if self.constraint == "none" else self._constrained(self._asked_weight())
        projected = apply_linear(self.subspaces, tokens) if U is None else tokens @ U
        projected = self.heads(projected if bias is None else projected + bias)
        record("projected_states", projected)
        return projected, U

    def combine(self, heads: Tensor, U: Tensor | None) -> Tensor:
        """Heads ``(B, N, K p)``, and what :meth:`project` gave as U -> the update ``(B, N, d)``."""
        if self.output_kind == "learned":
            update = apply_linear(self.output, heads)
        elif self.output_kind == "none":
            update = heads
        else:
            update = heads @ (self.joined_weight() if U is None else U).mT
            if self.config.compression_kappa is not None:
                update = gamma(heads.shape[-2], self.config.head_dim, self.config.compression_eps) * update
        return F.dropout(update, self.dropout) if self.training and self.dropout else update


class SoftmaxAttention(Subspaces):
    """What MSSA and ordinary attention have in common: softmax maps on queries, keys and values, and a cache."""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__(config, layer_idx)
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.relative = relative_bias(config)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        past_key_values: Any = None,
        cache: Any = None,
        places: Places | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, d)`` -> the update ``(B, N, d)`` and, on request, the maps ``(B, K, N, keys)``.

        The maps follow from the projected tokens, so they exist under every attention backend. A causal model may give
        its cache of earlier tokens, which then are keys and values too. ``places`` are for positions inside the
        attention.
        """
        projected, U = self.project(tokens)
        rotation = None if places is None else places.rotation
        queries, keys, values = self._queries_keys_and_values(tokens, projected, rotation)
        cache = one_cache(cache, past_key_values)
        if cache is not None:
            keys, values = self._remember(cache, keys, values)
        dropout = self.dropout if self.training else 0.0
        alone = queries is values and keys is values and attention_mask is None and not dropout
        bias = self._bias(places, queries, keys)
        attend = attention_function(self.config._attn_implementation, values, self.is_causal, alone, bias)
        heads, _ = attend(self, queries, keys, values, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        maps = None
        if output_attentions:
            mask = with_bias(dense_mask(self, attention_mask, queries, keys), bias)
            maps = attention_maps(queries, self.scaling, mask, keys=keys)
        return self.combine(self._turned_back(heads, rotation).flatten(-2), U), maps

    def class_maps(self, tokens: Tensor, places: Places | None = None) -> Tensor:
        """The first token's row of each map, ``(B, K, N)``, of tokens ``(B, N, d)``; the other rows are not made."""
        rotation = None if places is None else places.rotation
        queries, keys, _ = self._queries_keys_and_values(tokens, self.project(tokens)[0], rotation)
        bias = self._bias(places, queries, keys)
        first = None if bias is None else bias[..., :1, :]
        return attention_maps(queries[..., :1, :], self.scaling, first, keys=keys).squeeze(-2)

    def _bias(self, places: Places | None, queries: Tensor, keys: Tensor) -> Tensor | None:
        """``(K, N, keys)`` in the type of the scores, or for each image ``(B, K, N, keys)``."""
        bias = bias_at(self.relative, places, queries.shape[-2], keys.shape[-2])
        return None if bias is None else bias.to(queries.dtype)

    def _turned_back(self, heads: Tensor, rotation: Rotation | None) -> Tensor:
        """Heads ``(B, N, K, p)`` in the bases U_k, whatever positions did to the values."""
        return heads

    def _queries_keys_and_values(
        self, tokens: Tensor, projected: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All ``(B, K, N, p)``; ``projected`` are the tokens in the subspaces."""
        raise NotImplementedError

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, the cache's first."""
        raise NotImplementedError


class MSSA(SoftmaxAttention):
    """Multi-head subspace self-attention: queries = keys = values = U_k^T Z. [2306.01129, Eq. 11, 12, 115]"""

    def _queries_keys_and_values(
        self, tokens: Tensor, projected: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = rotate(projected, rotation)
        return values, values, values

    def _turned_back(self, heads: Tensor, rotation: Rotation | None) -> Tensor:
        return rotate(heads.transpose(1, 2), rotation, back=True).transpose(1, 2)

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One tensor serves as keys and values, so it is kept once."""
        states, _ = cache.update(values, values[..., :0], self.layer_idx)
        return states, states


class Attention(SoftmaxAttention):
    """Ordinary multi-head attention, for ablations: queries and keys have projections of their own.

    Its ``subspaces`` are the value projections (``bases()`` too): they are learned as values, not as subspaces.
    """

    def __init__(self, config, layer_idx: int = 0):
        super().__init__(config, layer_idx)
        inner = config.num_attention_heads * config.head_dim
        self.queries = nn.Linear(config.hidden_size, inner, bias=False)
        self.keys = nn.Linear(config.hidden_size, inner, bias=False)

    def _queries_keys_and_values(
        self, tokens: Tensor, projected: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = (self.heads(apply_linear(one, tokens)) for one in (self.queries, self.keys))
        return rotate(queries, rotation), rotate(keys, rotation), projected

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return cache.update(keys, values, self.layer_idx)
