"""A training split as a PyTorch dataset that is asked with `Draw`s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..draws import Draw, SampleGenerators
from ..options import Augmentation
from .augment import Augment, mixed, own_share
from .decoded import DecodedImages, normalised
from .labelled import label_names
from .tensors import IN_MEMORY_LIMIT, ImageTransform


class TrainingImages(DecodedImages):
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
        super().__init__(dataset, transform, keeps_source=recipe.crop == "resized")
        fill = np.abs(self.table).argmin(axis=1).tolist()  # what normalises to 0, nearly: the mean colour
        self.augmentation = Augment(recipe, self.shape[1:], fill, transform.processor.resample)
        self.num_classes = len(label_names(dataset))
        self.labels = np.asarray(dataset["label"][:], dtype=np.int64)
        self.keep(limit)
        self._generators = SampleGenerators()

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
        made = [self.augmentation(self.decoded(key[2]), self._generators(*key)) for key in keys]
        images = normalised(np.stack([pixels for pixels, _ in made]), self.table)
        for image, (_, erasing) in zip(images, made):
            if erasing:
                erasing.apply(image)
        return images


def mixed_label(images: TrainingImages, draw: Draw) -> np.ndarray:
    """The shares of the classes in a draw's image, float32 `(num_classes,)`, summing to 1."""
    shares = np.zeros(images.num_classes, np.float32)
    own = own_share(draw.mix, *images.shape[1:]) if draw.mix and draw.partner is not None else 1.0
    shares[images.labels[draw.index]] += np.float32(own)
    if draw.partner is not None:
        shares[images.labels[draw.partner]] += np.float32(1 - own)
    return shares
