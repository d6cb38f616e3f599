"""From image cells to model-ready tensors, by the model's own image processor."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset

from ..._files import check_size, os_reason, require_file, shown
from ...configuration_crate import pair
from ...image_processing_crate import as_grey_or_colour, read_picture
from .files import start_of, what_it_is
from .labelled import cells_of, label_names

IN_MEMORY_LIMIT = 512 << 20
"""Splits whose tensors need at most this many bytes are decoded once and kept."""

_CHUNK = 256
_FILE_LIMIT = 1 << 30


@dataclass(frozen=True)
class ImageTransform:
    """Image files to `pixel_values`: decode, check, and apply the image processor.

    Attributes:
        processor: the transformers image processor that is saved with the model.
        num_channels: 1 (colour becomes grey) or 3 (grey is repeated); transparency is dropped.
        smallest: (height, width) of a patch; an image file smaller than it is refused.
    """

    processor: Any
    num_channels: int
    smallest: tuple[int, int] = (1, 1)

    @classmethod
    def for_model(cls, config: Any, processor: Any) -> ImageTransform:
        """The transform that fits a model's configuration.

        Raises:
            ValueError: the model takes neither 1 nor 3 channels, or the processor normalises another number of them.
        """
        channels = getattr(config, "num_channels", 3)
        if channels not in (1, 3):
            raise ValueError(f"num_channels={channels}: image files give 1 (grey) or 3 (colour) channels")
        for name in ("image_mean", "image_std"):
            values = getattr(processor, name, None) if getattr(processor, "do_normalize", False) else None
            if isinstance(values, (list, tuple)) and len(values) != channels:
                raise ValueError(
                    f"preprocessor_config.json: {name} has {len(values)} numbers, but the model takes {channels} "
                    f"channels (config.json: num_channels); give {channels}"
                )
        return cls(processor, channels, pair(getattr(config, "patch_size", 1)))

    def __call__(self, cells: Sequence[dict[str, Any]]) -> Tensor:
        """Image cells (`path` or `bytes`) to float32 `(B, C, H, W)`; `ValueError` as `read`."""
        images = [self.read(cell) for cell in cells]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]

    def pixels(self, image: PILImage.Image) -> np.ndarray:
        """A decoded image, resized and cropped as for evaluation but not normalised: `(C, H, W)`, in general uint8."""
        size = self.processor.size
        if not self.processor.do_center_crop and (size.height, size.width) == (image.height, image.width):
            return to_array(image)  # nothing to do, at a third of the processor's cost for small images
        values = self.processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
        return np.asarray(values["pixel_values"])[0]

    def read(self, cell: dict[str, Any]) -> PILImage.Image:
        """Decode one image, in mode `L` or `RGB`, upright; `ValueError` if missing, damaged or too small."""
        name = shown(cell.get("name") or cell["path"] or "image", 500)
        if cell["bytes"] is None and cell["path"] is not None:
            check_size(name, require_file(cell["path"], "an image", name).stat().st_size, _FILE_LIMIT)
        try:
            image = as_grey_or_colour(read_picture(_source(cell)), self.num_channels)
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file") from None
        except UnidentifiedImageError as error:
            start = cell["bytes"] if cell["bytes"] is not None else start_of(Path(str(cell["path"])))
            raise ValueError(_damaged(name, f"it is {what_it_is(start)}")) from error
        except Exception as error:  # decoders can raise anything on damaged bytes
            raise ValueError(_damaged(name, _first_line(error))) from error
        width, height = image.size
        if height < self.smallest[0] or width < self.smallest[1]:
            raise ValueError(
                f"{name}: image of {height}x{width} pixels is smaller than a patch "
                f"({self.smallest[0]}x{self.smallest[1]}); remove it or use a model with smaller patches"
            )
        return image


class CachedImages(TorchDataset):
    """Images decoded once: `pixel_values (N, C, H, W)` float32, `labels (N)` int64."""

    def __init__(self, pixel_values: Tensor, labels: Tensor) -> None:
        self.pixel_values = pixel_values
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class LazyImages(TorchDataset):
    """Images decoded on access, for splits that do not fit in memory."""

    def __init__(self, dataset: Dataset, transform: ImageTransform) -> None:
        self.dataset = dataset
        self.transform = transform
        self.labels = torch.tensor(dataset["label"][:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.transform(cells_of(self.dataset, [index]))[0], "labels": self.labels[index]}


def to_tensors(dataset: Dataset, transform: ImageTransform, limit: int = IN_MEMORY_LIMIT) -> TorchDataset:
    """A split as a PyTorch dataset of `pixel_values` and `labels`; kept in memory up to `limit` bytes.

    Raises:
        ValueError: as `ImageTransform`; for a split kept in memory it is raised here, before any training.
    """
    first = transform(cells_of(dataset, [0]))
    if first.nbytes * len(dataset) > limit:
        return LazyImages(dataset, transform)
    pixel_values = [transform(cells_of(dataset, rows)) for rows in chunks(len(dataset))]
    return CachedImages(torch.cat(pixel_values), torch.tensor(dataset["label"][:]))


def drop_bad(dataset: Dataset, transform: ImageTransform, labelled: bool = True) -> tuple[Dataset, list[str]]:
    """The images that a transform can read, and for each other one which it is and why not; decodes each once.

    Raises:
        ValueError: a class of which no image is left; where labels mean nothing (`labelled=False`), no image at all.
    """
    good, reasons = [], []
    for rows in chunks(len(dataset)):
        for row, cell in zip(rows, cells_of(dataset, rows)):
            try:
                transform.read(cell)
                good.append(row)
            except ValueError as error:
                reasons.append(str(error))
    if not reasons:
        return dataset, []
    labels = np.asarray(dataset["label"][:])
    lost = sorted(set(labels.tolist()) - set(labels[good].tolist()))
    if lost and (labelled or not good):
        raise ValueError(
            f"class '{label_names(dataset)[lost[0]]}' has no readable image left; {len(reasons)} of {len(dataset)} "
            f"images are bad, the first: {reasons[0]}"
        )
    return dataset.select(good), reasons


def chunks(length: int) -> Iterator[range]:
    """The rows of a split, as many at a time as are read at once."""
    return (range(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


def to_array(image: PILImage.Image) -> np.ndarray:
    """A PIL image in mode `L` or `RGB` as uint8 `(C, H, W)`."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def to_image(pixels: np.ndarray) -> PILImage.Image:
    """The inverse of `to_array`, for 1 or 3 channels."""
    return PILImage.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def in_batches(dataset: TorchDataset, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Batches in order, for evaluation and analysis."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)


def _source(cell: dict[str, Any]) -> Path | io.BytesIO:
    """What to decode: the bytes, or the file."""
    if cell["bytes"] is not None:
        return io.BytesIO(cell["bytes"])
    if cell["path"] is None:
        raise ValueError("there is none")
    path = Path(cell["path"])
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder or a device")
    return path


def _damaged(name: str, why: str) -> str:
    return f"{name}: not a readable image, truncated or damaged ({why}); replace or remove it"


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os_reason(error)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
