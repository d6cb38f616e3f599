"""What a masked autoencoder gives back of an image, and how much of it copying what is visible would give.

With `norm_pix_loss` a model predicts standardised patches. They are given the mean and deviation of the *original*
patch, which no reconstruction could know: errors are those of the structure alone, also of the baselines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration_crate import pair
from ..store.saved import SavedModel
from .image_quality import psnr, ssim
from .inputs import evaluating, masking, place, read_files

_STANDARDISED_FLOOR = 1e-6
"""Added to a patch's variance by both models' `norm_pix_loss`."""


@dataclass(frozen=True)
class MaskedPatchErrors:
    """Mean squared error on the masked patches, per image, in squared units of `pixel_values`; `(B)` float64 each.

    Attributes:
        model: of the model's prediction.
        mean_colour: of the visible patches' mean, per channel, everywhere.
        nearest_visible: of a copy of the visible patch nearest on the grid (the mean of several equally near).
        mask: `(B, n)` bool, true where a patch was masked.
    """

    model: Tensor
    mean_colour: Tensor
    nearest_visible: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Images in [0, 1], `(B, C, H, W)` float64 on the CPU.

    Attributes:
        original: what the model read, before normalisation.
        masked: visible patches, the others grey (0.5).
        predicted: the model's output for every patch, clipped to [0, 1].
        pasted: visible patches of the original, masked patches of the output.
        mask: `(B, n)` bool, true where a patch was masked.
        where: `(B, 1, H, W)` bool, the same for every pixel.
        errors: on the masked patches; `None` where nothing is masked or nothing is visible.
        mean_std_known: the prediction was rescaled to the original patch's mean and deviation.
    """

    original: Tensor
    masked: Tensor
    predicted: Tensor
    pasted: Tensor
    mask: Tensor
    where: Tensor
    errors: MaskedPatchErrors | None
    mean_std_known: bool

    def quality(self) -> dict[str, Tensor]:
        """PSNR (dB) and SSIM by name, `(B)` each; see :data:`QUALITY`."""
        pictures = {"": (self.predicted, None), "_pasted": (self.pasted, None), "_masked": (self.pasted, self.where)}
        return {
            f"{name}{suffix}": measure(picture, self.original, where)
            for suffix, (picture, where) in pictures.items()
            for name, measure in (("psnr", psnr), ("ssim", ssim))
        }


QUALITY = {
    "psnr": "PSNR (dB) of the model's output, whole image",
    "ssim": "SSIM of the model's output, whole image",
    "psnr_pasted": "PSNR (dB) with the visible patches pasted in, whole image",
    "ssim_pasted": "SSIM with the visible patches pasted in, whole image",
    "psnr_masked": "PSNR (dB) of the masked patches only",
    "ssim_masked": "SSIM with the visible patches pasted in, mean over the pixels of masked patches",
}
"""What `Reconstruction.quality` gives; NaN (or infinite) for masked patches where nothing is masked."""


