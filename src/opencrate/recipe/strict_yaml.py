"""YAML as recipes read it: the plain values of YAML 1.2, within bounds, and no key twice.

What makes YAML surprising is refused with its line: anchors and aliases (which can make a small file huge), tags,
several documents, keys that are not words. Dates, `1_000` and `<<` are plain words here.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .._values import shown_value

LARGEST_FILE = 1 << 17
"""Bytes; the longest shipped recipe has about 3,000."""
DEEPEST = 20
"""Mappings and lists inside each other."""
_DIGITS = 100
_REASONS = {
    r"'\\t'": "a tab; YAML is indented with spaces",
    r"mapping values are not allowed": "a colon where none may stand; put text that holds one in quotes",
    r"cannot start any token": "a special character; put text that begins with one in quotes",
    r"end of stream|<stream end>": "it ends too early; a bracket, a quote or a value is missing",
    r"found|expected|could not": "not understood; check the indentation, and quote special characters",
}
"""What the library says -> what it means to those who write recipes."""


class _PlainLoader(yaml.SafeLoader):
    """The words of YAML 1.2: `no` is a word, `1e-4` a number; no dates, no sexagesimal numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's convention)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal("a list or a mapping stands as a key; keys are words", key_node)
            key = self.construct_object(key_node)
            if key in found:
                raise _refusal(f"{shown_value(key)} stands twice", key_node)
            found.add(key)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value.lstrip("+-")[:2] in ("0x", "0o") else 10)


class _PlainDumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text."""


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_whole)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", rf"[-+]?\d{{1,{_DIGITS}}}|0x[0-9a-fA-F]{{1,{_DIGITS}}}|0o[0-7]{{1,{_DIGITS}}}", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    for _reader_or_writer in (_PlainLoader, _PlainDumper):
        _reader_or_writer.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )


def write_mapping(values: dict[str, Any]) -> str:
    """A mapping of plain values as YAML, which `read_mapping` and other readers read as it is."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, width=100)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: too large, not UTF-8, not readable YAML (with the line), or no mapping.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path}: a recipe has at most {LARGEST_FILE:,} bytes, this file has more; shorten it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a readable YAML file (not UTF-8 text, at byte {error.start}); save it as UTF-8"
        ) from error
    values = _load(text, f"{path}", "not a readable YAML file")
    if not isinstance(values, dict):
        found = shown_value(values)
        raise ValueError(f"{path}: a recipe is a mapping, for example `training: {{seed: 1}}`; got {found}")
    return values


def parse_value(text: str, source: str) -> Any:
    """The value of one override, written in YAML; one that is not readable is a `ValueError` that names `source`."""
    return _load(text, source, "the value is not readable YAML")


def _load(text: str, source: str, problem: str) -> Any:
    try:
        return copy.deepcopy(_parsed(text))
    except yaml.reader.ReaderError as error:  # a character that no YAML may hold
        line, reason = (
            text.count("\n", 0, error.position),
            f"the character {chr(error.character)!a} may not stand there",
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, said = mark.line if mark else 0, f"{error.context or ''} {error.problem or ''}"
        reason = next((words for pattern, words in _REASONS.items() if re.search(pattern, said)), said.strip())
    where = f", line {line + 1}" if "\n" in text else ""
    raise ValueError(f"{source}{where}: {problem} ({reason})")


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """The values of a text, kept: a recipe that many are based on is parsed once."""
    _check_events(text)
    return yaml.load(text, Loader=_PlainLoader)


def _check_events(text: str) -> None:
    """Refuse, before anything is built, what recipes do not hold."""
    depth, documents = 0, 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        reason = None
        if getattr(event, "anchor", None) is not None:
            reason = "anchors and aliases, & and *, are not read; write the value out, or put it in quotes"
        elif getattr(event, "tag", None) is not None:
            reason = "tags, !, are not read; write the plain value, or put it in quotes"
        elif depth > DEEPEST:
            reason = f"more than {DEEPEST} lists and mappings inside each other"
        elif documents > 1:
            reason = "a second document, ---; one is read"
        if reason:
            raise _refusal(reason, event)


def _refusal(reason: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)
