"""What every experiment gives back, how its settings are read, and how it is written."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from matplotlib.figure import Figure

from ..._outputs import check_results, claim, write_whole
from ..._suggest import suggest
from ..._values import Amount, Positive, Within, allowed, check_fields, fitted, number_in, shown_value
from ...analysis.theory.check import verdict
from ...stats.intervals import seed_interval

Row = dict[str, Any]
Track = Callable[[Sequence], Iterable]
"""Hands a sequence through, perhaps showing how far it is."""

# What the sizes of an experiment may be: each is done in float64 on the CPU, for every seed.
Few = Annotated[int, Within(1, 256)]
Width = Annotated[int, Within(1, 2_048)]
Tokens = Annotated[int, Within(1, 16_384)]
Steps = Annotated[int, Within(1, 100_000)]
Amounts = tuple[Amount, ...]
Positives = tuple[Positive, ...]
Angle = Annotated[float, Within(0, 90)]

_DPI = 110
_Settings = TypeVar("_Settings", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """What every experiment can be told; each adds its own.

    Attributes:
        seeds: independent repetitions, numbered from 0; at least 2, for an interval.
    """

    seeds: Annotated[int, Within(2, 1_000)] = 10

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Experiment:
    """The outcome of one experiment.

    Attributes:
        name: of the command.
        title: the question, one line.
        settings: what it was run with.
        rows: one dict per number with its interval; all have the same keys.
        seed_rows: the values behind them, one dict per seed, when they are kept.
        summary: sentences computed from the numbers.
        columns: (head, key) of the table that is shown; keys of `shown`.
        shown: rows of that table, as texts.
        figures: by file name without ending.
    """

    name: str
    title: str
    settings: Settings
    rows: tuple[Row, ...]
    summary: tuple[str, ...]
    columns: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def to_rows(self) -> list[Row]:
        """The rows as a list of dicts."""
        return list(self.rows)


def over_seeds(values: Sequence[float]) -> Row:
    """mean, low, high (95 %, Student's t over seeds), smallest, largest, seeds and verdict of one number per seed."""
    interval = seed_interval(values)
    mean, low, high = float(interval.mean), float(interval.low), float(interval.high)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "smallest": float(min(values)),
        "largest": float(max(values)),
        "seeds": len(values),
    }


def judged(row: Mapping[str, Any]) -> str:
    """ "descends", "ascends" or "cannot tell", from the row's interval."""
    return verdict(row["low"], row["high"])


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields are the wanted ones."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def with_overrides(settings: _Settings, words: Sequence[str]) -> _Settings:
    """The settings with `key=value` words applied; lists are written with commas.

    Raises:
        ValueError: an unknown key, a value of a wrong type, or one that the settings refuse.
    """
    known = {item.name: getattr(settings, item.name) for item in fields(settings)}
    changes: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise ValueError(f"unknown setting '{name}'; {suggest(name, known)}")
        changes[name] = _parsed(name, text, known[name])
    return replace(settings, **changes)


def _parsed(name: str, text: str, like: Any) -> Any:
    kind = type(like[0]) if isinstance(like, tuple) else type(like)
    try:
        values = tuple(fitted(number_in(part), kind) for part in text.split(","))
        if isinstance(like, tuple):
            return values
        (value,) = values
        return value
    except ValueError:
        what = f"{allowed(kind)}, or several with commas" if isinstance(like, tuple) else allowed(kind)
        raise ValueError(f"{name}={shown_value(text)}: must be {what}, like {name}={_written(like)}") from None


def _written(value: Any) -> str:
    return (
        ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
        if isinstance(value, tuple)
        else (f"{value:g}" if isinstance(value, float) else str(value))
    )


def settings_words(settings: Settings) -> list[str]:
    """The settings as `key=value` words, which `with_overrides` reads."""
    return [f"{item.name}={_written(getattr(settings, item.name))}" for item in fields(settings)]


# --- Writing ------------------------------------------------------------------------------------------------------


def check_free(folder: Path, name: str, overwrite: bool) -> None:
    """Refuse a folder that already holds this experiment's results.

    Raises:
        ValueError: it does and `overwrite` is off, or the path is a file.
    """
    check_results(folder, (f"{name}.csv", f"{name}.json", f"{name}.png"), f"{name}.json")
    if (folder / f"{name}.json").exists() and not overwrite:
        raise ValueError(f"{folder}: holds {name}.json already; overwrite=True replaces it")


def write_experiment(experiment: Experiment, folder: Path, command: str = "") -> list[Path]:
    """Write `<name>.csv`, `<name>.json` and every figure as PNG and SVG; each renamed when complete, JSON last.

    Args:
        experiment: what to write.
        folder: made where it does not exist.
        command: that was typed, for the record.

    Returns:
        The paths written.
    """
    claim(folder)
    files: dict[str, bytes] = {}
    for name, figure in experiment.figures.items():
        files[f"{name}.png"] = _picture(figure, "png", {"Software": None})
        files[f"{name}.svg"] = _picture(figure, "svg", {"Date": None, "Creator": None})
    files[f"{experiment.name}.csv"] = _csv(experiment.rows).encode()
    files[f"{experiment.name}.json"] = _json(experiment, command).encode()
    for name, data in files.items():
        write_whole(folder / name, data)
    return [folder / name for name in files]


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(experiment: Experiment, command: str) -> str:
    from ... import __version__

    data = {
        "experiment": experiment.name,
        "title": experiment.title,
        "command": command,
        "settings": settings_words(experiment.settings),
        "opencrate": __version__,
        "summary": experiment.summary,
        "rows": [{key: _finite(value) for key, value in row.items()} for row in experiment.rows],
    }
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: the first is null, the second its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _picture(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "opencrate"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, facecolor="white", metadata=metadata)
    return buffer.getvalue()
