"""Names for a model's classes where its weights came without: from a file, or ImageNet's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..._files import read_bytes

IMAGENET = "imagenet"
ORDER = "order"
_SYNSETS = Path(__file__).with_name("imagenet_synsets.txt")
"""The 1,000 classes of ImageNet-1k by WordNet number, which is what its class folders are called, in their order (the
list is timm's `imagenet_synsets.txt`, Apache-2.0)."""


def name_classes(config: PreTrainedConfig, names: Sequence[str], where: str) -> None:
    """Write class names into a configuration.

    Raises:
        ValueError: not as many as the model has classes, or two alike.
    """
    if len(names) != config.num_labels:
        raise ValueError(f"{where}: names {len(names):,} classes, but the model has {config.num_labels:,}")
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"{where}: class '{twice}' is named twice; give every class a name of its own")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def read_class_names(source: str) -> list[str]:
    """Class names in the order of the logits.

    Args:
        source: `imagenet` (the WordNet numbers of ImageNet-1k, which are its class folders' names), or a file: a name a
            line, or JSON, a list or a mapping from numbers to names (`id2label`, or Keras' to [number, name]).

    Raises:
        ValueError: no such file, or one without names.
    """
    path = _SYNSETS if source == IMAGENET else Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"{source}: no such file of class names; give a file, or {IMAGENET}")
    try:
        text = read_bytes(path, "a file of class names").decode("utf-8-sig")
        names = _from_json(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{source}: no list of class names; give a name a line, or JSON: a list, or a mapping from 0, 1, ..."
        ) from error
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if "" in names or not names:
        raise ValueError(f"{source}: class {names.index('') if names else 0} has no name; give one name a line")
    return names


def nameless(names: Sequence[str]) -> bool:
    """Whether classes have only the names that transformers gives where there are none."""
    return list(names) == [f"LABEL_{index}" for index in range(len(names))]


def _from_json(content: Any) -> list[str]:
    if isinstance(content, Mapping):
        content = content.get("id2label", content)
        content = [content[str(number)] for number in range(len(content))]
    names = [name[0] if isinstance(name, list) else name for name in content]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("names are text")
    return names
