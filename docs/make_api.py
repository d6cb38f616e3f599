"""Write docs/api.md: the public names of every package, with signatures and the first paragraph of their docstrings.

    python docs/make_api.py

A name is public if its package lists it in `__all__`. A test compares the page with the code.
"""

import importlib
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType

PAGE = Path(__file__).with_name("api.md")
PACKAGES = ("", "stats", "data", "recipe", "store", "evaluation", "analysis", "training", "studies", "bench")
PACKAGES += ("export", "reports", "app")
HEAD = """# The Python API

Made from the code by `python docs/make_api.py`. `from opencrate.PACKAGE import NAME` loads a name on use.
Shapes, units and errors are in the docstrings: `help(opencrate.analyze)`.
"""


class _Words(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def words(annotation: object) -> object:
    """An annotation in few words: no ranges, no modules, `X | None`."""
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"(?:typing\.)?Annotated\[([\w.]+), \w+\([^)]*\)\]", r"\1", text)
    text = re.sub(r"(?:typing\.)?Optional\[((?:[^\[\]]|\[[^\[\]]*\])+)\]", r"\1 | None", text)
    return _Words(re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", text))


def ours(thing: object) -> bool:
    """Whether a class or function is defined in this package."""
    return getattr(thing, "__module__", "").split(".")[0] == "opencrate"


def parameters(thing: type | FunctionType) -> list[inspect.Parameter]:
    """What a call takes; of a dataclass the fields that are defined in this package."""
    found = list(inspect.signature(thing).parameters.values())
    if inspect.isclass(thing):
        if is_dataclass(thing):
            fields = {name for base in thing.__mro__ if ours(base) for name in vars(base).get("__annotations__", ())}
            found = [one for one in found if one.name in fields and not one.name.startswith("_")]
        elif not ours(thing.__init__):
            found = []
    return [one.replace(annotation=words(one.annotation)) for one in found]


def call(name: str, thing: type | FunctionType) -> str:
    """The signature, wrapped to the width of a page; methods without `self`."""
    shown = [one for one in parameters(thing) if one.name not in ("self", "cls")]
    result = inspect.signature(thing).return_annotation if isinstance(thing, FunctionType) else inspect.Signature.empty
    signature = inspect.Signature(shown, return_annotation=words(result), __validate_parameters__=False)
    text = kept_together(re.sub(r" at 0x[0-9a-f]+", "", f"{name}{signature}"))
    lines = textwrap.wrap(text, 116, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def kept_together(text: str) -> str:
    """The text with every space that is not between two parameters replaced by a zero byte."""
    depth, characters = 0, []
    for character in text:
        depth += (character in "([") - (character in ")]")
        between = depth == 1 and characters and characters[-1] == ","
        characters.append("\0" if character == " " and not between else character)
    return "".join(characters)


def first_paragraph(thing: object) -> str:
    """The docstring up to its first blank line, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def methods(thing: type) -> list[str]:
    """A line for every public method and property that the class itself defines, and that has a docstring."""
    lines = []
    for name, member in vars(thing).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and isinstance(function, FunctionType) and function.__doc__ and ours(function):
            head = name if isinstance(member, property) else call(name, function).replace("\n   ", "")
            lines.append(f"- `{head}`: {first_paragraph(function)}")
    return lines


def entry(name: str, thing: object) -> str:
    """The section of one name."""
    if isinstance(thing, dict):
        return f"### `{name}`\n\n" + ", ".join(f"`{key}`" for key in thing)
    parts = [f"### `{name}`", f"```\n{call(name, thing)}\n```", first_paragraph(thing)]
    if inspect.isclass(thing):
        parts.append("\n".join(methods(thing)))
    return "\n\n".join(filter(None, parts))


def page() -> str:
    """The whole page."""
    parts = [HEAD.strip()]
    for package in PACKAGES:
        module = importlib.import_module(".".join(filter(None, ["opencrate", package])))
        if names := getattr(module, "__all__", ()):
            parts += [f"## `{module.__name__}`", first_paragraph(module)]
            parts += [entry(name, getattr(module, name)) for name in names]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
