"""The parts every CRATE model is made of; each exists once, and variants are values of the configuration.

    Z -> Compression -> Z^{l+1/2} -> Sparsification -> Z^{l+1}

Shapes: B batch, N tokens, d width, K subspaces of dimension p, m atoms. Formulas: see operators.py.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._hf import (
    ALL_ATTENTION_FUNCTIONS,
    GradientCheckpointingLayer,
    one_cache,
    states_asked_for,
)
from .operators import (
    FEW_TOKENS,
    attention_maps,
    complete_ista_matrix,
    complete_ista_prefers_one_matrix,
    gamma,
    ista,
    known,
    linear,
    orthogonality_penalty,
    orthonormalize,
    shrink,
    traced,
)

__all__ = [
    "ISTA",
    "MLP",
    "MSSA",
    "Attention",
    "Compression",
    "CrateDecoderLayer",
    "CrateLayer",
    "Heads",
    "LayerList",
    "Linear",
    "Sparsification",
    "Synthesis",
    "affine_of",
    "attention_function",
    "dtype_of",
    "has_plain_weight",
    "orthogonality_loss",
    "read_by",
    "record",
    "release_constraints",
]

if TYPE_CHECKING:
    Layer = TypeVar("Layer", bound=nn.Module)

    class LayerList(nn.ModuleList, Generic[Layer]):
        """An `nn.ModuleList` whose items have a known type."""

        def __iter__(self) -> Iterator[Layer]: ...
        def __getitem__(self, idx: int) -> Layer: ...

else:
    LayerList = nn.ModuleList

MATRIX_UNITS = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
"""Whether this CPU has them; asked once, because the question cannot stand in a compiled graph."""


# --- States on their way ----------------------------------------------------------------------------------------


def record(key: str, state: Tensor | None) -> None:
    """Hand a state to the caller who asked for ``output_<key>``; nothing happens where no one did.

    Called where the model goes on with the state, after all hooks on the modules before, so that it does not matter
    whether a hook or the recording was there first.
    """
    states = states_asked_for(key)
    if states is not None and state is not None:
        states.append(state)


def read_by(module: nn.Module, key: str, tokens: Tensor, *args, **kwargs) -> Any:
    """``module(tokens, ...)``, where what the module reads, after all its pre-hooks, is recorded as ``key``."""
    states = states_asked_for(key)
    if states is None:
        return module(tokens, *args, **kwargs)
    if torch.compiler.is_compiling():  # no hook can be set inside a graph
        states.append(tokens)
        return module(tokens, *args, **kwargs)

    def read(_, arguments: tuple) -> None:
        if states_asked_for(key) is states:  # not what another thread sends through
            states.append(arguments[0])

    handle = module.register_forward_pre_hook(read)
    try:
        return module(tokens, *args, **kwargs)
    finally:
        handle.remove()


# --- Compression ------------------------------------------------------------------------------------------------


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
    if not module.is_causal or known(queries == 1):
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()


def attention_function(implementation: str, dtype: torch.dtype, device: torch.device):
    """The attention function of transformers' interface; the one place where a backend is chosen.

    ``sdpa`` in bfloat16 on a CPU with matrix units is replaced by two batched products, which are faster there
    (N = 197, p = 64: 4.4 against 9.8 ms on such a machine); on a CPU without them it is the other way round
    (11 against 258 ms), so the instruction set decides, never a timing: results stay reproducible.
    """
    slow = implementation == "sdpa" and device.type == "cpu" and dtype == torch.bfloat16
    if slow and MATRIX_UNITS:
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


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in: the type of its first floating weight (a quantised one is an integer)."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def affine_of(linear_map: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """The ``(d, m)`` matrix and the ``(m,)`` offset of a linear map: what it makes of the unit vectors and of zero.

    So an adapter, a hook, a pruned, quantised or offloaded weight counts, whatever the map has become.
    """
    device = next((weight.device for weight in linear_map.parameters() if weight.device.type != "meta"), "cpu")
    rows = torch.eye(width + 1, width, dtype=dtype_of(linear_map), device=device)  # the last row is zero
    with torch.autocast(rows.device.type, enabled=False):
        images = linear_map(rows[None])[0]
    return images[:-1] - images[-1:], images[-1]


def has_plain_weight(linear_map: nn.Module) -> bool:
    """Whether a linear map applies the parameter that stands in it: nothing wrapped, pruned, offloaded or patched."""
    if getattr(linear_map.forward, "__func__", None) is not nn.Linear.forward or "weight" not in linear_map._parameters:
        return False
    weight = linear_map.weight  # a quantised one is a class of its own, which may not transpose
    return weight.device.type != "meta" and (traced() or type(weight) in (Tensor, nn.Parameter))


class Heads(nn.Module):
    """Without parameters: ``(B, N, K p)`` -> ``(B, K, N, p)``, the tokens in each subspace."""

    def __init__(self, config):
        super().__init__()
        self.shape = config.num_attention_heads, config.head_dim

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, self.shape).transpose(-3, -2)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`opencrate.operators.linear`: an unembedding is faster so, where a CPU generates."""

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(tokens, self.weight, self.bias)


