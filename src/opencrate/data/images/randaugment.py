"""RandAugment on 8-bit PIL images [arXiv 1909.13719].

Magnitudes run from 0 to 30 and are *increasing*: for every operation a larger one changes the image more, and 0
changes nothing (timm's "inc1"; in the paper's code posterize and solarize ran the other way). Signs are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30
_BILINEAR = Image.Resampling.BILINEAR
Operation = Callable[[Image.Image, float, Sequence[int]], Image.Image]
"""(image, signed strength in -1..1, fill colour per band) -> image of the same size and mode."""


def _colour(fill: Sequence[int]) -> int | tuple[int, ...]:
    return tuple(fill) if len(fill) > 1 else fill[0]


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Sequence[int]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR, fillcolor=_colour(fill))


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength, fill: enhancer(image).enhance(1 + 0.9 * strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, fill: image,
    "autocontrast": lambda image, strength, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, fill: ImageOps.equalize(image),
    "rotate": lambda image, strength, fill: image.rotate(30 * strength, _BILINEAR, fillcolor=_colour(fill)),  # degrees
    "posterize": lambda image, strength, fill: ImageOps.posterize(image, 8 - round(4 * abs(strength))),  # 8 to 4 bits
    "solarize": lambda image, strength, fill: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    "color": _enhanced(ImageEnhance.Color),  # factor 0.1 to 1.9, as the next three; a grey image has no colour
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, strength, fill: _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill),
    "shear_y": lambda image, strength, fill: _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill),
    "translate_x": lambda image, strength, fill: _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill),
    "translate_y": lambda image, strength, fill: _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill),
}
"""The paper's 14 operations. Autocontrast and equalize have no strength."""


@dataclass(frozen=True)
class RandAugment:
    """`ops` (at least 1) operations, drawn independently and uniformly among the 14, each at `magnitude` (0 to 30).

    `fill` is the colour per band of what rotation, shear and translation bring in.

    Raises:
        ValueError: ops or magnitude outside their ranges.
    """

    ops: int
    magnitude: int
    fill: Sequence[int]

    def __post_init__(self) -> None:
        if self.ops < 1:
            raise ValueError(f"RandAugment needs at least 1 operation per image; got {self.ops}")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"RandAugment's magnitude must be from 0 to {MAX_MAGNITUDE}; got {self.magnitude}")

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """An image of the same size and mode (`L` or `RGB`)."""
        numbers = generator.random((self.ops, 2)).tolist()
        names = list(OPERATIONS)
        for choice, sign in numbers:
            strength = self.magnitude / MAX_MAGNITUDE * (1 if sign < 0.5 else -1)
            image = OPERATIONS[names[int(choice * len(names))]](image, strength, self.fill)
        return image
