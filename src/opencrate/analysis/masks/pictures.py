"""Pictures at the size at which they are segmented, and as the model reads them."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ...data.images.tensors import ImageTransform
from ..segmentation.arrays import Grid

PUBLISHED_SIZE = 480
"""Pixels, of the published tables. [2308.16271, App. B.4]"""
_SIDE = 60  # patches of a side at that size and at the published patch of 8


def default_size(patch: tuple[int, int]) -> int:
    """480 pixels, or 60 patches where those are fewer pixels: more tokens take long, and were trained on by nobody."""
    return min(PUBLISHED_SIZE, _SIDE * min(patch))


def fitted_size(picture: tuple[int, int], size: int, patch: tuple[int, int], square: bool = False) -> tuple[int, int]:
    """Height and width to which a picture is resized: multiples of the patch, the nearest ones.

    Args:
        picture: its height and width.
        size: pixels of the shorter side; with `square` of both, and the aspect is lost, as in the published code.
        patch: height and width of a patch.

    Raises:
        ValueError: a size smaller than a patch.

    >>> fitted_size((300, 400), 480, (16, 16))
    (480, 640)
    """
    if not isinstance(size, int) or size < max(patch):
        raise ValueError(f"size={size!r}: must be a whole number of pixels, at least the patch ({max(patch)})")
    scale = size / min(picture)
    height, width = (size, size) if square else (side * scale for side in picture)
    return max(1, round(height / patch[0])) * patch[0], max(1, round(width / patch[1])) * patch[1]


def grid_of(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> Grid:
    """Rows and columns of patches of an image."""
    rows, columns = ((side - one) // step + 1 for side, one, step in zip(size, patch, stride))
    return rows, columns


def prepared(picture: Image.Image, transform: ImageTransform, size: tuple[int, int]) -> Tensor:
    """A picture as the model reads it, `(C, height, width)` float32: Lanczos, then the processor's own mean and std.

    Args:
        picture: of mode `L` or `RGB`, as `ImageTransform.read` gives.
        transform: the model's.
        size: height and width, of `fitted_size`.
    """
    resized = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    off = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if hasattr(transform.processor, name)}
    return transform.processor(images=[resized], return_tensors="pt", **off)["pixel_values"][0]
