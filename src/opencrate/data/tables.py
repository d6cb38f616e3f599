"""Tables of images: local parquet files, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from .files import start_of, what_it_is
from .labelled import Parts
from .parts import files_by_part, splits_by_part

HUB_PREFIX = "hf://"
MOST_CLASSES = 100_000


def is_parquet(file: Path) -> bool:
    """Whether a file is parquet by its name, or by its content under a name that says nothing."""
    return file.suffix.lower() == ".parquet" or (not file.suffix and start_of(file).startswith(b"PAR1"))


def read_parquet(
    path: Path, files: list[Path], image_column: str | None = None, label_column: str | None = None
) -> Parts:
    """A parquet file, or some below a folder, divided by the parts that their names say.

    Args:
        path: the file (then it is not divided), or the folder.
        files: to read.
        image_column: encoded images; `None`: the only column of such.
        label_column: class numbers or names; `None`: `label`, else the only column with class names.

    Raises:
        ValueError: an unreadable file, files of no part beside files of one, or columns that do not fit.
    """
    parts = {}
    for part, some in _files_by_part(path, files).items():
        for file in some:
            check_readable(file)
        where = str(some[0] if len(some) == 1 else path)
        try:
            with no_progress_bars():
                table = Dataset.from_parquet([str(file) for file in some])
        except datasets.exceptions.DatasetGenerationError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(
                f"{where}: the {part} files cannot be read as one table ({reason}); replace them"
            ) from error
        parts[part] = as_labelled(table, image_column, label_column, where)
    return _labelled_only(parts, str(path))


def read_hub(reference: str, image_column: str | None = None, label_column: str | None = None) -> Parts:
    """A data set of the Hugging Face Hub, `hf://owner/name`: the only source that uses the network.

    Raises:
        ValueError: not of that form, not to be had, splits of other names only, or columns that do not fit.
    """
    name = reference.removeprefix(HUB_PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"'{reference}' is not of the form hf://owner/name, for example hf://uoft-cs/cifar10")
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{reference}: cannot be had from the Hugging Face Hub ({reason}); check the name, the network and "
            "`hf auth login`, or download it and give the local folder"
        ) from error
    parts = splits_by_part(loaded if isinstance(loaded, DatasetDict) else {"all": loaded}, reference)
    named = {
        part: as_labelled(table, image_column, label_column, f"{reference} {part}") for part, table in parts.items()
    }
    return _labelled_only(named, reference)


def as_labelled(table: Dataset, image_column: str | None, label_column: str | None, where: str) -> Dataset | None:
    """A table as the columns `image` (undecoded), `label` (with class names) and `row`.

    Returns:
        `None` where every label is -1: a test split whose labels are kept back.

    Raises:
        ValueError: a column that is missing, ambiguous, or of a type that does not fit; some labels missing.
    """
    image = _image_column(table, image_column, where)
    label = _label_column(table, label_column, where)
    labels = table.with_format("arrow")[:][label] if len(table) else None
    if labels is None:
        raise ValueError(f"{where}: no rows")
    encoded = _class_numbers(labels, table.features[label], f"{where}: column '{label}'")
    if encoded is None:
        return None
    numbers, names = encoded
    table = table.select_columns([image]).rename_columns({image: "image"})
    if table.features["image"] != Image(decode=False):
        with no_progress_bars():
            table = table.cast_column("image", Image(decode=False))
    table = table.add_column("label", numbers, feature=ClassLabel(names=names))
    table = table.add_column("row", np.arange(len(table)))
    table.info.description = where
    return table


def _class_numbers(labels: pyarrow.ChunkedArray, feature: object, where: str) -> tuple[np.ndarray, list[str]] | None:
    """Class number per row, and the names; `None` where every label is -1."""
    if labels.null_count:
        raise ValueError(f"{where} has no label in {labels.null_count} of {len(labels)} rows; remove those rows")
    values = labels.to_numpy()
    if values.dtype == object:
        names, numbers = np.unique(values.astype(str), return_inverse=True)
        return numbers.astype(np.int64), names.tolist()
    values = values.astype(np.int64)
    least, most = int(values.min()), int(values.max())
    if least == most == -1:
        return None
    names = feature.names if isinstance(feature, ClassLabel) else None
    limit = len(names) if names else MOST_CLASSES
    if least < 0 or most >= limit:
        bad = least if least < 0 else most
        raise ValueError(f"{where} holds the label {bad}; class numbers go from 0 to {limit - 1}")
    return values, names or [str(number) for number in range(most + 1)]


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
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string", "bool"))


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


def check_readable(file: Path) -> None:
    """Raise `ValueError` for a parquet file that is truncated or damaged."""
    try:
        pyarrow.parquet.ParquetFile(file).close()
    except (pyarrow.ArrowException, OSError) as error:
        found = what_it_is(start_of(file))
        reason = str(error).splitlines()[0] if found == "a parquet file" else f"it is {found}"
        raise ValueError(f"{file}: not a readable parquet file, truncated or damaged ({reason}); replace it") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are put back as they were."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
