"""Class-agnostic average precision of masks or boxes by COCO's rules, with intervals over images.

What pycocotools' COCOeval computes with `useCats = 0`, all areas and 100 detections per image; a test compares them. It
is here once more because an interval needs the matches of every image, and COCOeval keeps images unique. Detections of
equal score keep their order, so that a constant score makes the result depend on it: images by id, then stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...stats.intervals import Interval, bootstrap_statistic
from .arrays import Array
from .boxes import box_areas, box_overlaps

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
DETECTIONS = 100
NAMES = ("AP50", "AP75", "AP")
_COLUMNS = (0, 5)  # of AP50 and AP75 in THRESHOLDS


@dataclass(frozen=True)
class ImageMatches:
    """The D detections of an image, by descending score, at T thresholds of IoU.

    Attributes:
        scores: float64 `(D)`.
        hits: bool `(T, D)`, those that found an instance.
        ignored: bool `(T, D)`, those that found a crowd: neither right nor wrong.
        instances: the true instances without crowds.
    """

    scores: Array
    hits: Array
    ignored: Array
    instances: int


def match_image(ious: Array, scores: Sequence[float] | Array, crowd: Sequence[bool] | Array) -> ImageMatches:
    """Give every detection, best score first, the free instance of largest IoU; crowds take what is left.

    Args:
        ious: (D, G) of `mask_ious` or `crowd_box_ious`.
        scores: (D).
        crowd: (G), whether an instance is a crowd.

    Raises:
        ValueError: the shapes do not fit, or a score is NaN.
    """
    scores, crowd = np.asarray(scores, dtype=np.float64), np.asarray(crowd, dtype=bool)
    ious = np.asarray(ious, dtype=np.float64).reshape(len(scores), len(crowd))
    if np.isnan(scores).any():
        raise ValueError("scores: hold NaN; give every mask a number, such as 1.0")
    order = np.argsort(-scores, kind="stable")[:DETECTIONS]
    columns = np.argsort(crowd, kind="stable")
    ious, crowd = ious[np.ix_(order, columns)], crowd[columns]
    hits, ignored = np.zeros((2, len(THRESHOLDS), len(order)), dtype=bool)
    for row, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(crowd), dtype=bool)
        for detection, values in enumerate(ious):
            found = _best(values, free, crowd, threshold)
            if found is not None:
                free[found] = crowd[found]  # a crowd may be found again
                hits[row, detection], ignored[row, detection] = not crowd[found], crowd[found]
    return ImageMatches(scores[order], hits, ignored, int((~crowd).sum()))


def average_precision(images: Sequence[ImageMatches]) -> Array:
    """AP50, AP75 and AP, the mean over IoU 0.50, 0.55 … 0.95, of images in the order of their ids: float64 `(3)`.

    NaN where there are no instances.
    """
    instances = sum(one.instances for one in images)
    if not instances:
        return np.full(3, np.nan)
    scores = np.concatenate([one.scores for one in images])
    order = np.argsort(-scores, kind="stable")
    hits, ignored = (np.concatenate([getattr(one, name) for one in images], 1) for name in ("hits", "ignored"))
    if not hits.any():
        return np.zeros(3)
    hits, ignored = hits[:, order], ignored[:, order]
    right = hits.cumsum(1, dtype=np.float64)
    wrong = (~hits & ~ignored).cumsum(1, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.pad(precision, ((0, 0), (0, 1)))  # recalls that are not reached have precision 0
    places = [np.searchsorted(row, RECALLS, side="left") for row in right / instances]
    each = np.array([row[place].mean() for row, place in zip(padded, places)])
    return np.array([*each[list(_COLUMNS)], each.mean()])


def average_precision_interval(
    images: Sequence[ImageMatches], level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """`average_precision` with a percentile bootstrap interval over images; tensors of shape `(3)`."""

    def statistic(draws: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(average_precision([images[index] for index in draws.sort().values.tolist()]))

    return bootstrap_statistic(statistic, len(images), level=level, resamples=resamples, seed=seed)


def mask_ious(masks: Array, truths: Array, crowd: Sequence[bool] | Array) -> Array:
    """IoU of every mask `(D, H, W)` with every instance `(G, H, W)`, bool: float64 `(D, G)`.

    Of a crowd, the share of the mask that lies in it.
    """
    if masks.shape[1:] != truths.shape[1:]:
        raise ValueError(f"masks: of {masks.shape[1:]} pixels for instances of {truths.shape[1:]}; resize the masks")
    exact = np.float32 if masks[:1].size < 1 << 24 else np.float64  # sums of ones
    flat, true = (x.reshape(len(x), np.prod(x.shape[1:], dtype=int)).astype(exact) for x in (masks, truths))
    areas, inner = flat.sum(1, dtype=np.float64), (flat @ true.T).astype(np.float64)
    union = areas[:, None] + true.sum(1, dtype=np.float64)[None] - inner
    return _against_crowds(inner, union, areas, crowd)


def crowd_box_ious(boxes: Array, truths: Array, crowd: Sequence[bool] | Array) -> Array:
    """IoU of boxes `(D, 4)` with true boxes `(G, 4)`: float64 `(D, G)`; of a crowd, the share of the box in it."""
    inner, union = box_overlaps(boxes, truths)
    return _against_crowds(inner, union, box_areas(boxes), crowd)


def _against_crowds(inner: Array, union: Array, areas: Array, crowd: Sequence[bool] | Array) -> Array:
    below = np.where(np.asarray(crowd, dtype=bool)[None], areas[:, None], union)
    return np.divide(inner, below, out=np.zeros_like(inner), where=below > 0)


def _best(values: Array, free: Array, crowd: Array, threshold: float) -> int | None:
    """The free instance of largest IoU at or above the threshold, the last of equals; a crowd where there is none."""
    for kind in (~crowd, crowd):
        open_to = free & kind & (values >= min(threshold, 1 - 1e-10))
        if open_to.any():
            best = np.where(open_to, values, -1)
            return int(len(best) - 1 - best[::-1].argmax())
    return None
