"""Ways to compute softmax attention behind transformers' interface, and the choice between them.

Shapes: B batch, K heads or subspaces, N tokens, p their dimension; ``(B, K, N, p)`` in, ``(B, N, K, p)`` out.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import known
from ._hf import ALL_ATTENTION_FUNCTIONS
from .calibration import choose, has_half_instructions, plain_work
from .operators import attention_maps, subspace_attention

HALF_INSTRUCTIONS = has_half_instructions()
"""Whether this CPU has them; asked once, because the question cannot stand in a compiled graph."""

FEW_KEYS = 512
"""Up to it, two products with a mask are faster in bfloat16 than the fused kernel."""

BLOCK_BYTES, CAUSAL_ROWS, ROWS = 2 << 20, 64, 256
"""Size of one block of the maps: it stays in a processor's cache. Causal rows: few, so that most of what no token may
see is left out."""

LONGEST, ENTRIES = 1024, 2**21
"""Tokens of the longest attention that is timed, and entries of its maps; larger ones are decided as this one is."""

HALF_ERROR, FULL_ERROR = 2**-7, 2e-6
"""Largest relative rms error of a way to compute attention, against float64 on the same inputs."""


def matmul_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, Tensor]:
    """Attention by two batched products: transformers' ``eager`` interface."""
    mask = implied_causal_mask(module, query, key) if attention_mask is None else attention_mask
    mask = with_bias(mask, kwargs.get("bias"))
    maps = attention_maps(query, kwargs.get("scaling"), mask, keys=key)
    kept = F.dropout(maps, kwargs.get("dropout", 0.0), module.training)
    return (kept @ value).transpose(1, 2), maps


def blocked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Subspace attention (queries = keys = values) by products of blocks, without a mask but the causal one."""
    causal = bool(module.is_causal) and value.shape[-2] > 1
    heads: Any = BlockedAttention.apply(value, kwargs.get("bias"), kwargs["scaling"], causal)
    return heads.transpose(1, 2), None


def fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """transformers' ``sdpa`` with a bias inside the softmax, which it takes in place of a mask."""
    mask = with_bias(dense_mask(module, attention_mask, query, key), kwargs.pop("bias"))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)


def flex_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs
) -> tuple[Tensor, None]:
    """torch's flex attention with a bias, which transformers' has for one head only."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    if kwargs.get("dropout"):
        raise ValueError("attn_implementation='flex_attention' has no dropout: use 'sdpa', or set dropout=0")
    bias = kwargs["bias"]
    per_image = bias.ndim == 4

    def biased(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + (bias[batch, head, row, column] if per_image else bias[head, row, column])

    heads: Any = flex(query, key, value, biased, attention_mask, scale=kwargs["scaling"])
    return heads.transpose(1, 2), None


def with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """A mask, boolean or additive, and a bias ``(K, queries, keys)`` or ``(B, K, queries, keys)`` as one sum."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    lowest = torch.finfo(bias.dtype).min
    return torch.where(mask, bias, lowest) if mask.dtype == torch.bool else (mask + bias).clamp(min=lowest)


