"""What a model takes in memory, known before anything of it is built."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from transformers import PreTrainedConfig

from ._files import free_memory

_DEPTH = re.compile(r"(^|_)(num_)?(hidden_)?layers?$")
"""Names that configurations have for their numbers of layers."""
_BYTES = 4  # of a number in float32
_MANY = 2**62
_SIZES = ("num_hidden_layers", "hidden_size", "head_dim", "vocab_size", "max_position_embeddings", "image_size")


def require_memory(config: PreTrainedConfig, cls: Any, where: str, copies: int = 1) -> None:
    """Refuse a model of `cls` (its class, or the Auto class that builds it) that this machine has no memory for.

    `where` names what holds the configuration. Training keeps several `copies` of the weights: gradients and averages.

    Raises:
        ValueError: they take more than what is free, or the network cannot be built at all.
    """
    try:
        needed, free = copies * _BYTES * numbers_in(config, cls), free_memory()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if needed > free:
        times = f"{copies} copies (weights, gradients, averages) of " if copies > 1 else ""
        sizes = ", ".join(f"{name}={getattr(config, name)}" for name in _SIZES if hasattr(config, name))
        raise ValueError(
            f"{where}: {times}this model take{'' if copies > 1 else 's'} {_gigabytes(needed)} of memory, and "
            f"{_gigabytes(free)} are free; make it smaller ({sizes}), or use a larger machine"
        )


def numbers_in(config: PreTrainedConfig, cls: Any) -> int:
    """Parameters and buffers of a model, counted on copies of one or two layers that have shapes but no memory."""
    values = config.to_dict().items()
    depths = {name: value for name, value in values if _DEPTH.search(name) and type(value) is int and value > 2}
    shallow = _with_layers(config, dict.fromkeys(depths, 1))
    total = base = _count(shallow, cls)
    tied = getattr(config, "tie_decoder", False)  # then as many layers here as there
    for names in [list(depths)] if tied and depths else [[name] for name in depths]:
        per_layer = _count(_with_layers(shallow, dict.fromkeys(names, 2)), cls) - base
        total += per_layer * (depths[names[0]] - 1)
    return total


def _with_layers(config: PreTrainedConfig, layers: dict[str, int]) -> PreTrainedConfig:
    changed = copy.deepcopy(config)
    for name, number in layers.items():
        setattr(changed, name, number)
    return changed


def _count(config: PreTrainedConfig, cls: Any) -> int:
    """Of one model; more than any machine has where the shapes themselves overflow."""
    is_auto = hasattr(cls, "from_config")
    try:
        with torch.device("meta"):
            model = cls.from_config(config, trust_remote_code=False) if is_auto else cls(config)
    except Exception as error:  # classes check their configurations in many ways, or not at all
        if "overflow" in str(error):
            return _MANY
        raise ValueError(f"this network cannot be built ({_reason(error)})") from error
    return sum(value.numel() for value in (*model.parameters(), *model.buffers()))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it knows no {error}"
    if isinstance(error, (AttributeError, TypeError)):
        return "a value of its configuration is missing or of the wrong kind"
    return str(error).partition("\n")[0]


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
