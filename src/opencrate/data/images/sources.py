"""Where labelled images come from, by one argument: see `_allowed`; only `hf://` uses the network.

Every source ends as `datasets.Dataset` splits with the columns `image` (an `Image(decode=False)` cell: its
encoded `bytes`, or the `path` of the file) and `label` (a `ClassLabel`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from ..._files import HUB_PREFIX, path_problem, require_file, shown
from ..hub import load_hub
from ..options import ImageData
from .binary import cifar_files, idx_files, read_cifar, read_idx, refuse_pickles
from .files import LeftOut, is_image, start_of, visible_files, what_it_is
from .folders import read_folder
from .labelled import Parts, label_names, labelled_dataset, relabelled
from .tables import Reading, is_parquet, labelled_parts, read_parquet
from .tensors import ImageTransform, drop_bad

_FOLDERS = {True: "a folder with one sub-folder of images per class", False: "a folder of images"}
"""Where labels are needed, and where they are not."""


def _allowed(labelled: bool) -> str:
    return (
        f"'digits', {_FOLDERS[labelled]}, a .parquet file or a folder of them, a folder of IDX or CIFAR .bin files, or "
        "hf://owner/name"
    )


@dataclass(frozen=True)
class ImageSplits:
    """Labelled images in three parts; `validation` is `None` where nothing was held out for choices.

    `skipped` says of each image that was left out on request which it is and why.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    skipped: tuple[str, ...] = ()

    @property
    def label_names(self) -> list[str]:
        """Class names, in the order of the label numbers."""
        return label_names(self.train)


def load_images(
    data: ImageData, skip_bad: bool = False, smallest: tuple[int, int] = (1, 1), labelled: bool = True
) -> ImageSplits:
    """The images that a recipe's `data` section names, split as it says.

    Data with a validation part and no test part is tested on the validation part (ImageNet's layout).

    Args:
        skip_bad: decode every image once, and leave out those that are unreadable, truncated, of another channel count,
            or smaller than `smallest`, before anything is split. Without it they are errors when they are read.
        smallest: (height, width) of a patch, in pixels.
        labelled: whether the labels mean anything. Without them any images are enough, and classes are used to split
            alike (the same images are held out as with labels) where they are large enough, and for nothing else.

    Raises:
        ValueError: a source that is missing, empty or damaged, a class folder without images, test images of
            classes that the training part lacks, classes too small to split, or a class without a readable image.
    """
    skipped: list[str] | None = [] if skip_bad else None
    parts = read_parts(data.path, data.image_column, data.label_column, skipped, labelled)
    if skipped is not None:
        transform = ImageTransform(None, data.num_channels, smallest)
        for part, dataset in parts.items():
            parts[part], reasons = drop_bad(dataset, transform, labelled)
            skipped += reasons
    train = parts.get("train", parts.get("all"))
    if train is None:
        raise ValueError(f"{data.path}: has no train part, only {' and '.join(parts)}; training needs one")
    held_out = {part: parts[part] for part in ("validation", "test") if part in parts}
    if labelled:
        names = label_names(train)
        if len(names) < 2:
            raise ValueError(f"{data.path}: only one class ('{names[0]}'); a classifier needs at least two")
        held_out = {part: relabelled(one, names, f"{data.path}, {part} part") for part, one in held_out.items()}
    test = held_out.pop("test", None) or held_out.pop("validation", None)
    validation = held_out.get("validation")
    if test is None:
        train, test = split_stratified(train, data.test_fraction, data.split_seed, "data.test_fraction", labelled)
    if validation is None and (share := data.validation_fraction) > 0:
        train, validation = split_stratified(train, share, data.split_seed, "data.validation_fraction", labelled)
    return ImageSplits(train, validation, test, tuple(skipped or ()))


def load_labelled(path: str | Path, label_names: list[str], skipped: list[str] | None = None) -> Dataset:
    """As `evaluation_part`, labelled by class name with a trained model's label numbers.

    Raises:
        ValueError: as `evaluation_part`, or a class that is not among the model's `label_names`.
    """
    return relabelled(evaluation_part(path, skipped), label_names, str(path))


def evaluation_part(path: str | Path, skipped: list[str] | None = None) -> Dataset:
    """The test part of a source, else its validation part, else all of it, with its own classes.

    Raises:
        ValueError: a source that is missing, empty or damaged, or that has a training part only.
    """
    parts = read_parts(path, skipped=skipped)
    part = next((part for part in ("test", "validation", "all") if part in parts), None)
    if part is None:
        raise ValueError(f"{path}: has a train part only; give its train folder or file itself to measure on that")
    return parts[part]


