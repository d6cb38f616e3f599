"""Where the class token looks: its row of every head's softmax map, laid out on the patch grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...evaluation.inputs import Batch, read_batches
from ...evaluation.reconstruction import grid_of
from .states import record


@dataclass(frozen=True)
class AttentionMaps:
    """The class token's attention to the patches, for M images.

    Attributes:
        images: float32 `(M, C, H, W)` in [0, 1], to be shown beside the maps.
        maps: float32 `(M, L, K, rows, columns)`; a map and what the class token gives itself sum to 1.
        titles: M lines, what each image is.
    """

    images: Tensor
    maps: Tensor
    titles: tuple[str, ...]


def attention_maps(
    model: Any,
    batches: Iterable[Batch],
    *,
    num_images: int = 4,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> AttentionMaps:
    """Record the class token's attention for the first images.

    Args:
        model: a CRATE classifier.
        batches: mappings with `pixel_values`; `labels` add the true class to the titles.
        num_images: M.
        image_mean, image_std: per channel, what the processor subtracted and divided by, to show the image as it was.
            Without both, each image is stretched to [0, 1].

    Raises:
        ValueError: no images, or fewer than `num_images`.
    """
    chosen = list(read_batches(batches, num_images))
    states = list(record(model, chosen, attentions=True, batch_size=num_images))
    rows = [torch.stack([a[:, :, 0, 1:] for a in s.attentions or ()], dim=1) for s in states]
    maps = torch.cat(rows).float().cpu().unflatten(-1, grid_of(model, chosen[0]["pixel_values"]))
    pixels = torch.cat([fields["pixel_values"] for fields in chosen]).float().cpu()
    names = model.config.id2label
    titles = [_title(names, f.get("labels"), s.logits, i) for f, s in zip(chosen, states) for i in range(s.num_inputs)]
    return AttentionMaps(displayable(pixels, image_mean, image_std), maps, tuple(titles))


def displayable(pixels: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Pixels in [0, 1]: normalisation undone where it is known, else stretched image by image."""
    if mean is not None and std is not None:
        scale, shift = (torch.tensor(list(v), dtype=pixels.dtype).view(1, -1, 1, 1) for v in (std, mean))
        return (pixels * scale + shift).clamp(0, 1)
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    return (pixels - low) / (high - low).clamp_min(1e-12)


def _title(names: Mapping[int, str], labels: Tensor | None, logits: Tensor | None, index: int) -> str:
    """What image `index` of a batch is and what the model says, in class names."""
    parts = []
    if labels is not None:
        parts.append(f"is {names.get(int(labels[index]), int(labels[index]))}")
    if logits is not None:
        guess = int(logits[index].argmax())
        parts.append(f"said {names.get(guess, guess)}")
    return ", ".join(parts)
