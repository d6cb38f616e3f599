"""Image folders: one sub-folder per class, perhaps below `train`, `validation` and `test`."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from .files import IMAGE_SUFFIXES, image_files
from .labelled import Parts, labelled_dataset

PART_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""Names of a part's folder, and what a part's parquet files begin with."""


def read_folder(root: Path) -> Parts:
    """The parts of an image folder; `all` where it has no `train`, `validation` or `test`.

    Raises:
        ValueError: no class folders, or one without images.
    """
    found = {part: _first_folder(root, names) for part, names in PART_FOLDERS.items()}
    parts = {part: read_classes(folder) for part, folder in found.items() if folder is not None}
    return parts or {"all": read_classes(root)}


def read_classes(root: Path) -> Dataset:
    """Every image of a folder of class folders; the sorted folder names give the label numbers.

    Raises:
        ValueError: no class folders, or one without images.
    """
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        loose = "; images lie directly in it" if image_files(root) else "; it is empty"
        if any(root.iterdir()) and "images" not in loose:
            loose = "; it holds no images, parquet, IDX or CIFAR .bin files either"
        raise ValueError(f"{root}: no class folders{loose}; put the images in one sub-folder per class")
    names = [folder.name for folder in folders]
    cells, labels = [], []
    for label, folder in enumerate(folders):
        files = image_files(folder)
        if not files:
            allowed = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{folder}: class folder without images; add images ({allowed}) or remove it")
        cells += [{"path": str(file), "bytes": None} for file in files]
        labels += [label] * len(files)
    return labelled_dataset(cells, labels, names)


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