def read_parts(
    path: str | Path,
    image_column: str | None = None,
    label_column: str | None = None,
    skipped: list[str] | None = None,
    labelled: bool = True,
) -> Parts:
    """Everything a source holds, in its own parts and with its own classes.

    Args:
        path: as `ImageData.path`, as `image_column` and `label_column`.
        skipped: gets a line for each image that is left out because of its label; `None`: such a label is an error.
        labelled: whether labels are needed. If not, images without any are read as one class, wherever they lie.

    Raises:
        ValueError: a source that is missing, empty or damaged, or a bad label.
    """
    if str(path) == "digits":
        return {"all": load_digits()}
    reading = Reading(image_column, label_column, skipped, labelled)
    if str(path).startswith(HUB_PREFIX):
        tables, _ = load_hub(str(path), "uoft-cs/cifar10")
        return labelled_parts({part: (f"{path} {part}", one) for part, one in tables.items()}, str(path), reading)
    root = Path(path).expanduser()
    if path_problem(root):
        raise ValueError(f"{shown(root)}: no such folder or file; give {_allowed(labelled)}")
    if not root.is_dir():
        require_file(root, _allowed(labelled))
        found = what_it_is(start_of(root))
        if not is_parquet(root) and found != "a parquet file":
            raise ValueError(f"{shown(root)}: is {found}, not a data set; give {_allowed(labelled)}")
        return labelled_parts(read_parquet(root, [root]), str(root), reading)
    refuse_pickles(root)
    left_out = LeftOut(root)
    kind, files, others = _of_one_kind(root, visible_files(root, left_out), labelled)
    left_out.add_files(others)
    readers = {
        "parquet": lambda: labelled_parts(read_parquet(root, files), str(root), reading),
        "IDX": lambda: read_idx(root, labelled),
        "CIFAR": lambda: read_cifar(root, skipped),
        "image": lambda: read_folder(root, files, left_out, labelled),
    }
    parts = readers[kind]()
    left_out.say()
    return parts


def _of_one_kind(root: Path, files: list[Path], labelled: bool) -> tuple[str, list[Path], list[Path]]:
    """What kind of data a folder holds, its files and the others; `ValueError` for none or several kinds."""
    kinds = {
        "parquet": [file for file in files if is_parquet(file)],
        "IDX": idx_files(root),
        "CIFAR": cifar_files(root),
        "image": [file for file in files if is_image(file)],
    }
    found = {kind: of_kind for kind, of_kind in kinds.items() if of_kind}
    if len(found) > 1:
        words = " and ".join(f"{kind} files ({of_kind[0].relative_to(root)})" for kind, of_kind in found.items())
        raise ValueError(f"{root}: holds {words}; give a folder of one kind")
    if not found:
        other = LeftOut(root)
        other.add_files(files)
        wanted = "class folders with images" if labelled else "images"
        raise ValueError(
            f"{root}: no {wanted}, and no parquet, IDX or CIFAR .bin files; it holds "
            f"{other if files else 'no files'}; give {_allowed(labelled)}"
        )
    kind, used = next(iter(found.items()))
    return kind, used, sorted(set(files) - set(used))


def load_digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, values 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits as sklearn_digits

    values, labels = map(np.asarray, sklearn_digits(return_X_y=True))
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)
    # Binary PGM is a fixed header and the raw pixels: bytes that do not depend on an encoder's version.
    cells = [{"path": None, "bytes": b"P5 8 8 255\n" + image.tobytes()} for image in pixels]
    return labelled_dataset(cells, labels.tolist(), [str(digit) for digit in range(10)], "digits")


def split_stratified(
    dataset: Dataset, fraction: float, seed: int, key: str, labelled: bool = True
) -> tuple[Dataset, Dataset]:
    """Split off `fraction` of the images, class by class in proportion; the same for every run of a seed.

    Classes that are too small for that are an error, or do not count where labels mean nothing (`labelled=False`).
    """
    labels = dataset["label"][:]
    names = label_names(dataset)
    if fraction == 0:
        raise ValueError(f"{key} is 0 but the data has no such split of its own; give a fraction, for example 0.2")
    smallest, count = min(Counter(labels).items(), key=lambda item: item[1])
    parts = math.ceil(fraction * len(labels)), math.floor((1 - fraction) * len(labels))
    too_small = count < 2 or min(parts) < len(set(labels))
    if min(parts) < 1 or (labelled and too_small):
        raise ValueError(
            f"too few images to split: {len(labels)} in {len(set(labels))} classes, {count} in class "
            f"'{names[smallest]}', {key}={fraction}; add images or change the fraction"
        )
    classes = None if too_small else labels
    kept, held_out = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=classes)
    return dataset.select(kept), dataset.select(held_out)
