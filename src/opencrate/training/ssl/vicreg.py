"""VICReg: invariance, variance and covariance of two views. [2105.04906]"""

from __future__ import annotations

import torch
from torch import Tensor

from .gathering import global_sum
from .inputs import checked_batch, checked_num_global, checked_number, checked_views, outside_autocast

TARGET_STD, VARIANCE_FLOOR = 1.0, 1e-4


@outside_autocast
def vicreg_loss(
    views: Tensor,
    num_global: int = 2,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    step: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """VICReg's loss of the first two views, over the global batch [2105.04906, Eq. 1 to 6].

        invariance = mean square of z_0 - z_1
        variance   = mean over features and the two views of max(0, 1 - sqrt(Var + 1e-4))
        covariance = sum over the two views of the squared covariances of different features, / p

    Variances and covariances have N - 1 in the denominator. The published code has half the paper's variance term, a
    mean over the two views in place of their sum; so has this. All views but the first two are ignored.

    Args:
        views: features `(V, B, p)`, not normalised, of V >= 2 views; B may differ between processes.
        num_global: global views, from 2 to V; for messages.
        invariance_weight, variance_weight, covariance_weight: at least 0.
        step: optimizer step, for messages.

    Returns:
        The weighted sum, and its parts without weights or gradient: `invariance`, `variance` (0 where every feature
        has a standard deviation of 1 or more, 0.99 where all images have the same features) and `covariance`.

    Raises:
        ValueError: a shape, weight, or number of views or images that is not allowed.
        FloatingPointError: a feature is not finite; names view and step.
    """
    weights = (invariance_weight, variance_weight, covariance_weight)
    for name, value in zip(("invariance_weight", "variance_weight", "covariance_weight"), weights):
        checked_number(name, value, 0, inclusive=True)
    views = checked_views("views", views, num_global, step)
    checked_num_global(num_global, len(views), least=2)
    images, p = checked_batch("views", views), views.shape[-1]
    pair = views[:2]
    invariance = global_sum((pair[0] - pair[1]).square().sum()) / (images * p)
    centred = pair - global_sum(pair.sum(1, keepdim=True)) / images
    covariances = global_sum(centred.mT @ centred) / (images - 1)  # (2, p, p)
    variances = covariances.diagonal(dim1=1, dim2=2)
    variance = (TARGET_STD - (variances + VARIANCE_FLOOR).sqrt()).relu().mean()
    different = ~torch.eye(p, dtype=torch.bool, device=views.device)
    covariance = (covariances.square() * different).sum() / p
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    parts = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return loss, {name: value.detach() for name, value in parts.items()}
