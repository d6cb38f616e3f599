"""The parts every CRATE model is made of; each exists once, and variants are values of the configuration.

    Z -> Compression -> Z^{l+1/2} -> Sparsification -> Z^{l+1}

Shapes: B batch, N tokens, d width, K subspaces of dimension p, m atoms. Formulas: see operators.py.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._hf import ALL_ATTENTION_FUNCTIONS, GradientCheckpointingLayer, one_cache
from .operators import (
    FEW_TOKENS,
    attention_maps,
    complete_ista_matrix,
    complete_ista_prefers_one_matrix,
    gamma,
    ista,
    linear,
    mlp,
    orthogonality_penalty,
    orthonormalize,
    shrink,
)

__all__ = [
    "ISTA",
    "MLP",
    "MSSA",
    "Attention",
    "Compression",
    "CrateDecoderLayer",
    "CrateLayer",
    "Linear",
    "OutputMap",
    "Sparsification",
    "Subspaces",
    "Synthesis",
    "attention_function",
    "orthogonality_loss",
]


def matmul_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, Tensor]:
    """Attention by two batched products: transformers' ``eager`` interface."""
    mask = implied_causal_mask(module, query, key) if attention_mask is None else attention_mask
    maps = attention_maps(query, kwargs.get("scaling"), mask, keys=key)
    kept = F.dropout(maps, kwargs.get("dropout", 0.0), module.training)
    return (kept @ value).transpose(1, 2), maps


def implied_causal_mask(module: nn.Module, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask that a causal module has in mind when it is given none: ``(queries, keys)``, True = attend.

    ``None`` for a module that is not causal, and for one query, which sees every key. Several queries without a mask
    stand at the start of the keys: transformers leaves the mask out only then.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if not module.is_causal or queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()


def attention_function(implementation: str, dtype: torch.dtype, device: torch.device):
    """The attention function of transformers' interface; the one place where a backend is chosen.

    ``sdpa`` in bfloat16 on a CPU with matrix units is replaced by two batched products, which are faster there
    (N = 197, p = 64: 4.4 against 9.8 ms on such a machine); on a CPU without them it is the other way round
    (11 against 258 ms), so the instruction set decides, never a timing: results stay reproducible.
    """
    slow = implementation == "sdpa" and device.type == "cpu" and dtype == torch.bfloat16
    if slow and torch.cpu._is_amx_tile_supported():
        return matmul_attention
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, matmul_attention)


def dense_mask(module: nn.Module, mask: Any, query: Tensor, key: Tensor) -> Tensor | None:
    """A backend's mask in the form :func:`attention_maps` takes; ``query`` and ``key (B, K, N, p)``.

    ``sdpa`` and ``eager`` have a tensor broadcastable to ``(B, K, N, N)``, or none where the module's direction says
    it all; ``flash`` has padding ``(B, N)``, ``flex`` a ``BlockMask``.
    """
    if mask is None:
        return implied_causal_mask(module, query, key)
    if isinstance(mask, Tensor):
        if mask.ndim != 2:
            return mask
        padding, causal = mask.bool()[:, None, None], implied_causal_mask(module, query, key)
        return padding if causal is None else padding & causal
    from torch.nn.attention.flex_attention import create_mask

    return create_mask(mask.mask_mod, query.shape[0], None, query.shape[-2], key.shape[-2], device=query.device)


