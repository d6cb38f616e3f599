"""The images on which a vision model's features are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from ...store.inputs import Inputs, image_batches, knows_classes, labelled_images
from ...store.saved import SavedModel

_BATCH = 32


def feature_images(
    saved: SavedModel, inputs: Inputs, num_images: int, seed: int
) -> tuple[Iterable[Mapping[str, Tensor]], int, bool, str]:
    """Batches for `find_patch_features`, how many images they hold, whether their labels count, and what they are.

    Of a classifier on images of its own classes, images are drawn at random, because data may be sorted by class; of
    others the first ones are taken, and no labels.

    Raises:
        ValueError: a model that reads texts, no data given and none known, or images that cannot be read.
    """
    if saved.reads != "images" or inputs.text is not None:
        what = "texts" if saved.reads == "texts" else "images"
        raise ValueError(f"{saved.source}: a model that reads {what}; give `{'text' if what == 'texts' else 'data'}`")
    if saved.kind == "classifier" and knows_classes(saved, inputs.data):
        images = labelled_images(saved, inputs.data, inputs.split, inputs.skip_bad)
        count = min(num_images, len(images))
        rows = np.sort(np.random.default_rng([seed, len(images)]).choice(len(images), count, replace=False))
        source = inputs.data or f"the {inputs.split} images of {saved.own_data}"
        where = f"{count:,} images of {source}, drawn at random"
        return saved.batches(images.select(rows), _BATCH), count, True, where
    loader, words = image_batches(saved, inputs, _BATCH)
    count = min(num_images, len(loader.dataset))  # pyright: ignore[reportArgumentType]
    return loader, count, False, f"the first {count:,} of {words}"
