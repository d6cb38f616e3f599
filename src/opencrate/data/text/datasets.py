"""Blocks as PyTorch datasets: asked with `Draw`s while training, with plain indices for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..draws import Draw, SampleGenerators
from .blocks import TokenBlocks
from .masking import IGNORED, Masking

EVALUATION_SEED = 0
"""The seed of masks for texts read by index alone: always the same tokens."""


class PlainBlocks(Dataset):
    """`input_ids` and `attention_mask`, int64 `(block_size,)`, by index: text to look at, with nothing to predict."""

    def __init__(self, blocks: TokenBlocks) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, item: Draw | int) -> dict[str, Tensor]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[Draw | int]) -> list[dict[str, Tensor]]:
        """Several items at once, of one kind and of one epoch."""
        ids, mask = self._taken(items)
        return _rows(input_ids=ids, attention_mask=mask)

    def _taken(self, items: Sequence[Draw | int]) -> tuple[np.ndarray, np.ndarray]:
        first = items[0]
        shift = self.blocks.shift(first.seed, first.epoch) if isinstance(first, Draw) else 0
        return self.blocks.take([item.index if isinstance(item, Draw) else item for item in items], shift)


class CausalBlocks(PlainBlocks):
    """`input_ids` and `labels`, int64 `(block_size,)`; the model compares label i + 1 with what it says at i.

    Labels are the ids; -100 where there is padding. With `packing="documents"` items also hold `attention_mask`.
    An index gives the block as it lies in the text; a `Draw` of (index, epoch, seed) gives that of the epoch's cuts.
    """

    def __getitems__(self, items: Sequence[Draw | int]) -> list[dict[str, Tensor]]:
        ids, mask = self._taken(items)
        padded = {"attention_mask": mask} if self.blocks.packing == "documents" else {}
        return _rows(input_ids=ids, labels=np.where(mask == 1, ids, IGNORED), **padded)


class MaskedBlocks(PlainBlocks):
    """`input_ids` with some tokens masked, `attention_mask` and `labels`, int64 `(block_size,)`.

    What is masked in a block depends on (seed, epoch, index) alone; for a plain index it is always the same.
    """

    def __init__(self, blocks: TokenBlocks, masking: Masking) -> None:
        super().__init__(blocks)
        self.masking = masking
        self._generators = SampleGenerators()

    def __getitems__(self, items: Sequence[Draw | int]) -> list[dict[str, Tensor]]:
        ids, mask = self._taken(items)
        labels = np.full_like(ids, IGNORED)
        for row, item in enumerate(items):
            key = (item.seed, item.epoch, item.index) if isinstance(item, Draw) else (EVALUATION_SEED, 0, int(item))
            real = int(mask[row].sum())
            ids[row, :real], labels[row, :real] = self.masking(ids[row, :real], self._generators(*key))
        return _rows(input_ids=ids, attention_mask=mask, labels=labels)


def _rows(**arrays: np.ndarray) -> list[dict[str, Tensor]]:
    tensors = {name: torch.from_numpy(array).unbind(0) for name, array in arrays.items()}
    return [dict(zip(tensors, values)) for values in zip(*tensors.values())]