class MSSA(nn.Module):
    """Multi-head subspace self-attention: queries = keys = values = U_k^T Z. [2306.01129, Eq. 11, 12, 115]

    ``subspaces`` is the linear map U^T, its weight ``(K p, d)`` being [U_1 ... U_K]^T. Under a constraint it gives the
    matrix whose orthonormalisation is U: it then is given the unit vectors in place of the tokens.
    """

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.is_causal = bool(getattr(config, "is_causal", False))
        self.dropout, self.output_kind = config.dropout, config.attention_output
        self.constraint = config.subspace_constraint
        inner = config.num_attention_heads * config.head_dim
        self.subspaces = nn.Linear(config.hidden_size, inner, bias=False)
        self.heads = Heads(config)
        if config.attention_output == "learned":
            self.output = nn.Linear(inner, config.hidden_size, bias=config.attention_output_bias)
            self.output.is_output_map = True  # some initialisers treat it apart

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
        U = None if self.constraint == "none" else self._constrained(self._asked_weight())
        projected = self.heads(self.subspaces(tokens) if U is None else tokens @ U)
        record("projected_states", projected)
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
        update = self._combine(heads.flatten(-2), U)
        return F.dropout(update, dropout) if dropout else update, maps

    def _queries_and_keys(self, tokens: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Both ``(B, K, N, p)``; here what the values are."""
        return projected, projected

    def _remember(self, cache: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, the cache's first. One tensor serves as both, so it is kept once."""
        states, _ = cache.update(values, values[..., :0], self.layer_idx)
        return states, states

    def _combine(self, heads: Tensor, U: Tensor | None) -> Tensor:
        """Concatenated heads ``(B, N, K p)`` -> ``(B, N, d)``; U ``(d, K p)`` under a constraint."""
        if self.output_kind == "learned":
            return self.output(heads)
        if self.output_kind == "none":
            return heads
        update = heads @ (self.joined_weight() if U is None else U).mT
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
            project(tokens).unflatten(-1, self.heads.shape).transpose(-3, -2) for project in (self.queries, self.keys)
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
        self.config, self.direction = config, direction
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.compression == "mssa":
            self.mssa = MSSA(config, layer_idx)
        else:
            self.attention = Attention(config, layer_idx)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        attend = self.mssa if hasattr(self, "mssa") else self.attention
        update, maps = attend(self.norm(tokens), attention_mask, **kwargs)
        record("attentions", maps)
        kappa = self.config.compression_kappa
        if kappa is None:
            return torch.add(tokens, update, alpha=self.direction)
        step = self.direction * kappa * gamma(tokens.shape[-2], self.config.head_dim, self.config.compression_eps)
        return (1 - step) * tokens + step * update


# --- Sparsification ---------------------------------------------------------------------------------------------


def effective_dictionary(dictionary: Tensor, constraint: str) -> Tensor:
    """D ``(d, m)`` in use: the parameter, or its orthonormalisation under a constraint."""
    return dictionary if constraint == "none" else orthonormalize(dictionary.mT).mT


class KeptMatrix:
    """The matrix of a complete ISTA step, kept as long as the dictionary's values and the step size are the same.

    Comparing reads D once (d^2 numbers, against 2 d^3 FLOPs to rebuild), so that no way of changing the weights can
    leave a stale matrix behind; it keeps 2 d^2 numbers per layer (57 MB for CRATE-base), which copies and files do not
    take along.
    """

    def __init__(self):
        self._made: tuple[Tensor, float, Tensor] | None = None

    def __reduce__(self) -> tuple:
        return KeptMatrix, ()

    def of(self, D: Tensor, eta: float) -> Tensor:
        """``(d, d)``, transposed as ``F.linear`` takes it."""
        made = self._made
        if made is None or made[1] != eta or made[0].dtype != D.dtype or not torch.equal(made[0], D):
            with torch.autocast("cpu", enabled=False):
                matrix = complete_ista_matrix(D, eta).mT.contiguous()
            self._made = made = D.detach().clone(), eta, matrix
        return made[2]


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
        self._kept = KeptMatrix()

    def effective_dictionary(self) -> Tensor:
        """D ``(d, m)`` in use."""
        return effective_dictionary(self.dictionary, self.constraint)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, d)`` -> the output ``(B, N, d)`` and the sparse code ``(B, N, m)`` (the same when not decoded)."""
        D = self.effective_dictionary()
        code = self.encode(tokens, D)
        if self.decode == "none":
            return code, code
        return F.linear(code, D if self.decode == "tied" else self.decoder_dictionary), code

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
        """On a CPU without gradients, for a dictionary that is at home here and is a tensor of the ordinary kind.

        On an accelerator the product is cheaper than the comparison. A transformed, quantised or offloaded dictionary
        (``torch.func``, ``parametrize``, accelerate) is another one each time.
        """
        if traced() or torch.is_grad_enabled() or "forward" in vars(self):
            return False
        return type(self.dictionary) is nn.Parameter and self.dictionary.device.type == "cpu"

    def _prefers_one_matrix(self, tokens: Tensor) -> bool:
        if traced():  # a graph serves any number of tokens: training has many
            return self.training
        if self._keeps_matrix():  # built once: slower only where comparing D costs more than a second small product
            return tokens.shape[:-1].numel() >= FEW_TOKENS
        return complete_ista_prefers_one_matrix(tokens.shape[:-1].numel(), tokens.shape[-1])

    def _one_matrix(self, D: Tensor) -> Tensor:
        """Transposed matrix of the affine step; kept between inference calls."""
        if self._keeps_matrix():
            return self._kept.of(D, self.config.ista_step_size)
        return complete_ista_matrix(D, self.config.ista_step_size).mT


class MLP(nn.Module):
    """The two-layer perceptron of ordinary transformers, for ablations; its hidden activations stand for a code."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.mlp_size)
        self.down = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, d)`` -> the output ``(B, N, d)`` and the hidden activations ``(B, N, m)``."""
        hidden = F.gelu(self.up(tokens))
        return read_by(self.down, "sparse_codes", hidden), hidden


class Sparsification(nn.Module):
    """``Z^{l+1} = ISTA(LN(Z^{l+1/2}))``, with a residual only in CRATE-alpha.

    For ablations ``Z^{l+1/2} + MLP(LN(Z^{l+1/2}))``, or nothing: ``Z^{l+1} = Z^{l+1/2}``, without norm or parameters.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.kind = config, config.sparsification
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
        if self.kind == "ista":
            out, code = self.ista(self.norm(tokens))
            record("sparse_codes", out if self.config.dictionary_decode == "none" else code)
        else:
            out, _ = self.mlp(self.norm(tokens))
        return tokens + out if self.residual else out


