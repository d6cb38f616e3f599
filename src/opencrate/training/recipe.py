"""The recipe: one strict YAML file that states a whole run.

A recipe has four sections, `task`, `model`, `data` and `training`. Every key is a field of the dataclasses
below; an unknown key, a wrong type or an impossible value is a `ValueError` that names the file, the full
dotted key and what is allowed. This module imports neither torch nor transformers, so that the command line
can list, check and print recipes at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from .._suggest import suggest

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class ModelRecipe:
    """Which network. `config` holds fields of the model type's own configuration class."""

    type: str = "crate"  # "crate" or any transformers model_type with an image-classification head
    size: str | None = None  # a named CRATE size
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecipe:
    """Which images, how they are split, and how they become tensors `(num_channels, height, width)`."""

    path: str = "digits"  # "digits" or a local image folder
    test_fraction: float = 0.2  # stratified; used where the data has no test split of its own
    validation_fraction: float = 0.0  # of the training part, stratified, for choices made during training
    split_seed: int = 0
    image_size: int | list[int] = 224  # pixels, or [height, width]
    resize_size: int | None = None  # shortest edge before the centre crop; null: straight to image_size
    num_channels: int = 3
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train: the names, meanings and units of transformers' `TrainingArguments`."""

    seed: int = 0
    num_train_epochs: float = 10
    max_steps: int = -1  # > 0 replaces num_train_epochs
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 256
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    warmup_steps: float = 0.1  # below 1: a share of all steps
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = "adamw_torch"
    max_grad_norm: float = 1.0
    label_smoothing_factor: float = 0.0
    bf16: bool = False
    torch_compile: bool = False
    dataloader_num_workers: int = 0
    save_strategy: Literal["no", "epoch", "steps"] = "no"
    save_steps: int = 500
    save_total_limit: int | None = 2


@dataclass(frozen=True)
class Recipe:
    """A whole run. `name` defaults to the file's name without suffix."""

    name: str = ""
    description: str = ""
    task: Literal["image-classification"] = "image-classification"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)


