"""What a linear map does, whatever adapters, hooks or tools have made of it."""

import torch
from torch import Tensor, nn

from ._graph import traced


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in: the type of its first floating weight (a quantised one is an integer)."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def affine_of(linear_map: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """The ``(d, m)`` matrix and the ``(m,)`` offset of a linear map: what it makes of the unit vectors and of zero.

    Adapters, hooks and pruned, quantised or offloaded weights therefore take effect, whatever wraps the map.
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
