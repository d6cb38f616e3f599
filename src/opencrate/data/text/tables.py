"""Text in tables: parquet and JSON lines files, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError

from ..._files import parse_json, read_limited, require_file, shown
from ..._pretrained import reason
from ..hub import check_readable, load_hub, no_progress_bars
from ..images.files import opened
from .documents import Documents, TextParts, digest
from .options import TextData

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst")
_ROWS = 1000
_UNPACKED_LIMIT, _MOST_PACKED = 64 << 20, 200


def table_documents(files: list[Path], column: str | None, where: str, identity: Callable[[], str]) -> Documents:
    """One document per row of the files' column of strings."""
    is_parquet = files[0].suffix.lower() == ".parquet"
    names = [str(file) for file in files if not is_parquet or check_readable(file)]
    if not names:
        raise ValueError(f"{where}: no rows")
    try:
        with no_progress_bars():
            if not is_parquet:
                for file in files:
                    check_json_lines(file)
            table = Dataset.from_parquet([*names]) if is_parquet else Dataset.from_json([*names])
    except (DatasetGenerationError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(tuple(map(shown, files))):
            raise
        why = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise ValueError(f"{where}: cannot be read as a table of text ({why}); one JSON object a line") from error
    column = text_column(table.features, column, where)
    return Documents(where, partial(_rows, table, column), identity)


def check_json_lines(file: Path) -> None:
    """Refuse a table that is not one JSON object a line: the library that reads it ends the process at some."""
    if file.suffix == ".zst":  # needs a package of its own, which reads it in blocks
        return
    left = max(_UNPACKED_LIMIT, _MOST_PACKED * require_file(file, "a table of text").stat().st_size)
    try:
        _check_lines(file, left)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{shown(file)}: not a readable gzip file, truncated or damaged; replace it") from error


def _check_lines(file: Path, left: int) -> None:
    number = 0
    with opened(file, file.suffix == ".gz") as stream:
        while line := stream.readline(left):
            number, left = number + 1, left - len(line)
            where = f"{shown(file)}, line {number}"
            if left <= 0:
                raise ValueError(f"{where}: unpacks to more than {_MOST_PACKED} times its size; give a smaller file")
            if number == 1 and line.lstrip()[:1] == b"[":
                _check_json_list(file)
                return
            if line.strip():
                parse_json(line.removeprefix(b"\xef\xbb\xbf"), where, advice="a table has one JSON object a line")


def _check_json_list(file: Path) -> None:
    """The same of a file that is one list of objects."""
    with opened(file, file.suffix == ".gz") as stream:
        rows = parse_json(read_limited(stream, file), shown(file), list)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{shown(file)}, entry {number}: is no JSON object; replace it")


def text_column(features: Mapping[str, Any] | None, given: str | None, where: str) -> str:
    """The column of texts: the one given, `text`, or the only one of strings."""
    if features is None:  # a streamed data set that does not say
        return given or "text"
    strings = [n for n, f in features.items() if isinstance(f, Value) and f.dtype in ("string", "large_string")]
    if given is not None:
        if given not in strings:
            raise ValueError(
                f"{where}: text.text_column={given!r} has no strings; columns that do: {', '.join(strings) or 'none'}"
            )
        return given
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        found = f"has the string columns {', '.join(strings)}" if strings else "has no column of strings"
        raise ValueError(f"{where} {found}; say which by text.text_column")
    return strings[0]


def hub_parts(data: TextData) -> TextParts:
    """A data set of the Hugging Face Hub; this uses the network.

    With `text.streaming` nothing is downloaded before it is read. Without a validation split of its own, its first
    `validation_fraction * max_documents` documents are held out, and it needs `max_documents`.
    """
    tables, revision = load_hub(data.path, "Skylion007/openwebtext", data.streaming)
    if set(tables) == {"train"}:
        tables = {"all": tables["train"]}
    parts = {part: _hub_documents(table, data, f"{data.path} {part}", revision) for part, table in tables.items()}
    return _streamed(parts, data) if data.streaming else parts


def _hub_documents(table: Dataset | IterableDataset, data: TextData, where: str, revision: str) -> Documents:
    column = text_column(table.features, data.text_column, where)
    if isinstance(table, Dataset):
        return Documents(where, partial(_rows, table, column), lambda: digest(table._fingerprint, column))
    return Documents(where, lambda: (row[column] or "" for row in table), lambda: digest(where, revision, column))


def _streamed(parts: TextParts, data: TextData) -> TextParts:
    """Parts by document number: the length of a stream is not known before its end."""
    limit = data.max_documents
    if "all" not in parts:
        return {part: documents.first(limit) for part, documents in parts.items()} if limit else parts
    whole, fractions = parts["all"], (data.validation_fraction, data.test_fraction)
    if limit is None and any(fractions):
        raise ValueError(
            f"{data.path}: streamed, without a validation split of its own; give text.max_documents, of which the "
            "first are held out, or set text.validation_fraction=0"
        )
    if limit is None:
        return {"train": whole}
    first, second = accumulate(math.ceil(fraction * limit) for fraction in fractions)
    borders = {"train": (second, limit), "validation": (0, first), "test": (first, second)}
    return {part: whole.after(*two) for part, two in borders.items() if part == "train" or two[0] < two[1]}


def _rows(table: Dataset, column: str) -> Iterator[str]:
    for start in range(0, len(table), _ROWS):
        yield from (text or "" for text in table[start : start + _ROWS][column])