SECTIONS: dict[str, type] = {"model": ModelRecipe, "data": DataRecipe, "training": TrainingRecipe}
AT_LEAST = {
    "data.num_channels": 1,
    "data.split_seed": 0,
    "training.seed": 0,
    "training.per_device_train_batch_size": 1,
    "training.per_device_eval_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 0,
    "training.weight_decay": 0,
    "training.warmup_steps": 0,
    "training.max_grad_norm": 0,
    "training.dataloader_num_workers": 0,
    "training.save_steps": 1,
}
FRACTIONS = ("data.test_fraction", "data.validation_fraction", "training.label_smoothing_factor")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*/*.yaml"), key=lambda path: path.stem)}


def find_recipe(reference: str | Path) -> Path:
    """The file of a shipped recipe's name or of a path.

    Raises:
        ValueError: neither a shipped recipe nor an existing file.
    """
    shipped = shipped_recipes()
    if str(reference) in shipped:
        return shipped[str(reference)]
    path = Path(reference)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    raise ValueError(
        f"no recipe '{reference}': neither a shipped recipe nor a file; "
        f"{suggest(str(reference), shipped)} (`opencrate recipes` lists them)"
    )


def load_recipe(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe strictly and apply `dotted.key=value` overrides (values are YAML).

    Args:
        reference: a shipped recipe's name, a YAML file, or a run directory.
        overrides: for example `["training.seed=3", "model.config.pool=mean"]`.

    Raises:
        ValueError: unknown recipe, unreadable YAML, unknown key, wrong type or impossible value.
    """
    path = find_recipe(reference)
    values = _read_yaml(path)
    _check_keys(values, str(path))
    sources = {override.partition("=")[0]: f"override '{override}'" for override in overrides}
    for override in overrides:
        _apply_override(values, override)
    values.setdefault("name", path.stem)

    def where(key: str) -> str:
        return sources.get(key, str(path))

    recipe = _typed(values, where)
    _check_values(recipe, where)
    return recipe


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key stated, loads back to an equal `Recipe`."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, width=100)


class _StrictLoader(yaml.SafeLoader):
    """YAML with the words of YAML 1.2 (`no` is a word, `1e-4` a number) in which no key stands twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's convention)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(problem=f"'{key}' stands twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or "not UTF-8 text"
        raise ValueError(f"{path}{line}: not a readable YAML file ({reason})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping with the keys {', '.join(_names(Recipe))}")
    return values


def _names(cls: type) -> list[str]:
    return [item.name for item in dataclasses.fields(cls)]


def _check_keys(values: dict[str, Any], source: str) -> None:
    for key, value in values.items():
        _known(key, "", source)
        if key not in SECTIONS:
            continue
        if not isinstance(value, dict):
            allowed = ", ".join(_names(SECTIONS[key]))
            raise ValueError(f"{source}: '{key}' must be a mapping with keys among {allowed}; got {value!r}")
        for name in value:
            _known(name, f"{key}.", source)


def _known(name: Any, prefix: str, source: str) -> None:
    known = _names(SECTIONS[prefix[:-1]] if prefix else Recipe)
    if name in known:
        return
    homes = [section for section, cls in SECTIONS.items() if name in _names(cls)]
    hint = f"did you mean '{homes[0]}.{name}'?" if homes else suggest(str(name), known, prefix)
    raise ValueError(f"{source}: unknown key '{prefix}{name}'; {hint}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"override '{override}' is not of the form key=value, for example training.seed=3")
    first, *rest = key.split(".")
    source = f"override '{override}'"
    _known(first, "", source)
    if bool(rest) != (first in SECTIONS):
        form = f"{first}.<key>=value" if first in SECTIONS else f"{first}=value"
        raise ValueError(f"{source}: '{first}' is set as {form}")
    if rest:
        _known(rest[0], f"{first}.", source)
        if len(rest) > 1 and (first, rest[0]) != ("model", "config"):
            raise ValueError(f"{source}: '{first}.{rest[0]}' has no keys below it")
    node = values
    for name in (first, *rest)[:-1]:
        node[name] = dict(node.get(name) or {})
        node = node[name]
    try:
        node[(first, *rest)[-1]] = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: the value is not readable YAML") from error


def _typed(values: dict[str, Any], where: Callable[[str], str]) -> Recipe:
    """Check and convert every value to its field's type (so `1e-4`, a string in YAML, becomes a float)."""
    for section, cls in SECTIONS.items():
        typed = _typed_fields(cls, values.get(section, {}), f"{section}.", where)
        values = {**values, section: cls(**typed)}
    plain = {key: value for key, value in values.items() if key not in SECTIONS}
    return Recipe(**_typed_fields(Recipe, plain, "", where), **{section: values[section] for section in SECTIONS})


def _typed_fields(cls: type, values: dict[str, Any], prefix: str, where: Callable[[str], str]) -> dict[str, Any]:
    parser = ArgumentParser(exit_on_error=False)
    hints = {item.name: item.type for item in dataclasses.fields(cls)}
    parser.add_class_arguments(cls, skip=set(SECTIONS) if cls is Recipe else set())
    typed = {}
    for name, value in values.items():
        try:
            typed[name] = parser.parse_object({name: value})[name]
        except Exception as error:  # jsonargparse raises several kinds; each means: this value does not fit
            key = f"{prefix}{name}"
            raise ValueError(f"{where(key)}: '{key}' must be {hints[name]}; got {value!r}") from error
    return typed


def _check_values(recipe: Recipe, where: Callable[[str], str]) -> None:
    def value_of(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(recipe, section), name)

    for key, least in AT_LEAST.items():
        if not value_of(key) >= least:
            raise ValueError(f"{where(key)}: '{key}' must be at least {least}; got {value_of(key)}")
    for key in FRACTIONS:
        if not 0 <= value_of(key) < 1:
            raise ValueError(f"{where(key)}: '{key}' must be at least 0 and below 1; got {value_of(key)}")
    if recipe.training.max_steps <= 0 and not recipe.training.num_train_epochs > 0:
        got = recipe.training.num_train_epochs
        key = "training.num_train_epochs"
        raise ValueError(f"{where(key)}: '{key}' must be above 0; got {got}")
    size = recipe.data.image_size
    if (size if isinstance(size, int) else min(size, default=0)) < 1 or (isinstance(size, list) and len(size) != 2):
        key = "data.image_size"
        raise ValueError(f"{where(key)}: '{key}' must be pixels or [height, width], at least 1; got {size}")
    for key in ("image_mean", "image_std"):
        given = getattr(recipe.data, key)
        if len(given) != recipe.data.num_channels:
            raise ValueError(
                f"{where(f'data.{key}')}: 'data.{key}' needs one value per channel (data.num_channels is "
                f"{recipe.data.num_channels}); got {given}"
            )
