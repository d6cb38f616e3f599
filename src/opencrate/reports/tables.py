"""Data as CSV and JSON: the one form in which results are written, on pandas frames and plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import pandas

from .._files import encoded


def frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row per mapping. Values stay as they are: a count beside a `None` stays a whole number."""
    return pandas.DataFrame(list(rows), dtype=object)


def to_csv(table: pandas.DataFrame) -> str:
    """The table with one header line and no index; what is undefined is empty."""
    return table.to_csv(index=False, lineterminator="\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Frames (rows), dataclasses, tensors, paths and plain values as JSON; NaN becomes null, an infinity its name."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def as_bytes(name: str, value: pandas.DataFrame | Mapping | list | str | bytes) -> bytes:
    """The content of a file: text and bytes as they are, of a frame CSV where the name says so, JSON of all else."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, pandas.DataFrame) and name.endswith(".csv"):
        return encoded(to_csv(value))
    return encoded(value if isinstance(value, str) else to_json(value))


def plain(value: Any) -> Any:
    """The values that JSON has, as `to_json` writes them."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, pandas.DataFrame):
        return plain(value.to_dict("records"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    tolist = getattr(value, "tolist", None)
    return value if tolist is None else plain(tolist())
