"""PASCAL VOC: JPEGImages, SegmentationClass, SegmentationObject, Annotations and ImageSets."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..._files import shown
from .files import DataFiles
from .truth import Array, MaskedImage, MaskedImages, boxes_of, of_labels

_WHAT = "VOC's own folder with JPEGImages, SegmentationClass, SegmentationObject and ImageSets/Segmentation"
_BASES = ("", "VOC2012/", "VOCdevkit/VOC2012/", "VOC2007/", "VOCdevkit/VOC2007/")
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def load_voc(path: str | Path, split: str = "val") -> MaskedImages:
    """The images of `ImageSets/Segmentation/SPLIT.txt`, in its order.

    Borders of objects, 255 in the files, are unknown. The boxes of all objects are those of
    `Annotations`, difficult ones too, where there is such a file; those of the instances lie around their masks.

    Args:
        path: VOC2012 or VOC2007, the VOCdevkit above it, or a zip file of either.
        split: `val`, `train` or `trainval`.

    Raises:
        ValueError: something else, or a file that is not there.
    """
    files = DataFiles(path, _WHAT)
    found = [base for base in _BASES if files.has(f"{base}ImageSets/Segmentation/{split}.txt")]
    if not found:
        raise ValueError(
            f"{shown(files.root)}: no ImageSets/Segmentation/{split}.txt; give {_WHAT}, and a `split` that it lists"
        )
    base = found[0]
    stems = [line.split()[0] for line in files.lines(f"{base}ImageSets/Segmentation/{split}.txt")]
    if not stems:
        raise ValueError(f"{files.where(f'{base}ImageSets/Segmentation/{split}.txt')}: names no images")
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")):
        missing = [stem for stem in stems if not files.has(f"{base}{folder}/{stem}.{suffix}")]
        if missing:
            raise ValueError(
                f"{files.where(f'{base}{folder}/{missing[0]}.{suffix}')}: no such file, but {split}.txt names it "
                f"({len(missing)} of {len(stems)} are missing)"
            )

    def read(stem: str) -> MaskedImage:
        labels, _ = of_labels(files.values(f"{base}SegmentationClass/{stem}.png")[0])
        _, instances = of_labels(files.values(f"{base}SegmentationObject/{stem}.png")[0])
        around = boxes_of(instances)
        boxes = _boxes(files, f"{base}Annotations/{stem}.xml")
        picture = files.image(f"{base}JPEGImages/{stem}.jpg")
        crowd = np.zeros(len(instances), dtype=bool)
        return MaskedImage(stem, picture, labels, instances, crowd, around, around if boxes is None else boxes)

    names = dict(enumerate(CLASSES, 1))
    return MaskedImages("voc", f"{shown(files.root)}, {split}", stems, read, tuple(stems), names)


def _boxes(files: DataFiles, name: str) -> Array | None:
    """The boxes of a file of annotations, whose pixels count from 1 and whose ends are inside; `None` without one."""
    if not files.has(name):
        return None
    try:
        root = ElementTree.fromstring(files.bytes(name, 1 << 22))
        boxes = [
            [float(box.findtext(end, "")) for end in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{files.where(name)}: damaged ({error}); replace it") from error
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    found[:, :2] -= 1
    return found
