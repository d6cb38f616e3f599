"""LeJEPA: views that agree, and features that are an isotropic Gaussian in random directions. [2511.08544]"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .gathering import global_sum
from .inputs import checked_batch, checked_num_global, checked_number, checked_views, outside_autocast

LARGEST_FREQUENCY, KNOTS = 3.0, 17
_STREAM = 0x5167  # first word of the key of the directions: they share no numbers with other draws of a run

SIGREG_NULL = math.sqrt(2 * math.pi) * math.erf(LARGEST_FREQUENCY / math.sqrt(2)) - math.sqrt(
    2 * math.pi / 3
) * math.erf(LARGEST_FREQUENCY * math.sqrt(3 / 2))
"""E SIGReg of standard Gaussian features, 1.0527 for any number of images.

Of B independent samples, E|phi_B(t) - e^(-t^2/2)|^2 = (1 - e^(-t^2))/B, so that B times its integral with the window
e^(-t^2/2) over [-3, 3] is sqrt(2 pi) erf(3/sqrt 2) - sqrt(2 pi/3) erf(3 sqrt(3/2)).
"""


@outside_autocast
def lejepa_loss(
    views: Tensor, num_global: int, weight: float, directions: Tensor, step: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """LeJEPA's loss over the global batch: `(1 - weight) invariance + weight sigreg` [2511.08544].

        invariance = mean over all views v and images of |z_v - mean of the image's global views|^2 / p
        sigreg     = mean over all views of `sigreg(z_v, directions)`

    There is no teacher, and gradients reach the mean of the global views too.

    Args:
        views: features `(V, B, p)`, not normalised, of all V >= 2 views, the first `num_global` global; B may differ
            between processes.
        num_global: global views, from 1 to V.
        weight: lambda, 0 to 1; published runs use 0.05.
        directions: unit columns `(p, M)`, as `draw_directions` makes them, the same in every process.
        step: optimizer step, for messages.

    Returns:
        The loss, and its parts without gradient: `invariance`, and `sigreg`, to be compared with `SIGREG_NULL`.

    Raises:
        ValueError: a shape, weight, or number of views or images that is not allowed.
        FloatingPointError: a feature is not finite; names view and step.
    """
    checked_number("weight", weight, 0, inclusive=True, most=1)
    views = checked_views("views", views, num_global, step)
    V, _, p = views.shape
    checked_num_global(num_global, V)
    images = checked_batch("views", views)
    centre = views[:num_global].mean(0)
    invariance = global_sum((views - centre).square().sum()) / (V * images * p)
    gaussianity = _sigreg(views, _checked_directions(directions, views), images)
    loss = (1 - weight) * invariance + weight * gaussianity
    return loss, {"invariance": invariance.detach(), "sigreg": gaussianity.detach()}


@outside_autocast
def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Distance of features from the standard Gaussian, by the characteristic functions of random projections.

        mean over directions a of  B int_{-3}^{3} |phi_a(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt
        phi_a(t) = mean over images b of e^(i t <z_b, a>)

    (Epps and Pulley's statistic) by the trapezoidal rule with 17 knots on [0, 3], doubled [2511.08544, SIGReg].

    Args:
        z: features `(..., B, p)` of B >= 2 images in the global batch; leading axes are averaged over.
        directions: unit columns `(p, M)`, the same in every process.

    Returns:
        A scalar >= 0; `SIGREG_NULL` is its expectation for standard Gaussian features.
    """
    views = checked_views("z", z.flatten(0, -3) if z.ndim > 3 else z.reshape(-1, *z.shape[-2:]), 0, least_views=1)
    return _sigreg(views, _checked_directions(directions, views), checked_batch("z", views))


def draw_directions(features: int, number: int, seed: int, step: int, like: Tensor | None = None) -> Tensor:
    """Random unit columns `(features, number)`, uniform on the sphere, keyed by (seed, step) alone.

    Every process draws the same, on every machine; float32 on the CPU, or the dtype and device of `like`.
    """
    for name, value in (("features", features), ("number", number)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    draws = np.random.default_rng([_STREAM, seed, step]).standard_normal((features, number))
    columns = torch.from_numpy(draws / np.linalg.norm(draws, axis=0))
    return columns.float() if like is None else columns.to(like.device, like.dtype)


def _sigreg(views: Tensor, directions: Tensor, images: int) -> Tensor:
    """Of views `(V, B, p)`, mean over views."""
    t = torch.linspace(0, LARGEST_FREQUENCY, KNOTS, dtype=views.dtype, device=views.device)
    target = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * LARGEST_FREQUENCY / (KNOTS - 1))
    weights[0] = weights[-1] = LARGEST_FREQUENCY / (KNOTS - 1)
    angles = (views @ directions).unsqueeze(-1) * t  # (V, B, M, knots)
    real, imaginary = global_sum(torch.stack([angles.cos().sum(1), angles.sin().sum(1)])) / images
    error = (real - target).square() + imaginary.square()
    return images * (error * (weights * target)).sum(-1).mean()


def _checked_directions(directions: Tensor, views: Tensor) -> Tensor:
    p = views.shape[-1]
    if not isinstance(directions, Tensor) or directions.ndim != 2 or len(directions) != p or not directions.shape[1]:
        got = tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__
        raise ValueError(f"directions must have shape ({p}, M), a column for each direction, got {got}")
    return directions.to(views)
