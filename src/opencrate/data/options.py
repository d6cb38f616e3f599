"""What data, and how it becomes tensors or tokens: plain values, without torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .._values import Amount, Pixels, Positive, Probability, Seed, Share, Within, shown_value
from .text.options import (
    TRAINED as TRAINED,
    GlueData as GlueData,
    TextData as TextData,
    check_text_data as check_text_data,
)

Shares = list[Annotated[float, Within(1e-12, 1)]]
Positives = list[Positive]


@dataclass(frozen=True)
class ImageData:
    """Which images, how they are split, and how they become tensors `(num_channels, height, width)`."""

    path: str = "digits"  # "digits", an image folder, parquet or IDX or CIFAR binary files, or hf://owner/name
    image_column: str | None = None  # null: the only image column
    label_column: str | None = None  # null: `label`, else the only ClassLabel column
    test_fraction: Share = 0.2  # stratified; used where the data has no test split of its own
    validation_fraction: Share = 0.0  # of the training part, stratified, for choices made during training
    split_seed: Seed = 0
    image_size: Pixels | list[Pixels] = 224  # pixels, or [height, width]
    resize_size: Pixels | None = None  # shortest edge before the centre crop; null: straight to image_size
    interpolation: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"  # of resizing
    num_channels: Annotated[int, Within(1, 4_096)] = 3
    image_mean: Annotated[list[float], Within(-1e6, 1e6)] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: Positives = field(default_factory=lambda: [0.229, 0.224, 0.225])
    keep_on: Literal["auto", "cpu", "device"] = "auto"  # where training images are made; auto: CUDA where they fit


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image after decoding; everything is keyed by (seed, epoch, sample)."""

    crop: Literal["none", "padded", "resized"] = "none"  # padded: pad, then crop; resized: random area and aspect
    crop_padding: Annotated[int, Within(0, 1_024)] = 4  # pixels, for padded
    crop_scale: Shares = field(default_factory=lambda: [0.08, 1.0])  # share of the area, for resized
    crop_ratio: Positives = field(default_factory=lambda: [0.75, 4 / 3])  # width / height, for resized
    flip: Probability = 0.0  # probability of a horizontal flip
    randaugment_ops: Annotated[int, Within(0, 100)] = 0  # operations per image; 0 is off
    randaugment_magnitude: Annotated[int, Within(0, 30)] = 9
    erasing: Probability = 0.0  # probability of random erasing
    mixup: Amount = 0.0  # alpha of the Beta distribution; 0 is off
    cutmix: Amount = 0.0  # alpha; with mixup too, each batch takes one of them with equal probability


@dataclass(frozen=True)
class Views:
    """How several views of an image are cut out and changed: DINO's defaults for ImageNet [arXiv 2104.14294].

    Global views have the size `data.image_size`. Saturation, hue and grey do nothing to images of one channel.
    """

    global_views: Annotated[int, Within(1, 100)] = 2
    local_views: Annotated[int, Within(0, 100)] = 8
    local_size: Pixels | list[Pixels] = 96  # pixels, or [height, width]: a multiple of the patch, at most image_size
    global_scale: Shares = field(default_factory=lambda: [0.4, 1.0])  # share of the image's area
    local_scale: Shares = field(default_factory=lambda: [0.05, 0.4])
    ratio: Positives = field(default_factory=lambda: [0.75, 4 / 3])  # width / height of what is cut out
    flip: Probability = 0.5  # probability of a horizontal flip
    jitter: Probability = 0.8  # probability that brightness, contrast, saturation and hue change, in random order
    jitter_strength: Annotated[list[float], Within(0, 10)] = field(default_factory=lambda: [0.4, 0.4, 0.2, 0.1])
    # of brightness, contrast and saturation s: a factor from max(0, 1 - s) to 1 + s; of hue h: -h to h turns
    grey: Probability = 0.2  # probability that colours become grey
    blur: Probability | list[Probability] = field(default_factory=lambda: [1.0, 0.1, 0.5])
    # probability in the first global view, the other global ones and the local ones; one number: in all; 0 is off
    blur_radius: Annotated[list[float], Within(0, 100)] = field(default_factory=lambda: [0.1, 2.0])  # pixels
    solarize: Probability = 0.2  # probability that bright values (from 128) are inverted, in the second global view


def check_view_lists(views: Views) -> None:
    """Refuse, by `ValueError`, lists of a wrong length or order, and a single view."""
    for name in ("global_scale", "local_scale", "ratio", "blur_radius"):
        limits = getattr(views, name)
        _require(len(limits) == 2 and limits[0] <= limits[1], views, name, "[least, most] with least <= most")
    size, strength, blur = views.local_size, views.jitter_strength, views.blur
    _require(isinstance(size, int) or len(size) == 2, views, "local_size", "pixels or [height, width]")
    fits = len(strength) == 4 and strength[3] <= 0.5
    _require(fits, views, "jitter_strength", "[brightness, contrast, saturation, hue] with hue <= 0.5 (half a turn)")
    fits = not isinstance(blur, list) or len(blur) == 3
    _require(fits, views, "blur", "one probability, or [first global view, other global views, local views]")
    more = "at least 1 where views.global_views is 1: an objective compares at least two views of an image"
    _require(views.global_views + views.local_views >= 2, views, "local_views", more)


def _require(fits: bool, views: Views, name: str, allowed: str) -> None:
    if not fits:
        raise ValueError(f"views.{name}={shown_value(getattr(views, name))}: must be {allowed}")
