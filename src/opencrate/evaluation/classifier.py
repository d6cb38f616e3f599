"""How well a classifier does: accuracy with its interval, loss, confusion, images per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data.images.tensors import ImageTransform
from ..store.saved import SavedModel
from .inputs import Batch, evaluating, place, read_batches, read_files

_Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on one labelled set of n images with C classes.

    Attributes:
        num_images: n.
        top1: fraction of images whose label has the largest logit.
        top5: fraction whose label is among the five largest; `None` for C <= 5.
        interval: 95 % Wilson score interval of `top1` (sampling of the images only, not of the training).
        loss: mean cross-entropy in nats per image.
        confusion: int64 `(C, C)`, rows true class, columns predicted class.
        labels: C class names.
        images_per_second: of the forward alone, the first batch left out where there are several.
    """

    num_images: int
    top1: float
    top5: float | None
    interval: tuple[float, float]
    loss: float
    confusion: Tensor
    labels: tuple[str, ...]
    images_per_second: float

    @property
    def num_correct(self) -> int:
        """Images whose label has the largest logit."""
        return int(self.confusion.diagonal().sum())

    @property
    def recall(self) -> Tensor:
        """Float64 `(C)`: the fraction of each true class that is found; NaN for a class without images."""
        counts = self.confusion.double()
        return counts.diagonal() / counts.sum(1)

    def to_dict(self) -> dict[str, object]:
        """The same as plain numbers and lists, for JSON."""
        return {
            "num_images": self.num_images,
            "top1": self.top1,
            "top5": self.top5,
            "top1_interval_95": list(self.interval),
            "loss": self.loss,
            "images_per_second": self.images_per_second,
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }


def wilson_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """95 % Wilson score interval of a fraction [Wilson 1927].

    Raises:
        ValueError: not 0 <= `num_correct` <= `num_images`, or no images.
    """
    if not 0 <= num_correct <= num_images or num_images == 0:
        raise ValueError(f"num_correct={num_correct}, num_images={num_images}: need 0 <= correct <= images > 0")
    n, fraction = num_images, num_correct / num_images
    centre = (fraction + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * (fraction * (1 - fraction) / n + _Z95**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate_classifier(
    model: nn.Module,
    batches: Iterable[Batch],
    id2label: Mapping[int, str] | None = None,
    *,
    num_images: int | None = None,
) -> Evaluation:
    """Evaluate any transformers image classifier; logits are read once and not kept.

    Args:
        model: anything called as `model(pixel_values=...)` that returns `.logits (B, C)`.
        batches: mappings with `pixel_values` and `labels (B)`.
        id2label: class names; the model's own where not given.
        num_images: use this many images; `None` uses all.

    Raises:
        ValueError: no images; a batch without labels; a label that is not a class; a logit that is not finite.
    """
    loss, top5, timings, confusion = 0.0, 0, [], torch.zeros(0, 0, dtype=torch.int64)
    for fields in read_batches(batches, num_images):
        if "labels" not in fields:
            raise ValueError("batches: a batch has no 'labels'; accuracy needs the true class of every image")
        with evaluating(model):
            logits, seconds = _timed_logits(model, place(fields["pixel_values"], model))
        logits, labels = logits.float().cpu(), fields["labels"].cpu()
        _check(logits, labels)
        classes = logits.shape[1]
        counts = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
        confusion = confusion + counts if len(confusion) else counts
        loss += cross_entropy(logits, labels, reduction="sum").item()
        if classes > 5:
            top5 += int((logits.topk(5).indices == labels[:, None]).sum())
        timings.append((len(labels), seconds))
    config: Any = model.config
    names = config.id2label if id2label is None else id2label
    count, classes, correct = int(confusion.sum()), len(confusion), int(confusion.diagonal().sum())
    timed = timings[1:] or timings  # the first call also sets up kernels and buffers
    return Evaluation(
        num_images=count,
        top1=correct / count,
        top5=top5 / count if classes > 5 else None,
        interval=wilson_interval(correct, count),
        loss=loss / count,
        confusion=confusion,
        labels=tuple(str(names.get(index, index)) for index in range(classes)),
        images_per_second=sum(size for size, _ in timed) / sum(seconds for _, seconds in timed),
    )


def _check(logits: Tensor, labels: Tensor) -> None:
    """Refuse labels `(B)` that are no classes, and logits `(B, C)` that are not finite."""
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels: {int(labels.min())} to {int(labels.max())}, but the model has {classes} classes "
            f"(0 to {classes - 1}); evaluate on the data it was trained for"
        )
    if not torch.isfinite(logits).all():
        raise ValueError("model: gives logits that are not finite; its weights are damaged or training diverged")


def _timed_logits(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, float]:
    """Logits and the seconds that the forward took, with the device waited for."""
    synchronize = torch.cuda.synchronize if pixel_values.is_cuda else (lambda: None)
    synchronize()
    start = time.perf_counter()
    logits = model(pixel_values=pixel_values).logits
    synchronize()
    return logits, time.perf_counter() - start


def predict(
    saved: SavedModel, files: Sequence[Path], *, top_k: int = 1, batch_size: int = 64, skipped: list[str] | None = None
) -> list[dict[str, Any]]:
    """Classify image files, `batch_size` at a time, by a saved classifier.

    Args:
        top_k: classes per image, at most all of them.
        skipped: takes the reasons for files that cannot be read; `None` raises them as `ValueError`.

    Returns:
        One dict per readable file: `file`, and `predictions`, each a `label` with its `probability`, the most probable
        first.
    """

    def logits_of(pixels: Tensor) -> Tensor:
        with evaluating(saved.model):
            return saved.model(pixel_values=place(pixels, saved.model)).logits

    options = {"top_k": top_k, "batch_size": batch_size, "skipped": skipped}
    return classify_files(logits_of, saved.transform, saved.label_names, files, **options)


def classify_files(
    logits_of: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    names: Sequence[str],
    files: Sequence[Path],
    *,
    top_k: int = 1,
    batch_size: int = 64,
    skipped: list[str] | None = None,
) -> list[dict[str, Any]]:
    """`predict` by any function from images `(B, C, H, W)` to logits `(B, classes)`; `names` are the classes'."""
    results = []
    for read, pixels in read_files(transform, files, batch_size, skipped):
        probabilities = logits_of(pixels).float().softmax(-1)
        values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
        for file, row, chosen in zip(read, values.tolist(), indices.tolist()):
            guesses = [{"label": names[i], "probability": value} for i, value in zip(chosen, row)]
            results.append({"file": str(file), "predictions": guesses})
    return results
