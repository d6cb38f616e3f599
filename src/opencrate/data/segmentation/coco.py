"""COCO: one JSON file of annotations with masks as polygons or run lengths, and a folder of images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..._files import shown
from ..._values import shown_value
from .files import DataFiles
from .polygons import fill_polygons
from .run_lengths import decode
from .truth import VOID, Array, MaskedImage, MaskedImages

_WHAT = "a folder or a .zip file with annotations/instances*.json and the images, or that .json file itself"
_SPLIT = re.compile(r"instances_?(.*)\.json$")


def load_coco(path: str | Path, split: str = "val") -> MaskedImages:
    """The images that the file of annotations lists, by id, those without annotations too.

    Labels are numbers of categories in the order of their ids, the smaller instance in front where two overlap. Crowds
    are unknown. Boxes are those of the annotations.

    Args:
        path: a folder or zip file with `annotations/instances*.json`, or such a JSON file in its place; images lie in
            `val2017/`, `images/` or `images/val2017/`, for `instances_val2017.json`, or in the folder itself.
        split: how the name of the file goes on, such as `val2017`, or how that begins; of no meaning for one file.

    Raises:
        ValueError: something else, no file of that split, several, one without masks, or images that are not there.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        files, name = DataFiles(root, _WHAT), path.relative_to(root).as_posix()
    else:
        files = DataFiles(path, _WHAT)
        name = _annotations(files, split)
    return _Coco(files, name).images()


def _annotations(files: DataFiles, split: str) -> str:
    """The JSON file of the split."""
    found = [name for name in files.below("annotations", ".json") if _SPLIT.search(name)]
    found = found or [name for name in files.below("", ".json") if _SPLIT.search(name)]
    if not found:
        raise ValueError(f"{shown(files.root)}: no annotations/instances*.json; give {_WHAT}")
    chosen = [name for name in found if _split_of(name).startswith(split)] if len(found) > 1 else found
    if len(chosen) != 1:
        raise ValueError(
            f"{shown(files.root)}: split={split!r} fits {len(chosen)} of {', '.join(found)}; give one of "
            f"{', '.join(map(_split_of, found))}, or the .json file itself"
        )
    return chosen[0]


def _split_of(name: str) -> str:
    found = _SPLIT.search(name)
    return found[1] if found else ""


