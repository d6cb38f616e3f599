"""Where models other than CRATE keep what is measured: one row of module names per model type.

A transformer block without U still has a half-step (the tokens after attention), an output and a hidden activation of
its MLP. They are read by forward hooks while the model's own forward runs; nothing is computed a second time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...configuration_crate import pair
from ...evaluation.inputs import masking
from ...linear_maps import affine_of, has_plain_weight

PRE_NORM = "Z + Attention(LN(Z))"
POST_NORM = "LN(Z + Attention(Z)), normalised after the sum, as this model does"


@dataclass(frozen=True)
class BlockHooks:
    """The places in a transformer where its states are read, as module names.

    Attributes:
        layers: the list of blocks, as seen from the model without its head (`model.base_model`).
        compressed: in a block, the module whose input is Z^{ℓ+½}, the tokens after attention (in a pre-norm block the
            second norm, in a post-norm block the MLP).
        value: in a block, the linear map that makes the values; `name[3/3]` is the third of three parts of a fused one.
        key: the same for the keys.
        codes: in a block, the module whose input is the MLP's hidden activation (its last linear map), or several names
            of which the first that exists is taken; `None` where there is none to read.
        half_step: what Z^{ℓ+½} is, in symbols, for the reports.
        head_dim: p, the columns of `value` per head; `None` reads it from the model's configuration.
    """

    layers: str
    compressed: str
    value: str
    key: str
    codes: str | tuple[str, ...] | None = None
    half_step: str = PRE_NORM
    head_dim: int | None = None


_VIT = BlockHooks("layers", "layernorm_after", "attention.v_proj", "attention.k_proj", "mlp.fc2")
_DINO = BlockHooks("encoder.layer", "norm2", "attention.v_proj", "attention.k_proj", ("mlp.fc2", "mlp.down_proj"))
_DINO3 = BlockHooks("model.layer", "norm2", "attention.v_proj", "attention.k_proj", "mlp.down_proj")
_CLIP = BlockHooks("encoder.layers", "layer_norm2", "self_attn.v_proj", "self_attn.k_proj", "mlp.fc2")
_BERT = BlockHooks(
    "encoder.layer", "intermediate", "attention.self.value", "attention.self.key", "output.dense", POST_NORM
)
_DISTIL = BlockHooks("transformer.layer", "ffn", "attention.v_lin", "attention.k_lin", "ffn.lin2", POST_NORM)
_GPT2 = BlockHooks("h", "ln_2", "attn.c_attn[3/3]", "attn.c_attn[2/3]", "mlp.c_proj")
_LLAMA = BlockHooks("layers", "post_attention_layernorm", "self_attn.v_proj", "self_attn.k_proj", "mlp.down_proj")

KNOWN_MODELS: dict[str, BlockHooks] = {
    **dict.fromkeys(("vit", "deit", "vit_msn", "vit_mae", "ijepa"), _VIT),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINO),
    "dinov3_vit": _DINO3,
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), _CLIP),
    **dict.fromkeys(("bert", "roberta", "electra"), _BERT),
    "distilbert": _DISTIL,
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}
"""Hooks by transformers' `model_type`."""

_FIELDS = {"values": "value", "keys": "key"}


def hooks_of(model: nn.Module, hooks: BlockHooks | None = None) -> BlockHooks:
    """The hooks given, or those known for the model's type; an unknown type is an error that says what to pass."""
    if hooks is not None:
        return hooks
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in KNOWN_MODELS:
        what = f"model type '{model_type}'" if model_type else f"model {type(model).__name__}"
        needed = ", ".join(f"{field.name}=..." for field in fields(BlockHooks)[:5])
        raise ValueError(
            f"{what}: has no MSSA block and is of no known type, so pass where its blocks keep their states, "
            f"hooks=opencrate.BlockHooks({needed}) with module names (known types: {', '.join(KNOWN_MODELS)})"
        )
    return KNOWN_MODELS[model_type]


def base_of(model: nn.Module, hooks: BlockHooks) -> Any:
    """The model without its head: itself where the blocks lie in it by their name, else transformers' `base_model`."""
    whole = not isinstance(model, PreTrainedModel) or hooks.layers in dict(model.named_modules())
    return model if whole else model.base_model


def blocks_of(model: nn.Module, hooks: BlockHooks) -> list[nn.Module]:
    """The blocks, first to last."""
    found = _descend(base_of(model, hooks), hooks.layers, "hooks.layers", "the model")
    if not isinstance(found, (nn.ModuleList, nn.Sequential)) or len(found) == 0:
        raise ValueError(f"hooks.layers='{hooks.layers}': a {type(found).__name__}, not a list of blocks")
    return list(found)


