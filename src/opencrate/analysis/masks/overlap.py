"""A model whose patches overlap, for a while: finer maps from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...configuration_crate import pair
from ...modeling_crate import CratePatchEmbeddings
from ..record.hooks import patch_convolution


def check_stride(stride: int | None, patch: tuple[int, int]) -> tuple[int, int]:
    """The stride (down, right) of patches; that of patches side by side where it is left out.

    Raises:
        ValueError: not a divisor of the patch.
    """
    if stride is None:
        return patch
    if not isinstance(stride, int) or stride < 1 or any(side % stride for side in patch):
        divisors = [str(n) for n in range(1, min(patch) + 1) if not any(side % n for side in patch)]
        raise ValueError(
            f"stride={stride!r}: must divide the patch of {patch[0]}x{patch[1]} pixels: {', '.join(divisors)}"
        )
    return stride, stride


@contextmanager
def overlapping(model: Any, stride: tuple[int, int]) -> Iterator[None]:
    """Make the patches of a model start every `stride` pixels (down, right); as before at the end.

    The image size must be a multiple of the patch. Positions are those of the finer grid: the model's own way to
    interpolate them is asked for as many patches as there are.

    Raises:
        ValueError: a model whose positions cannot follow, or that makes its tokens by more than one convolution.
    """
    patch = pair(model.config.patch_size)
    if stride == patch:
        yield
        return
    undo = _overlap_crate(model, stride) if _crate_patches(model) else _overlap_other(model, stride, patch)
    try:
        yield
    finally:
        undo()


def _crate_patches(model: nn.Module) -> list[CratePatchEmbeddings]:
    return [module for module in model.modules() if isinstance(module, CratePatchEmbeddings)]


def _overlap_crate(model: nn.Module, stride: tuple[int, int]) -> Any:
    """Change the stride; gives what undoes it."""
    found = _crate_patches(model)
    for patches in found:
        patches.set_stride(stride)

    def undo() -> None:
        for patches in found:
            patches.set_stride(patches.patch_size)

    return undo


def _overlap_other(model: Any, stride: tuple[int, int], patch: tuple[int, int]) -> Any:
    """The same of a model of transformers, whose patches come from one convolution."""
    convolution = patch_convolution(model)
    owners = [
        one for one in model.modules() if hasattr(one, "interpolate_pos_encoding") and convolution in one.modules()
    ]
    if convolution.kernel_size != patch or not owners:
        raise ValueError(
            f"stride={stride[0]}: the positions of a {type(model).__name__} cannot follow overlapping patches; leave "
            "stride out, and give larger images"
        )
    owner: Any = owners[-1]  # the innermost
    own = owner.interpolate_pos_encoding
    before = convolution.stride

    def follow(embeddings: Any, height: int, width: int) -> Any:
        """The model's table for a grid of as many patches, asked for by the size of an image that has them."""
        sides = zip((height, width), patch, stride)
        rows, columns = ((side - size) // step + 1 for side, size, step in sides)
        return own(embeddings, rows * patch[0], columns * patch[1])

    convolution.stride = stride
    owner.interpolate_pos_encoding = follow

    def undo() -> None:
        convolution.stride = before
        del owner.interpolate_pos_encoding

    return undo
