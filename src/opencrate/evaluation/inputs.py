"""Batches of inputs as every analysis reads them, and the evaluation mode it runs in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.images.tensors import ImageTransform

Batch = Tensor | Mapping[str, Tensor]
"""Images `(B, C, H, W)` or token ids `(B, N)`, or a mapping with `pixel_values` or `input_ids` among its fields."""

_FIELDS = ("pixel_values", "input_ids", "attention_mask", "token_type_ids", "labels")
_SHAPES = {"pixel_values": (4, "(B, C, H, W)"), "input_ids": (2, "(B, N)")}


def read_batches(
    batches: Iterable[Batch], num_inputs: int | None = None, batch_size: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield each batch as a dict of its known fields (`pixel_values` or `input_ids`, `labels`, ...), in order.

    Args:
        num_inputs: stop after this many inputs, cutting the last batch; `None` reads everything.
        batch_size: cut larger batches into pieces of at most this many inputs.

    Raises:
        ValueError: no inputs, a batch without inputs or with a text of no tokens, or fewer inputs than `num_inputs`.
    """
    if num_inputs is not None and num_inputs < 1:
        raise ValueError(f"num_inputs={num_inputs}: must be at least 1, or None for all images")
    seen, fields = 0, {}
    for index, batch in enumerate(batches):
        fields = _fields(batch, index)
        if num_inputs is not None:
            fields = {name: value[: num_inputs - seen] for name, value in fields.items()}
        count = num_inputs_of(fields)
        seen += count
        size = batch_size or count
        for start in range(0, count, size):
            yield {name: value[start : start + size] for name, value in fields.items()}
        if seen == num_inputs:
            return
    if seen == 0:
        raise ValueError("batches: no images in it; pass at least one batch of pixel values or token ids")
    if num_inputs is not None:
        kind = "texts" if "input_ids" in fields else "images"
        raise ValueError(f"num_inputs={num_inputs}: only {seen} {kind} there; ask for at most {seen}")


def read_files(
    transform: ImageTransform, files: Sequence[Path], batch_size: int, skipped: list[str] | None = None
) -> Iterator[tuple[list[Path], Tensor]]:
    """Image files in batches, each with its `pixel_values (B, C, H, W)`.

    `skipped` takes the reasons for files that cannot be read; without it they are raised as `ValueError`.
    """
    for start in range(0, len(files), batch_size):
        images = []
        for file in files[start : start + batch_size]:
            try:
                images.append((file, transform([{"path": str(file), "bytes": None}])[0]))
            except ValueError as error:
                if skipped is None:
                    raise
                skipped.append(str(error))
        if images:
            yield [file for file, _ in images], torch.stack([pixels for _, pixels in images])


def num_inputs_of(fields: Mapping[str, Tensor]) -> int:
    """B, the images or texts in a batch that `read_batches` gave."""
    return len(fields["pixel_values"] if "pixel_values" in fields else fields["input_ids"])


def _fields(batch: Batch, index: int) -> dict[str, Tensor]:
    """The known fields of one batch, checked."""
    if isinstance(batch, Tensor):
        batch = {"pixel_values" if batch.is_floating_point() else "input_ids": batch}
    names = [name for name in _SHAPES if isinstance(batch, Mapping) and name in batch]
    if not names:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"batch {index}: got {got}; need a tensor or a mapping with 'pixel_values' or 'input_ids'")
    values, (dimensions, shape) = batch[names[0]], _SHAPES[names[0]]
    if values.ndim != dimensions or len(values) == 0:
        raise ValueError(f"batch {index}: {names[0]} of shape {tuple(values.shape)}; need {shape} with B >= 1")
    fields = {name: batch[name] for name in _FIELDS if name in batch}
    if "attention_mask" in fields and not fields["attention_mask"].bool().any(1).all():
        raise ValueError(f"batch {index}: a text has no tokens (its attention_mask is 0 everywhere); leave it out")
    return fields


def place(values: Tensor, model: nn.Module) -> Tensor:
    """The values on the model's device, and in its dtype unless they are whole numbers."""
    weight = next(model.parameters())
    return values.to(weight.device, weight.dtype if values.is_floating_point() else None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def masking(model: PreTrainedModel, ratio: float | None) -> Iterator[None]:
    """The model with another mask ratio, restored at the end; `None` leaves the model's own.

    Raises:
        ValueError: a ratio outside [0, 1).
    """
    if ratio is not None and not 0 <= ratio < 1:
        raise ValueError(f"mask_ratio={ratio:g}: must be at least 0 and less than 1")
    config = model.config
    own = {name: getattr(config, name) for name in ("mask_ratio", "loss_on") if hasattr(config, name)}
    # The forward refuses a loss on no patches; nobody reads the loss here.
    changed = own | {"mask_ratio": own["mask_ratio"] if ratio is None else float(ratio), "loss_on": "all"}
    try:
        config.update({name: changed[name] for name in own})
        yield
    finally:
        config.update(own)
