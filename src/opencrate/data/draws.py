"""Which training images come when, and with which randomness: all of it keyed by (seed, epoch, image).

A `Draw` says everything that a training image needs to be made: neither the number of loader workers, nor that
of processes, nor what was drawn before can change its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Sampler

from .options import Augmentation

_BATCH_STREAM, _SAMPLE_STREAM, _EPOCH_STREAM = 1, 2, 3  # first words of the keys: they never share numbers
MASK_STREAM, FIXED_MASK_STREAM = 4, 5  # likewise: which patches are hidden, in training and where images are fixed
GLOBAL_VIEW_STREAM, LOCAL_VIEW_STREAM = 6, 7  # likewise: the views of an image


@dataclass(frozen=True)
class Mix:
    """How two augmented images become one; the same for a whole global batch.

    Attributes:
        kind: "mixup" (weighted sum) or "cutmix" (a box of the partner pasted in).
        lam: share of the image itself, 0 to 1; for cutmix one minus the area of `box`, which pixels may round.
        box: (top, left, bottom, right) as fractions of height and width, inside the image; `None` for mixup.
    """

    kind: Literal["mixup", "cutmix"]
    lam: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Draw:
    """One training image to be made: row `index` of the split as epoch `epoch` (from 0) of run `seed` sees it.

    With mixing, `partner` is the row of the image to mix in, which is augmented as it would be by itself.
    """

    index: int
    epoch: int
    seed: int
    partner: int | None = None
    mix: Mix | None = None


class DrawSampler(Sampler[Draw]):
    """The draws of an epoch, in a permutation keyed by (seed, epoch): the same for every model and machine.

    With `augmentation.mixup` or `cutmix` (alphas; with both on, each batch takes one of them), positions
    `k * global_batch_size` to `(k + 1) * global_batch_size` share one kind, one lambda ~ Beta(alpha, alpha) and one
    permutation that gives the partners, keyed by (seed, epoch, k): several processes that cut a global batch (images
    per optimizer step: per device x processes x gradient accumulation) among themselves mix as one process does.

    With `drop_last` the last images of an epoch's order are left out where they do not fill a global batch.

    Raises:
        ValueError: a global batch size below 1.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        global_batch_size: int = 1,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
    ) -> None:
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1; got {global_batch_size}")
        self.length = length
        self.seed = seed
        self.global_batch_size = global_batch_size
        alphas = {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix} if augmentation else {}
        self.alphas = {kind: alpha for kind, alpha in alphas.items() if alpha > 0}
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Before each epoch, and before going on with a resumed one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length - self.length % self.global_batch_size if self.drop_last else self.length

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed((self.seed << 20) + epoch)).tolist()
        order = order[: len(self)]
        if not self.alphas:
            yield from (Draw(index, epoch, self.seed) for index in order)
            return
        for number, start in enumerate(range(0, len(order), self.global_batch_size)):
            batch = order[start : start + self.global_batch_size]
            generator = _generator(_BATCH_STREAM, self.seed, epoch, number)
            mix = draw_mix(self.alphas, generator)
            partners = generator.permutation(len(batch)).tolist()
            for index, partner in zip(batch, partners):
                yield Draw(index, epoch, self.seed, batch[partner], mix)


def draw_mix(alphas: dict[str, float], generator: np.random.Generator) -> Mix:
    """One kind among `alphas` (kind -> alpha > 0), one lambda ~ Beta(alpha, alpha), and cutmix's box.

    The box has the share `1 - lambda` of height x width and the image's aspect; its centre is uniform over the
    image, what lies outside is cut off, and lambda is corrected to the area that is left [arXiv 1905.04899].
    """
    kinds = list(alphas)
    kind = kinds[int(generator.integers(len(kinds)))]
    lam = float(generator.beta(alphas[kind], alphas[kind]))
    if kind == "mixup":
        return Mix("mixup", lam)
    half = math.sqrt(1 - lam) / 2
    row, column = generator.random(2).tolist()
    top, left = max(0.0, row - half), max(0.0, column - half)
    bottom, right = min(1.0, row + half), min(1.0, column + half)
    return Mix("cutmix", 1 - (bottom - top) * (right - left), (top, left, bottom, right))


class SampleGenerators:
    """The random numbers of each training image: Philox, keyed by (stream, seed, epoch), counting from the image.

    One generator is moved from image to image, which takes 2 microseconds where a new one takes 18: use the one
    that a call returned before calling again.
    """

    def __init__(self, stream: int = _SAMPLE_STREAM) -> None:
        self._stream = stream
        self._epoch: tuple[int, int] | None = None

    def __call__(self, seed: int, epoch: int, index: int, part: int = 0) -> np.random.Generator:
        """The generator at the first number of image `index`, or of its part (view) of this number."""
        if self._epoch != (seed, epoch):
            self._epoch = (seed, epoch)
            self._generator = _generator(self._stream, seed, epoch)
            self._philox = self._generator.bit_generator
            self._state = self._philox.state
        counter = self._state["state"]["counter"]  # word 0 counts within an image's part
        counter[1], counter[2] = index, part
        self._philox.state = self._state
        return self._generator


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers of an epoch as a whole, shared with no batch or sample."""
    return _generator(_EPOCH_STREAM, seed, epoch)
