"""Tables of images: local parquet files, and data sets of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Image, Value
from datasets.exceptions import DatasetGenerationError

from ..hub import check_readable, load_hub, no_progress_bars
from ..parts import files_by_part
from .labelled import NO_CLASS, Parts, class_names, tidy

MOST_CLASSES = 100_000
_Labels = tuple[np.ndarray, list[str], dict[int, str]]
"""Class number per row, the names, and what is wrong in which row."""


def is_parquet(file: Path) -> bool:
    """Whether a file is parquet by its name."""
    return file.suffix.lower() == ".parquet"


def read_parquet(
    path: Path,
    files: list[Path],
    image_column: str | None = None,
    label_column: str | None = None,
    skipped: list[str] | None = None,
    labelled: bool = True,
) -> Parts:
    """A parquet file, or some below a folder, divided by the parts that their names say.

    Args:
        path: the file (then it is not divided), or the folder.
        files: to read.
        image_column: encoded images; `None`: the only column of such.
        label_column: class numbers or names; `None`: `label`, else the only column with class names.
        skipped: gets a line for each row that is left out because of its label; `None`: such a row is an error.
        labelled: whether labels are needed; without, a table that has none, or bad ones, is of one class.

    Raises:
        ValueError: an unreadable file, files of no part beside files of one, columns that do not fit, or a bad label.
    """
    parts = {}
    for part, some in _files_by_part(path, files).items():
        where = str(some[0] if len(some) == 1 else path)
        some = [file for file in some if check_readable(file)]
        if not some:
            raise ValueError(f"{where}: no rows")
        try:
            with no_progress_bars():
                table = Dataset.from_parquet([str(file) for file in some])
        except DatasetGenerationError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"{where}: cannot be read as one table ({reason}); replace or mend the files") from error
        parts[part] = as_labelled(table, image_column, label_column, where, skipped, labelled)
    return _labelled_only(parts, str(path))


def read_hub(
    reference: str,
    image_column: str | None = None,
    label_column: str | None = None,
    skipped: list[str] | None = None,
    labelled: bool = True,
) -> Parts:
    """A data set of the Hugging Face Hub; this uses the network.

    Raises:
        ValueError: as `load_hub`, or columns that do not fit.
    """
    parts, _ = load_hub(reference, "uoft-cs/cifar10")
    named = {
        part: as_labelled(table, image_column, label_column, f"{reference} {part}", skipped, labelled)
        for part, table in parts.items()
    }
    return _labelled_only(named, reference)


def as_labelled(
    table: Dataset,
    image_column: str | None,
    label_column: str | None,
    where: str,
    skipped: list[str] | None = None,
    labelled: bool = True,
) -> Dataset | None:
    """A table as the columns `image` (undecoded), `label` (with class names) and `row`.

    Args:
        table: the rows.
        image_column: as for `read_parquet`, as `label_column`, `skipped` and `labelled`.
        where: the source, for messages.

    Returns:
        `None` where every label is -1: a test split whose labels are kept back.

    Raises:
        ValueError: a column that is missing, ambiguous, or of a type that does not fit; a bad label.
    """
    image = _image_column(table, image_column, where)
    encoded = _labels(table, label_column, where) if labelled else _labels_if_any(table, label_column, where)
    if encoded is None:
        return None
    numbers, names, reasons = encoded
    reasons = {row: f"{where}, row {row}: {reason}" for row, reason in reasons.items()}
    first = next(iter(reasons.values()), "")
    if reasons and skipped is None:
        raise ValueError(f"{first} ({len(reasons)} such of {len(table)} rows); mend or skip them")
    table = table.select_columns([image]).rename_columns({image: "image"})
    if table.features["image"] != Image(decode=False):
        with no_progress_bars():
            table = table.cast_column("image", Image(decode=False))
    rows = np.delete(np.arange(len(table)), list(reasons))
    if not len(rows):
        raise ValueError(f"{first}, as in all {len(table)} rows; give labels")
    if reasons and skipped is not None:
        skipped += reasons.values()
        table = table.select(rows)
    table = table.add_column("label", numbers[rows], feature=ClassLabel(names=names))
    table = table.add_column("row", rows)
    table.info.description = where
    return table


def _labels_if_any(table: Dataset, label_column: str | None, where: str) -> _Labels:
    """As `_labels`; one class for a table without labels or with bad ones."""
    try:
        found = _labels(table, label_column, where)
    except ValueError:
        if label_column is not None:
            raise
        found = None
    return found if found and not found[2] else (np.zeros(len(table), np.int64), [NO_CLASS], {})


def _labels(table: Dataset, label_column: str | None, where: str) -> _Labels | None:
    label = _label_column(table, label_column, where)
    return _class_numbers(table.with_format("arrow")[:][label], table.features[label], where, label)


def _class_numbers(labels: pyarrow.ChunkedArray, feature: object, where: str, column: str) -> _Labels | None:
    """Class number per row, the names, and what is wrong in which row; `None` where every label is -1."""
    missing = labels.is_null().to_numpy()
    values = labels.to_numpy()
    if pyarrow.types.is_string(labels.type) or pyarrow.types.is_large_string(labels.type):
        values = np.array(["" if gone else tidy(name) for name, gone in zip(values, missing)], dtype=object)
        missing |= values == ""
        present = class_names(sorted(set(values[~missing])), f"{where}: column '{column}'")
        numbers = {name: number for number, name in enumerate(present)}
        bad = {int(row): f"no label in column '{column}'" for row in np.flatnonzero(missing)}
        return np.array([numbers.get(name, -1) for name in values]), present, bad
    values = np.where(missing, np.nan, values.astype(np.float64))
    missing = np.isnan(values)
    if np.all(values[~missing] == -1) and not missing.all():
        return None
    names = class_names(feature.names, f"{where}: column '{column}'") if isinstance(feature, ClassLabel) else None
    limit = len(names) if names else MOST_CLASSES
    wrong = missing | (values < 0) | (values >= limit) | (values != np.round(values))
    bad = {int(row): _bad_label(values[row], column, limit) for row in np.flatnonzero(wrong)}
    numbers = np.where(wrong, -1, values).astype(np.int64)
    return numbers, names or [str(number) for number in range(numbers.max() + 1)], bad


def _bad_label(value: float, column: str, limit: int) -> str:
    if np.isnan(value):
        return f"no label in column '{column}'"
    return f"column '{column}' holds the label {value:g}; class numbers go from 0 to {limit - 1}"


def _image_column(table: Dataset, given: str | None, where: str) -> str:
    fitting = [name for name, feature in table.features.items() if _holds_images(feature)]
    if given is not None:
        _check_column(table, given, fitting, "data.image_column", "encoded images", where)
        return given
    if len(fitting) != 1:
        found = f"has the image columns {', '.join(fitting)}" if fitting else "has no column of encoded images"
        remedy = "say which by data.image_column" if fitting else f"its columns are {', '.join(table.column_names)}"
        raise ValueError(f"{where} {found}; {remedy}")
    return fitting[0]


def _label_column(table: Dataset, given: str | None, where: str) -> str:
    fitting = [name for name, feature in table.features.items() if _holds_labels(feature)]
    if given is not None:
        _check_column(table, given, fitting, "data.label_column", "class numbers or names", where)
        return given
    if "label" in fitting:
        return "label"
    named = [name for name in fitting if isinstance(table.features[name], ClassLabel)]
    if len(named) != 1:
        could = f"could be {', '.join(named or fitting)}" if named or fitting else "is missing"
        raise ValueError(f"{where}: no column 'label', and it {could}; say which by data.label_column")
    return named[0]


def _check_column(table: Dataset, name: str, fitting: list[str], key: str, content: str, where: str) -> None:
    if name not in table.column_names:
        raise ValueError(f"{where} has no column '{name}' ({key}); its columns are {', '.join(table.column_names)}")
    if name not in fitting:
        allowed = f"; columns that do: {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{where}: column '{name}' ({key}) does not hold {content}{allowed}")


def _holds_images(feature: object) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and _holds_images(feature["bytes"])
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _holds_labels(feature: object) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and feature.dtype.startswith(
        ("int", "uint", "float", "string", "large_string", "bool")
    )


def _labelled_only(parts: dict[str, Dataset | None], where: str) -> Parts:
    labelled = {part: table for part, table in parts.items() if table is not None}
    if "train" not in labelled and "all" not in labelled and any(table is None for table in parts.values()):
        raise ValueError(f"{where}: every label is -1, so the images are unlabelled; give labelled images")
    return labelled


def _files_by_part(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    if path.is_file():
        return {"all": files}
    parts = files_by_part(files, path)
    if len(parts) > 1 and "all" in parts:
        raise ValueError(
            f"{parts['all'][0]}: its name says neither train, validation nor test, but those of others below {path} "
            "do; rename or remove it, or give one file"
        )
    return parts
