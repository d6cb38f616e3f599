"""Tables of images: local parquet files, and data sets of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Image, Value
from datasets.exceptions import DatasetGenerationError

from ..hub import check_readable, no_progress_bars
from ..parts import files_by_part, of_no_part
from .labelled import NO_CLASS, Parts, class_names, tidy

MOST_CLASSES = 100_000
_Labels = tuple[np.ndarray, list[str], dict[int, str]]
"""Class number per row, the names, and what is wrong in which row."""
Tables = dict[str, tuple[str, Dataset]]
"""By part: what to call the table in messages, and its rows."""


@dataclass(frozen=True)
class Reading:
    """How tables are read: options of `sources.read_parts`."""

    image_column: str | None
    label_column: str | None
    skipped: list[str] | None
    labelled: bool


def is_parquet(file: Path) -> bool:
    """Whether a file is parquet by its name."""
    return file.suffix.lower() == ".parquet"


def read_parquet(path: Path, files: list[Path]) -> Tables:
    """A parquet file, or some below a folder, divided by the parts that their names say."""
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
        parts[part] = where, table
    return parts


def labelled_parts(tables: Tables, source: str, reading: Reading) -> Parts:
    """Tables as labelled images."""
    found = {part: _as_labelled(table, where, reading) for part, (where, table) in tables.items()}
    parts = {part: table for part, table in found.items() if table is not None}
    if "train" not in parts and "all" not in parts and len(parts) < len(found):
        raise ValueError(f"{source}: every label is -1, so the images are unlabelled; give labelled images")
    return parts


def _as_labelled(table: Dataset, where: str, reading: Reading) -> Dataset | None:
    """A table as the columns `image` (undecoded), `label` (with class names) and `row`.

    `None` where every label is -1: a test split whose labels are kept back.
    """
    image, skipped = _image_column(table, reading.image_column, where), reading.skipped
    encoded = (_labels if reading.labelled else _labels_if_any)(table, reading.label_column, where)
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
        return _checked_column(table, given, fitting, "data.image_column", "encoded images", where)
    if len(fitting) != 1:
        found = f"has the image columns {', '.join(fitting)}" if fitting else "has no column of encoded images"
        remedy = "say which by data.image_column" if fitting else f"its columns are {', '.join(table.column_names)}"
        raise ValueError(f"{where} {found}; {remedy}")
    return fitting[0]


def _label_column(table: Dataset, given: str | None, where: str) -> str:
    fitting = [name for name, feature in table.features.items() if _holds_labels(feature)]
    if given is not None:
        return _checked_column(table, given, fitting, "data.label_column", "class numbers or names", where)
    if "label" in fitting:
        return "label"
    named = [name for name in fitting if isinstance(table.features[name], ClassLabel)]
    if len(named) != 1:
        could = f"could be {', '.join(named or fitting)}" if named or fitting else "is missing"
        raise ValueError(f"{where}: no column 'label', and it {could}; say which by data.label_column")
    return named[0]


def _checked_column(table: Dataset, name: str, fitting: list[str], key: str, content: str, where: str) -> str:
    if name not in table.column_names:
        raise ValueError(f"{where} has no column '{name}' ({key}); its columns are {', '.join(table.column_names)}")
    if name not in fitting:
        allowed = f"; columns that do: {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{where}: column '{name}' ({key}) does not hold {content}{allowed}")
    return name


def _holds_images(feature: object) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and _holds_images(feature["bytes"])
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _holds_labels(feature: object) -> bool:
    kinds = ("int", "uint", "float", "string", "large_string", "bool")
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(kinds))


def _files_by_part(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    if path.is_file():
        return {"all": files}
    parts = files_by_part(files, path)
    if len(parts) > 1 and "all" in parts:
        raise ValueError(of_no_part(parts["all"][0], path))
    return parts
