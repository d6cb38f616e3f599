"""Values that nobody means, for every key of a recipe, field of a configuration and option of a command."""

import dataclasses
import re
import typing

from opencrate.training.recipe import SECTIONS, Recipe

LEAKS = re.compile(
    r"Traceback|TypeError|ValueError|AttributeError|KeyError|OverflowError|RecursionError|NoneType|object at 0x|StrictData"
    r"|Validation error|jsonargparse|yaml\.|constructor|<class|not supported between|integer string|invalid literal"
    r"|could not convert|has no attribute|has no len|month must|day is out|expected (int|str|float|bool|a list)|argument of type"
    r"|set_int_max|not iterable|type_validator|unhashable|out of memory|DefaultCPUAllocator|Storage size"
)
"""Words of Python and of the libraries that a user must not have to read."""

NEVER_A_NUMBER = (
    *("", "x", "true", "[]", "[[1]]", "{}", "{a: 1}", "[null]", "2020-13-45", "2020-01-01", "12:30:45", "0x_", "0b_"),
    *("0o9", "1__0", ".nan", ".inf", "-.inf", "1e400", "-1e26", "1e26", "9" * 40, "9" * 5000, "-" + "9" * 400, "'1'"),
    *('"a\\0b"', "a\0b", '"\\ud800"', "\udcff", "!!python/object/apply:os.getcwd []", "!!float 3", "&a 1", "*a", "<<"),
    *(
        "[" * 5000,
        "{a: " * 200,
        "{a: 1, a: 2}",
        "{[1]: 2}",
        "? [1]\n: 2",
        "a: b: c",
        "--- 1\n--- 2",
        "@",
        "%",
        "`",
        "x" * 5000,
    ),
    *("a:\n\t- 1", "{", "'", "]", "!", "1e", "--1", "1,5", "0x" + "f" * 300, "[.nan]", "[-1e30]", "nan", "inf", "None"),
)
"""YAML that is no number within any range of ours, nor a list of such numbers."""
OF_LISTS = (
    "x",
    "1",
    "true",
    "[]",
    "[x]",
    "[null]",
    "[.nan]",
    "[.inf]",
    "[-1e30]",
    "{}",
    "[" * 5000,
    "[[1]]",
    "&a [1]",
    "2020-13-45",
)
SPECIAL = ("null", "~", "-1", "0", "-0.0", "1e-320", "1.5", "10000000000", "1e26")
"""Allowed for some keys; what is refused is refused in good words."""


def recipe_keys():
    """Dotted key -> its type, of every key of a recipe."""
    keys = {name: hint for name, hint in _hints(Recipe).items() if name not in SECTIONS}
    for section, cls in SECTIONS.items():
        keys |= {f"{section}.{name}": hint for name, hint in _hints(cls).items()}
    return keys


def _hints(cls):
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def is_number(hint):
    return bool({int, float} & {hint, *typing.get_args(hint)})


def is_word(hint):
    return bool({str} & {hint, *typing.get_args(hint)})


def recipe_cases():
    """(key, value, whether it has to be refused), all of them."""
    for key, hint in recipe_keys().items():
        for value in (*NEVER_A_NUMBER, *OF_LISTS, *SPECIAL):
            yield key, value, value in NEVER_A_NUMBER and is_number(hint) and not is_word(hint)


def thinned(cases, count):
    """About `count` of the cases, spread over all of them so that no key and no value is left out."""
    cases = list(cases)
    step = max(1, len(cases) // count)
    while any(step % divisor == 0 and len(cases) % divisor == 0 for divisor in (2, 3, 5, 7)) and step > 1:
        step += 1
    return cases[::step]


def complaint(line, *names):
    """What is wrong with an error message, or `None`."""
    if "\n" in line.strip("\n"):
        return "more than one line"
    if not line.isprintable():
        return "not printable"
    if len(line) > 900:
        return f"{len(line)} characters"
    if found := LEAKS.search(line):
        return f"says {found[0]!r}"
    if not all(name in line for name in names):
        return f"does not name {names}"
    return None
