"""Part of a model's page: attention at a higher resolution, and MaskCut, on its first images."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..analysis.masks.evaluate import ViewOptions, viewer
from ..analysis.record.attention import displayable
from ..analysis.record.hooks import KNOWN_MODELS
from ..analysis.segmentation.maskcut import maskcut
from ..analysis.segmentation.refine import refine
from ..analysis.segmentation.scores import Views
from ..configuration_crate import pair
from ..data.images.tensors import to_image
from ..evaluation.inputs import Batch
from ..store.saved import SavedModel
from .html import HOW, Figure, Part
from .layers import CRATES
from .segmentation import overlay, plot_heads
from .segmentation_figures import file_name, plot_rows

TITLE = "Masks from tokens and attention"
_IMAGES, _PATCHES, _HEADS = 3, 24, 12


def masks_part(saved: SavedModel, name: str, batches: Iterable[Batch]) -> Part | None:
    """What the last layer sees of the first images, enlarged; `None` for a model of texts, or of an unknown type.

    A model of which no masks can be made gets a part that says why.
    """
    if saved.reads != "images" or saved.model.config.model_type not in (*CRATES, *KNOWN_MODELS):
        return None
    title = f"{TITLE}: {name}"
    try:
        return Part(title, *_content(saved, name, batches))
    except (ValueError, ArithmeticError) as error:
        return Part(title, (f"No masks of {name}: {error}.",), folded=True)


def _content(saved: SavedModel, name: str, batches: Iterable[Batch]) -> tuple[tuple[str, ...], tuple[Figure, ...]]:
    given: Iterable[Any] = batches
    images = (image for batch in given for image in batch["pixel_values"])
    pixels = torch.stack([*islice(images, _IMAGES)]).float().cpu()
    mean, std = (getattr(saved.processor, field, None) for field in ("image_mean", "image_std"))
    arrays = (displayable(pixels, mean, std).numpy() * 255).round().astype(np.uint8)
    patch = pair(getattr(saved.model, "crate", saved.model).config.patch_size)
    size = _PATCHES * max(patch)
    view = viewer(saved, saved.model, ViewOptions(size=size))
    pictures = [_enlarged(to_image(one), size) for one in arrays]
    views = [view(picture) for picture in pictures]
    rows = [_row(picture, one) for picture, one in zip(pictures, views)]
    looks = views[0].attention is not None
    titles = ["image", "MaskCut", *(["attention, mean of heads"] if looks else [])]
    how = (
        f"The first images as the model reads them, enlarged to {_PATCHES} patches along the shorter side; MaskCut on "
        "the keys of the last layer, at most three cuts, refined along the picture's edges."
    )
    folded = (_heads(pictures, views, name),) if looks else ()
    alt = "The first images, MaskCut's masks in colour, and the mean of the heads' attention"
    key = f"masks-{file_name(name)}"
    figure = Figure(key, f"Last layer: {name}", plot_rows(rows, titles), alt, {HOW: how}, folded)
    sentences = ["Objects may stand out here without having been asked for; how well, against floors, is for "]
    sentences[0] += "`opencrate evaluate-segmentation` to say, on images with true masks."
    if not looks:
        sentences.append(f"{name} has no attention maps: its operator makes none.")
    return tuple(sentences), (figure,)


def _row(picture: Image.Image, views: Views) -> list[Any]:
    pixels = np.asarray(picture.convert("RGB"))
    cuts = maskcut(views.features, views.grid)
    masks = [refine(views.covering(cut.mask.ravel()), pixels, "guided") for cut in cuts]
    first: list[Any] = [picture.convert("RGB"), overlay(picture, masks)]
    return first if views.attention is None else [*first, views.covering(views.attention.mean(0))]


def _heads(pictures: list[Image.Image], views: list[Views], name: str) -> Figure:
    """Every head of every image, at most twelve."""
    rows = []
    for number, (picture, one) in enumerate(zip(pictures, views), 1):
        assert one.attention is not None
        rows.append((f"image {number}", picture, one.covering(one.attention[:_HEADS])))
    alt = "The class token's attention in every head of the last layer"
    return Figure(f"masks-heads-{file_name(name)}", "Every head", plot_heads(rows), alt)


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose shorter side has as many pixels."""
    scale = side / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
