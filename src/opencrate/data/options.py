"""What data, and how it becomes tensors or tokens: plain values, without torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .._values import Amount, Pixels, Positive, Probability, Seed, Share, Within
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