class Subspaces(nn.Linear):
    """The bases U = [U_1 ... U_K], stored as a ``(K p, d)`` weight: tokens ``(B, N, d)`` -> ``(B, K, N, p)``."""

    def __init__(self, config):
        super().__init__(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.num_subspaces, self.subspace_dim = config.num_attention_heads, config.head_dim
        self.constraint = config.subspace_constraint

    def effective_weight(self) -> Tensor:
        """The ``(K p, d)`` weight in use: the parameter, or its orthonormalisation under a constraint."""
        if self.constraint == "none":
            return self.weight
        if self.constraint == "joint":
            return orthonormalize(self.weight.mT).mT
        each = self.weight.unflatten(0, (self.num_subspaces, self.subspace_dim))
        return orthonormalize(each.mT).mT.flatten(0, 1)

    def bases(self) -> Tensor:
        """U as ``(K, d, p)``."""
        return self.effective_weight().unflatten(0, (self.num_subspaces, self.subspace_dim)).mT

    def forward(self, tokens: Tensor) -> Tensor:
        projected = linear(tokens, self.effective_weight())
        return projected.unflatten(-1, (self.num_subspaces, self.subspace_dim)).transpose(-3, -2)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`opencrate.operators.linear`: faster where a model generates on a CPU."""

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(tokens, self.weight, self.bias)


class OutputMap(Linear):
    """The learned output map W of MSSA ``(d, K p)``; a class of its own, because some initialisers treat it apart."""


class MSSA(nn.Module):
    """Multi-head subspace self-attention: queries = keys = values = U_k^T Z. [2306.01129, Eq. 11, 12, 115]"""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.is_causal = bool(getattr(config, "is_causal", False))
        self.dropout, self.output_kind = config.dropout, config.attention_output
        self.subspaces = Subspaces(config)
        if config.attention_output == "learned":
            inner = config.num_attention_heads * config.head_dim
            self.output = OutputMap(inner, config.hidden_size, bias=config.attention_output_bias)

    def bases(self) -> Tensor:
        """U as ``(K, d, p)``."""
        return self.subspaces.bases()

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        past_key_values: Any = None,
        cache: Any = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, d)`` -> the update ``(B, N, d)`` and, when asked for, the maps ``(B, K, N, keys)``.

        The maps follow from the projected tokens, so they exist under every attention backend. A causal model may give
        its cache of earlier tokens, which then are keys and values too.
        """
        projected = self.subspaces(tokens)
        queries, keys = self._queries_and_keys(tokens, projected)
        values = projected
        cache = one_cache(cache, past_key_values)
        if cache is not None:
            keys, values = self._remember(cache, keys, values)
        attend = attention_function(self.config._attn_implementation, projected.dtype, projected.device)
        dropout = self.dropout if self.training else 0.0
        heads, _ = attend(self, queries, keys, values, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        maps = None
        if output_attentions:
            mask = dense_mask(self, attention_mask, queries, keys)
            maps = attention_maps(queries, self.scaling, mask, keys=keys)
        update = self._combine(heads.flatten(-2))
        return F.dropout(update, dropout) if dropout else update, maps

    def _queries_and_keys(self, tokens: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(B, K, N, p)``; here what the values are."""
        return projected, projected

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, the cache's first. One tensor serves as both, so it is kept once."""
        states, _ = cache.update(values, values[..., :0], self.layer_idx)
        return states, states

    def _combine(self, heads: Tensor) -> Tensor:
        """Concatenated heads ``(B, N, K p)`` -> ``(B, N, d)``."""
        if self.output_kind == "learned":
            return self.output(heads)
        if self.output_kind == "none":
            return heads
        update = heads @ self.subspaces.effective_weight()
        if self.config.compression_kappa is None:
            return update
        return gamma(heads.shape[-2], self.config.head_dim, self.config.compression_eps) * update


class Attention(MSSA):
    """Ordinary multi-head attention, for ablations: queries and keys have projections of their own.

    Its ``subspaces`` are the value projections (``bases()`` too): they are learned as values, not as subspaces.
    """

    def __init__(self, config, layer_idx: int = 0):
        super().__init__(config, layer_idx)
        inner = config.num_attention_heads * config.head_dim
        self.queries = nn.Linear(config.hidden_size, inner, bias=False)
        self.keys = nn.Linear(config.hidden_size, inner, bias=False)

    def _queries_and_keys(self, tokens: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = (
            linear(tokens).unflatten(-1, (-1, self.config.head_dim)).transpose(-3, -2)
            for linear in (self.queries, self.keys)
        )
        return queries, keys

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As MSSA's, but keys and values are two tensors."""
        return cache.update(keys, values, self.layer_idx)


class Compression(nn.Module):
    """A step down R^c: ``Z^{l+1/2} = Z + MSSA(LN(Z))``, or the paper's (1 - kappa gamma) Z + kappa gamma MSSA.

    With ``compression="attention"``, :class:`Attention` takes the place of MSSA, and nothing says that R^c falls.
    ``direction=-1`` is the same step backwards, up R^c, as the decoder takes it: ``Z - MSSA(LN(Z))``.
    """

    def __init__(self, config, direction: int = 1, layer_idx: int = 0):
        super().__init__()
        self.config, self.direction, self.kappa = config, direction, config.compression_kappa
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.compression == "mssa":
            self.mssa = MSSA(config, layer_idx)
        else:
            self.attention = Attention(config, layer_idx)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attend = self.mssa if hasattr(self, "mssa") else self.attention
        update, _ = attend(self.norm(tokens), attention_mask, **kwargs)
        if self.kappa is None:
            return torch.add(tokens, update, alpha=self.direction)
        step = self.direction * self.kappa * gamma(tokens.shape[-2], self.config.head_dim, self.config.compression_eps)
        return (1 - step) * tokens + step * update


def effective_dictionary(dictionary: Tensor, constraint: str) -> Tensor:
    """D ``(d, m)`` in use: the parameter, or its orthonormalisation under a constraint."""
    return dictionary if constraint == "none" else orthonormalize(dictionary.mT).mT


class ISTA(nn.Module):
    """T proximal steps of a LASSO over the dictionary D, then the chosen decode. [2306.01129, Eq. 17]"""

    def __init__(self, config):
        super().__init__()
        self.config = config
        shape = config.hidden_size, config.hidden_size * config.dictionary_expansion
        self.dictionary = nn.Parameter(torch.empty(shape))
        if config.dictionary_decode == "untied":
            self.decoder_dictionary = nn.Parameter(torch.empty(shape))
        # What the parameters are made for is read once; eta, lambda and T follow the configuration.
        self.constraint, self.decode = config.dictionary_constraint, config.dictionary_decode
        self.from_input, self.signed = config.ista_start == "input", config.ista_threshold == "soft"
        self._built: tuple[Tensor, Tensor] | None = None

    def effective_dictionary(self) -> Tensor:
        """D ``(d, m)`` in use."""
        return effective_dictionary(self.dictionary, self.constraint)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, d)`` -> the output ``(B, N, d)`` and the sparse code ``(B, N, m)`` (the same when not decoded)."""
        D = self.effective_dictionary()
        code = self.encode(tokens, D)
        if self.decode == "none":
            return code, code
        return linear(code, D if self.decode == "tied" else self.decoder_dictionary), code

    def encode(self, tokens: Tensor, D: Tensor) -> Tensor:
        """The code, in the cheaper algebraic form: one affine GEMM for a complete step, else T general steps."""
        config, steps = self.config, self.config.ista_num_steps
        if not self.from_input or steps > 1 or not self._prefers_one_matrix(tokens):
            start = tokens if self.from_input else None
            return ista(tokens, D, config.ista_step_size, config.ista_lambda, steps, start, self.signed)
        threshold = config.ista_step_size * config.ista_lambda
        matrix = self._one_matrix(D)
        if self.signed:
            return shrink(F.linear(tokens, matrix), threshold, self.signed)
        return F.relu(F.linear(tokens, matrix, matrix.new_full(matrix.shape[:1], -threshold)))

    def _keeps_matrix(self) -> bool:
        return (
            not torch.is_grad_enabled() and self.dictionary.device.type == "cpu" and not torch.compiler.is_compiling()
        )

    def _prefers_one_matrix(self, tokens: Tensor) -> bool:
        if self._keeps_matrix():  # built once: dearer only where comparing D costs more than a second small product
            return tokens.shape[:-1].numel() >= FEW_TOKENS
        return complete_ista_prefers_one_matrix(tokens.shape[:-1].numel(), tokens.shape[-1])

    def _one_matrix(self, D: Tensor) -> Tensor:
        """Transposed matrix of the affine step; kept between inference calls while D's values are the same.

        The comparison reads D once (d^2 numbers, against 2 d^3 FLOPs to rebuild), so that no way of changing the
        weights can leave a stale matrix behind; it keeps 2 d^2 numbers per layer (57 MB for CRATE-base). On an
        accelerator the product is cheaper than the comparison.
        """
        if not self._keeps_matrix():
            return complete_ista_matrix(D, self.config.ista_step_size).mT
        if self._built is None or self._built[0].dtype != D.dtype or not torch.equal(self._built[0], D):
            with torch.autocast("cpu", enabled=False):
                matrix = complete_ista_matrix(D, self.config.ista_step_size).mT.contiguous()
            self._built = D.detach().clone(), matrix
        return self._built[1]


class MLP(nn.Module):
    """The two-layer perceptron of ordinary transformers, for ablations; its hidden activations stand for a code."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.mlp_size)
        self.down = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, d)`` -> the output ``(B, N, d)`` and the hidden activations ``(B, N, m)``."""
        return mlp(tokens, self.up.weight, self.up.bias, self.down.weight, self.down.bias)


class Sparsification(nn.Module):
    """``Z^{l+1} = ISTA(LN(Z^{l+1/2}))``, with a residual only in CRATE-alpha.

    For ablations ``Z^{l+1/2} + MLP(LN(Z^{l+1/2}))``, or nothing: ``Z^{l+1} = Z^{l+1/2}``, without norm or parameters.
    """

    def __init__(self, config):
        super().__init__()
        self.kind = config.sparsification
        self.residual = config.ista_residual or self.kind == "mlp"
        if self.kind == "none":
            return
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if self.kind == "ista":
            self.ista = ISTA(config)
        else:
            self.mlp = MLP(config)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.kind == "none":
            return tokens
        out, _ = (self.ista if self.kind == "ista" else self.mlp)(self.norm(tokens))
        return tokens + out if self.residual else out


class CrateLayer(GradientCheckpointingLayer):
    """One step of optimising the sparse rate reduction: compress, then sparsify."""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.compress = Compression(config, layer_idx=layer_idx)
        self.sparsify = Sparsification(config)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        return self.sparsify(self.compress(tokens, attention_mask, **kwargs))


class Synthesis(nn.Module):
    """From codes back to tokens, the inverse of :class:`Sparsification` for an orthogonal D: ``LN(Z) D^T`` (rows)."""

    def __init__(self, config):
        super().__init__()
        self.constraint = config.dictionary_constraint
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dictionary = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(tokens), effective_dictionary(self.dictionary, self.constraint))


class CrateDecoderLayer(GradientCheckpointingLayer):
    """A :class:`CrateLayer` backwards: ``Y = D LN(Z)``, then ``Y - MSSA(LN(Y))``; neither with a residual around D.

    Layer l of a decoder stands for the inverse of layer L + 1 - l of the encoder, and Y for its ``Z^{l+1/2}``.
    [2311.13110; textbook, chapter 7]
    """

    def __init__(self, config):
        super().__init__()
        self.synthesize = Synthesis(config)
        self.expand = Compression(config, direction=-1)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        return self.expand(self.synthesize(tokens), attention_mask, **kwargs)


def orthogonality_loss(model: nn.Module, subspace_weight: float, dictionary_weight: float) -> Tensor:
    """Weighted sum over layers of ||U^T U - I||^2 (all subspaces jointly) and ||D D^T - I||^2, a decoder's included.

    D D^T because an overcomplete D can be a tight frame but cannot have orthonormal columns.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for module in model.modules():
        if subspace_weight and isinstance(module, Subspaces):
            total = total + subspace_weight * orthogonality_penalty(module.weight.mT)
        if dictionary_weight and isinstance(module, (ISTA, Synthesis)):
            total = total + dictionary_weight * orthogonality_penalty(module.dictionary.mT)
    return total
