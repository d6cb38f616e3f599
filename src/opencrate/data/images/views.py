"""Several augmented views of each training image, for objectives that compare them; labels are not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ..._values import check_fields, shown_value
from ...configuration_crate import pair
from ..draws import GLOBAL_VIEW_STREAM, LOCAL_VIEW_STREAM, Draw, SampleGenerators
from ..options import Views, check_view_lists
from .augment import draw_crop_box
from .colours import blurred, grey_values, jittered, solarized
from .decoded import DecodedImages, normalised
from .tensors import IN_MEMORY_LIMIT, ImageTransform, to_array

_FLIP, _JITTER, _GREY, _BLUR, _RADIUS, _SOLARIZE = range(6)
_AMOUNTS, _ORDER = slice(6, 10), slice(10, 14)  # of the four parts of the jitter
_NUMBERS = 14
"""Random numbers of a view beside its crop, each with a place of its own."""


@dataclass(frozen=True)
class ViewKind:
    """What differs between the views of an image.

    Attributes:
        size: (height, width) in pixels.
        scale: least and most share of the image's area.
        blur, solarize: their probabilities.
    """

    size: tuple[int, int]
    scale: Sequence[float]
    blur: float
    solarize: float = 0.0


class MultiViewImages(DecodedImages):
    """Global and local views of each image, without labels: one `Draw`, one dict.

    Items hold `global_views` float32 `(G, C, H, W)`, `local_views` `(L, C, h, w)` (no such key where L is 0) and
    `index`, an int64 scalar. View v follows from (seed, epoch, image, global or local, v) alone: other views may be
    added or left out. Values are normalised as the processor does. Decoded images are kept up to `limit` bytes.

    Raises:
        ValueError: as `TrainingImages`, and as `check_views` for the model's patches and channels (`transform`).
    """

    def __init__(self, dataset: Dataset, transform: ImageTransform, views: Views, limit: int = IN_MEMORY_LIMIT) -> None:
        super().__init__(dataset, transform, keeps_source=True)
        size = self.shape[1], self.shape[2]
        check_views(views, size, transform.smallest, transform.num_channels)
        self.views = views
        self.kinds = view_kinds(views, size)
        streams = {"global_views": GLOBAL_VIEW_STREAM, "local_views": LOCAL_VIEW_STREAM}
        self._generators = {name: SampleGenerators(streams[name]) for name in self.kinds}
        self._resample = Image.Resampling(transform.processor.resample)
        self.keep(limit)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        """The same items at once."""
        count, channels = len(draws), self.shape[0]
        pixels, numbers = {}, {}
        for name, kinds in self.kinds.items():
            pixels[name] = np.empty((count, len(kinds), channels, *kinds[0].size), np.uint8)
            numbers[name] = np.empty((count, len(kinds), _NUMBERS))
        for row, draw in enumerate(draws):
            image = self.image(draw.index)
            for name, kinds in self.kinds.items():
                for number, kind in enumerate(kinds):
                    generator = self._generators[name](draw.seed, draw.epoch, draw.index, number)
                    numbers[name][row, number] = drawn = generator.random(_NUMBERS)
                    pixels[name][row, number] = cut_out(
                        image, kind, self.views, self._resample, drawn[_FLIP], generator
                    )
        made = {}
        for name, kinds in self.kinds.items():
            recolour(pixels[name], kinds, self.views, numbers[name])
            made[name] = self._normalised(pixels[name]).unbind(0)
        made["index"] = torch.tensor([draw.index for draw in draws]).unbind(0)
        return [dict(zip(made, item)) for item in zip(*made.values())]

    def image(self, index: int) -> Image.Image:
        """The decoded image that views are cut from."""
        image = self.decoded(index)
        assert isinstance(image, Image.Image)
        return image

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        """uint8 `(B, V, C, h, w)` as the model's inputs, float32 of the same shape."""
        return torch.from_numpy(normalised(pixels.reshape(-1, *pixels.shape[2:]), self.table).reshape(pixels.shape))