def implied_causal_mask(module: nn.Module, query: Tensor, key: Tensor) -> Tensor | None:
    """The causal mask implied when none is passed: ``(queries, keys)``, True = attend.

    ``None`` for a module that is not causal, and for one query, which sees every key. Several queries without a mask
    stand at the start of the keys: transformers leaves the mask out only then.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if not module.is_causal or known(queries == 1):
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()


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


def attended(mask: Tensor | None) -> Tensor | None:
    """Padding ``(B, N)`` as tokens have it, ``(B, 1, N, 1)``: True for those that count."""
    return None if mask is None else mask.bool()[:, None, :, None]


# --- The choice ---------------------------------------------------------------------------------------------------


def attention_function(
    implementation: str, values: Tensor, causal: bool, alone: bool, bias: Tensor | None = None
) -> Callable:
    """The attention function of transformers' interface; the one place where a way is chosen.

    ``sdpa`` stands for what is fastest: on a CPU the fused kernel or products, by measurement where the work is
    subspace attention, else by a rule. In bfloat16 the fused kernel takes up to three times as long as products where
    the processor has instructions for them; without, products take 20 times as long.

    Args:
        implementation: of the configuration.
        values: ``(B, K, N, p)``.
        causal: the direction of the attention.
        alone: queries = keys = values, without a mask, a cache or dropout.
        bias: inside the softmax.

    Raises:
        ValueError: an implementation that has no bias.
    """
    if bias is not None:
        return partial(_with_bias(implementation, values, alone, bias), bias=bias)
    if implementation == "sdpa" and values.device.type == "cpu" and _by_products(values, causal, alone):
        return blocked_attention if alone and plain_work(values) else matmul_attention
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, matmul_attention)


def _with_bias(implementation: str, values: Tensor, alone: bool, bias: Tensor) -> Callable:
    """On a CPU, the fused kernel has no gradient of a bias, and products keep the sums over it in the cache."""
    if implementation == "flex_attention":
        return flex_attention
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={implementation!r} has no bias inside the softmax: with a relative_bias in position, "
            "use 'sdpa' or 'flex_attention', or a model with position='rope'"
        )
    gradient = torch.is_grad_enabled() and (values.requires_grad or bias.requires_grad)
    products = gradient or values.dtype == torch.float32 or HALF_INSTRUCTIONS
    if implementation == "eager" or (values.device.type == "cpu" and products):
        blocks = implementation == "sdpa" and alone and bias.ndim == 3 and plain_work(values)
        return blocked_attention if blocks else matmul_attention
    return fused_attention


def _by_products(values: Tensor, causal: bool, alone: bool) -> bool:
    """Whether products are faster than the fused kernel."""
    num_tokens, dim = values.shape[-2:]
    rule = values.dtype == torch.bfloat16 and HALF_INSTRUCTIONS
    if not (alone and plain_work(values)):
        return rule and known(num_tokens <= FEW_KEYS)
    if values.dtype not in (torch.bfloat16, torch.float32) or num_tokens < 16:
        return rule
    gradient = torch.is_grad_enabled() and values.requires_grad
    num_tokens = min(num_tokens, LONGEST)
    heads = min(values.shape[:-2].numel(), max(2, ENTRIES // num_tokens**2), 256)
    size = " x ".join(str(2 ** (number - 1).bit_length()) for number in (heads, num_tokens))
    work = f"{'causal ' if causal else ''}attention{' with gradient' if gradient else ''}, {str(values.dtype)[6:]}, "
    work += f"{size} tokens of {dim}"
    bound = HALF_ERROR if values.dtype == torch.bfloat16 else FULL_ERROR

    def ways() -> dict[str, Callable[[], Tensor]]:
        return _ways(values.dtype, heads, num_tokens, dim, causal, gradient)

    return choose(work, "products" if rule else "sdpa", ways, bound) == "products"


def _ways(
    dtype: torch.dtype, heads: int, num_tokens: int, dim: int, causal: bool, gradient: bool
) -> dict[str, Callable]:
    """For :func:`calibration.choose`: the same attention in each way, with its backward where there is a gradient."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, num_tokens, heads, dim, generator=draw, dtype=torch.float32, device="cpu")
    values, scale = drawn.to(dtype).transpose(1, 2), dim**-0.5
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril() if causal else None

    def run(attend: Callable[[Tensor], Tensor]) -> Tensor:
        V = values.detach().requires_grad_(gradient)
        out = attend(V)
        if gradient:
            torch.autograd.grad(out, V, out.detach())
        return out.detach()

    return {
        "exact": lambda: subspace_attention(values.double(), scale, mask),
        "sdpa": lambda: run(lambda V: F.scaled_dot_product_attention(V, V, V, is_causal=causal, scale=scale)),
        "products": lambda: run(lambda V: BlockedAttention.apply(V, None, scale, causal)),  # pyright: ignore[reportReturnType]
    }


# --- Products of blocks -------------------------------------------------------------------------------------------


