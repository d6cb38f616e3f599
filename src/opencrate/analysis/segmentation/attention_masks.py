"""Masks from where the class token looks: rows of softmax maps `(K, N)`, one for each head, over N patches.

Two rules share one sentence in the literature, "the top 60 %". They are not alike, and both are here under their names:
`entries:0.6` keeps 60 % of the patches, whatever their weights [2308.16271, App. B.3], so that every mask covers 60 %
of the image; `mass:0.6` keeps the fewest patches that hold 60 % of the attention [DINO, 2104.14294, Fig. 4].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .arrays import Array, Grid, as_array, check_grid, check_share

RULES = ("entries", "mass")
MODES = {"nearest": {"mode": "nearest-exact"}, "bilinear": {"mode": "bilinear", "align_corners": False}}


def attention_masks(maps: Tensor | Array, rule: str = "mass:0.6") -> Array:
    """Every head's mask, bool `(..., N)`.

    Args:
        maps: (..., N), the class token's attention to N patches: not negative, of any sum above 0. Leave out the weight
            that the class token gives itself.
        rule: `entries:SHARE` or `mass:SHARE`, SHARE above 0 and at most 1.

    Raises:
        ValueError: another rule, or maps that are no attention.
    """
    kind, share = parse_rule(rule)
    return (top_entries if kind == "entries" else top_mass)(maps, share)


def parse_rule(rule: str) -> tuple[str, float]:
    """The kind and the share of a rule such as `mass:0.6`.

    Raises:
        ValueError: another rule.
    """
    kind, _, share = str(rule).partition(":")
    try:
        value = float(share)
    except ValueError:
        value = float("nan")
    if kind not in RULES or not 0 < value <= 1:
        raise ValueError(
            f"rule={rule!r}: must be entries:SHARE or mass:SHARE with a share above 0 and at most 1, such as mass:0.6"
        )
    return kind, value


def top_entries(maps: Tensor | Array, share: float) -> Array:
    """The round(share · N), at least 1, largest entries of each map `(..., N)`; of equal ones the first: bool."""
    values = _attention(maps)
    count = max(1, round(check_share(share, "share") * values.shape[-1]))
    return _ranks(values) < count


def top_mass(maps: Tensor | Array, share: float) -> Array:
    """The fewest entries of each map `(..., N)` that hold a share of its sum, the largest first: bool."""
    values = _attention(maps).astype(np.float64)
    check_share(share, "share")
    order = np.argsort(-values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    before = ordered.cumsum(-1) - ordered
    kept = before < share * ordered.sum(-1, keepdims=True)
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order, kept, -1)
    return mask


def head_mean(maps: Tensor | Array) -> Array:
    """The mean map of K heads `(K, N)`: `(1, N)`, as one more head."""
    return _attention(maps).mean(-2, keepdims=True)


def resized(maps: Tensor | Array, grid: Grid, size: tuple[int, int], mode: str = "nearest") -> Array:
    """Maps or masks `(K, N)` at the size of an image: float32 `(K, height, width)`, or bool of a bool argument.

    Args:
        maps: (K, N), row by row.
        grid: rows and columns.
        size: height and width in pixels.
        mode: `nearest` (a pixel has the value of the patch that it lies in) or `bilinear`; of a bool argument,
            bilinear is what is at least one half.

    Raises:
        ValueError: a grid of another size, or another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    array = as_array(maps)
    rows, columns = check_grid(grid, array.shape[-1])
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).reshape(1, -1, rows, columns)
    large = F.interpolate(tensor, size=tuple(size), **MODES[mode])[0].numpy()
    return large >= 0.5 if array.dtype == bool else large


def _ranks(values: Array) -> Array:
    """Every entry's place in descending order, along the last axis."""
    order = np.argsort(-values, axis=-1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(values.shape[-1]), order.shape), -1)
    return ranks


def _attention(maps: Tensor | Array) -> Array:
    """Maps as an array, if they can be attention."""
    values = as_array(maps)
    if values.ndim < 1 or not values.size:
        raise ValueError(f"maps: shape {values.shape}; need (heads, patches), both at least 1")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("maps: hold negative, infinite or NaN entries; give the rows of the softmax, in float32")
    if (values.sum(-1) <= 0).any():
        raise ValueError("maps: a row is zero everywhere; give what the class token gives the patches")
    return values
