"""How close one picture is to another: PSNR and SSIM of images in [0, 1], over all pixels or a part of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
"""Standard deviation and radius of SSIM's Gaussian window, in pixels: 11 x 11."""

_C1, _C2 = 0.01**2, 0.03**2


def psnr(first: Tensor, second: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio −10 log10(MSE) in dB, for a peak of 1; infinite for equal images.

    Args:
        first, second: `(B, C, H, W)` in [0, 1].
        where: `(B, 1, H, W)` bool, the pixels that count; `None` counts all.

    Returns:
        `(B)` float64; NaN where no pixel counts.

    Raises:
        ValueError: shapes differ, or a value outside [0, 1].
    """
    first, second = _checked(first, second)
    return -10 * _mean((first - second).square(), where).log10()


def ssim(first: Tensor, second: Tensor, where: Tensor | None = None) -> Tensor:
    """Structural similarity, mean of :func:`ssim_map` over channels and the pixels that count; arguments as `psnr`."""
    return _mean(ssim_map(first, second), where)


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity at every pixel, per channel, `(B, C, H, W)` float64. [Wang et al. 2004, Eq. 13]

    (2 m_x m_y + C1)(2 c_xy + C2) / ((m_x² + m_y² + C1)(v_x + v_y + C2)), C1 = 0.01², C2 = 0.03² for a range of 1;
    means, variances and covariance under a Gaussian window of 11 x 11 pixels, standard deviation 1.5. Beyond its
    border an image is mirrored (d c b a | a b c d | d c b a), so that images smaller than the window have a value too;
    implementations that leave out a border of 5 pixels instead differ there only.
    """
    x, y = (part.numpy() for part in _checked(first, second))
    mean_x, mean_y = _blur(x), _blur(y)
    covariance = _blur(x * y) - mean_x * mean_y
    spread = _blur(x * x) + _blur(y * y) - mean_x**2 - mean_y**2
    top = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return torch.from_numpy(top / ((mean_x**2 + mean_y**2 + _C1) * (spread + _C2)))


def _blur(images: np.ndarray) -> np.ndarray:
    """Every channel under the Gaussian window."""
    return gaussian_filter(images, SSIM_SIGMA, radius=SSIM_RADIUS, mode="reflect", axes=(-2, -1))


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """Mean over channels and the pixels that count, `(B)`."""
    if where is None:
        return values.mean((1, 2, 3))
    weights = where.to(values).expand_as(values)
    return (values * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 on the CPU."""
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(
            f"images: shapes {tuple(first.shape)} and {tuple(second.shape)}; need two of one shape (B, C, H, W)"
        )
    first, second = (part.detach().to("cpu", torch.float64) for part in (first, second))
    if not all(bool(((part >= 0) & (part <= 1)).all()) for part in (first, second)):
        raise ValueError("images: hold values outside [0, 1], or NaN; must lie in [0, 1]")
    return first, second
