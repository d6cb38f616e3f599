"""The recipe: one strict YAML file, read with neither torch nor transformers, so that the command line is quick.

Every key is a field of `schema`'s dataclasses. A file may further hold `base`, the shipped recipe or file that it
changes, `smoke`, the changes (dotted or nested) that shrink the run to seconds, and `parameters`, for readers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._suggest import suggest
from .._values import Count, allowed, field_error, field_hints, fitted, shown_value
from ..data.options import ImageData
from .schema import RENAMED, SECTIONS, ModelRecipe, Recipe, SelfSupervisionRecipe, check_values
from .source_settings import keep_settings, source_settings
from .strict_yaml import parse_value, read_mapping, write_mapping

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"
SWEEPS = SHIPPED / "ablations"
"""Files that list recipes to be compared; see `ablation`."""
RUN_FILE = "recipe.yaml"
"""The resolved recipe in a run directory."""
FILE_KEYS = ("base", "smoke", "parameters")
"""Keys of a file that say how to read it; the resolved recipe has none of them."""
_NOT_INHERITED = ("name", "description")
_STARTS_ANEW = {"model.type": ModelRecipe.type, "ssl.objective": SelfSupervisionRecipe.objective}
"""Keys with their defaults: with another value of one of them, a file takes nothing of its section from its base."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    files = [path for path in SHIPPED.glob("*/*.yaml") if path.parent != SWEEPS]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def shipped_sweeps() -> dict[str, Path]:
    """Name -> file of the sweeps that come with the package."""
    return {path.stem: path for path in sorted(SWEEPS.glob("*.yaml"))}


def find_recipe(reference: str | Path, folder: Path = Path()) -> Path:
    """The file of a shipped recipe's name or of a path, relative to `folder`.

    Raises:
        ValueError: neither a shipped recipe nor an existing file.
    """
    shipped = shipped_recipes()
    for name in (str(reference), str(reference).replace("/", "-")):  # text/demo is text-demo
        if name in shipped:
            return shipped[name]
    path = folder / Path(reference).expanduser()
    with suppress(OSError, ValueError):  # a name that no file can have
        if (path / RUN_FILE).is_file():
            return path / RUN_FILE
        if path.is_file():
            return path
    raise ValueError(
        f"no recipe {shown_value(str(reference))}: neither a shipped recipe nor a file; "
        f"{suggest(str(reference), shipped)} (`opencrate recipes` lists them)"
    )


def load_recipe(reference: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """Read a recipe strictly, with what it is based on, and apply `dotted.key=value` overrides (values are YAML).

    Args:
        reference: a shipped recipe's name, a YAML file, or a run directory.
        overrides: for example `["training.seed=3", "model.config.pool=mean"]`; they win. `model.config={...}` takes the
            place of the recipe's whole configuration, `model.config.pool=...` of one field.
        smoke: take the recipe's smoke form, which shrinks it to seconds on a laptop.

    With `model.init_from`, what the weights there were trained on (mean and deviation, sizes, channels, interpolation;
    tokenizer and length) stands in the place of every default; what the recipe or an override states wins.
    An override of `data.image_size` alone takes a `data.resize_size` of the recipe with it, in proportion.

    Raises:
        ValueError: unknown recipe, unreadable YAML, unknown key, wrong type or impossible value; a `base` that
            leads back to itself; a smoke form is requested and there is none.
    """
    path = find_recipe(reference)
    values, shrunk = _merged(path)
    if smoke and not shrunk:
        raise ValueError(f"{path}: no smoke form; add one, for example `smoke: {{training.max_steps: 2}}`")
    for key, (value, source) in shrunk.items() if smoke else ():
        _put(values, key, value, source)
    overridden: set[str] = set()
    size = _value(values, "data.image_size", ImageData.image_size)
    for override in overrides:
        key, value = _read_override(override)
        source = f"override {shown_value(override)}"
        _put(values, key, value, source)
        for field_key, item in _configuration(key, value):  # by field, so that a later override of one keeps the others
            _put(values, field_key, item, source)
        overridden.add(key)

    def where(key: str) -> str:
        return values[key][1] if key in values else str(path)

    _typed(_nested(values), where)  # before they lead to other files
    if "data.image_size" in overridden and "data.resize_size" not in overridden:
        _scale_resize(values, size)
    _keep_source_settings(values, overridden)
    nested = _nested(values)
    nested.setdefault("name", path.stem)
    recipe = _typed(nested, where)
    check_values(recipe, where)
    return recipe


def _value(values: _Values, key: str, default: Any = None) -> Any:
    return values[key][0] if key in values else default


def _scale_resize(values: _Values, before: Any) -> None:
    """Let the resize before a centre crop follow a new image size, so that the crop keeps its share of the image."""
    resize, now = _value(values, "data.resize_size"), _value(values, "data.image_size")
    if resize is not None:
        longest = [max(size) if isinstance(size, list) else size for size in (before, now)]
        _put(values, "data.resize_size", round(resize * longest[1] / longest[0]), "override of data.image_size")


def _keep_source_settings(values: _Values, overridden: set[str]) -> None:
    """Take over what the weights of `model.init_from` were trained on, unless the recipe states otherwise."""
    stated = {key: value for key, (value, _) in values.items()}
    source = stated.get("model.init_from")
    if isinstance(source, str):
        try:
            settings = source_settings(source, stated.get("task", Recipe.task))
        except OSError as error:  # a name that no folder can have
            where = values["model.init_from"][1]
            raise field_error(f"{where}: 'model.init_from'", source, f"a folder ({error.strerror})") from error
        for key, value in keep_settings(stated, overridden, settings).items():
            _put(values, key, value, f"{source} (model.init_from)")


def stated_parameters(reference: str | Path) -> int | None:
    """The number of parameters that a recipe file states for its own data; `None` where it depends on the data."""
    return _layers(find_recipe(reference))[-1][1].get("parameters")


def recipe_keys() -> list[tuple[str, str, Any]]:
    """Every key of a recipe with what it may be, in words, and its default."""
    rows = []
    for section, cls in {"": Recipe, **SECTIONS}.items():
        names = [name for name in _names(cls) if section or name not in SECTIONS]
        prefix, hints, defaults = f"{section}." if section else "", field_hints(cls), cls()
        rows += [(f"{prefix}{name}", allowed(hints[name]), getattr(defaults, name)) for name in names]
    return rows


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key stated, loads back to an equal `Recipe`."""
    return write_mapping(dataclasses.asdict(recipe))


_Values = dict[str, tuple[Any, str]]
"""Dotted key -> its value, and the file or override that set it."""


def _layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The content of a recipe file and of those it is based on, the most basic first."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    while True:
        seen.append(path.resolve())
        if path.resolve() in seen[:-1]:
            circle = " -> ".join(file.name for file in seen[seen.index(path.resolve()) :])
            raise ValueError(f"{path}: 'base' leads back to this file ({circle}); remove one of them")
        content = read_mapping(path)
        if path.name == RUN_FILE:
            _rename_old(content)
        _check_file_keys(content, str(path))
        layers.insert(0, (path, content))
        if "base" not in content:
            return layers
        try:
            path = find_recipe(content["base"], path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: 'base': {error}") from None


def _rename_old(content: dict[str, Any]) -> None:
    """Give the keys of a run of an earlier version their names of today, in place."""
    training = content.get("training")
    if not isinstance(training, dict):
        return
    for old in RENAMED:
        if (name := old.partition(".")[2]) in training:
            section, _, new = RENAMED[old].partition(".")
            content.setdefault(section, {})[new] = training.pop(name)


_FILE_KINDS = {
    "base": (str, "one recipe's name or file"),
    "smoke": (dict, "a mapping"),
    "parameters": (Count, "a number"),
}


def _check_file_keys(content: dict[str, Any], source: str) -> None:
    for key in _FILE_KINDS.keys() & content.keys():
        hint, expected = _FILE_KINDS[key]
        try:
            fitted(content[key], hint)
        except ValueError:
            raise field_error(f"{source}: '{key}'", content[key], expected) from None


def _merged(path: Path) -> tuple[_Values, _Values]:
    """The values of a file over those of its base, and those of its smoke form likewise."""
    values: _Values = {}
    shrunk: _Values = {}
    for file, content in _layers(path):
        plain = {key: value for key, value in content.items() if key not in FILE_KEYS}
        own = list(_leaves(plain, str(file)))
        _inherit(values, shrunk, dict(own))
        for key, value in own:
            _put(values, key, value, str(file))
        source = f"{file}, smoke"
        for key, value in _leaves(content.get("smoke", {}), source, dotted=True):
            _put(shrunk, key, value, source)
    return values, shrunk


def _inherit(values: _Values, shrunk: _Values, own: dict[str, Any]) -> None:
    """Drop what a file does not take from its base: `_STARTS_ANEW`."""
    for key in _NOT_INHERITED:
        values.pop(key, None)
    for decisive, default in _STARTS_ANEW.items():
        before = _value(values, decisive, default)
        if own.get(decisive, before) == before:
            continue
        for kept in (values, shrunk):
            for key in [key for key in kept if key.startswith(f"{decisive.partition('.')[0]}.")]:
                del kept[key]


def _leaves(content: dict[str, Any], source: str, dotted: bool = False) -> Iterator[tuple[str, Any]]:
    """Every dotted key of a mapping with its value, all keys known; `dotted` allows `training.seed: 1` too."""
    for key, value in content.items():
        if dotted and "." in str(key):
            _known_path(key, source)
            yield from _configuration(key, value)
            continue
        _known(key, "", source)
        if key not in SECTIONS:
            yield key, value
            continue
        if not isinstance(value, dict):
            allowed = ", ".join(_names(SECTIONS[key]))
            raise ValueError(f"{source}: '{key}' must be a mapping with keys among {allowed}; got {shown_value(value)}")
        for name, item in value.items():
            _known(name, f"{key}.", source)
            yield from _configuration(f"{key}.{name}", item)


def _configuration(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """One key, or each field of a model configuration, so that a base's other fields stay."""
    if key == "model.config" and isinstance(value, dict) and value:
        yield from ((f"{key}.{name}", item) for name, item in value.items())
    else:
        yield key, value


def _put(values: _Values, key: str, value: Any, source: str) -> None:
    """Set one key; those above and below it give way."""
    for other in [name for name in values if name.startswith(f"{key}.") or key.startswith(f"{name}.")]:
        del values[other]
    values[key] = (value, source)


def _nested(values: _Values) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, (value, _) in values.items():
        *above, last = key.split(".")
        node = nested
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return nested


def _names(cls: type) -> list[str]:
    return [item.name for item in dataclasses.fields(cls)]


def _known(name: Any, prefix: str, source: str) -> None:
    known = _names(SECTIONS[prefix[:-1]] if prefix else Recipe)
    if name in known:
        return
    homes = [f"{section}.{name}" for section, cls in SECTIONS.items() if name in _names(cls)]
    meant = RENAMED.get(f"{prefix}{name}") or next(iter(homes), None)
    hint = f"did you mean '{meant}'?" if meant else suggest(str(name), known, prefix)
    raise ValueError(f"{source}: unknown key {shown_value(f'{prefix}{name}')}; {hint}")


def _known_path(key: str, source: str) -> None:
    """Check a dotted key."""
    first, *rest = key.split(".")
    _known(first, "", source)
    if bool(rest) != (first in SECTIONS):
        form = f"{first}.<key>=value" if first in SECTIONS else f"{first}=value"
        raise ValueError(f"{source}: '{first}' is set as {form}")
    if rest:
        _known(rest[0], f"{first}.", source)
        if len(rest) > 1 and (first, rest[0]) != ("model", "config"):
            raise ValueError(f"{source}: '{first}.{rest[0]}' has no keys below it")


def _read_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    source = f"override {shown_value(override)}"
    if not separator:
        raise ValueError(f"{source} is not of the form key=value, for example training.seed=3")
    _known_path(key, source)
    return key, parse_value(text, f"{source}: '{key}'")


def _typed(values: dict[str, Any], where: Callable[[str], str]) -> Recipe:
    """Every value checked against its field's type and range."""
    sections = {
        section: cls(**_typed_fields(cls, values.get(section, {}), f"{section}.", where))
        for section, cls in SECTIONS.items()
    }
    plain = {key: value for key, value in values.items() if key not in SECTIONS}
    return Recipe(**_typed_fields(Recipe, plain, "", where), **sections)


def _typed_fields(cls: type, values: dict[str, Any], prefix: str, where: Callable[[str], str]) -> dict[str, Any]:
    hints, typed = field_hints(cls), {}
    for name, value in values.items():
        try:
            typed[name] = fitted(value, hints[name])
        except ValueError as error:
            key = f"{prefix}{name}"
            raise field_error(f"{where(key)}: '{key}'", value, str(error)) from None
    return typed
