"""Where labelled images come from: scikit-learn's digits, or a local folder with one sub-folder per class.

Every source ends as `datasets.Dataset` splits with the columns `image` (an `Image(decode=False)` cell: its
encoded `bytes`, or the `path` of the file) and `label` (a `ClassLabel`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from sklearn.model_selection import train_test_split

from ..training.recipe import DataRecipe
from .files import IMAGE_SUFFIXES, image_files

TRAIN_FOLDER = "train"
VALIDATION_FOLDERS = ("validation", "val", "valid")
TEST_FOLDER = "test"


@dataclass(frozen=True)
class ImageSplits:
    """Labelled images in three parts; `validation` is `None` where nothing was held out for choices."""

    train: Dataset
    validation: Dataset | None
    test: Dataset

    @property
    def label_names(self) -> list[str]:
        """Class names, in the order of the label numbers."""
        return self.train.features["label"].names


def load_images(data: DataRecipe) -> ImageSplits:
    """The labelled images that a recipe's `data` section names, split as it says.

    Raises:
        ValueError: missing path, empty folder, class folder without images, classes too small to split.
    """
    if data.path == "digits":
        train, validation, test = load_digits(), None, None
    else:
        train, validation, test = _load_folder(Path(data.path).expanduser())
    if test is None:
        train, test = split_stratified(train, data.test_fraction, data.split_seed, "data.test_fraction")
    if validation is None and data.validation_fraction > 0:
        train, validation = split_stratified(
            train, data.validation_fraction, data.split_seed, "data.validation_fraction"
        )
    return ImageSplits(train, validation, test)


def load_digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, values 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    # Binary PGM is a fixed header and the raw pixels: bytes that do not depend on an encoder's version.
    cells = [{"path": None, "bytes": b"P5 8 8 255\n" + image.tobytes()} for image in pixels]
    return _dataset(cells, digits.target.tolist(), [str(digit) for digit in range(10)])


def load_labelled(path: str | Path, label_names: list[str]) -> Dataset:
    """All images of a folder for evaluation, labelled by class name with a trained model's label numbers.

    Args:
        path: a folder of class folders, or one with a `test` (else `validation`) folder of class folders.
        label_names: the model's class names; the folder may lack some of them, but may hold no others.

    Raises:
        ValueError: missing path, empty folder, class folder without images, or an unknown class.
    """
    root = _existing_folder(Path(path).expanduser())
    return _read_classes(_held_out_folder(root) or root, label_names)


def split_stratified(dataset: Dataset, fraction: float, seed: int, key: str) -> tuple[Dataset, Dataset]:
    """Split off `fraction` of the images, class by class in proportion; the same for every run of a seed.

    Raises:
        ValueError: the fraction is 0, or the classes are too small for both parts to hold each of them.
    """
    labels = dataset["label"][:]
    names = dataset.features["label"].names
    if fraction == 0:
        raise ValueError(f"{key} is 0 but the data has no such split of its own; give a fraction, for example 0.2")
    smallest, count = min(Counter(labels).items(), key=lambda item: item[1])
    parts = math.ceil(fraction * len(labels)), math.floor((1 - fraction) * len(labels))
    if count < 2 or min(parts) < len(set(labels)):
        raise ValueError(
            f"too few images to split: {len(labels)} in {len(set(labels))} classes, {count} in class "
            f"'{names[smallest]}', {key}={fraction}; add images or change the fraction"
        )
    kept, held_out = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels)
    return dataset.select(kept), dataset.select(held_out)


def _load_folder(root: Path) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Train, validation and test of an image folder; the last two `None` where it has no folders for them."""
    _existing_folder(root)
    if not (root / TRAIN_FOLDER).is_dir():
        return _read_classes(root), None, None
    train = _read_classes(root / TRAIN_FOLDER)
    names = train.features["label"].names
    held_out = _held_out_folder(root)
    test = _read_classes(held_out, names) if held_out else None
    validation_folder = _first_folder(root, VALIDATION_FOLDERS)
    if validation_folder is None or validation_folder == held_out:
        return train, None, test
    return train, _read_classes(validation_folder, names), test


def _held_out_folder(root: Path) -> Path | None:
    """The folder that plays the test set: `test`, else the validation folder (ImageNet's layout)."""
    return _first_folder(root, (TEST_FOLDER, *VALIDATION_FOLDERS))


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _existing_folder(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path}: no such folder; give 'digits' or a folder with one sub-folder per class")
    if not path.is_dir():
        raise ValueError(f"{path}: is a file; give a folder with one sub-folder of images per class")
    return path


def _read_classes(root: Path, label_names: list[str] | None = None) -> Dataset:
    """One sub-folder per class; `label_names` fixes the label numbers, else the sorted folder names do."""
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        loose = "; images lie directly in it" if image_files(root) else "; it is empty"
        raise ValueError(f"{root}: no class folders{loose}; put the images in one sub-folder per class")
    names = label_names or [folder.name for folder in folders]
    if len(names) < 2:
        raise ValueError(f"{root}: only one class folder ('{names[0]}'); a classifier needs at least two")
    unknown = [folder.name for folder in folders if folder.name not in names]
    if unknown:
        raise ValueError(
            f"{root}: class '{unknown[0]}' is not among the {len(names)} classes of the model or training "
            f"data ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}); rename or remove that folder"
        )
    cells, labels = [], []
    for folder in folders:
        files = image_files(folder)
        if not files:
            allowed = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{folder}: class folder without images; add images ({allowed}) or remove it")
        cells += [{"path": str(file), "bytes": None} for file in files]
        labels += [names.index(folder.name)] * len(files)
    return _dataset(cells, labels, names)


def _dataset(cells: list[dict[str, Any]], labels: list[int], names: list[str]) -> Dataset:
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": cells, "label": labels}, features=features)
