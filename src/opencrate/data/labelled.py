"""Labelled images as `datasets.Dataset`: the form that every source ends in, and labels matched by class name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image

from .class_names import nameless

Parts = dict[str, Dataset]
"""What a source holds: `train`, `validation` and `test` as far as it has them, or `all` where it is not divided."""


def labelled_dataset(cells: list[dict[str, Any]], labels: Sequence[int], names: list[str]) -> Dataset:
    """A dataset with the columns `image` (undecoded cells) and `label`.

    Args:
        cells: `{"path": file, "bytes": None}`, or `{"path": a name for messages or None, "bytes": encoded}`.
        labels: class numbers.
        names: of the classes.
    """
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": cells, "label": list(labels)}, features=features)


def label_names(dataset: Dataset) -> list[str]:
    """Class names in the order of the label numbers."""
    return dataset.features["label"].names


def relabelled(dataset: Dataset, names: list[str], where: str) -> Dataset:
    """The same images with the label numbers of `names`, matched by name; classes without images do not matter.

    Raises:
        ValueError: an image of a class that is not among `names`.
    """
    own = label_names(dataset)
    if own == names:
        return dataset
    labels = dataset["label"][:]
    unknown = [own[label] for label in sorted(set(labels)) if own[label] not in names]
    if unknown:
        more = f" ({len(unknown)} such classes)" if len(unknown) > 1 else ""
        if nameless(names):
            raise ValueError(
                f"{where}: the model's {len(names)} classes have no names ({names[0]}, ...); give them by "
                "`opencrate evaluate --class-names FILE`, or imagenet, or order (the classes of the data, sorted)"
            )
        raise ValueError(
            f"{where}: class '{unknown[0]}'{more} is not among the {len(names)} classes of the model or training "
            f"data ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}); rename or remove its images"
        )
    numbers = {label: names.index(own[label]) for label in set(labels)}
    return with_labels(dataset, [numbers[label] for label in labels], names)


def with_labels(dataset: Dataset, labels: Sequence[int], names: list[str]) -> Dataset:
    """The same rows with another `label` column."""
    description = dataset.info.description
    dataset = dataset.remove_columns("label").add_column("label", list(labels), feature=ClassLabel(names=names))
    dataset.info.description = description
    return dataset


def cells_of(dataset: Dataset, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The image cells of some rows; one without a file of its own is named by its row in the source."""
    rows = dataset[list(indices)]
    if "row" not in rows:
        return rows["image"]
    where = dataset.info.description
    return [
        {"bytes": cell["bytes"], "path": f"{where}, row {row}" + (f" ({cell['path']})" if cell["path"] else "")}
        for cell, row in zip(rows["image"], rows["row"])
    ]
