"""A training split as a PyTorch dataset that is asked with `Draw`s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..draws import Draw, SampleGenerators
from ..options import Augmentation
from .augment import Augment, mixed, own_share
from .labelled import cells_of, label_names
from .tensors import IN_MEMORY_LIMIT, ImageTransform, chunks

_CHUNK_PIXELS = 1 << 18


class TrainingImages(TorchDataset):
    """Augmented, normalised and mixed images: one `Draw`, one dict.

    Items hold `pixel_values` float32 `(C, H, W)` and `labels`: an int64 scalar, or float32 `(num_classes,)` summing
    to 1 where the draw mixes. Without augmentation and mixing they are bit-equal to what the processor gives.
    Decoded images are kept as bytes up to `limit`: cropped and resized as for evaluation, or (for the resized crop)
    as they are; above it each is decoded on access.

    Raises:
        ValueError: as `ImageTransform` (for a split that is kept, here, before any training) and `Augment`; an
            image processor that does more than resize, crop, rescale and normalise 8-bit images.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: ImageTransform,
        augmentation: Augmentation | None = None,
        limit: int = IN_MEMORY_LIMIT,
    ) -> None:
        recipe = augmentation or Augmentation()
        self.dataset = dataset
        self.transform = transform
        self.num_classes = len(label_names(dataset))
        self.table = normalisation_table(transform)
        self.keeps_source = recipe.crop == "resized"
        image = transform.read(cells_of(dataset, [0])[0])
        self.shape = transform.pixels(image).shape
        _check_table(self.table, image, transform)
        fill = np.abs(self.table).argmin(axis=1).tolist()  # what normalises to 0, nearly: the mean colour
        self.augmentation = Augment(recipe, self.shape[1:], fill, transform.processor.resample)
        self.labels = np.asarray(dataset["label"][:], dtype=np.int64)
        self.kept = self._decode_all(limit)
        self._generators = SampleGenerators()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """The same items at once; an image that is also another's partner is decoded once."""
        rows: dict[tuple[int, int, int], int] = {}
        for draw in draws:
            rows.setdefault((draw.seed, draw.epoch, draw.index), len(rows))
            if draw.partner is not None:
                rows.setdefault((draw.seed, draw.epoch, draw.partner), len(rows))
        images = self._augmented(list(rows))
        if not any(draw.mix for draw in draws):
            labels = torch.from_numpy(self.labels[[draw.index for draw in draws]])
            order = [rows[draw.seed, draw.epoch, draw.index] for draw in draws]
            pixel_values = torch.from_numpy(images).unbind(0)
            return [{"pixel_values": pixel_values[row], "labels": label} for row, label in zip(order, labels.unbind(0))]
        return [self._finished(draw, images, rows) for draw in draws]

    def _finished(self, draw: Draw, images: np.ndarray, rows: dict[tuple[int, int, int], int]) -> dict[str, Tensor]:
        image = images[rows[draw.seed, draw.epoch, draw.index]]
        if draw.mix is None or draw.partner is None:
            return {"pixel_values": torch.from_numpy(image), "labels": torch.tensor(int(self.labels[draw.index]))}
        image = mixed(image, images[rows[draw.seed, draw.epoch, draw.partner]], draw.mix)
        return {"pixel_values": torch.from_numpy(image), "labels": torch.from_numpy(mixed_label(self, draw))}

    def _augmented(self, keys: list[tuple[int, int, int]]) -> np.ndarray:
        """Images of (seed, epoch, index), normalised and erased: float32 `(len(keys), C, H, W)`."""
        made = [self.augmentation(self._decoded(key[2]), self._generators(*key)) for key in keys]
        images = normalised(np.stack([pixels for pixels, _ in made]), self.table)
        for image, (_, erasing) in zip(images, made):
            if erasing:
                erasing.apply(image)
        return images

    def _decoded(self, index: int) -> np.ndarray | Image.Image:
        if self.kept is None:
            image = self.transform.read(cells_of(self.dataset, [index])[0])
            return image if self.keeps_source else self.transform.pixels(image)
        kept = self.kept[index]
        return Image.fromarray(kept) if self.keeps_source else kept

    def _decode_all(self, limit: int) -> list[np.ndarray] | np.ndarray | None:
        """All images decoded, or `None` as soon as they need more than `limit` bytes."""
        kept, size = [], 0
        if not self.keeps_source and len(self) * int(np.prod(self.shape)) > limit:
            return None
        for rows in chunks(len(self)):
            for cell in cells_of(self.dataset, rows):
                image = self.transform.read(cell)
                kept.append(np.asarray(image) if self.keeps_source else self.transform.pixels(image))
                size += kept[-1].nbytes
            if size > limit or size / len(kept) * len(self) > 2 * limit:
                return None
        return kept if self.keeps_source else np.stack(kept)


def mixed_label(images: TrainingImages, draw: Draw) -> np.ndarray:
    """The shares of the classes in a draw's image, float32 `(num_classes,)`, summing to 1."""
    shares = np.zeros(images.num_classes, np.float32)
    own = own_share(draw.mix, *images.shape[1:]) if draw.mix and draw.partner is not None else 1.0
    shares[images.labels[draw.index]] += np.float32(own)
    if draw.partner is not None:
        shares[images.labels[draw.partner]] += np.float32(1 - own)
    return shares


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
