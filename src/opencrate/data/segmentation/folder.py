"""A folder of one's own: images/ and masks/, a mask for every image under the same name but for its ending."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..._files import shown
from .files import DataFiles
from .truth import FILE_VOID, Array, MaskedImage, MaskedImages, boxes_of, of_labels

_WHAT = "a folder or a .zip file with images/ and masks/"
_NAMES = "classes.txt"


def load_folder(path: str | Path) -> MaskedImages:
    """Images by name, each with its mask.

    A grey or black-and-white mask with no values but 0 and 255 (or 0 and 1) shows one object. In any other, the values
    from 1 to 254 are objects or classes: each is one region of its image; 255 is unknown. With `classes.txt`, one name
    a line, beginning with that of value 1, they are classes, the same in all images.

    Raises:
        ValueError: a folder that is missing, or an image without a mask.
    """
    files = DataFiles(path, _WHAT)
    bases = [base for base in ("", f"{files.root.stem}/") if files.below(f"{base}images")]
    if not bases:
        raise ValueError(f"{shown(files.root)}: no images in images/; give {_WHAT}")
    base = bases[0]
    masks = {_stem(name, f"{base}masks"): name for name in files.below(f"{base}masks")}
    images = files.below(f"{base}images")
    missing = [name for name in images if _stem(name, f"{base}images") not in masks]
    if missing:
        raise ValueError(
            f"{files.where(missing[0])}: no mask of that name in masks/ ({len(missing)} such of {len(images)} images); "
            "add masks, or remove the images"
        )
    names = files.lines(base + _NAMES) if files.has(base + _NAMES) else []

    def read(image: str) -> MaskedImage:
        name = _stem(image, f"{base}images")
        labels, instances = of_labels(_one_object(*files.values(masks[name])))
        boxes = boxes_of(instances)
        if names and labels.max() > len(names):
            raise ValueError(
                f"{files.where(masks[name])}: value {labels.max()}, but {_NAMES} names {len(names)} classes"
            )
        crowd = np.zeros(len(instances), dtype=bool)
        return MaskedImage(name, files.image(image), labels, instances, crowd, boxes, boxes)

    groups = tuple(images)
    classes = dict(enumerate(names, 1))
    return MaskedImages("folder", shown(files.root), images, read, groups, classes, one_object=not names)


def _one_object(values: Array, mode: str) -> Array:
    """The values, with 1 for the inside of a mask that shows one object."""
    if mode != "P" and np.isin(values, (0, FILE_VOID)).all():
        return (values != 0).astype(np.uint8)
    return values


def _stem(name: str, folder: str) -> str:
    """A file's path in its folder, without its ending."""
    return name.removeprefix(f"{folder}/").rpartition(".")[0]
