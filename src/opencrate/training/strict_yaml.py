"""YAML as recipes read it: the words of YAML 1.2, and no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["StrictLoader", "parse_value", "read_mapping"]


class StrictLoader(yaml.SafeLoader):
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


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: not UTF-8, not readable YAML (with the line), or no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or "not UTF-8 text"
        raise ValueError(f"{path}{line}: not a readable YAML file ({reason})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping, for example `training: {{seed: 1}}`; got {values!r}")
    return values


def parse_value(text: str, source: str) -> Any:
    """The value of one override, written in YAML.

    Raises:
        ValueError: not readable; `source` names the override.
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: the value is not readable YAML") from error