def grid_of(model: PreTrainedModel, pixel_values: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images `(B, C, H, W)`."""
    height, width = pair(model.config.patch_size)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


def patch_noise(num_images: int, num_patches: int, seed: int) -> Tensor:
    """The noise `(num_images, num_patches)` that decides what is masked; image i's is the same however many follow."""
    return torch.rand(num_images, num_patches, generator=torch.Generator().manual_seed(seed))


def masked_patch_errors(
    model: PreTrainedModel, pixel_values: Tensor, noise: Tensor, mask_ratio: float | None = None
) -> MaskedPatchErrors:
    """Squared error on the masked patches of the model and of two baselines, per image.

    Args:
        model: `CrateMAEForPreTraining` or `ViTMAEForPreTraining`; runs in evaluation mode without gradients.
        pixel_values: `(B, C, H, W)`, as the model reads them.
        noise: `(B, n)`; the patches of the largest noise are masked.
        mask_ratio: instead of the model's own.

    Raises:
        ValueError: noise of the wrong shape; a ratio outside [0, 1), or one that masks no patch or every patch;
            predictions that are not finite.
    """
    target, predicted, mask = _predict(model, pixel_values, noise, mask_ratio)
    errors = _errors(model, target, predicted, mask, grid_of(model, pixel_values))
    if errors is None:
        masked = f"{int(mask[0].sum())} of {mask.shape[1]} patches"
        raise ValueError(f"mask_ratio masks {masked}; masked-patch errors need masked and visible patches")
    return errors


def reconstruct(
    model: PreTrainedModel,
    pixel_values: Tensor,
    noise: Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    mask_ratio: float | None = None,
) -> Reconstruction:
    """Run the model once and put everything back into pictures.

    Args:
        model, pixel_values, noise, mask_ratio: as `masked_patch_errors`; a ratio of 0 masks nothing.
        image_mean, image_std: per channel, what the processor subtracted and divided by.

    Raises:
        ValueError: as `masked_patch_errors`, but nothing masked or nothing visible is allowed.
    """
    target, predicted, mask = _predict(model, pixel_values, noise, mask_ratio)
    grid = grid_of(model, pixel_values)
    height, width = pixel_values.shape[-2:]
    mean, std = (torch.tensor(list(v), dtype=torch.float64).view(1, -1, 1, 1) for v in (image_mean, image_std))
    pictures = [model.unpatchify(part, (height, width)) for part in (target, predicted)]  # pyright: ignore[reportCallIssue]
    original, output = ((picture * std + mean).clamp(0, 1) for picture in pictures)
    where = _pixels(mask, grid, (height, width))
    return Reconstruction(
        original=original,
        masked=torch.where(where, 0.5, original),
        predicted=output,
        pasted=torch.where(where, output, original),
        mask=mask,
        where=where,
        errors=_errors(model, target, predicted, mask, grid),
        mean_std_known=bool(model.config.norm_pix_loss),
    )


def reconstruct_files(
    saved: SavedModel,
    files: Sequence[Path],
    mask_ratio: float | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
    skipped: list[str] | None = None,
) -> Iterator[tuple[list[Path], Reconstruction]]:
    """Image files and what a saved autoencoder makes of them, `batch_size` at a time.

    Args:
        mask_ratio: instead of the model's own.
        seed: of the masks; image i's is the same however many follow.
        skipped: takes the reasons for files that cannot be read; `None` raises them.

    Raises:
        ValueError: a file that cannot be read, or as `reconstruct`.
    """
    done, noise, processor = 0, None, saved.processor
    for read, pixels in read_files(saved.transform, files, batch_size, skipped):
        if noise is None:
            noise = patch_noise(len(files), math.prod(grid_of(saved.model, pixels)), seed)
        chosen = noise[done : done + len(read)]
        yield read, reconstruct(saved.model, pixels, chosen, processor.image_mean, processor.image_std, mask_ratio)
        done += len(read)


def mean_colour(patches: Tensor, mask: Tensor, num_channels: int) -> Tensor:
    """Every patch in the visible patches' mean colour, `(B, n, P)`.

    Args:
        patches: `(B, n, P)` in the order (row, column, channel).
        mask: `(B, n)` bool, true where masked; every image has a visible patch.
    """
    colours = patches.unflatten(-1, (-1, num_channels)).mean(2)
    visible = (~mask).to(patches)[..., None]
    mean = (colours * visible).sum(1) / visible.sum(1)
    return mean.repeat(1, patches.shape[-1] // num_channels)[:, None].expand_as(patches)


def nearest_visible(patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Every patch as the visible patch nearest to it on the grid (Euclidean, in patches), the mean of several.

    Args:
        patches: `(B, n, P)`; as is the result, in which visible patches are themselves.
        mask: `(B, n)` bool, true where masked; every image has a visible patch.
        grid: rows and columns, n in all.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1)
    distance = (places[:, None] - places[None]).square().sum(-1)  # whole numbers: ties are exact
    reachable = torch.where(mask[:, None], distance.max() + 1, distance[None])
    weights = (reachable == reachable.amin(-1, keepdim=True)).to(patches)
    return weights @ patches / weights.sum(-1, keepdim=True)


def _predict(
    model: Any, pixel_values: Tensor, noise: Tensor, mask_ratio: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Original patches and predicted ones in the same units, `(B, n, P)` float64, and the mask `(B, n)`, on the CPU."""
    needed = (len(pixel_values), math.prod(grid_of(model, pixel_values)))
    if noise.shape != needed:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; these images need {needed} (images, patches)")
    pixels = place(pixel_values, model)
    with masking(model, mask_ratio), evaluating(model):
        outputs = model(pixel_values=pixels, noise=noise.to(pixels.device))
    target = model.patchify(pixel_values.detach().to("cpu", torch.float64))
    predicted = outputs.logits.to("cpu", torch.float64)
    if not predicted.isfinite().all():
        raise ValueError("model: gives pixels that are not finite; its weights are damaged or training diverged")
    if model.config.norm_pix_loss:
        predicted = _give_moments(predicted, target)
    return target, predicted, outputs.mask.cpu().bool()


def _give_moments(standardised: Tensor, patches: Tensor) -> Tensor:
    """Standardised patches with the (unbiased) deviation and the mean of others, the inverse of `norm_pix_loss`."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return standardised * (variance + _STANDARDISED_FLOOR).sqrt() + mean


def _standardise(patches: Tensor) -> Tensor:
    """Patches as `norm_pix_loss` compares them."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + _STANDARDISED_FLOOR).sqrt()


def _errors(
    model: PreTrainedModel, target: Tensor, predicted: Tensor, mask: Tensor, grid: tuple[int, int]
) -> MaskedPatchErrors | None:
    if not mask.any(1).all() or mask.all(1).any():
        return None
    colour, nearest = mean_colour(target, mask, model.config.num_channels), nearest_visible(target, mask, grid)
    if model.config.norm_pix_loss:  # with the model's help: a flat patch of the true mean; a copy's structure
        colour = target.mean(-1, keepdim=True).expand_as(target)
        nearest = _give_moments(_standardise(nearest), target)
    each = [(patches - target).square().mean(-1) for patches in (predicted, colour, nearest)]
    model_error, colour_error, nearest_error = ((one * mask).sum(1) / mask.sum(1) for one in each)
    return MaskedPatchErrors(model_error, colour_error, nearest_error, mask)


def _pixels(mask: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The mask of patches `(B, n)` for every pixel, `(B, 1, H, W)`."""
    per_patch = mask.unflatten(1, grid)[:, None]
    height, width = size[0] // grid[0], size[1] // grid[1]
    return per_patch.repeat_interleave(height, 2).repeat_interleave(width, 3)
