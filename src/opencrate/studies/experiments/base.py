"""What every experiment gives back, and how its settings are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

from ..._suggest import suggest
from ..._values import Amount, Positive, Within, allowed, check_fields, fitted, number_in, shown_value
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
    """The numbers of one experiment.

    Attributes:
        name: of the command.
        title: the question, one line.
        settings: what it was run with.
        rows: one dict per number with its interval; all have the same keys.
        facts: what sentences need besides, such as counts over seeds.
    """

    name: str
    title: str
    settings: Any
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def select(self, **wanted: Any) -> list[Row]:
        """The rows whose fields are the wanted ones."""
        return select(self.rows, **wanted)

    def to_rows(self) -> list[Row]:
        """The rows as a list of dicts."""
        return list(self.rows)

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def to_dict(self) -> dict[str, Any]:
        """Name, title, settings as `key=value` words, and rows."""
        words = settings_words(self.settings)
        return {"experiment": self.name, "title": self.title, "settings": words, "rows": self.to_rows()}


def over_seeds(values: Sequence[float]) -> Row:
    """mean, low, high (95 %, Student's t over seeds), smallest, largest and seeds of one number per seed."""
    interval = seed_interval(values)
    numbers = {name: float(getattr(interval, name)) for name in ("mean", "low", "high")}
    return {**numbers, "smallest": float(min(values)), "largest": float(max(values)), "seeds": len(values)}


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields are the wanted ones."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def with_overrides(settings: _Settings, words: Sequence[str]) -> _Settings:
    """The settings with `key=value` words applied, lists with commas; unknown keys and unfit values are refused."""
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
    values = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in values)


def settings_words(settings: Settings) -> list[str]:
    """The settings as `key=value` words, which `with_overrides` reads."""
    return [f"{item.name}={_written(getattr(settings, item.name))}" for item in fields(settings)]
