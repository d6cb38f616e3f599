"""Changes of the colours of many images at once: uint8 `(B, C, H, W)` in, a new array of the same shape out.

An image's values do not depend on the others. A factor f blends as PIL's ImageEnhance does: `degenerate +
f (image - degenerate)`, clipped to 0..255; 1 changes nothing. Values are rounded to the nearest, where PIL rounds down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import ImageFilter

from .tensors import to_array, to_image

_AT_ONCE = 1 << 16
"""Pixels that are changed together: more do not fit in a processor's cache."""
_ABSENT_AT = (3, 5, 1)
"""Where on the colour circle of 6 (red 0, green 2, blue 4) red, green and blue are absent: cyan, magenta, yellow."""


def with_brightness(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blended with black; factors `(B,)`."""
    return _blended(pixels, np.float32(0), factors)


def with_contrast(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blended with the mean of the image's grey values, as a whole number; factors `(B,)`."""
    grey = grey_values(pixels)
    mean = np.floor(grey.sum(axis=(1, 2, 3), dtype=np.int64) / grey[0].size + 0.5)
    return _blended(pixels, mean.astype(np.float32)[:, None, None, None], factors)


def with_saturation(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Blended with the image's grey values; factors `(B,)`."""
    return _blended(pixels, grey_values(pixels), factors)


def with_hue(pixels: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Every hue of RGB images turned on the colour circle (HSV), value and saturation kept; turns `(B,)`, -1/2 to 1/2.

    With hue H on a circle of 6, value V and chroma X = V - min, a channel is V - X clip(2 - d, 0, 1), d the distance
    on the circle from H to where the channel is absent: cyan (3) for red, magenta (5) for green, yellow (1) for blue.
    """
    value = pixels.max(axis=1)
    chroma = value - pixels.min(axis=1)
    r, g, b = pixels.transpose(1, 0, 2, 3).astype(np.int16)
    is_red, is_green = value == pixels[:, 0], value == pixels[:, 1]
    hue = np.where(is_red, g - b, np.where(is_green, b - r, r - g)).astype(np.float32)
    hue /= np.maximum(chroma, 1)
    hue += np.where(is_red, np.float32(0), np.where(is_green, np.float32(2), np.float32(4)))
    hue += 6 * turns.astype(np.float32)[:, None, None]
    value, chroma, out = value + np.float32(0.5), chroma.astype(np.float32), np.empty_like(pixels)
    for channel, place in enumerate(_ABSENT_AT):
        share = (hue - np.float32(place)) / np.float32(6)
        share -= np.rint(share)
        np.abs(share, out=share)
        share *= -6
        share += 2
        np.clip(share, 0, 1, out=share)
        share *= chroma
        out[:, channel] = np.subtract(value, share, out=share)
    return out


def grey_values(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601-2 luma as PIL's mode `L` has it, uint8 `(B, 1, H, W)`; that of one channel is the channel."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.transpose(1, 0, 2, 3).astype(np.uint32)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[:, None]


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    """One image `(C, H, W)`, C 1 or 3, through PIL's Gaussian blur; the radius is its standard deviation in pixels."""
    return to_array(to_image(pixels).filter(ImageFilter.GaussianBlur(radius)))


def solarized(pixels: np.ndarray) -> np.ndarray:
    """Values from 128 inverted."""
    return np.where(pixels >= 128, 255 - pixels, pixels)


def _blended(pixels: np.ndarray, degenerate: np.ndarray | np.float32, factors: np.ndarray) -> np.ndarray:
    factors = factors.astype(np.float32)[:, None, None, None]
    values = pixels * factors
    values += degenerate * (1 - factors) + np.float32(0.5)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


_ADJUSTMENTS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    with_brightness,
    with_contrast,
    with_saturation,
    with_hue,
)


def jittered(pixels: np.ndarray, strength: Sequence[float], numbers: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed at random, as torchvision's ColorJitter does.

    Args:
        pixels: `(B, C, H, W)`, C 1 or 3; one channel has no saturation and hue.
        strength: of the four, see `jitter_amounts`; 0 is off.
        numbers: uniform in 0..1, `(B, 4)`: which factors.
        order: the numbers 0 to 3 in the order in which the four are applied to each image, `(B, 4)`.
    """
    out, amounts = pixels.copy(), jitter_amounts(strength, numbers)
    used = [which for which in range(4 if pixels.shape[1] == 3 else 2) if strength[which] > 0]
    together = max(1, _AT_ONCE // (pixels.shape[2] * pixels.shape[3]))
    for start in range(0, len(pixels), together):
        some = slice(start, start + together)
        for place in range(4):
            for which in used:
                rows = start + np.flatnonzero(order[some, place] == which)
                if len(rows):
                    out[rows] = _ADJUSTMENTS[which](out[rows], amounts[rows, which])
    return out


def jitter_amounts(strength: Sequence[float], numbers: np.ndarray) -> np.ndarray:
    """Factors from max(0, 1 - s) to 1 + s, and turns of the hue from -s to s, for numbers of 0..1 `(B, 4)`."""
    given = np.asarray(strength, float)
    least, most = np.maximum(0, 1 - given), 1 + given
    least[3], most[3] = -given[3], given[3]
    return least + numbers * (most - least)
