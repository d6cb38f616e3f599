"""Decoded images that are kept as bytes, and the table that makes their 8-bit values a model's inputs."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from .labelled import cells_of
from .tensors import ImageTransform, chunks

_CHUNK_PIXELS = 1 << 18


class DecodedImages(TorchDataset):
    """The images of a split, decoded on access until `keep` has decoded all of them.

    Attributes:
        shape: `(C, H, W)` of an image that is cropped and resized as for evaluation.
        table: what the processor makes of each 8-bit value, float32 `(C, 256)`.
        keeps_source: whether `decoded` gives PIL images (`L` or `RGB`) as they are in the file, which is what a
            random crop is cut from; else uint8 arrays of `shape`.
        kept: the decoded images, or `None` where each is decoded on access.

    Raises:
        ValueError: as `ImageTransform`, of the first image; an image processor that does more than resize, crop,
            rescale and normalise 8-bit images.
    """

    kept: list[np.ndarray] | np.ndarray | None

    def __init__(self, dataset: Dataset, transform: ImageTransform, keeps_source: bool) -> None:
        self.dataset = dataset
        self.transform = transform
        self.keeps_source = keeps_source
        self.table = normalisation_table(transform)
        image = transform.read(cells_of(dataset, [0])[0])
        self.shape = transform.pixels(image).shape
        _check_table(self.table, image, transform)
        self.kept = None

    def __len__(self) -> int:
        return len(self.dataset)

    def decoded(self, index: int) -> np.ndarray | Image.Image:
        """One image; `ValueError` as `ImageTransform` where it is not kept."""
        if self.kept is None:
            image = self.transform.read(cells_of(self.dataset, [index])[0])
            return image if self.keeps_source else self.transform.pixels(image)
        kept = self.kept[index]
        return Image.fromarray(kept) if self.keeps_source else kept

    def keep(self, limit: int) -> None:
        """Decode all images and keep them, unless they need more than `limit` bytes; `ValueError` for a bad one."""
        kept, size = [], 0
        if not self.keeps_source and len(self) * int(np.prod(self.shape)) > limit:
            return
        for rows in chunks(len(self)):
            for cell in cells_of(self.dataset, rows):
                image = self.transform.read(cell)
                kept.append(np.asarray(image) if self.keeps_source else self.transform.pixels(image))
                size += kept[-1].nbytes
            if size > limit or size / len(kept) * len(self) > 2 * limit:
                return
        self.kept = kept if self.keeps_source else np.stack(kept)


def normalisation_table(transform: ImageTransform) -> np.ndarray:
    """What the processor makes of each 8-bit value, float32 `(C, 256)`: rescaled and normalised."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    ramp = ramp.convert("L" if transform.num_channels == 1 else "RGB")
    values = transform.processor(images=[ramp], do_resize=False, do_center_crop=False, return_tensors="np")
    return np.asarray(values["pixel_values"], np.float32).reshape(transform.num_channels, 256)


def normalised(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8 `(B, C, H, W)` through a table `(C, 256)`: float32 of the same shape."""
    out = np.empty(pixels.shape, np.float32)
    step = max(1, _CHUNK_PIXELS // max(1, pixels[0].size)) if len(pixels) else 1
    for start in range(0, len(pixels), step):
        for channel, values in enumerate(table):
            out[start : start + step, channel] = values.take(pixels[start : start + step, channel])
    return out


def _check_table(table: np.ndarray, image: Image.Image, transform: ImageTransform) -> None:
    pixels, expected = transform.pixels(image), transform.processor(images=[image], return_tensors="np")["pixel_values"]
    if pixels.dtype != np.uint8 or not np.array_equal(normalised(pixels[None], table), expected):
        raise ValueError(
            f"{type(transform.processor).__name__} does more than resize, crop, rescale and normalise 8-bit images, "
            "so training images cannot be made with it; use the processor that the recipe's data section describes"
        )
