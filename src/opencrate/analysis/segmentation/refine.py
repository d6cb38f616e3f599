"""From a mask on the grid of tokens to one at the image's size whose border follows the image."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from .arrays import Array, as_array, as_mask
from .maskcut import mask_iou

METHODS = ("guided", "crf", "none")
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SMOOTHNESS = 1e-3
# Of TokenCut's published post-processing: iterations, and the weights and widths of its two kernels.
_CRF = {"iterations": 10, "near": {"sxy": 3, "compat": 7}, "alike": {"sxy": 50, "srgb": 5, "compat": 10}}


def refine(mask: Tensor | Array, image: Array, method: str = "guided", *, fill_holes: bool = True) -> Array:
    """A mask at the size of the image: bool `(height, width)`.

    Args:
        mask: (rows, columns) on the grid of tokens, which covers the whole image.
        image: (height, width, 3), uint8, or float in [0, 1].
        method: `guided` (a filter that keeps the image's edges), `crf` (a conditional random field, the extra package
            pydensecrf2) or `none`: bilinear, at least one half.
        fill_holes: whether what the mask encloses becomes part of it.

    Raises:
        ValueError: another method or shape.
        ImportError: `crf` without its package.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}")
    grid, picture = as_mask(mask), _picture(image)
    soft = resized_softly(grid, picture.shape[:2])
    if method == "guided":
        radius = max(1, round(max(side / places for side, places in zip(picture.shape, grid.shape))))  # one token
        soft = guided_filter(soft, picture @ _GREY, radius)
    fine = crf(soft, picture) if method == "crf" else soft >= 0.5
    return np.asarray(ndimage.binary_fill_holes(fine), dtype=bool) if fill_holes else fine


def refine_alike(mask: Array, image: Array, method: str) -> Array:
    """As :func:`refine`; a mask that the refinement would change beyond recognition or empty is only resized."""
    plain = refine(mask, image, "none")
    fine = plain if method == "none" else kept_if_alike(refine(mask, image, method), plain)
    return fine if fine.any() else plain


def resized_softly(mask: Tensor | Array, size: tuple[int, int]) -> Array:
    """A mask `(rows, columns)` at a size in pixels, bilinear between the centres of tokens: float32 in [0, 1]."""
    tensor = torch.from_numpy(as_mask(mask).astype(np.float32))[None, None]
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def resized_as_published(mask: Tensor | Array, size: tuple[int, int]) -> Array:
    """A mask at the image's size as the published code has it: bicubic in 8 bits, then whatever is above 0.

    It is wider than the mask by up to two of its own pixels on every side.
    """
    picture = Image.fromarray(as_mask(mask).astype(np.uint8) * 255)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)) > 0


def guided_filter(values: Array, guide: Array, radius: int, smoothness: float = _SMOOTHNESS) -> Array:
    """Values that are, in every window, a linear function of a guide. [He, Sun & Tang, TPAMI 2013, Eq. 5, 6, 8]

    Args:
        values: (height, width), such as a soft mask.
        guide: (height, width), such as the grey image in [0, 1].
        radius: of the windows, 2 radius + 1 pixels wide, at least 1.
        smoothness: the paper's ε above 0, in squares of the guide's unit: edges that are much stronger stay.

    Returns:
        float32 (height, width).
    """
    width = 2 * radius + 1

    def mean(x: Array) -> Array:
        return ndimage.uniform_filter(x, width, mode="nearest")

    p, guide = values.astype(np.float64), guide.astype(np.float64)
    mean_guide, mean_p = mean(guide), mean(p)
    variance = mean(guide * guide) - mean_guide**2
    slope = (mean(guide * p) - mean_guide * mean_p) / (variance.clip(0) + smoothness)
    return (mean(slope) * guide + mean(mean_p - slope * mean_guide)).astype(np.float32)


def crf(soft: Array, image: Array) -> Array:
    """The mask of a fully connected conditional random field [1210.5644], with TokenCut's published settings.

    Args:
        soft: (height, width), the probability of being inside.
        image: (height, width, 3), uint8, or float in [0, 1].

    Returns:
        bool (height, width).

    Raises:
        ImportError: the package pydensecrf2 is not installed.
    """
    densecrf = _densecrf()
    pixels = np.ascontiguousarray((_picture(image) * 255).round().astype(np.uint8))
    height, width = soft.shape
    inside = soft.astype(np.float64).clip(1e-5, 1 - 1e-5)
    field = densecrf.DenseCRF2D(width, height, 2)
    energy = -np.log(np.stack([1 - inside, inside])).reshape(2, -1)
    field.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32))
    field.addPairwiseGaussian(**_CRF["near"])
    field.addPairwiseBilateral(rgbim=pixels, **_CRF["alike"])
    beliefs = np.asarray(field.inference(_CRF["iterations"]))
    return (beliefs[1] > beliefs[0]).reshape(height, width)


def kept_if_alike(refined: Array, before: Array, least: float = 0.5) -> Array:
    """The refined mask; all False where its IoU with the mask before is below `least`. [the published rule]

    The published code changes the sign of such a mask, so that nothing of it is above 0.
    """
    return refined if mask_iou(refined, before) >= least else np.zeros_like(refined)


def _densecrf() -> Any:
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError:
        raise ImportError(
            "method='crf' needs the package pydensecrf2: install opencrate[segmentation], or use method='guided'"
        ) from None


def _picture(image: Array) -> Array:
    """An image as float32 `(height, width, 3)` in [0, 1]."""
    array = as_array(image)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"image: shape {array.shape}; need (height, width, 3), in RGB")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    if not np.issubdtype(array.dtype, np.floating) or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"image: {array.dtype} outside [0, 1]; give uint8, or float in [0, 1] without normalisation")
    return array.astype(np.float32)