class _Coco:
    """One file of annotations, checked as far as no image has to be read for it."""

    def __init__(self, files: DataFiles, name: str) -> None:
        self.files, self.name, self.where = files, name, files.where(name)
        content = files.json(name)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list) or not all(isinstance(one, dict) for one in content[key]):
                raise ValueError(f"{self.where}: no list '{key}'; give a COCO instances file")
        try:
            self.known = {int(one["id"]): one for one in content["images"]}
            kinds = sorted((int(one["id"]), str(one.get("name", one["id"]))) for one in content["categories"])
            self.annotations: dict[int, list[Mapping[str, Any]]] = {}
            for one in content["annotations"]:
                self.annotations.setdefault(int(one["image_id"]), []).append(one)
        except KeyError as error:
            raise ValueError(f"{self.where}: an entry lacks {error}; give a COCO instances file") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.where}: an id that is no whole number; give a COCO instances file") from error
        self._check_masks(content["annotations"])
        self.numbers = {number: place for place, (number, _) in enumerate(kinds, 1)}
        self.class_names = {place: name for place, (_, name) in enumerate(kinds, 1)}

    def _check_masks(self, annotations: list[Mapping[str, Any]]) -> None:
        if not self.known or not annotations:
            raise ValueError(f"{self.where}: lists no {'annotations' if self.known else 'images'}; give another file")
        without = [one for one in annotations if not one.get("segmentation")]
        if without:
            raise ValueError(
                f"{self.where}: {len(without)} of {len(annotations)} annotations have no 'segmentation', the first is "
                f"id {without[0].get('id')}; give a file with masks, such as instances_val2017.json"
            )

    def images(self) -> MaskedImages:
        """The data set."""
        numbers = sorted(self.known)
        folder = self._folder()
        missing = [one for one in numbers if not self.files.has(folder + self._file(one))]
        if missing:
            raise ValueError(
                f"{self.files.where(folder + self._file(missing[0]))}: no such image, but {shown(self.name)} lists it "
                f"({len(missing)} of {len(numbers)} are missing)"
            )

        def read(number: int) -> MaskedImage:
            return self._read(number, folder)

        groups = tuple(map(str, numbers))
        return MaskedImages("coco", f"{shown(self.files.root)}, {self.name}", numbers, read, groups, self.class_names)

    def _file(self, number: int) -> str:
        return str(self.known[number].get("file_name", ""))

    def _folder(self) -> str:
        """Where the images lie: the first of the usual folders that holds the first image."""
        split, first = _split_of(self.name), self._file(min(self.known))
        places = [f"{split}/", "images/", f"images/{split}/", ""] if split else ["images/", ""]
        found = next((place for place in places if self.files.has(place + first)), None)
        if found is None:
            looked = ", ".join(place or "the folder itself" for place in places)
            raise ValueError(f"{shown(self.files.root)}: no image {shown(first)} in {looked}; give {_WHAT}")
        return found

    def _kind(self, entry: Mapping[str, Any]) -> int:
        """The place of an annotation's category among all."""
        number = entry["category_id"]
        if not isinstance(number, int) or number not in self.numbers:
            raise ValueError(f"category_id={shown_value(number)}: none of 'categories'")
        return self.numbers[number]

    def _read(self, number: int, folder: str) -> MaskedImage:
        name = folder + self._file(number)
        picture = self.files.image(name)
        size = picture.height, picture.width
        found = self.annotations.get(number, [])
        try:
            masks = np.array([_mask(one["segmentation"], size) for one in found], dtype=bool).reshape(-1, *size)
            crowd = np.array([bool(one.get("iscrowd", 0)) for one in found], dtype=bool)
            boxes = np.array([_box(one) for one in found], dtype=np.float64).reshape(-1, 4)
            kinds = [self._kind(one) for one in found]
            _check_size(self.known[number], size)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"an entry lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.where}, image id {number}: {reason}; mend the file") from error
        boxes[:, 2:] += boxes[:, :2]
        return MaskedImage(name, picture, _labels(masks, crowd, kinds, size), masks, crowd, boxes, boxes[~crowd])


def _check_size(entry: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Refuse an image of another size than the file says, in whose pixels it gives the masks."""
    stated = tuple(entry.get(key, side) for key, side in zip(("height", "width"), size))
    if stated != size:
        sides = " x ".join(map(shown_value, stated))
        raise ValueError(f"height x width is {sides}, but the image file has {size[0]} x {size[1]} pixels")


def _box(entry: Mapping[str, Any]) -> list[float]:
    """`[x, y, width, height]` in pixels."""
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(one, (int, float)) for one in box):
        raise ValueError(f"bbox={shown_value(box)}: must be x, y, width and height")
    if not np.isfinite(box).all():
        raise ValueError(f"bbox={shown_value(box)}: must be finite")
    return box


def _mask(segmentation: Any, size: tuple[int, int]) -> Array:
    """A segmentation's mask: run lengths, or a list of polygons."""
    if isinstance(segmentation, list):
        return fill_polygons(segmentation, size)
    mask = decode(segmentation)
    if mask.shape != size:
        raise ValueError(f"segmentation: {mask.shape[0]}x{mask.shape[1]} pixels for an image of {size[0]}x{size[1]}")
    return mask


def _labels(masks: Array, crowd: Array, kinds: list[int], size: tuple[int, int]) -> Array:
    """The class of every pixel: crowds behind, then instances from the largest to the smallest."""
    labels = np.zeros(size, dtype=np.int32)
    for index in np.lexsort((np.arange(len(masks)), -masks.sum((1, 2)), ~crowd)):
        labels[masks[index]] = VOID if crowd[index] else kinds[index]
    return labels
