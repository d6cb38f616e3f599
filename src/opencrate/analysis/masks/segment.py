"""Masks of photographs from any vision model, without labels and without training for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..._files import shown
from ...configuration_crate import pair
from ...data.images.tensors import ImageTransform
from ...image_processing_crate import as_grey_or_colour
from ...store.saved import SavedModel, open_saved
from ..record.hooks import BlockHooks
from ..segmentation.arrays import Array, Grid
from ..segmentation.attention_masks import attention_masks, head_mean
from ..segmentation.maskcut import maskcut
from ..segmentation.pca import principal_components
from ..segmentation.refine import refine_alike
from ..segmentation.tokencut import tokencut
from .options import MaskOptions
from .overlap import check_stride
from .pictures import default_size, fitted_size, grid_of, prepared
from .views import TokenViews, check_tokens, token_views

MEAN = "mean of heads"
_PIXELS = 1 << 20  # of the picture by whose edges masks are refined
_Found = list[tuple[str, float | None, Array]]


@dataclass(frozen=True)
class Mask:
    """A mask of a picture.

    Attributes:
        label: what it is by its method: "object 2" (of the second cut), "head 5", "mean of heads", "foreground".
        score: 1 − λ₂ of its cut, large where the object has little in common with the rest; `None` without a cut.
        grid: bool `(rows, columns)`, as it was found, on a grid that covers the picture.
        pixels: bool `(height, width)`, at the picture's own size.
    """

    label: str
    score: float | None
    grid: Array
    pixels: Array


@dataclass(frozen=True)
class Segmented:
    """A picture and its masks.

    Attributes:
        masks: in the method's order; empty where nothing was found.
        maps: float32 `(K, rows, columns)`, every head's attention on a grid that covers the picture; `None` where it
            was not asked for.
        grid: rows and columns of the model's patches.
        size: height and width that the model read.
        layer: its number, from 1.
        looked_at_by: as in `TokenViews`.
    """

    masks: tuple[Mask, ...]
    maps: Array | None
    grid: Grid
    size: tuple[int, int]
    layer: int
    looked_at_by: str


@dataclass(frozen=True)
class Segmenter:
    """A model with its image processor, and what is asked for.

    Attributes:
        model: a vision model, as `token_views` takes it.
        transform: its own.
        options: of the masks.
        hooks: where the blocks of a model of an unknown type keep their states.
    """

    model: nn.Module
    transform: ImageTransform
    options: MaskOptions
    hooks: BlockHooks | None = None

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return pair(getattr(self.model, "config").patch_size)  # noqa: B009 (any module has it here)

    def size_of(self, picture: Image.Image) -> tuple[int, int]:
        """Height and width at which the model reads a picture.

        Raises:
            ValueError: a size or stride that does not fit, or that makes too many patches.
        """
        options = self.options
        edge = default_size(self.patch) if options.size is None else options.size
        size = fitted_size((picture.height, picture.width), edge, self.patch, options.square)
        stride = check_stride(options.stride, self.patch)
        check_tokens(grid_of(size, self.patch, stride), stride != self.patch)
        return size

    def __call__(self, pictures: Sequence[Image.Image], maps: bool = False, masks: bool = True) -> list[Segmented]:
        """Segment pictures that the model reads at one size, in one forward pass.

        Args:
            pictures: as `ImageTransform.read` gives them.
            maps: whether attention maps are recorded.
            masks: whether masks are made.
        """
        size = self.size_of(pictures[0])
        options = self.options
        view = token_views(
            self.model,
            torch.stack([prepared(picture, self.transform, size) for picture in pictures]),
            layer=options.layer,
            features=options.features,
            stride=options.stride,
            attention=maps or (masks and options.method == "attention"),
            hooks=self.hooks,
        )
        found = []
        for index, picture in enumerate(pictures):
            on_grid = _masks(view, index, options) if masks else []
            own = tuple(_at_size(*one, picture, options) for one in on_grid)
            looked = None if view.attention is None else view.covering(view.attention[index].numpy())
            found.append(Segmented(own, looked, view.grid, size, view.layer, view.looked_at_by))
        return found


def segment(
    model: str | os.PathLike | nn.Module | SavedModel,
    image: str | os.PathLike | Image.Image,
    method: str = "maskcut",
    *,
    processor: Any = None,
    layer: int = -1,
    features: str = "keys",
    size: int | None = None,
    square: bool = False,
    stride: int | None = None,
    refine: str = "guided",
    num_masks: int = 3,
    tau: float | None = None,
    rule: str = "mass:0.6",
    head: int | Literal["mean"] | None = None,
    threshold: float | None = None,
    published: bool = False,
    hooks: BlockHooks | None = None,
) -> list[dict[str, Any]]:
    """Masks of a picture, in the form of transformers' image-segmentation pipeline. The same call gives the same masks.

    Args:
        model: a saved folder or `hf://owner/name` of any CRATE or transformers vision model; what `open_saved` gave; or
            a loaded model with its `processor`.
        image: a file, or a PIL image. Its EXIF orientation is applied, and masks have the size of the upright picture.
        method: "maskcut" (up to `num_masks` objects), "tokencut" (one object), "attention" (one mask for each head, and
            one for their mean), or "pca" (foreground by the first principal component).
        processor: the image processor of a loaded model; only its mean and standard deviation are used.
        layer: from 1, or from the end.
        features: what is compared: "keys", "tokens" or "codes", see `token_views`.
        size: pixels of the shorter side as the model reads it, rounded to the patch; by default 480, or 60 patches
            where those are fewer pixels.
        square: both sides of that size, as in MaskCut's published code; the aspect is lost.
        stride: pixels from patch to patch, a divisor of the patch, for overlapping patches and finer masks.
        refine: "guided" (a filter that follows the picture's edges), "crf" (needs the package pydensecrf2) or "none".
            A mask that this would change beyond recognition (IoU below 0.5) is left as it was. Edges are those of the
            picture at no more than a million pixels.
        num_masks: cuts of MaskCut.
        tau: the cosine above which patches are alike, in the two cuts; by default the published 0.15 and 0.2.
        rule: of "attention": "mass:SHARE" or "entries:SHARE", what the mask keeps of the map; they differ.
        head: of "attention": one head's number from 1, or "mean"; by default all of them, then the mean.
        threshold: of "pca": on ⟨u₀, z⟩, in the features' unit; 0.5 by default.
        published: "maskcut" and "pca" with the differences of their published code, see `analysis.segmentation`.
        hooks: where the blocks of a model of an unknown type keep their states.

    Returns:
        One mapping for each mask: `score` (1 − λ₂ of the cut, `None` without one), `label`, and `mask`, a PIL image of
        mode `L` and the picture's size, 255 inside.

    Raises:
        ValueError: an argument outside its range; an image that cannot be read or is smaller than a patch; a model that
            reads texts, or one whose operator has no attention maps where they are needed; more than 20,000 patches.
        ImportError: `refine="crf"` without its package.
    """
    options = MaskOptions(
        method=method,
        layer=layer,
        features=features,
        size=size,
        square=square,
        stride=stride,
        refine=refine,
        num_masks=num_masks,
        tau=tau,
        rule=rule,
        head=head,
        threshold=threshold,
        published=published,
    )
    segmenter = _segmenter(model, processor, options, hooks)
    (found,) = segmenter([_picture(image, segmenter.transform)])
    return [
        {"score": one.score, "label": one.label, "mask": Image.fromarray(one.pixels.astype(np.uint8) * 255)}
        for one in found.masks
    ]


def segmenter_of(saved: SavedModel, options: MaskOptions) -> Segmenter:
    """The segmenter of a saved model.

    Raises:
        ValueError: a model that reads texts, or that has no image processor.
    """
    if saved.reads != "images":
        raise ValueError(f"{shown(saved.source)}: reads texts; masks need a model of images")
    return Segmenter(saved.model, saved.transform, options)


def _segmenter(model: Any, processor: Any, options: MaskOptions, hooks: BlockHooks | None) -> Segmenter:
    if not isinstance(model, nn.Module):
        saved = model if isinstance(model, SavedModel) else open_saved(model)
        found = segmenter_of(saved, options)
        transform = found.transform if processor is None else ImageTransform.for_model(saved.model.config, processor)
        return Segmenter(saved.model, transform, options, hooks)
    if processor is None:
        raise ValueError(
            f"processor=None: a loaded {type(model).__name__} does not say how its images are normalised; pass its "
            "image processor, or the folder in place of the model"
        )
    return Segmenter(model, ImageTransform.for_model(getattr(model, "config", None), processor), options, hooks)


def _picture(image: Any, transform: ImageTransform) -> Image.Image:
    """An image as the model's transform reads it."""
    if isinstance(image, (str, os.PathLike)):
        return transform.read({"path": str(Path(image).expanduser()), "bytes": None})
    if not isinstance(image, Image.Image):
        raise ValueError(f"image: {type(image).__name__}; give a file or a PIL image")
    picture = as_grey_or_colour(image, transform.num_channels)
    if picture.height < transform.smallest[0] or picture.width < transform.smallest[1]:
        raise ValueError(
            f"image: {picture.height}x{picture.width} pixels, smaller than a patch "
            f"({transform.smallest[0]}x{transform.smallest[1]}); give a larger image or a model with smaller patches"
        )
    return picture


def _masks(view: TokenViews, index: int, options: MaskOptions) -> _Found:
    """Label, score and mask of patches `(rows, columns)` by the method, those of one image of a batch."""
    features = view.features[index]
    if options.method == "maskcut":
        cuts = maskcut(
            features, view.grid, num_masks=options.num_masks, tau=options.cosine, published=options.published
        )
        found: _Found = [(f"object {cut.stage + 1}", cut.score, cut.mask) for cut in cuts]
    elif options.method == "tokencut":
        cut = tokencut(features, view.grid, tau=options.cosine)
        found = [("object", cut.score, cut.mask)]
    elif options.method == "pca":
        parts = principal_components(
            features, view.grid, threshold=options.threshold, published=options.published
        ).foreground
        found = [("foreground", None, part) for part in parts if part.any()]
    else:
        assert view.attention is not None
        found = [
            (label, None, attention_masks(row, options.rule)) for label, row in _heads(view.attention[index], options)
        ]
    return [(label, score, view.covering(mask.reshape(-1))) for label, score, mask in found]


def _heads(maps: Any, options: MaskOptions) -> list[tuple[str, Array]]:
    """The maps `(K, N)` that are asked for, with their names."""
    named = [(f"head {number}", row) for number, row in enumerate(maps.numpy(), 1)]
    if isinstance(options.head, int) and options.head > len(named):
        raise ValueError(f"head={options.head}: the layer has heads 1 to {len(named)}")
    named.append((MEAN, head_mean(maps)[0]))
    if options.head is None:
        return named
    return [named[-1 if options.head == "mean" else options.head - 1]]


def _at_size(label: str, score: float | None, grid: Array, picture: Image.Image, options: MaskOptions) -> Mask:
    """A mask at the picture's size."""
    small = _no_larger(picture)
    fine = refine_alike(grid, np.asarray(small.convert("RGB")), options.refine)
    if small is not picture:
        soft = Image.fromarray(fine.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
        fine = np.asarray(soft) >= 128
    return Mask(label, score, grid, fine)


def _no_larger(picture: Image.Image) -> Image.Image:
    """The picture, smaller where it has more pixels than masks are refined at."""
    scale = (_PIXELS / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR)
