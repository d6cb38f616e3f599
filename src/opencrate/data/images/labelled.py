"""Labelled images as `datasets.Dataset`: the form that every source ends in, and labels matched by class name."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image

from .class_names import nameless

logger = logging.getLogger(__name__)

Parts = dict[str, Dataset]
"""What a source holds: `train`, `validation` and `test` as far as it has them, or `all` where it is not divided."""
NO_CLASS = "image"
"""The only class of images without labels."""
_NO_WIDTH = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))


def labelled_dataset(cells: list[dict[str, Any]], labels: Sequence[int], names: list[str], where: object) -> Dataset:
    """A dataset with the columns `image` (undecoded cells) and `label` (class numbers, with their names).

    Cells are `{"path": file, "bytes": None}`, or `{"path": a name for messages or None, "bytes": encoded}`.
    """
    names = class_names(names, where)
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": cells, "label": list(labels)}, features=features)


def class_names(names: Sequence[str], where: object) -> list[str]:
    """Names of classes as people see them (`tidy`); names that differ in capitals only are reported.

    Raises:
        ValueError: two names that look the same to a person.
    """
    seen: dict[str, str] = {}
    for name in names:
        if _look(name) in seen:
            raise ValueError(
                f"{where}: the classes {seen[_look(name)]!a} and {name!a} look the same to a person; rename one, or "
                "put their images together"
            )
        seen[_look(name)] = name
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(_folded(name), name)
        if other != name:
            logger.warning("%s: '%s' and '%s' are two classes that differ in capitals only", where, other, name)
    return [tidy(name) for name in names]


def tidy(name: str) -> str:
    """A name without outer, doubled and zero-width space, accents in one form (NFC)."""
    return " ".join(unicodedata.normalize("NFC", name.translate(_NO_WIDTH)).split())


def _look(name: str) -> str:
    """What names that look alike have in common: also without invisible signs, in the plainest form (NFKC)."""
    visible = "".join(letter for letter in tidy(name) if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", visible)


def label_names(dataset: Dataset) -> list[str]:
    """Class names in the order of the label numbers."""
    return dataset.features["label"].names


def relabelled(dataset: Dataset, names: list[str], where: str) -> Dataset:
    """The same images with the label numbers of `names`, matched by name; classes without images do not matter.

    Names that look the same to a person match; a difference in capitals is reported.

    Raises:
        ValueError: an image of a class that is not among `names`.
    """
    own = label_names(dataset)
    if own == names:
        return dataset
    labels = dataset["label"][:]
    present = [own[label] for label in sorted(set(labels))]
    matches = _matches(present, names, where)
    unknown = [name for name in present if name not in matches]
    if unknown:
        more = f" ({len(unknown)} such classes)" if len(unknown) > 1 else ""
        if nameless(names):
            raise ValueError(
                f"{where}: the model's {len(names)} classes have no names ({names[0]}, ...); give them by "
                "`class_names`: a file, imagenet, or order (the classes of the data, sorted)"
            )
        raise ValueError(
            f"{where}: class '{unknown[0]}'{more} is not among the {len(names)} classes of the model or training "
            f"data ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}); rename or remove its images"
        )
    numbers = [matches[own[label]] for label in labels]
    description = dataset.info.description
    dataset = dataset.remove_columns("label").add_column("label", numbers, feature=ClassLabel(names=names))
    dataset.info.description = description
    return dataset


def _matches(own: Sequence[str], names: Sequence[str], where: str) -> dict[str, int]:
    """The number among `names` of the same name, or of the only one that looks the same, of each that has one."""
    found: dict[str, int] = {}
    alike = [(key, [key(name) for name in names]) for key in (_look, _folded)]
    for name in own:
        if name in names:
            found[name] = names.index(name)
            continue
        for number in [looks.index(key(name)) for key, looks in alike if looks.count(key(name)) == 1][:1]:
            found[name] = number
            if _look(names[number]) != _look(name):
                logger.warning("%s: class '%s' is read as '%s'", where, name, names[number])
    return found


def _folded(name: str) -> str:
    return _look(name).casefold()


def cells_of(dataset: Dataset, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The image cells of some rows, those of tables with a `name` for messages: the row in the source."""
    rows = dataset[list(indices)]
    if "row" not in rows:
        return rows["image"]
    where = dataset.info.description
    return [_table_cell(cell or {}, f"{where}, row {row}", where) for cell, row in zip(rows["image"], rows["row"])]


def _table_cell(cell: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A cell of a table with a name; the file that a path without bytes names lies beside the table."""
    path, content = cell.get("path"), cell.get("bytes")
    if path is None or content is not None:
        return {"bytes": content, "path": None, "name": f"{name} ({path})" if path else name}
    folder = Path(where).parent if Path(where).is_file() else Path(where)
    return {"bytes": None, "path": str(folder / path), "name": f"{name} ({path})"}
