"""Images with the noise that decides which of their patches a masked autoencoder does not see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..draws import FIXED_MASK_STREAM, MASK_STREAM, Draw, SampleGenerators
from .training import TrainingImages


class MaskedTrainingImages(TorchDataset):
    """Training images without labels: one `Draw`, one dict of `pixel_values (C, H, W)` and `noise (n)`.

    The noise follows from (seed, epoch, image) alone, on a stream of its own: pixels are the same with and without it.

    Args:
        images: made as for any task.
        num_patches: n of an image.
    """

    def __init__(self, images: TrainingImages, num_patches: int) -> None:
        self.images = images
        self.num_patches = num_patches
        self._generators = SampleGenerators(MASK_STREAM)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """The same items at once."""
        made = self.images.__getitems__(draws)
        return [
            {
                "pixel_values": one["pixel_values"],
                "noise": patch_order(self._generators(draw.seed, draw.epoch, draw.index), self.num_patches),
            }
            for one, draw in zip(made, draws)
        ]


class MaskedImages(TorchDataset):
    """Images of a fixed split in order, without labels, each with the same `noise (n)` in every run of every model.

    Args:
        images: a dataset with `pixel_values` that is asked with indices.
        num_patches: n of an image.
    """

    def __init__(self, images: TorchDataset, num_patches: int) -> None:
        self.images = images
        self.num_patches = num_patches
        self._generators = SampleGenerators(FIXED_MASK_STREAM)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = patch_order(self._generators(0, 0, index), self.num_patches)
        return {"pixel_values": self.images[index]["pixel_values"], "noise": noise}


def patch_order(generator: np.random.Generator, num_patches: int) -> Tensor:
    """Noise for one image, float32 `(n)`: the places 0 to n - 1 in random order, so that no two patches tie."""
    return torch.from_numpy(generator.permutation(num_patches).astype(np.float32))
