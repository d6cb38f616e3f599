"""What a value may be, beside the field: `learning_rate: Annotated[float, Within(0, 100)] = 1e-3`. Nothing heavy here.

`fitted` checks a value against such a type, `allowed` says it in words, `field_error` is the line that a user reads.
Recipes, model configurations, settings of experiments and options of the command line all go through these.
"""

from __future__ import annotations

import contextlib
import re
import reprlib
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """The interval of a number, or of each number of a list.

    Attributes:
        least, most: its ends.
        below: `most` itself is not allowed.
    """

    least: float
    most: float
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"exactly {_number(self.least)}"
        return f"at least {_number(self.least)} and {'below' if self.below else 'at most'} {_number(self.most)}"


Count = Annotated[int, Within(1, 10**9)]
Natural = Annotated[int, Within(0, 10**9)]
Seed = Annotated[int, Within(0, 2**32 - 1)]  # what NumPy takes
Probability = Annotated[float, Within(0, 1)]
Share = Annotated[float, Within(0, 1, below=True)]
Amount = Annotated[float, Within(0, 1e6)]
Positive = Annotated[float, Within(1e-12, 1e6)]
Pixels = Annotated[int, Within(1, 16_384)]
BatchSize = Annotated[int, Within(1, 1_000_000)]
NewTokens = Annotated[int, Within(1, 1_000_000)]
Temperature = Annotated[float, Within(0, 0)] | Annotated[float, Within(1e-3, 1e3)]
TopP = Annotated[float, Within(1e-6, 1)]
Beams = Annotated[int, Within(1, 256)]


_WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", None: "null", type(None): "null"},
    **{str: "text (quoted if it looks like a number) without control characters", Any: "any value", dict: "a mapping"},
}


def fitted(value: Any, hint: Any) -> Any:
    """A value of YAML, JSON or Python if it fits; a whole number becomes a float where one is meant.

    Args:
        hint: `int`, `float`, `bool`, `str`, `None`, `Any`, a class, `Literal`, `Annotated[..., Within]`, `list`,
            `tuple`, `dict`, and unions of these.

    Raises:
        ValueError: it is not; the message is `allowed(hint)`.
    """
    try:
        return _fitted(value, hint)
    except _UnfitError:
        raise ValueError(allowed(hint)) from None


class _UnfitError(Exception):
    """A value, or a part of it, is not of its type or out of its range."""


def _fitted(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _fitted(value, arguments[0])
        numbers = found if isinstance(found, list | tuple) else [found]
        return _require(found, all(number in arguments[1] for number in numbers))
    if origin in (Union, types.UnionType):
        for choice in arguments:
            with contextlib.suppress(_UnfitError):
                return _fitted(value, choice)
        raise _UnfitError
    if origin is Literal:
        return _require(value, any(type(value) is type(word) and value == word for word in arguments))
    if origin in (list, tuple):
        return _sequence(value, origin, arguments)
    if origin is dict:
        _require(value, isinstance(value, dict))
        return {_fitted(key, arguments[0]): _fitted(item, arguments[1]) for key, item in value.items()}
    return _plain(value, hint)


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _UnfitError
    return value


def _sequence(value: Any, kind: type, arguments: Sequence[Any]) -> Any:
    _require(value, isinstance(value, kind))
    if kind is list or arguments[-1] is Ellipsis:
        return kind(_fitted(item, arguments[0]) for item in value)
    _require(value, len(value) == len(arguments))
    return tuple(map(_fitted, value, arguments))


def _plain(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if hint in (int, float):
        _require(value, isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool))
        try:
            return hint(value)
        except OverflowError:
            raise _UnfitError from None
    if hint is str:
        return _require(value, isinstance(value, str) and _is_text(value))
    return _require(value, value is None if hint is None else isinstance(value, get_origin(hint) or hint))


def _is_text(value: str) -> bool:
    """Whether a text can be written to a file: lines of characters, no control characters or halves of characters."""
    return all(c in "\n\t" or not (c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff") for c in value)


def number_in(text: str) -> int | float:
    """The number that a word of the command line is.

    Raises:
        ValueError: it is none, or has hundreds of digits.
    """
    if re.fullmatch(r"[-+]?\d{1,100}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,100}\.?\d{0,100}|\.\d{1,100})([eE][-+]?\d{1,4})?", text, re.ASCII):
        return float(text)
    raise ValueError(f"{shown_value(text)} is not a number")


def allowed(hint: Any) -> str:
    """What a type allows, in words.

    >>> allowed(Annotated[int, Within(1, 9)] | None)
    'a whole number of at least 1 and at most 9, or null'
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{allowed(arguments[0])} of {arguments[1]}"
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(map(allowed, arguments)))
    if origin is Literal:
        words = ", ".join(map(shown_value, arguments))
        return f"one of {words}" if len(arguments) > 1 else words
    if origin in (list, tuple):
        return f"a list, each item {allowed(arguments[0])}"
    return _WORDS.get(origin or hint) or getattr(hint, "__name__", str(hint))


def field_error(name: str, value: Any, expected: str) -> ValueError:
    """The error about one field: its name, what it must be, and what it is."""
    return ValueError(f"{name} must be {expected}; got {shown_value(value)}")


def check_fields(instance: Any, prefix: str = "") -> None:
    """Refuse a dataclass of which a field does not fit its type or range.

    Raises:
        ValueError: the first such field, its name after the prefix; of several numbers the first that does not fit.
    """
    for name, hint in field_hints(type(instance)).items():
        value = getattr(instance, name)
        several = isinstance(value, tuple) and get_origin(hint) is tuple and len(value) > 0
        for item in value if several else [value]:
            try:
                fitted(item, get_args(hint)[0] if several else hint)
            except ValueError as error:
                raise ValueError(f"{prefix}{name}={shown_value(item)}: must be {error}") from None


@cache
def field_hints(cls: type) -> dict[str, Any]:
    """The types and ranges of a dataclass's fields."""
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in fields(cls)}


class _Short(reprlib.Repr):
    """`repr` within bounds, in the words of YAML and JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        words = {None: "null", True: "true", False: "false"}
        return words[x] if x is None or isinstance(x, bool) else super().repr1(x, level)

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits < 200 else f"a whole number of about {int(bits * 0.30103) + 1} digits"


def shown_value(value: Any) -> str:
    """A value for a message: one short printable line.

    >>> shown_value([None, "a\\nb", 10**5000])
    "[null, 'a\\\\nb', a whole number of about 5001 digits]"
    """
    text = _Short().repr(value)
    return text if len(text) <= 80 else f"{text[:50]}...{text[-25:]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:g}"
