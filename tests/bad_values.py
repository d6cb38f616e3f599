"""Values that nobody means, for every key of a recipe, field of a configuration and option of a command."""

import re
import typing

from opencrate._values import field_hints
from opencrate.recipe.schema import SECTIONS, Recipe

LEAKS = re.compile(
    r"Traceback|\w+Error\b|NoneType|object at 0x|Validation error|jsonargparse|yaml\.|constructor|<class|not supported "
    r"between|integer string|invalid literal|could not|has no attribute|has no len|month must|day is out|set_int_max|"
    r"expected (int|str|float|bool|a list)|argument of type|not iterable|unhashable|out of memory|Storage size|numel"
)
"""Words of Python and of the libraries that a user must not have to read."""

NEVER_A_NUMBER = (
    *("", "x", "true", "[]", "[[1]]", "{}", "{a: 1}", "[null]", "2020-13-45", "2020-01-01", "12:30:45", "0x_", "0b_"),
    *("0o9", "1__0", ".nan", ".inf", "-.inf", "1e400", "-1e26", "1e26", "9" * 40, "9" * 5000, "-" + "9" * 400, "'1'"),
    *(
        '"a\\0b"',
        '"\\ud800"',
        "\udcff",
        "!!python/object/apply:os.getcwd []",
        "!!float 3",
        "&a 1",
        "*a",
        "<<",
        "[" * 5000,
    ),
    *("{a: " * 200, "{a: 1, a: 2}", "{[1]: 2}", "a: b: c", "--- 1\n--- 2", "@", "%", "`", "x" * 5000, "a:\n\t- 1", "{"),
    *("'", "]", "!", "1e", "--1", "1,5", "0x" + "f" * 300, "[.nan]", "[-1e30]", "nan", "inf", "None", "a\0b"),
)
"""YAML that is no number within any range of ours, and no list of such numbers."""
SPECIAL = (
    "null",
    "1",
    "-1",
    "0",
    "-0.0",
    "1e-320",
    "1.5",
    "10000000000",
    "[1]",
    "[x]",
    "[.inf]",
    "[1, 2, 3]",
    "no",
    "~",
)
"""Allowed for some keys; where they are refused, it is in good words."""

NOT_IN_RANGE = (None, "x", "1", "", [], {}, [None], [[1]], {"a": 1}, True, -1e26, 1e26, 10**12, -(10**400), 10**400)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
"""Python and JSON values that no number of a configuration can have, `None` perhaps apart."""


def recipe_keys():
    """Dotted key -> its type, of every key of a recipe."""
    keys = {name: hint for name, hint in field_hints(Recipe).items() if name not in SECTIONS}
    for section, cls in SECTIONS.items():
        keys |= {f"{section}.{name}": hint for name, hint in field_hints(cls).items()}
    return keys


def holds(hint, *kinds):
    """Whether a type is, or has in it, one of these."""
    return (
        hint in kinds or typing.get_origin(hint) in kinds or any(holds(part, *kinds) for part in typing.get_args(hint))
    )


def recipe_cases():
    """(key, value, whether it has to be refused), all of them."""
    for key, hint in recipe_keys().items():
        number = holds(hint, int, float) and not holds(hint, str, dict)
        fine = {"" if holds(hint, type(None)) else None}
        for value in (*NEVER_A_NUMBER, *SPECIAL):
            yield key, value, number and value in NEVER_A_NUMBER and value not in fine


def thinned(cases, count):
    """About `count` of the cases, spread over all of them by a step that shares no factor with regular tables."""
    cases = list(cases)
    primes = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101)
    step = min(primes, key=lambda prime: abs(len(cases) / prime - count))
    return cases[::step]


def complaint(line, *names):
    """What is wrong with an error message, or `None`."""
    line = line.removesuffix("\n")
    if not line.isprintable():
        return "more than one line, or not printable"
    if len(line) > 1500:
        return f"{len(line)} characters"
    if found := LEAKS.search(line):
        return f"says {found[0]!r}"
    if not all(name in line for name in names):
        return f"does not name {names}"
    return None