class BlockedAttention(torch.autograd.Function):
    """``softmax(scale V_k V_k^T + b_k) V_k (B, K, N, p)`` by block after block of the maps. [2306.01129, Eq. 11]

    The bias ``b (K, N, N)`` may be ``None``. No map of all heads is kept: each block is computed, used while it lies in
    the cache, and computed again in the backward. With P a block of the maps, dO the gradient of its output and dS that
    of its scores, and queries = keys = values:

        dP = dO V^T,   dS = P * (dP - rowsum(dP * P)),   dV += P^T dO + scale dS^T V_rows,   dV_rows += scale dS V
    """

    @staticmethod
    def forward(ctx, V: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
        ctx.save_for_backward(V, bias)
        ctx.scale, ctx.causal = scale, causal
        flat = by_head(V)
        out = torch.empty_like(flat)
        for head, heads, rows, keys in blocks_of(V, causal, bias is not None):
            start = None if bias is None else bias[head, rows, keys]
            torch.bmm(_maps(flat, start, heads, rows, keys, scale, causal), flat[heads, keys], out=out[heads, rows])
        return by_batch(out, V)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        V, bias = ctx.saved_tensors
        scale, causal = ctx.scale, ctx.causal
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            mask = torch.ones(V.shape[-2], V.shape[-2], dtype=torch.bool).tril() if causal else None
            inputs = [one for one in (V, bias) if one is not None]
            out = subspace_attention(V, scale, with_bias(mask, bias))
            found = torch.autograd.grad(out, inputs, gradient, create_graph=True, allow_unused=True)
            return *found, *[None] * (4 - len(found))
        flat, gradient = by_head(V), by_head(gradient)
        result = torch.zeros_like(flat)
        wide = torch.promote_types(V.dtype, torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for head, heads, rows, keys in blocks_of(V, causal, bias is not None):
            start = None if bias is None else bias[head, rows, keys]
            maps = _maps(flat, start, heads, rows, keys, scale, causal)
            of_maps = torch.bmm(gradient[heads, rows], flat[heads, keys].mT)
            of_scores = torch.ops.aten._softmax_backward_data(of_maps, maps, -1, maps.dtype)
            result[heads, keys].baddbmm_(maps.mT, gradient[heads, rows])
            result[heads, keys].baddbmm_(of_scores.mT, flat[heads, rows], alpha=scale)
            result[heads, rows].baddbmm_(of_scores, flat[heads, keys], alpha=scale)
            if of_bias is not None:
                of_bias[head, rows, keys] += of_scores.sum(0, dtype=wide)
        if bias is not None and of_bias is not None:
            of_bias = of_bias.to(bias.dtype)
        return by_batch(result, V), of_bias, None, None


def by_head(V: Tensor) -> Tensor:
    """``(..., K, N, p)`` -> ``(K ..., N, p)``, head after head."""
    return V.movedim(-3, 0).flatten(0, -3)


def by_batch(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`by_head`."""
    return flat.unflatten(0, (like.shape[-3], *like.shape[:-3])).movedim(0, -3)


def blocks_of(V: Tensor, causal: bool, one_head: bool) -> Iterator[tuple[int, slice, slice, slice]]:
    """Of the maps of ``V (..., K, N, p)``: the block's (first) head, what it takes of the first axis after
    :func:`by_head`, its rows and its keys; ``one_head``: all of it belongs to one head.
    """
    size, num_tokens = V.shape[:-2].numel(), V.shape[-2]
    batch = size // V.shape[-3]
    rows = min(num_tokens, CAUSAL_ROWS if causal else max(ROWS, num_tokens // 8))
    together = max(2, BLOCK_BYTES // (rows * num_tokens * V.element_size()))
    for start in range(0, size, batch if one_head else size):
        stop = start + batch if one_head else size
        for first in range(start, stop, together):
            for row in range(0, num_tokens, rows):
                end = min(num_tokens, row + rows)
                heads = slice(first, min(stop, first + together))
                yield first // batch, heads, slice(row, end), slice(end if causal else num_tokens)


def _maps(V: Tensor, bias: Tensor | None, heads: slice, rows: slice, keys: slice, scale: float, causal: bool) -> Tensor:
    """One block of the maps; ``bias (rows, keys)`` is that of its head."""
    start = V.new_zeros(()) if bias is None else bias
    scores = torch.baddbmm(start, V[heads, rows], V[heads, keys].mT, beta=int(bias is not None), alpha=scale)
    if causal:
        own = scores[..., rows]
        later = torch.ones(own.shape[-2:], dtype=torch.bool).triu(1)
        own.masked_fill_(later, -torch.inf)
    return scores.softmax(dim=-1)
