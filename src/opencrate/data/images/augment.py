"""What happens to a training image after decoding: crop, flip, RandAugment, normalise, erase, mix.

Images are uint8 arrays `(C, H, W)` up to the normalisation and float32 from there on; the pieces take a generator
and nothing else that varies, and round the same way for one image as for many: bits follow from the `Draw`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..draws import Mix
from ..options import Augmentation
from .randaugment import RandAugment
from .tensors import to_array, to_image

ERASING_SCALE = (0.02, 1 / 3)
"""Share of the image's area that random erasing takes [arXiv 1708.04896]."""
ERASING_RATIO = (0.3, 10 / 3)
"""Height / width of the erased box."""
_ATTEMPTS = 10


@dataclass(frozen=True)
class Erasing:
    """A box of normalised image `[:, top:top+h, left:left+w]` to be overwritten by `noise (C, h, w)`, N(0, 1)."""

    top: int
    left: int
    noise: np.ndarray

    def apply(self, pixel_values: np.ndarray) -> None:
        """Overwrite the box of `pixel_values (C, H, W)`."""
        height, width = self.noise.shape[1:]
        pixel_values[:, self.top : self.top + height, self.left : self.left + width] = self.noise


class Augment:
    """The recipe's `augmentation` section for images of one final size (height, width), without the mixing.

    `fill` (0 to 255 per channel) is what RandAugment's geometric operations bring in, `resample` the PIL filter of the
    resized crop; PIL widens it when shrinking, so it does not alias.

    Raises:
        ValueError: padding that is not below the image's size, or what `RandAugment` refuses.
    """

    def __init__(self, recipe: Augmentation, size: tuple[int, int], fill: Sequence[int], resample: int) -> None:
        self.recipe = recipe
        self.size = size
        self.resample = Image.Resampling(resample)
        if recipe.crop == "padded" and not 0 <= recipe.crop_padding < min(size):
            raise ValueError(
                f"augmentation.crop_padding={recipe.crop_padding} must be at least 0 and below the image's size "
                f"({size[0]}x{size[1]})"
            )
        ops = recipe.randaugment_ops
        self.randaugment = RandAugment(ops, recipe.randaugment_magnitude, tuple(fill)) if ops else None

    def __call__(
        self, image: np.ndarray | Image.Image, generator: np.random.Generator
    ) -> tuple[np.ndarray, Erasing | None]:
        """An augmented uint8 image `(C, H, W)` of the final size, and what is to be erased once it is normalised.

        The image is a decoded PIL image (`L` or `RGB`, any size) for the resized crop, else an array of the final size.
        """
        recipe = self.recipe
        numbers = generator.random(3).tolist()
        down, right, mirrored = self.drawn_move(numbers)
        if isinstance(image, Image.Image):
            box = draw_crop_box(image.height, image.width, recipe.crop_scale, recipe.crop_ratio, generator)
            pixels = to_array(image.resize((self.size[1], self.size[0]), self.resample, box=box))
        else:
            pixels = shifted(image, down, right) if recipe.crop == "padded" else image
        if mirrored:
            pixels = pixels[..., ::-1]
        if self.randaugment:
            pixels = to_array(self.randaugment(to_image(pixels), generator))
        return pixels, self.drawn_erasing(pixels.shape, generator)

    def drawn_move(self, numbers: Sequence[float]) -> tuple[int, int, bool]:
        """Rows down and columns right that a padded crop starts at (else 0), and whether the image is mirrored."""
        down = right = 0
        if self.recipe.crop == "padded":
            shifts = 2 * self.recipe.crop_padding + 1
            down, right = (int(number * shifts) - self.recipe.crop_padding for number in numbers[:2])
        return down, right, numbers[2] < self.recipe.flip

    def drawn_erasing(self, shape: tuple[int, ...], generator: np.random.Generator) -> Erasing | None:
        """What of an image `(C, H, W)` is to be erased."""
        if self.recipe.erasing and generator.random() < self.recipe.erasing:
            return draw_erasing(shape, generator)
        return None


def draw_crop_box(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """PIL's (left, top, right, bottom) of a crop of random area and aspect [arXiv 1409.4842].

    Its share of the area is uniform in `scale`, the logarithm of width / height in that of `ratio`. After ten boxes
    that do not fit it is the largest centred one of an allowed aspect.
    """
    logs = math.log(ratio[0]), math.log(ratio[1])
    for share, aspect in generator.random((_ATTEMPTS, 2)).tolist():
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(logs[0] + aspect * (logs[1] - logs[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (generator.random(2) * (width - w + 1, height - h + 1)).astype(int).tolist()
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def shifted(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """The crop of a zero-padded image `(C, H, W)` that starts `down` and `right` of its own corner (either sign)."""
    height, width = pixels.shape[1:]
    out = np.zeros_like(pixels)
    out[:, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)] = pixels[
        :, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)
    ]
    return out


def draw_erasing(shape: tuple[int, ...], generator: np.random.Generator) -> Erasing | None:
    """A box of `ERASING_SCALE` of the area and aspect `ERASING_RATIO`, with its noise; `None` if ten did not fit."""
    channels, height, width = shape
    logs = math.log(ERASING_RATIO[0]), math.log(ERASING_RATIO[1])
    for share, aspect, row, column in generator.random((_ATTEMPTS, 4)).tolist():
        area = height * width * (ERASING_SCALE[0] + share * (ERASING_SCALE[1] - ERASING_SCALE[0]))
        aspect = math.exp(logs[0] + aspect * (logs[1] - logs[0]))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            noise = generator.standard_normal((channels, h, w), dtype=np.float32)
            return Erasing(int(row * (height - h + 1)), int(column * (width - w + 1)), noise)
    return None


def mixed(image: np.ndarray, partner: np.ndarray, mix: Mix) -> np.ndarray:
    """Two augmented images, float32 `(C, H, W)`, as a new one."""
    if mix.box is None:
        return image * np.float32(mix.lam) + partner * np.float32(1 - mix.lam)
    top, left, bottom, right = cutmix_pixels(mix.box, *image.shape[1:])
    out = image.copy()
    out[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return out


def cutmix_pixels(box: Sequence[float], height: int, width: int) -> tuple[int, ...]:
    """The (top, left, bottom, right) of a `Mix`'s box in pixels."""
    return tuple(round(edge * size) for edge, size in zip(box, (height, width) * 2))


def own_share(mix: Mix, height: int, width: int) -> float:
    """The true share of the image itself: lambda, or for cutmix, whose edges are rounded, of the pixels left to it."""
    if mix.box is None:
        return mix.lam
    top, left, bottom, right = cutmix_pixels(mix.box, height, width)
    return 1 - (bottom - top) * (right - left) / (height * width)
