"""How much the patches of an image are looked at, in one layer, while the model runs: no N × N map is kept.

Of a CRATE its own compression step says it. Other models run with an attention function of transformers' interface
that reads queries and keys as the layer uses them, rotations of positions included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...blocks import Compression
from ...compression import SoftmaxAttention
from ...operators import attention_maps

NAME = "opencrate_class_maps"
_ROWS = 256  # queries whose maps are held at a time


@dataclass
class Looks:
    """What one layer's attention gives to every token `(B, K, N)`, once the model has run.

    Attributes:
        by_class: whether the query is the class token; else it is the mean over all tokens as queries.
    """

    by_class: bool
    modules: frozenset[nn.Module] = frozenset()
    found: list[Tensor] = field(default_factory=list)


_WANTED: ContextVar[Looks | None] = ContextVar("opencrate_looks", default=None)


@contextmanager
def reading_crate(step: Compression, looks: Looks) -> Iterator[Looks]:
    """Read the class token's row of every map of a CRATE's layer while it runs in this block.

    Args:
        step: the layer's compression step, whose operator has maps.
        looks: filled in.
    """

    def read(operator: Any, arguments: tuple, keywords: dict[str, Any]) -> None:
        places = {key: value for key, value in keywords.items() if key == "places"}
        if isinstance(operator, SoftmaxAttention):
            looks.found.append(operator.class_maps(arguments[0], **places))
        else:  # registered by somebody else: it makes whole maps
            looks.found.append(_maps_of(operator, arguments, keywords)[:, :, 0])

    handle = step.operator.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield looks
    finally:
        handle.remove()


@contextmanager
def reading_other(block: nn.Module, looks: Looks) -> Iterator[Looks]:
    """The same of a block of another transformer; the attention of the model runs by transformers' `sdpa`."""
    parts: list[Any] = [module for module in block.modules() if hasattr(module, "config")]
    configs = {id(one.config): one.config for one in parts}
    before = {key: config._attn_implementation for key, config in configs.items()}
    looks.modules = frozenset(block.modules())
    token = _WANTED.set(looks)
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield looks
    finally:
        _WANTED.reset(token)
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _maps_of(operator: Any, arguments: tuple, keywords: dict[str, Any]) -> Tensor:
    forward: Callable = operator.forward
    return forward(*arguments, **{**keywords, "output_attentions": True})[1]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, which also says what was looked at where that is wanted."""
    looks = _WANTED.get()
    if looks is not None and module in looks.modules:
        scale = kwargs.get("scaling")
        looks.found.append(_first_row(query, key, scale) if looks.by_class else _mean_row(query, key, scale))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _first_row(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    return attention_maps(query[..., :1, :], scale, keys=key).squeeze(-2)


def _mean_row(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """The mean of all rows of the maps, a block of rows at a time."""
    total = torch.zeros(key.shape[:-1], dtype=torch.float32, device=key.device)
    for rows in query.split(_ROWS, dim=-2):
        total += attention_maps(rows, scale, keys=key).sum(-2, dtype=torch.float32)
    return total / query.shape[-2]


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