class CrateLayer(GradientCheckpointingLayer):
    """One step of optimising the sparse rate reduction: compress, then sparsify."""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.compress = Compression(config, layer_idx=layer_idx)
        self.sparsify = Sparsification(config)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        half = read_by(self.compress, "hidden_states", tokens, attention_mask, **kwargs)
        return read_by(self.sparsify, "compressed_states", half)


class Synthesis(nn.Module):
    """From codes back to tokens, the inverse of :class:`Sparsification` for an orthogonal D: ``LN(Z) D^T`` (rows)."""

    def __init__(self, config):
        super().__init__()
        self.config, self.constraint = config, config.dictionary_constraint
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
        half = read_by(self.synthesize, "hidden_states", tokens)
        return read_by(self.expand, "compressed_states", half, attention_mask, **kwargs)


@torch.no_grad()
def release_constraints(model: nn.Module) -> None:
    """Put the orthonormal matrices in use in the place of the weights, and lift the constraints: nothing else changes.

    For what reads a weight itself: a file format without a QR factorisation (ONNX), a library that merges or quantises.
    """
    for module in model.modules():
        if isinstance(module, MSSA) and module.constraint != "none":
            module.subspaces.weight.copy_(module.bases().movedim(0, 1).flatten(1).mT)
            module.constraint = module.config.subspace_constraint = "none"
        elif isinstance(module, (ISTA, Synthesis)) and module.constraint != "none":
            module.dictionary.copy_(effective_dictionary(module.dictionary, module.constraint))
            module.constraint = module.config.dictionary_constraint = "none"


# --- The training loss's penalties ------------------------------------------------------------------------------


def orthogonality_loss(model: nn.Module, subspace_weight: float, dictionary_weight: float) -> Tensor:
    """Weighted sum over layers of ||U^T U - I||^2 (all subspaces jointly) and ||D D^T - I||^2, a decoder's included.

    D D^T because an overcomplete D can be a tight frame but cannot have orthonormal columns.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for module in model.modules():
        if subspace_weight and isinstance(module, MSSA):
            total = total + subspace_weight * orthogonality_penalty(module.joined_weight())
        if dictionary_weight and isinstance(module, (ISTA, Synthesis)):
            total = total + dictionary_weight * orthogonality_penalty(module.dictionary.mT)
    return total
