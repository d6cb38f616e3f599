"""What masks are made from: one layer's features and attention, patch by patch, of any vision model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...blocks import compressions
from ...configuration_crate import pair
from ...modeling_crate_mae import CrateMAEForPreTraining
from ..record import hooks as foreign
from ..record.class_maps import Looks, reading_crate, reading_other
from ..record.hooks import BlockHooks
from ..record.states import LayerStep, has_maps, record, require_finite, unwrapped
from ..segmentation.affinity import graph_bytes
from ..segmentation.arrays import Array, Grid
from .overlap import check_stride, overlapping
from .pictures import grid_of

FEATURES = ("keys", "tokens", "codes")
MAX_TOKENS = 20_000
"""Patches of an image; more are refused, with the memory that they would need."""


@dataclass(frozen=True)
class TokenViews:
    """One layer's view of B images; patches row by row, without class token and registers.

    Attributes:
        features: `(B, N, d)`, in the model's dtype, on the CPU.
        attention: float32 `(B, K, N)`: of every head, how much each patch is looked at; `None` where not asked for.
            With what the other tokens get the weights sum to 1.
        grid: rows and columns of the patches; N is their product.
        layer: its number, from 1.
        looked_at_by: whose attention it is: "class token", or of a model without one "mean over patches".
        overlap: how many strides (down, right) a patch is high and wide: (1, 1) where patches lie side by side.
    """

    features: Tensor
    attention: Tensor | None
    grid: Grid
    layer: int
    looked_at_by: Literal["class token", "mean over patches"]
    overlap: tuple[int, int] = (1, 1)

    def covering(self, values: Array) -> Array:
        """Values of patches `(..., N)` on a grid that covers the whole image: `(..., rows, columns)`.

        The centres of overlapping patches do not reach the image's border. There the grid has half as wide or as wide
        places, so that every patch's value stands around its centre, and the values at the border are repeated.
        """
        array = np.asarray(values).reshape(*np.shape(values)[:-1], *self.grid)
        for axis, overlap in zip((-2, -1), self.overlap):
            parts = 1 if overlap % 2 else 2
            added = (overlap - 1) * parts // 2
            widths = [(0, 0)] * array.ndim
            widths[axis] = added, added
            array = np.pad(array.repeat(parts, axis), widths, mode="edge")
        return array


def token_views(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    layer: int = -1,
    features: str = "keys",
    stride: int | None = None,
    attention: bool = True,
    hooks: BlockHooks | None = None,
) -> TokenViews:
    """One layer's features and attention, recorded in one forward pass, in evaluation mode without gradients.

    Args:
        model: a CRATE model of images (a classifier, an encoder, an autoencoder, of which nothing is masked), or a
            vision model of transformers of a known type; with or without a head.
        pixel_values: `(B, C, H, W)`, as the model reads them; H and W multiples of the patch, of any size and aspect.
            Positions are interpolated.
        layer: from 1, or from the end: -1 is the last.
        features: "keys" (of a CRATE UᵀLN(Z) of all heads, before rotations; of others the key projection with its
            bias), "tokens" (Z^ℓ, what the layer gives) or "codes" (of a CRATE its sparse code; of others the MLP's
            hidden activation).
        stride: pixels from one patch to the next, a divisor of the patch: overlapping patches, and a finer grid.
        attention: whether `attention` is recorded too: the class token's row of the maps, and in a model without class
            token the mean over the rows of all patches.
        hooks: where the blocks of a model of an unknown type keep their states.

    Raises:
        ValueError: an argument outside its range; images that do not fit the patches or give more than 20,000 of them;
            attention of an operator that has no maps; a model of an unknown type; states that are not finite.
    """
    if features not in FEATURES:
        raise ValueError(f"features={features!r}: must be one of {', '.join(FEATURES)}")
    model = unwrapped(model)
    encoder: Any = model.crate if isinstance(model, CrateMAEForPreTraining) else model
    steps = [] if hooks is not None else compressions(encoder)
    known = None if steps else foreign.hooks_of(model, hooks)
    total = len(steps) if known is None else len(foreign.blocks_of(model, known))
    number = layer_number(layer, total)
    patch = pair(encoder.config.patch_size)
    strides = check_stride(stride, patch)
    grid = _grid(pixel_values, patch, strides)
    looks = Looks(by_class=True)
    if not attention:
        reading: Any = nullcontext()
    elif known is None:
        _check_maps(encoder, steps[0].kind)
        reading = reading_crate(steps[number - 1], looks)
    else:
        looks.by_class = _has_class_token(model)
        reading = reading_other(foreign.blocks_of(model, known)[number - 1], looks)
    with overlapping(encoder, strides), reading:
        batch = max(1, len(pixel_values))
        options = {"layers": [number], "subspaces": "keys", "hooks": hooks, "batch_size": batch}
        (states,) = record(model, [pixel_values], **options)
    (step,) = states.steps()
    found = _features(model, step, features, known)[:, -grid[0] * grid[1] :]
    require_finite(found, f"layer {number}: the {features} hold")
    maps = torch.cat(looks.found)[..., -grid[0] * grid[1] :].float().cpu() if attention else None
    by: Any = "class token" if looks.by_class else "mean over patches"
    return TokenViews(found.cpu(), maps, grid, number, by, (patch[0] // strides[0], patch[1] // strides[1]))


def layer_number(layer: int, total: int) -> int:
    """A layer's number from 1; negative numbers count from the end.

    Raises:
        ValueError: there is no such layer.
    """
    number = layer + total + 1 if layer < 0 else layer
    if not 1 <= number <= total:
        raise ValueError(f"layer={layer}: the model has layers 1 to {total}, or -1 for the last")
    return number


def check_tokens(grid: Grid, overlap: bool = False) -> None:
    """Refuse, with a `ValueError`, a grid of too many patches, and say what memory it would need.

    Where patches overlap a larger stride helps, too.
    """
    count = grid[0] * grid[1]
    if count > MAX_TOKENS:
        raise ValueError(
            f"{grid[0]} x {grid[1]} = {count:,} patches; at most {MAX_TOKENS:,} are segmented; the graph of so "
            f"many takes up to {graph_bytes(count) / 1e9:.1f} GB, one head's map {4 * count**2 / 1e9:.1f} GB: give a "
            f"smaller `size`{' or a larger `stride`' if overlap else ''}"
        )


def _grid(pixel_values: Tensor, patch: tuple[int, int], stride: tuple[int, int]) -> Grid:
    """Rows and columns of patches, if the images can be cut into them."""
    if pixel_values.ndim != 4 or not len(pixel_values):
        raise ValueError(f"pixel_values of shape {tuple(pixel_values.shape)}; need (B, C, H, W) with B >= 1")
    sides = pixel_values.shape[-2:]
    if any(side < size or side % size for side, size in zip(sides, patch)):
        raise ValueError(
            f"pixel_values: {sides[0]}x{sides[1]} pixels do not fit patches of {patch[0]}x{patch[1]}: height and width "
            "must be positive multiples of the patch"
        )
    grid = grid_of((sides[0], sides[1]), patch, stride)
    check_tokens(grid, stride != patch)
    return grid


def _check_maps(model: nn.Module, kind: str) -> None:
    if not has_maps(model):
        raise ValueError(
            f"compression={kind!r}: this operator has no attention maps; ask for none, and make masks from its "
            "features, such as by method='maskcut'"
        )


def _has_class_token(model: Any) -> bool:
    """Whether a model of transformers puts a class token before its patches."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return bool(names & {"cls_token", "class_embedding"})


def _features(model: nn.Module, step: LayerStep, features: str, known: BlockHooks | None) -> Tensor:
    """`(B, N, d)` of all tokens."""
    if features == "tokens":
        return step.after
    if features == "codes":
        if step.codes is None:
            raise ValueError("features='codes': the layers of this model record no code; use 'keys' or 'tokens'")
        return step.codes
    if step.projected is None:
        raise ValueError("features='keys': the layers of this model record no projections; use 'tokens'")
    keys = step.projected.transpose(1, 2)
    if known is not None:
        block = foreign.blocks_of(model, known)[step.layer - 1]
        bias = foreign.projection_bias(model, block, known, "keys")
        keys = keys if bias is None else keys + bias
    return keys.flatten(2)
