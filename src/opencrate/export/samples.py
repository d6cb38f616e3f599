"""What an export is checked on: what the run of the model held out, images or a text that are named, or photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.images.tensors import in_batches
from ..store.inputs import Inputs, image_batches, input_batches, knows_classes, labelled_images
from ..store.saved import SavedModel

PHOTOGRAPHS = 64
"""Crops of scikit-learn's two photographs, where nothing else is at hand."""


@dataclass(frozen=True)
class Samples:
    """Inputs in batches.

    Attributes:
        batches: of `pixel_values`, or `input_ids` and `attention_mask`; with `labels` where the classes are known.
        words: what they are, for readers.
        count: how many inputs.
    """

    batches: DataLoader
    words: str
    count: int


def samples_of(saved: SavedModel, check: str | None, num_inputs: int, batch_size: int, skip_bad: bool) -> Samples:
    """At most `num_inputs` inputs for a model, evenly spread over all that there are.

    Args:
        check: images as `ImageData.path`, or a text as `TextData.path`; by default what the run held out. A model that
            is no run reads photographs that scikit-learn brings, or the documentation of Python's standard library.

    Raises:
        ValueError: data that is missing, empty, damaged or of the wrong kind.
    """
    if saved.reads == "texts":
        text = check or (None if saved.is_run else "stdlib")
        dataset: Any = input_batches(saved, Inputs(text=text, block_size=min(128, saved.context))).dataset
        words = f"texts of {text}" if text else "texts that the run held out"
    elif check is None and not saved.is_run:
        dataset, words = photographs(saved), "crops of two photographs, not of the model's classes"
    elif saved.kind == "classifier" and (check is None or knows_classes(saved, check)):
        images = labelled_images(saved, check, skip_bad=skip_bad)
        dataset = saved.batches(images).dataset
        words = f"labelled images of {check}" if check else "images that the run held out"
    else:
        inputs = Inputs(data=check, skip_bad=skip_bad)
        dataset = Unlabelled(image_batches(saved, inputs)[0].dataset)
        words = f"images of {check}" if check else "images that the run held out"
    count = min(num_inputs, len(dataset))
    chosen = [index * len(dataset) // count for index in range(count)]
    return Samples(in_batches(Subset(dataset, chosen), batch_size), f"{count:,} {words}", count)


def photographs(saved: SavedModel, count: int = PHOTOGRAPHS) -> Dataset:
    """Square crops of scikit-learn's two photographs, always the same ones, as a model reads them."""
    from sklearn.datasets import load_sample_images

    draws, pixels = np.random.default_rng(0), []
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    mode = "L" if saved.transform.num_channels == 1 else "RGB"
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(draws.integers(min(picture.size) // 4, min(picture.size)))
        left, top = (int(draws.integers(length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).convert(mode)
        pixels.append(saved.transform.processor(images=[crop], return_tensors="pt")["pixel_values"])
    return Unlabelled([{"pixel_values": one[0]} for one in pixels])


class Unlabelled(Dataset):
    """The pixels of images whose labels mean nothing."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.as_tensor(self.images[index]["pixel_values"])}
