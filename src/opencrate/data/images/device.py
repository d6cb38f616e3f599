"""Training images that are kept on an accelerator and made there, whole batches at a time.

The random numbers stay those of `TrainingImages`, drawn on the host by (seed, epoch, image): the batches are the same.
What crosses to the device in a step are a few integers an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..._values import field_error
from ..draws import Draw, Mix, SampleGenerators
from .augment import Erasing, cutmix_pixels
from .masks import MaskedTrainingImages, patch_order
from .training import TrainingImages, mixed_label
from .views import MultiViewImages

MEMORY_SHARE = 0.25
"""Of an accelerator's free memory that `keep_on="auto"` may take for images."""


def batches_on_device(
    images: TrainingImages | MaskedTrainingImages | MultiViewImages | Any,
    keep_on: Literal["auto", "cpu", "device"],
    device: torch.device,
) -> TorchDataset | None:
    """A training split that makes its batches on `device`, or `None` where a loader is to make them.

    "auto" is "device" for a CUDA device whose free memory the decoded images take less than `MEMORY_SHARE` of, if they
    can be made there at all. Where `device` is a CPU, "device" goes the same way there.

    Raises:
        ValueError: "device" for images that cannot be made there.
    """
    plain = images.images if isinstance(images, MaskedTrainingImages) else images
    if keep_on == "cpu" or not isinstance(plain, TrainingImages | MultiViewImages):
        return None
    kept = plain.kept
    if reason := _obstacle(plain):
        if keep_on == "device":
            raise field_error("data.keep_on", keep_on, f"auto or cpu, since {reason}")
        return None
    assert isinstance(plain, TrainingImages) and isinstance(kept, np.ndarray)
    if keep_on == "auto" and (device.type != "cuda" or kept.nbytes > MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]):
        return None
    made = DeviceImages(plain, device)
    return MaskedDeviceImages(made, images) if isinstance(images, MaskedTrainingImages) else made


def _obstacle(images: TrainingImages | MultiViewImages) -> str | None:
    """Why images cannot be kept and made on a device."""
    if isinstance(images, MultiViewImages):
        return "views of images are made on a CPU"
    if images.augmentation.randaugment:
        return "RandAugment (augmentation.randaugment_ops) works on a CPU"
    if images.keeps_source:
        return "augmentation.crop=resized works on a CPU"
    return None if images.kept is not None else "the decoded images do not fit in memory"


