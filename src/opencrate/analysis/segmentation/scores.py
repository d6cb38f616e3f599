"""What the masks of one image are worth: of a model, of a floor, or of any other source.

The numbers of many images become means and average precisions, with intervals, in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...data.segmentation.truth import VOID, MaskedImage
from .arrays import Array, Grid
from .attention_masks import attention_masks, resized
from .average_precision import ImageMatches, crowd_box_ious, mask_ious, match_image
from .boxes import mask_box, scaled_box
from .maskcut import maskcut
from .metrics import corloc, head_ious, iou, nearest_labels
from .refine import refine_alike
from .tokencut import tokencut

RULES = ("entries:0.6", "mass:0.6")
PLACES = ("pixels", "grid")
"""Where attention's masks meet the truth: at the image's size, or on the grid of patches as in the paper."""
METHODS = ("TokenCut", "MaskCut")
"""What finds one object; of MaskCut it is the first mask."""
CONSTANT, BY_CUT = "score 1", "score by cut"
"""How the masks of an image are ranked against those of the others: not at all, or by 1 − λ₂ of their cuts."""


@dataclass(frozen=True)
class ScoreOptions:
    """How masks are made of features and attention.

    Attributes:
        rules: of attention masks, as `attention_masks`.
        num_masks, tau: of MaskCut; TokenCut has its own τ.
        refine: `guided`, `crf` or `none`.
    """

    rules: tuple[str, ...] = RULES
    num_masks: int = 3
    tau: float = 0.15
    refine: str = "guided"


DEFAULTS = ScoreOptions()


@dataclass(frozen=True)
class Views:
    """What a model sees in one image.

    Attributes:
        features: (N, d), one row for each patch, row by row.
        attention: (K, N), the class token's attention to the patches; `None` where there is none.
        grid: rows and columns.
        cover: lays values `(..., N)` out on a grid `(..., rows, columns)` that covers the whole image; `None` where
            the patches do.
    """

    features: Array
    attention: Array | None
    grid: Grid
    cover: Callable[[Array], Array] | None = None

    def covering(self, values: Array) -> Array:
        """Values `(..., N)` on a grid that covers the whole image."""
        return values.reshape(*values.shape[:-1], *self.grid) if self.cover is None else self.cover(values)


@dataclass(frozen=True)
class ImageScores:
    """The numbers of one image.

    Attributes:
        heads: by rule and place, such as `("mass:0.6", "pixels")`, the classes present `(C)` and the IoU `(C, K)` of
            every head's mask with them.
        corloc: by method, 1 where its box finds an object, else 0; NaN where the image holds none.
        jaccard: by method, the IoU of its mask with everything that is not background; NaN where the image holds no
            object.
        matches: by kind (`box`, `mask`) and ranking.
        masks: for pictures, at the image's size: bool `(D, H, W)` of MaskCut.
    """

    heads: Mapping[tuple[str, str], tuple[Array, Array]] = field(default_factory=dict)
    corloc: Mapping[str, float] = field(default_factory=dict)
    jaccard: Mapping[str, float] = field(default_factory=dict)
    matches: Mapping[tuple[str, str], ImageMatches] = field(default_factory=dict)
    masks: Array | None = None


def score_views(views: Views, truth: MaskedImage, options: ScoreOptions = DEFAULTS) -> ImageScores:
    """The numbers of a model's attention maps, of TokenCut and of MaskCut on its features.

    Raises:
        ValueError: what the functions of this folder refuse.
        ArithmeticError: an eigenvector was not found.
    """
    heads = {} if views.attention is None else score_maps(views, truth, options.rules)
    found = tokencut(views.features, views.grid)
    cuts = maskcut(views.features, views.grid, num_masks=options.num_masks, tau=options.tau)
    picture = np.asarray(truth.picture)
    single, *others = (views.covering(mask.ravel()) for mask in (found.mask, *(cut.mask for cut in cuts)))
    fine = [refine_alike(mask, picture, options.refine) for mask in others]
    masks = np.array(fine, dtype=bool).reshape(-1, *truth.size)
    ones: dict[str, tuple[Array | None, Array]] = {"TokenCut": (single, refine_alike(single, picture, options.refine))}
    ones["MaskCut"] = (others[0], masks[0]) if others else (None, np.zeros(truth.size, dtype=bool))
    return ImageScores(
        heads,
        {name: _found(_box(coarse, truth), truth) for name, (coarse, _) in ones.items()},
        {name: _object_iou(mask, truth) for name, (_, mask) in ones.items()},
        score_detections(masks, [cut.score for cut in cuts], truth),
        masks,
    )


def score_maps(views: Views, truth: MaskedImage, rules: Sequence[str] = RULES) -> dict:
    """`ImageScores.heads` of attention maps `(K, N)`."""
    assert views.attention is not None
    found = {}
    for rule in rules:
        masks = views.covering(attention_masks(views.attention, rule))
        grid = masks.shape[1:]
        large = resized(masks.reshape(len(masks), -1), grid, truth.size)
        found[rule, "pixels"] = head_ious(large, truth.labels, VOID)
        found[rule, "grid"] = head_ious(masks, nearest_labels(truth.labels, grid), VOID)
    return found


def score_mask(mask: Array, small: Array, truth: MaskedImage, rules: Sequence[str] = RULES) -> ImageScores:
    """The numbers of one mask that stands for a head, for an object and for a detection: a floor.

    Args:
        mask: bool, at the image's size.
        small: bool, on the grid of patches.
        truth: the image.
        rules: those that attention is measured by; the mask is the same for all.
    """
    large = head_ious(mask[None], truth.labels, VOID)
    coarse = head_ious(small[None], nearest_labels(truth.labels, small.shape), VOID)
    value, hit = _object_iou(mask, truth), _found(mask_box(mask), truth)
    return ImageScores(
        {(rule, place): part for rule in rules for place, part in zip(PLACES, (large, coarse))},
        dict.fromkeys(METHODS, hit),
        dict.fromkeys(METHODS, value),
        score_detections(mask[None], [1.0], truth),
    )


def score_detections(masks: Array, scores: Sequence[float], truth: MaskedImage) -> dict:
    """`ImageScores.matches` of masks `(D, H, W)` in the order of their stages."""
    boxes = [mask_box(mask) for mask in masks]
    kept = [index for index, box in enumerate(boxes) if box is not None]
    masks, ranked = masks[kept], [scores[index] for index in kept]
    found = np.array([boxes[index] for index in kept], dtype=np.float64).reshape(-1, 4)
    ious = {
        "box": crowd_box_ious(found, truth.instance_boxes, truth.crowd),
        "mask": mask_ious(masks, truth.instances, truth.crowd),
    }
    rankings = {CONSTANT: [1.0] * len(kept), BY_CUT: ranked}
    return {
        (kind, ranking): match_image(values, given, truth.crowd)
        for kind, values in ious.items()
        for ranking, given in rankings.items()
    }


def _box(mask: Array | None, truth: MaskedImage) -> tuple[float, float, float, float] | None:
    """The box of a mask on a grid that covers the image, in pixels."""
    box = None if mask is None else mask_box(mask)
    return None if box is None or mask is None else scaled_box(box, mask.shape, truth.size)


def _object_iou(mask: Array, truth: MaskedImage) -> float:
    """The IoU with everything that is not background; NaN where there is nothing else."""
    return float("nan") if truth.empty else iou(mask, truth.foreground, truth.void)


def _found(box: Sequence[float] | None, truth: MaskedImage) -> float:
    return float(corloc(box, truth.boxes)) if len(truth.boxes) else float("nan")