def view_kinds(views: Views, size: tuple[int, int]) -> dict[str, list[ViewKind]]:
    """The kind of every view, in order, by the key that an item holds them under; `size` is that of global views."""
    first, others, local = views.blur if isinstance(views.blur, list) else [views.blur] * 3
    kinds = {
        "global_views": [
            ViewKind(size, views.global_scale, others if number else first, views.solarize if number == 1 else 0.0)
            for number in range(views.global_views)
        ],
        "local_views": [ViewKind(pair(views.local_size), views.local_scale, local)] * views.local_views,
    }
    return {name: of_name for name, of_name in kinds.items() if of_name}


def cut_out(
    image: Image.Image, kind: ViewKind, views: Views, resample: int, number: float, generator: np.random.Generator
) -> np.ndarray:
    """A random crop of an image (`L` or `RGB`), resized, mirrored if `number` (of 0..1) says so: uint8 `(C, h, w)`."""
    box = draw_crop_box(image.height, image.width, kind.scale, views.ratio, generator)
    height, width = kind.size
    pixels = to_array(image.resize((width, height), resample, box=box))
    return pixels[..., ::-1] if number < views.flip else pixels


def recolour(pixels: np.ndarray, kinds: Sequence[ViewKind], views: Views, numbers: np.ndarray) -> None:
    """Change the colours of views `(B, V, C, h, w)`, uint8, in place: jitter, grey, blur, solarize.

    Every view has its own numbers of 0..1, `(B, V, 14)`, and each decision its place among them: with another
    probability of one change, the others stay as they are.
    """
    several = [len(numbers), 1]
    blur, solarize = (
        np.tile([getattr(kind, name) for kind in kinds], several).ravel() for name in ("blur", "solarize")
    )
    flat, numbers = pixels.reshape(-1, *pixels.shape[2:]), numbers.reshape(-1, _NUMBERS)
    changed = np.flatnonzero(numbers[:, _JITTER] < views.jitter)
    order = numbers[changed, _ORDER].argsort(axis=1)
    flat[changed] = jittered(flat[changed], views.jitter_strength, numbers[changed, _AMOUNTS], order)
    changed = np.flatnonzero(numbers[:, _GREY] < views.grey)
    flat[changed] = grey_values(flat[changed])
    least, most = views.blur_radius
    for row in np.flatnonzero(numbers[:, _BLUR] < blur):
        flat[row] = blurred(flat[row], float(least + numbers[row, _RADIUS] * (most - least)))
    changed = np.flatnonzero(numbers[:, _SOLARIZE] < solarize)
    flat[changed] = solarized(flat[changed])


def check_views(
    views: Views, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], num_channels: int
) -> None:
    """Refuse views that a model cannot read, or that are none.

    Args:
        image_size, patch_size: pixels, or (height, width).

    Raises:
        ValueError: the first field of `views` with a value out of range, a list of a wrong length or order, fewer than
            two views, a local size that is not made of whole patches or is larger than the image; channels other
            than 1 or 3.
    """
    check_fields(views, "views.")
    check_view_lists(views)
    if num_channels not in (1, 3):
        raise ValueError(f"data.num_channels={num_channels}: views are made of 1 (grey) or 3 (colour) channels")
    image, patch, local = pair(image_size), pair(patch_size), pair(views.local_size)
    fits = all(part % unit == 0 and part <= whole for part, unit, whole in zip(local, patch, image))
    if views.local_views and not fits:
        half = [max(1, round(whole / 2 / unit)) * unit for whole, unit in zip(image, patch)]
        raise ValueError(
            f"views.local_size={shown_value(views.local_size)}: must be a multiple of the patch ({patch[0]}x{patch[1]} "
            f"pixels) and at most data.image_size ({image[0]}x{image[1]}), for example "
            f"{half[0] if half[0] == half[1] else half}; or set views.local_views to 0"
        )
