"""A masked autoencoder on held-out images: its error on the masked patches against two ways of copying, with PSNR."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..stats.intervals import bootstrap_mean
from .image_quality import psnr
from .reconstruction import reconstruct

MOST_PSNR = 100.0
"""dB; what a picture given back without any error counts as, so that means stay finite."""

_ERRORS = ("model", "mean_colour", "nearest_visible")


@dataclass(frozen=True)
class MaskedEvaluation:
    """Mean over images of each measure, with its 95 % bootstrap interval over images.

    Attributes:
        num_images: n.
        patches, masked_patches: of an image, and how many of them were masked.
        mean_std_known: errors and pictures were given the true mean and deviation of every patch (`norm_pix_loss`),
            those of the baselines too.
        measures: name -> (mean, low, high). `error_<what>`: squared error on the masked patches, in squared units of
            `pixel_values`, of "model", "mean_colour" and "nearest_visible"; `below_<baseline>`: the baseline's error
            minus the model's, paired by image; `psnr`, `psnr_pasted`, `psnr_masked`: dB, see
            `reconstruction.QUALITY`. Where no patch is masked, `psnr` alone.
    """

    num_images: int
    patches: int
    masked_patches: int
    mean_std_known: bool
    measures: dict[str, tuple[float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for JSON."""
        plain = {name: {"mean": mean, "interval": [low, high]} for name, (mean, low, high) in self.measures.items()}
        names = ("num_images", "patches", "masked_patches", "mean_std_known")
        return {name: getattr(self, name) for name in names} | plain


def evaluate_autoencoder(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> MaskedEvaluation:
    """Reconstruct every image once under the noise that comes with it; `ValueError` as `reconstruct`.

    Args:
        batches: mappings with `pixel_values (B, C, H, W)` and `noise (B, n)`.
        image_mean, image_std: per channel, what the processor subtracted and divided by.
    """
    rows: list[dict[str, Tensor]] = []
    for batch in batches:
        found = reconstruct(model, batch["pixel_values"], batch["noise"], image_mean, image_std)
        rows.append({"psnr": psnr(found.predicted, found.original)})
        if found.errors is not None:
            rows[-1] |= {f"error_{name}": getattr(found.errors, name) for name in _ERRORS}
            rows[-1]["psnr_pasted"] = psnr(found.pasted, found.original)
            rows[-1]["psnr_masked"] = psnr(found.pasted, found.original, found.where)
        mask, known = found.mask, found.mean_std_known
    values = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    values |= {name: each.clamp(max=MOST_PSNR) for name, each in values.items() if name.startswith("psnr")}
    for name in _ERRORS[1:] if "error_model" in values else ():
        values[f"below_{name}"] = values[f"error_{name}"] - values["error_model"]
    spread = bootstrap_mean(torch.stack(list(values.values()), dim=1))
    bounds = torch.stack((spread.mean, spread.low, spread.high), dim=1).tolist()
    measures = {name: tuple(row) for name, row in zip(values, bounds)}
    return MaskedEvaluation(len(values["psnr"]), mask.shape[1], int(mask[0].sum()), known, measures)
