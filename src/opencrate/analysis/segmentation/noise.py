"""Noise on images, to see how long masks hold. [2308.16271, App. D]"""

from __future__ import annotations

import numpy as np
from PIL import Image


def noisy_picture(picture: Image.Image, sigma: float, seed: int) -> Image.Image:
    """A picture of its own size with Gaussian noise on every pixel and channel, rounded and cut to 0..255.

    Args:
        picture: of mode `L` or `RGB`.
        sigma: standard deviation in pixel values of 0 to 255, at least 0; with 0 the picture comes back as it is.
        seed: of the noise; another for every image. A larger sigma makes the same noise stronger.

    Raises:
        ValueError: a sigma below 0 or not finite.
    """
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"noise={sigma!r}: must be at least 0, in pixel values of 0 to 255, such as 25")
    if not sigma:
        return picture
    pixels = np.asarray(picture).astype(np.float64)
    pixels += sigma * np.random.default_rng(seed).standard_normal(pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
