"""Batches of inputs as every analysis reads them, and the evaluation mode it runs in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Batch = Tensor | Mapping[str, Tensor]
"""Pixel values `(B, C, H, W)`, or a mapping with `pixel_values` and perhaps `labels (B)`."""


def read_batches(batches: Iterable[Batch], num_images: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Yield each batch as a dict with `pixel_values` (and `labels` where there are any), in order.

    Args:
        batches: a DataLoader, a list, or anything else that yields batches.
        num_images: stop after this many images, cutting the last batch; `None` reads everything.

    Raises:
        ValueError: no images at all, a batch without images, or fewer images than `num_images`.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images={num_images}: must be at least 1, or None for all images")
    seen = 0
    for index, batch in enumerate(batches):
        fields = _fields(batch, index)
        if num_images is not None:
            fields = {name: value[: num_images - seen] for name, value in fields.items()}
        seen += len(fields["pixel_values"])
        yield fields
        if seen == num_images:
            return
    if seen == 0:
        raise ValueError("batches: no images in it; pass at least one batch of pixel values")
    if num_images is not None:
        raise ValueError(f"num_images={num_images}: only {seen} images there; ask for at most {seen}")


def _fields(batch: Batch, index: int) -> dict[str, Tensor]:
    """The known fields of one batch, checked."""
    if isinstance(batch, Tensor):
        batch = {"pixel_values": batch}
    if not isinstance(batch, Mapping) or "pixel_values" not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch {index}: got {got}; need a tensor or a mapping with 'pixel_values'")
    pixels = batch["pixel_values"]
    if pixels.ndim != 4 or len(pixels) == 0:
        raise ValueError(f"batch {index}: pixel_values of shape {tuple(pixels.shape)}; need (B, C, H, W) with B >= 1")
    return {name: batch[name] for name in ("pixel_values", "labels") if name in batch}


def place(pixel_values: Tensor, model: nn.Module) -> Tensor:
    """The pixel values on the model's device and in its dtype."""
    weight = next(model.parameters())
    return pixel_values.to(weight.device, weight.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
