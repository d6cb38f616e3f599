"""Blocks of equally many tokens, cut from the tokens on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..draws import epoch_generator
from .cache import TokenFile


class TokenBlocks:
    """The blocks of one part: `block_size` tokens each, special tokens of the frame included.

    - `packing="stream"`: the documents joined, a separator after each, and cut into equal blocks regardless of what
      ends there; attention crosses documents. The rest at the end, less than a block, is left out. With a (seed,
      epoch), the cuts are shifted by a random number of tokens, the same for the whole epoch.
    - `packing="documents"`: every document begins a new block, a longer one continues in the next; the last is
      filled up with `pad`, which is neither attended to nor predicted. No block holds two documents.

    `frame` gives the special tokens before and after every block (`[CLS]` and `[SEP]` of BERT).

    Raises:
        ValueError: a block no longer than its frame, or fewer tokens than one block.
    """

    def __init__(
        self,
        file: TokenFile,
        block_size: int,
        packing: Literal["stream", "documents"] = "stream",
        frame: tuple[Sequence[int], Sequence[int]] = ((), ()),
        pad: int = 0,
    ) -> None:
        self.file, self.block_size, self.packing, self.pad = file, block_size, packing, pad
        self.before, self.after = (np.asarray(part, np.int64) for part in frame)
        self.content = block_size - len(self.before) - len(self.after)
        if self.content < 1:
            special = block_size - self.content
            raise ValueError(f"text.block_size={block_size}: must be above the tokenizer's {special} special tokens")
        if packing == "documents":
            self.starts, self.stops = self._of_documents()
        else:
            count = len(file.tokens) // self.content
            if count == 0:
                raise ValueError(
                    f"text.block_size={block_size}: the text has {len(file.tokens)} tokens, less than one block; give "
                    "more text or a smaller block"
                )
            self.starts = np.arange(count, dtype=np.int64) * self.content
            self.stops = self.starts + self.content

    def __len__(self) -> int:
        return len(self.starts)

    def _of_documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each block begins and ends in the tokens; the closing frame takes the place of the separator."""
        ends = self.file.ends - bool(len(self.after))
        begins = np.concatenate([[0], self.file.ends[:-1]])
        counts = -(-(ends - begins) // self.content)
        document = np.repeat(np.arange(len(ends)), counts)
        number = np.arange(len(document)) - np.repeat(counts.cumsum() - counts, counts)
        starts = begins[document] + number * self.content
        return starts, np.minimum(starts + self.content, ends[document])

    def shift(self, seed: int, epoch: int) -> int:
        """By how many tokens the cuts of an epoch are moved: less than a block, keyed by (seed, epoch)."""
        if self.packing == "documents":
            return 0
        return int(epoch_generator(seed, epoch).integers(self.content))

    def take(self, indices: Sequence[int], shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Blocks by number, cuts `shift` tokens later: int64 ids and mask of tokens, `(len(indices), block_size)`."""
        ids = np.full((len(indices), self.block_size), self.pad, np.int64)
        mask = np.zeros(ids.shape, np.int64)
        for row, index in enumerate(indices):
            start, stop = int(self.starts[index]), int(self.stops[index])
            if self.packing == "stream":
                start = min(start + shift, len(self.file.tokens) - self.content)
                stop = start + self.content
            block = np.concatenate([self.before, self.file.tokens[start:stop], self.after])
            ids[row, : len(block)] = block
            mask[row, : len(block)] = 1
        return ids, mask
