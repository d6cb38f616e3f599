"""Images with the noise that decides which of their patches a masked autoencoder does not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..draws import FIXED_MASK_STREAM, MASK_STREAM, Draw, SampleGenerators


class _WithNoise(TorchDataset):
    """Images, with noise from a stream of its own in place of the labels."""

    stream: int

    def __init__(self, images: Any, num_patches: int) -> None:
        self.images = images
        self.num_patches = num_patches
        self._generators = SampleGenerators(self.stream)

    def __len__(self) -> int:
        return len(self.images)

    def _with_noise(self, item: dict[str, Tensor], *key: int) -> dict[str, Tensor]:
        noise = patch_order(self._generators(*key), self.num_patches)
        return {"pixel_values": item["pixel_values"], "noise": noise}


class MaskedTrainingImages(_WithNoise):
    """`TrainingImages` without labels: one `Draw`, one dict of `pixel_values (C, H, W)` and `noise (num_patches)`.

    The noise follows from (seed, epoch, image) alone: pixels are the same with and without it.
    """

    stream = MASK_STREAM

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """The same items at once."""
        made = self.images.__getitems__(draws)
        return [self._with_noise(one, draw.seed, draw.epoch, draw.index) for one, draw in zip(made, draws)]


class MaskedImages(_WithNoise):
    """Images of a fixed split by index, without labels, each with the same `noise (num_patches)` in every run."""

    stream = FIXED_MASK_STREAM

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._with_noise(self.images[index], 0, 0, index)


def patch_order(generator: np.random.Generator, num_patches: int) -> Tensor:
    """Noise for one image, float32 `(n)`: the places 0 to n - 1 in random order, so that no two patches tie."""
    return torch.from_numpy(generator.permutation(num_patches).astype(np.float32))