class DeviceImages(TorchDataset):
    """`TrainingImages` on a device: asked with a batch's `Draw`s, it gives the whole batch, in no need of collating.

    `pixel_values (B, C, H, W)` and `labels` are bit-equal to those of `TrainingImages` where the arithmetic is the
    same (on a CPU; elsewhere to rounding).
    """

    def __init__(self, images: TrainingImages, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._kept = torch.from_numpy(images.kept).to(device)
        self._table = torch.from_numpy(images.table).to(device)
        self._generators = SampleGenerators()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """The batch of these draws; an image that is also another's partner is made once."""
        rows: dict[tuple[int, int, int], int] = {}
        for draw in draws:
            rows.setdefault((draw.seed, draw.epoch, draw.index), len(rows))
            if draw.partner is not None:
                rows.setdefault((draw.seed, draw.epoch, draw.partner), len(rows))
        images = self._augmented(list(rows))
        own = [rows[draw.seed, draw.epoch, draw.index] for draw in draws]
        if not any(draw.mix for draw in draws):
            labels = self.images.labels[[draw.index for draw in draws]]
            pixel_values = images if own == list(range(len(images))) else images[self._sent(np.array(own))]
            return {"pixel_values": pixel_values, "labels": self._sent(labels)}
        partners = [rows[draw.seed, draw.epoch, draw.index if draw.partner is None else draw.partner] for draw in draws]
        labels = [mixed_label(self.images, draw) for draw in draws]
        pixel_values = self._mixed(images[self._sent(np.array(own))], images[self._sent(np.array(partners))], draws)
        return {"pixel_values": pixel_values, "labels": self._sent(np.stack(labels))}

    def _sent(self, values: np.ndarray) -> Tensor:
        """Values of the host on the device, without waiting for it."""
        return sent(torch.from_numpy(values), self.device)

    def _augmented(self, keys: list[tuple[int, int, int]]) -> Tensor:
        """Images of (seed, epoch, index), normalised and erased: float32 `(len(keys), C, H, W)`."""
        moves, erasings = np.empty((4, len(keys)), np.int64), {}
        augmentation, shape = self.images.augmentation, self.images.shape
        for number, key in enumerate(keys):
            generator = self._generators(*key)
            moves[:, number] = (key[2], *augmentation.drawn_move(generator.random(3).tolist()))
            if erasing := augmentation.drawn_erasing(shape, generator):
                erasings[number] = erasing
        images = moved_and_normalised(self._kept, self._table, self._sent(moves))
        return self._erased(images, erasings) if erasings else images

    def _erased(self, images: Tensor, erasings: dict[int, Erasing]) -> Tensor:
        """With each image's box overwritten by its noise, in place."""
        noise = np.zeros((len(erasings), *images.shape[1:]), np.float32)
        boxes = np.empty((4, len(erasings)), np.int64)
        for number, erasing in enumerate(erasings.values()):
            erasing.apply(noise[number])
            height, width = erasing.noise.shape[1:]
            boxes[:, number] = erasing.top, erasing.left, erasing.top + height, erasing.left + width
        rows = self._sent(np.array(list(erasings)))
        chosen = torch.where(in_boxes(self._sent(boxes), images.shape), self._sent(noise), images[rows])
        return images.index_copy_(0, rows, chosen)

    def _mixed(self, images: Tensor, partners: Tensor, draws: Sequence[Draw]) -> Tensor:
        """`augment.mixed` of a batch: within a box the partner, outside a weighted sum."""
        height, width = images.shape[2:]
        boxes, weights = np.zeros((4, len(draws)), np.int64), np.zeros((2, len(draws), 1, 1, 1), np.float32)
        weights[0] = 1
        for number, draw in enumerate(draws):
            mix: Mix | None = draw.mix
            if mix is not None and mix.box is not None:
                boxes[:, number] = cutmix_pixels(mix.box, height, width)
            elif mix is not None:
                weights[:, number, 0, 0, 0] = mix.lam, 1 - mix.lam
        own, other = self._sent(weights)
        return torch.where(in_boxes(self._sent(boxes), images.shape), partners, images * own + partners * other)


class MaskedDeviceImages(TorchDataset):
    """`MaskedTrainingImages` on a device: batches of `pixel_values` and `noise (B, num_patches)`."""

    def __init__(self, made: DeviceImages, images: MaskedTrainingImages) -> None:
        self.made = made
        self.num_patches = images.num_patches
        self._generators = SampleGenerators(images.stream)

    def __len__(self) -> int:
        return len(self.made)

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """The batch of these draws."""
        orders = [patch_order(self._generators(draw.seed, draw.epoch, draw.index), self.num_patches) for draw in draws]
        noise = sent(torch.stack(orders), self.made.device)
        return {"pixel_values": self.made.__getitems__(draws)["pixel_values"], "noise": noise}


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A host's values on a device; a CUDA device is not waited for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def moved_and_normalised(images: Tensor, table: Tensor, moves: Tensor) -> Tensor:
    """Chosen images, shifted, perhaps mirrored, and looked up in a table: float32 `(B, C, H, W)`.

    Args:
        images: uint8 `(N, C, H, W)`; outside of an image everything is 0.
        table: what each 8-bit value of a channel becomes, float32 `(C, 256)`.
        moves: int64 `(4, B)`: the image, the rows down and columns right that its crop starts at, and whether it is
            mirrored afterwards (1) or not (0).
    """
    channels, height, width = images.shape[1:]
    number, down, right, mirrored = moves[..., None]
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device).expand(len(number), -1)
    columns = torch.where(mirrored == 1, width - 1 - columns, columns) + right
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, None, :, None], columns.clamp(0, width - 1)[:, None, None, :]
    pixels = images[number[:, :, None, None], channel, rows, columns]
    return table[channel, torch.where(inside, pixels, 0).long()]


def in_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Which pixels lie in each image's box: bool `(B, 1, H, W)` of int64 `(4, B)` top, left, bottom and right."""
    top, left, bottom, right = boxes[..., None]
    rows, columns = (torch.arange(size, device=boxes.device) for size in shape[2:])
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (down[:, :, None] & across[:, None, :])[:, None]
