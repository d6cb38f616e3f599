"""Image folders: one sub-folder per class, perhaps below folders that are named for parts of the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from ..parts import is_part, part_of
from .files import IMAGE_SUFFIXES, LeftOut, visible_folders
from .labelled import NO_CLASS, Parts, labelled_dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Folder:
    """A folder with the image files that lie in it and below it."""

    path: Path
    images: list[Path]

    @cached_property
    def loose(self) -> list[Path]:
        """Images that lie in the folder itself."""
        return [file for file in self.images if len(file.parts) == len(self.path.parts) + 1]

    @property
    def is_deep(self) -> bool:
        """Whether images lie in its sub-folders, as they do below a part."""
        return len(self.loose) < len(self.images)

    @cached_property
    def inside(self) -> dict[str, _Folder]:
        """Its visible sub-folders by name, sorted."""
        below: dict[str, list[Path]] = {folder.name: [] for folder in visible_folders(self.path)}
        depth = len(self.path.parts)
        for file in self.images:
            if len(file.parts) > depth + 1:
                below[file.parts[depth]].append(file)
        return {name: _Folder(self.path / name, images) for name, images in below.items()}


def read_folder(root: Path, images: list[Path], left_out: LeftOut, labelled: bool = True) -> Parts:
    """The parts of an image folder, given its image files, sorted; `all` where no folder in it is named for one.

    Folders are parts where their names say so (`parts.part_of`) and class folders lie in them; what lies beside parts
    or classes goes to `left_out`. Without need of labels, images of a part that do not all lie in class folders are
    read as one class.

    Raises:
        ValueError: no class folders, one without images, or names and contents that leave it open which folders are
            parts.
    """
    folder = _Folder(root, images)
    names = _part_names(folder)
    if not names:
        with_images = [one for one in folder.inside.values() if one.images]
        if len(with_images) == 1 and _part_names(with_images[0]):  # a folder around the parts
            _leave_out_besides(folder, {with_images[0].path.name}, left_out)
            return read_folder(with_images[0].path, with_images[0].images, left_out, labelled)
        for name in filter(is_part, folder.inside):
            logger.warning("%s: '%s' is read as a class, as images and no class folders lie in it", root, name)
        return {"all": _read_part(folder, left_out, labelled)}
    _leave_out_besides(folder, set(names.values()), left_out)
    parts = {}
    for part, name in names.items():
        one = _without_repeated_name(folder.inside[name], part)
        if labelled and part != "train" and one.images and not one.is_deep:  # held out without classes: as if absent
            _leave_out(one, f"of the {part} part, which has no class folders", left_out)
        else:
            parts[part] = _read_part(one, left_out, labelled)
    return parts


def _part_names(folder: _Folder) -> dict[str, str]:
    """The name of each part's folder, in the order of training; none where the folders are classes."""
    named = {name: part_of(name) for name in folder.inside if part_of(name)}
    pure = {name: part for name, part in named.items() if is_part(name)}
    deep = {name: part for name, part in named.items() if folder.inside[name].is_deep}
    if not any(map(is_part, deep)) and len(set(deep.values())) < 2:
        deep = {}  # `train_station` alone, with sub-folders
    with_images = {name for name, one in folder.inside.items() if one.images}
    if not deep and not (pure and with_images <= pure.keys()):
        return {}
    found = deep | pure
    names: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        several = [name for name in found if found[name] == part]
        if len(several) > 1:
            raise ValueError(
                f"{folder.path}: '{several[0]}' and '{several[1]}' are both named for the {part} part; keep one, or "
                "rename one to train, validation or test"
            )
        if several:
            names[part] = several[0]
    _refuse_other_parts(folder, names)
    return names


def _refuse_other_parts(folder: _Folder, names: Mapping[str, str]) -> None:
    """Refuse a folder beside the parts that looks like a part, or like a class of one."""
    classes = {name for part in names.values() for name in folder.inside[part].inside}
    for name, one in folder.inside.items():
        alike = name in classes or classes & one.inside.keys() or "train" not in names
        if one.images and name not in names.values() and alike:
            raise ValueError(
                f"{folder.path}: '{next(iter(names.values()))}' is named for a part of the data, '{name}' beside it is "
                f"not and holds {len(one.images)} images; rename it to train, validation or test, or move it away"
            )


def _without_repeated_name(folder: _Folder, part: str) -> _Folder:
    """What is in `train/train`, for `train`."""
    inside = folder.inside
    again = next((one for name, one in inside.items() if is_part(name) and part_of(name) == part), None)
    return again if again is not None and len(inside) == 1 and again.is_deep and not folder.loose else folder


def _leave_out_besides(folder: _Folder, used: set[str], left_out: LeftOut) -> None:
    """What lies in a folder beside the parts."""
    for name in sorted(folder.inside.keys() - used):
        _leave_out(folder.inside[name], "in a folder beside the parts", left_out)
    for file in folder.loose:
        left_out.add("image{s} beside the parts", file)


def _leave_out(folder: _Folder, where: str, left_out: LeftOut) -> None:
    for file in folder.images:
        left_out.add("image{s} " + where, file)
    if not folder.images:
        left_out.add("folder{s} without images", folder.path)


def _read_part(folder: _Folder, left_out: LeftOut, labelled: bool) -> Dataset:
    """Its classes; where those are not needed and not all images lie in class folders, all images as one class."""
    if labelled:
        _say_nested_classes(folder)
    if labelled or (folder.inside and not folder.loose and all(one.images for one in folder.inside.values())):
        return _read_classes(folder, left_out)
    if not folder.images:
        raise ValueError(f"{folder.path}: no images lie in it; add some or remove the folder")
    cells = [{"path": str(file), "bytes": None} for file in folder.images]
    return labelled_dataset(cells, [0] * len(cells), [NO_CLASS], folder.path)


def _say_nested_classes(root: _Folder) -> None:
    """Say which classes have sub-folders; refuse parts of the data below one, which would be mixed."""
    for name, folder in root.inside.items():
        parts = [below for below in folder.inside if is_part(below)]
        if len({part_of(part) for part in parts}) > 1:
            raise ValueError(
                f"{folder.path}: parts of the data ('{parts[0]}', '{parts[1]}') lie in a class folder; put the class "
                f"folders into the parts, as in {parts[0]}/{name}"
            )
        if folder.is_deep:
            below = next(iter(folder.inside))
            logger.warning("%s: images of its sub-folders ('%s', ...) are read as class '%s'", folder.path, below, name)


def _read_classes(root: _Folder, left_out: LeftOut) -> Dataset:
    """Every image of a folder of class folders; the sorted folder names give the label numbers."""
    folders = root.inside
    if not folders:
        loose = "images lie directly in it" if root.images else "it is empty"
        raise ValueError(f"{root.path}: no class folders; {loose}; put the images in one sub-folder per class")
    cells, labels = [], []
    for label, folder in enumerate(folders.values()):
        if not folder.images:
            allowed = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{folder.path}: class folder without images; add images ({allowed}) or remove it")
        cells += [{"path": str(file), "bytes": None} for file in folder.images]
        labels += [label] * len(folder.images)
    for file in root.loose:
        left_out.add("image{s} beside the class folders", file)
    return labelled_dataset(cells, labels, list(folders), root.path)
