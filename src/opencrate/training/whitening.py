"""A patch embedding that starts by whitening the patches of the training images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from transformers import PreTrainedModel

NUM_IMAGES = 2000
"""Training images that a recipe's whitening is measured on, evenly spaced."""
FLOOR = 1e-2
"""Added to every variance (of normalised pixels), so that directions of nothing but noise are not blown up."""


def whiten_patches(model: PreTrainedModel, pixel_values: Tensor, seed: int) -> None:
    """Set the patch embedding (the first convolution of a stem) so that its outputs start uncorrelated, in place.

    With V diag(s) V^T the mean of x x^T over the patches x, and Q a random matrix with orthonormal columns, the
    embedding becomes W = Q diag(s + FLOOR)^(-1/2) V^T, without bias; where the width is below a patch's numbers it
    keeps the directions of the largest s. In float64, of training images `(B, C, H, W)` as for evaluation.

    Raises:
        ValueError: the model does not embed its patches by convolutions.
    """
    projection = _projection(model)
    width, patch = projection.weight.shape[0], projection.weight[0].numel()
    patches = unfold(pixel_values.double(), projection.kernel_size, stride=projection.stride).mT.flatten(0, 1)
    variances, directions = torch.linalg.eigh(patches.mT @ patches / len(patches))
    kept = min(width, patch)
    variances, directions = variances[-kept:].clamp(min=0), directions[:, -kept:]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, kept, generator=generator, dtype=torch.float64))[0]
    weight = rotation @ (directions * (variances + FLOOR).rsqrt()).mT
    with torch.no_grad():
        projection.weight.copy_(weight.view_as(projection.weight))
        if projection.bias is not None:
            projection.bias.zero_()


def _projection(model: PreTrainedModel) -> nn.Conv2d:
    """The first convolution: the only one, without overlap, or that of a stem."""
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    stem = getattr(model.config, "patch_embedding", "") == "conv_stem"
    if not found or not (stem or (len(found) == 1 and found[0].kernel_size == found[0].stride)):
        raise ValueError(
            "model.whiten_patches=true: needs a model that embeds patches by convolutions; for CRATE set "
            "model.config.patch_embedding=conv"
        )
    return found[0]
