"""How good masks are: IoU, mIoU of attention heads, CorLoc, J of video frames; and choices made on other images.

Every function returns numbers per image (or per sequence), for `opencrate.stats` to average with an interval. The unit
of the interval is the image; of video frames it is the sequence, whose frames are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .arrays import Array, as_array, as_mask
from .boxes import Box, box_ious

VOID = 255
"""The label of pixels that count for nothing, in VOC's and DAVIS's files."""
BACKGROUND = 0


def iou(mask: Tensor | Array, truth: Tensor | Array, void: Tensor | Array | None = None) -> float:
    """Intersection over union of two masks, pixels of `void` left out of both; 1 where both are empty.

    Args:
        mask, truth: (height, width); what is not 0 is inside.
        void: the same shape, True where nothing is known.

    Raises:
        ValueError: the shapes differ.
    """
    mask, truth = as_mask(mask), as_mask(truth, "truth")
    _same_shape("truth", truth, mask)
    if void is not None:
        known = ~as_mask(void, "void")
        _same_shape("void", known, mask)
        mask, truth = mask & known, truth & known
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 1.0


def head_ious(masks: Tensor | Array, labels: Tensor | Array, void: int = VOID) -> tuple[Array, Array]:
    """IoU of every head's mask with every class that is in an image, the background left out.

    Args:
        masks: bool (K, height, width), one for each head; on the grid of tokens or at the image's size.
        labels: int (height, width): 0 for the background, `void` where nothing is known; on the grid by
            :func:`nearest_labels`.
        void: a label that is left out of both counts.

    Returns:
        The C classes present `(C)`, ascending, and IoU float64 `(C, K)`; C may be 0.

    Raises:
        ValueError: the shapes differ.
    """
    masks, labels = as_array(masks).astype(bool), as_array(labels)
    if masks.ndim != 3 or labels.shape != masks.shape[1:]:
        raise ValueError(
            f"labels: shape {labels.shape} for masks {masks.shape}; need (height, width), (K, height, width)"
        )
    known = labels != void
    classes = np.setdiff1d(labels[known], [BACKGROUND])
    heads = masks[:, known].astype(np.float64)
    truths = (labels[known] == classes[:, None]).astype(np.float64)
    inner = truths @ heads.T
    union = truths.sum(1)[:, None] + heads.sum(1)[None] - inner
    return classes, inner / union


def nearest_labels(labels: Array, grid: tuple[int, int]) -> Array:
    """Labels `(height, width)` on a grid: of every place the pixel at its centre, rounded down."""
    labels = as_array(labels)
    rows, columns = (
        ((np.arange(places) + 0.5) * side / places).astype(int) for places, side in zip(grid, labels.shape)
    )
    return labels[np.ix_(rows, columns)]


@dataclass(frozen=True)
class HeadScores:
    """mIoU of M images that hold a class; images without one are left out.

    Attributes:
        images: int `(M)`, places of the images among those given.
        oracle: float64 `(M)`: the best head for every class by the ground truth, then the mean of the classes. It is
            what the paper reports, and grows with the number of heads whatever they show.
        chosen: float64 `(M)`: one head for all classes of an image, the best on the *other* images; NaN for one image.
        heads: int `(M)`, the head chosen; -1 for one image.
        each: float64 `(M, K)`: every head given.
    """

    images: Array
    oracle: Array
    chosen: Array
    heads: Array
    each: Array


def head_scores(ious: Sequence[Array], groups: Sequence | None = None) -> HeadScores:
    """mIoU per image from the IoU `(C, K)` of every image's classes and heads. [2308.16271, App. B.3]

    Args:
        ious: of every image what :func:`head_ious` returns; images without classes are left out.
        groups: one name for each image; images of a group, such as the frames of a sequence, choose no head for each
            other.

    Raises:
        ValueError: images with different numbers of heads, or none with a class.
    """
    images = [index for index, one in enumerate(ious) if len(one)]
    if not images or len({ious[index].shape[1] for index in images}) != 1:
        raise ValueError("ious: need (C, K) of one K, with C >= 1 for at least one image")
    each = np.stack([ious[index].mean(0) for index in images])
    oracle = np.array([ious[index].max(1).mean() for index in images])
    names = None if groups is None else [groups[index] for index in images]
    heads, chosen = choose_on_others(each, names)
    return HeadScores(np.array(images), oracle, chosen, heads, each)


def choose_on_others(scores: Array, groups: Sequence | None = None) -> tuple[Array, Array]:
    """For every image the option that is best on the other images, and its score on this one.

    Options are heads, layers, or the sizes of an ellipse: whatever is chosen must not be chosen on the image that it
    is scored on. Of equal options the first.

    Args:
        scores: (M, options), the larger the better.
        groups: one name for each image; all images of a group are left out together.

    Returns:
        The options, int `(M)`, and their scores, float64 `(M)`; -1 and NaN where there are no other images.
    """
    scores = np.asarray(scores, dtype=np.float64)
    names = np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if scores.ndim != 2 or len(names) != len(scores):
        raise ValueError(
            f"scores: shape {scores.shape} for {len(names)} groups; need (images, options), one group each"
        )
    options = np.full(len(scores), -1)
    for name in np.unique(names):
        others = scores[names != name]
        if len(others):
            options[names == name] = others.mean(0).argmax()
    found = np.where(options >= 0, scores[np.arange(len(scores)), options], np.nan)
    return options, found


def corloc(box: Box | Sequence[float] | None, truths: Array, least: float = 0.5) -> bool:
    """Whether an image's one box has IoU `least` or more with any true box `(G, 4)`; boxes as in `boxes`.

    The share of images with it is CorLoc. No box, or no true box, is a miss.
    """
    truths = np.asarray(truths, dtype=np.float64).reshape(-1, 4)
    return box is not None and len(truths) > 0 and bool(box_ious(np.array([box]), truths).max() >= least)


def by_sequence(values: Sequence[float] | Array, sequences: Sequence) -> tuple[list, Array]:
    """The mean of each sequence's frames, as DAVIS's J has it: names in the order of appearance, float64 `(S)`.

    Args:
        values: (frames) or (frames, ...), such as the IoU of every frame.
        sequences: the name of every frame's sequence.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(sequences) or not len(values):
        raise ValueError(f"sequences: {len(sequences)} names for {len(values)} frames; give one for each, at least one")
    names = list(dict.fromkeys(sequences))
    owner = np.array([names.index(name) for name in sequences])
    return names, np.stack([values[owner == index].mean(0) for index in range(len(names))])


def _same_shape(name: str, array: Array, other: Array) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name}: shape {array.shape} is not the mask's, {other.shape}")