def codes_reader(block: nn.Module, hooks: BlockHooks) -> nn.Module:
    """The linear map of a block that reads the MLP's hidden activation."""
    if hooks.codes is None:
        raise ValueError("hooks.codes=None: says of no module that it reads the MLP's hidden activation")
    return _first(block, hooks.codes)


def projection_bases(model: nn.Module, block: nn.Module, hooks: BlockHooks, which: str) -> Tensor:
    """Per-head value or key projections as bases `(K, d, p)`: head k's tokens are `LN(Z) @ bases[k]` (+ its bias).

    They are neither orthonormal nor learned as subspaces. With grouped heads K is the number of value heads. `which` is
    "values" or "keys".
    """
    columns, _ = affine_in_use(_projection(block, hooks, which))
    return _heads(columns, model, hooks, which).movedim(1, 0)


def projection_bias(model: nn.Module, block: nn.Module, hooks: BlockHooks, which: str) -> Tensor | None:
    """What a block adds to its per-head value or key projections, `(K, p)`; `None` where it adds nothing."""
    bias = affine_in_use(_projection(block, hooks, which))[1]
    return None if bias is None else _heads(bias, model, hooks, which)


def affine_in_use(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The `(d, m)` matrix and `(m,)` bias of a linear map as its forward applies them, with an adapter around it."""
    inner = next((one for one in module.modules() if isinstance(one, (nn.Linear, Conv1D))), None)
    if inner is None:
        raise ValueError(f"{type(module).__name__}: not a linear map")
    if inner is module and isinstance(inner, Conv1D):
        return inner.weight.detach(), inner.bias.detach()
    if inner is module and has_plain_weight(module):
        return inner.weight.detach().mT, None if inner.bias is None else inner.bias.detach()
    with torch.no_grad():
        return affine_of(module, inner.nx if isinstance(inner, Conv1D) else inner.in_features)


def _projection(block: nn.Module, hooks: BlockHooks, which: str) -> nn.Module:
    field = _FIELDS[which]
    name = getattr(hooks, field)
    module = _descend(block, _split_part(name)[0], f"hooks.{field}", "a block")
    has_weight = isinstance(getattr(module, "weight", None), Tensor)
    if not (has_weight and any(isinstance(one, (nn.Linear, Conv1D)) for one in module.modules())):
        raise ValueError(f"hooks.{field}='{name}': a {type(module).__name__}, not a linear map")
    return module


def _heads(columns: Tensor, model: nn.Module, hooks: BlockHooks, which: str) -> Tensor:
    """The projection's part of what a linear map gives, by heads: `(..., m)` -> `(..., K, p)`."""
    field = _FIELDS[which]
    name, part, parts = _split_part(getattr(hooks, field))
    width, head_dim = columns.shape[-1] // parts, _head_dim(model, hooks)
    if width % head_dim:
        raise ValueError(f"hooks.{field}='{name}': {width} columns do not divide into heads of {head_dim}")
    return columns[..., (part - 1) * width : part * width].unflatten(-1, (-1, head_dim))


def run_and_capture(
    model: nn.Module, inputs: Mapping[str, Tensor], blocks: Sequence[nn.Module], hooks: BlockHooks, which: str
) -> list[dict[str, Tensor]]:
    """Run the model without its head and read its states at some of its blocks.

    The hooks that read are set for this run, after all that the model has, so they see what the model continues with.
    A model that is none of transformers' gets the first input alone. Images may have any size that fits the patches,
    where the model has a way to interpolate its positions, and of an autoencoder nothing is masked.

    Returns:
        Per block `before`, `compressed`, `after`, each `(B, N, d)`, `projected` `(B, K, N, p)`, which is the output of
        the projection ("values" or "keys") less its bias, and `codes` `(B, N, m)` where the hooks name it.
    """
    base = base_of(model, hooks)
    biases = [affine_in_use(_projection(block, hooks, which))[1] for block in blocks]
    with _capture(blocks, blocks_of(model, hooks), hooks, which) as found:
        if isinstance(base, PreTrainedModel):
            _run_whole(base, inputs)
        else:
            base(next(iter(inputs.values())))
    needed = {"before", "projected", "compressed", "after"}
    for states, bias in zip(found, biases):
        missing = sorted(needed - states.keys())
        if missing:
            raise ValueError(f"hooks: nothing came past the place for {', '.join(missing)}; check the module names")
        output = states["projected"] if bias is None else states["projected"] - bias
        states["projected"] = _heads(output, model, hooks, which).transpose(1, 2)
    return found


def _run_whole(base: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """The forward on whole images, whatever their size, or on texts."""
    resizes = "interpolate_pos_encoding" in inspect.signature(type(base).forward).parameters
    if "pixel_values" not in inputs or not resizes:
        base(**inputs)
        return
    images = inputs["pixel_values"]
    grid = _grid(patch_convolution(base), images)
    native = (side // patch for side, patch in zip(pair(base.config.image_size), pair(base.config.patch_size)))
    extra: dict[str, Any] = {"interpolate_pos_encoding": True} if grid != tuple(native) else {}
    if not hasattr(base.config, "mask_ratio"):
        base(**inputs, **extra)
        return
    with masking(base, 0.0):  # the encoder shuffles the patches by their noise
        extra["noise"] = torch.arange(grid[0] * grid[1], device=images.device).expand(len(images), -1)
        base(**inputs, **extra)


def patch_convolution(model: nn.Module) -> nn.Conv2d:
    """The convolution that makes tokens of patches, the first of a vision model of transformers."""
    return next(one for one in model.modules() if isinstance(one, nn.Conv2d))


def _grid(convolution: nn.Conv2d, images: Tensor) -> tuple[int, ...]:
    """Rows and columns of patches, which may overlap."""
    sides = zip(images.shape[-2:], convolution.kernel_size, convolution.stride)
    return tuple((side - patch) // stride + 1 for side, patch, stride in sides)


@contextmanager
def _capture(
    blocks: Sequence[nn.Module], stack: Sequence[nn.Module], hooks: BlockHooks, which: str
) -> Iterator[list[dict[str, Tensor]]]:
    found: list[dict[str, Tensor]] = [{} for _ in blocks]
    following = dict(pairwise(stack))
    handles = []
    try:
        for block, states in zip(blocks, found):
            handles += _hook_block(block, following.get(block), states, hooks, which)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hook_block(
    block: nn.Module, following: nn.Module | None, states: dict[str, Tensor], hooks: BlockHooks, which: str
) -> list:
    """Hooks on one block, and on what the block after it reads, that put its states into `states`."""

    def read_input(name: str):
        def hook(module, arguments, keywords):
            state = arguments[0] if arguments else next(iter(keywords.values()))
            if name not in states or state.shape == states[name].shape:  # models may pool between blocks
                states[name] = state

        return hook

    def read_output(name: str):
        def hook(module, arguments, output):
            states[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    places = {"compressed": _descend(block, hooks.compressed, "hooks.compressed", "a block"), "before": block}
    if hooks.codes is not None:
        places["codes"] = _first(block, hooks.codes)
    if following is not None:
        places["after"] = following
    handles = [module.register_forward_pre_hook(read_input(name), with_kwargs=True) for name, module in places.items()]
    outputs = {"after": block, "projected": _projection(block, hooks, which)}
    return [*handles, *(module.register_forward_hook(read_output(name)) for name, module in outputs.items())]


def _first(block: nn.Module, names: str | tuple[str, ...]) -> nn.Module:
    """The first of several module names that exists."""
    names = (names,) if isinstance(names, str) else names
    modules = dict(block.named_modules())
    found = next((name for name in names if name in modules), names[0])
    return _descend(block, found, "hooks.codes", "a block")


def _descend(module: nn.Module, name: str, field: str, where: str) -> nn.Module:
    """The sub-module of a dotted name."""
    modules = dict(module.named_modules())
    if name not in modules:
        children = ", ".join(child for child in modules if child and child.count(".") < 2)
        raise ValueError(f"{field}='{name}': no such module in {where} ({type(module).__name__} has: {children})")
    return modules[name]


def _split_part(name: str) -> tuple[str, int, int]:
    """`c_attn[3/3]` as (name, part from 1, parts)."""
    match = re.fullmatch(r"(.+)\[(\d+)/(\d+)\]", name)
    return (match[1], int(match[2]), int(match[3])) if match else (name, 1, 1)


def _head_dim(model: Any, hooks: BlockHooks) -> int:
    config = getattr(model, "config", None)
    known = hooks.head_dim or getattr(config, "head_dim", None)
    if known:
        return known
    if config is None:
        raise ValueError("hooks.head_dim=None: the model has no configuration to read it from; pass a whole number")
    return config.hidden_size // config.num_attention_heads


def principal_bases(second_moment: Tensor, num_subspaces: int, subspace_dim: int) -> Tensor:
    """Principal directions of tokens, most energy first, in K groups of p: `(K, d, p)`, orthonormal together.

    They are of Σ zᵀz over tokens `(d, d)`, not centred, as coding rates are not; of fewer groups where d < K p.
    """
    vectors = torch.linalg.eigh(second_moment).eigenvectors.flip(1)
    count = min(num_subspaces, vectors.shape[0] // subspace_dim)
    return vectors[:, : count * subspace_dim].unflatten(1, (count, subspace_dim)).permute(1, 0, 2)
