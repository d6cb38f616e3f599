"""Any saved transformers model, read back with the head that it was saved with."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from .._files import shown
from .._pretrained import HUB_PREFIX, read_config, read_model

logger = logging.getLogger(__name__)


def untrained_copy(model: nn.Module, seed: int, **changes: Any) -> nn.Module:
    """The same architecture freshly initialised, on the same device; torch's random state stays as it was.

    Args:
        model: whose configuration is used.
        seed: of the weights.
        changes: fields of the configuration that are to differ.

    Raises:
        ValueError: the model has no configuration to build it from, or one that the changes do not fit.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(f"initial='untrained': {type(model).__name__} has no configuration; pass an untrained model")
    config = type(model.config).from_dict({**model.config.to_dict(), **changes}) if changes else model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config)
    weight = next(model.parameters())
    return fresh.to(weight.device, weight.dtype)


def name_of(model: nn.Module | str | os.PathLike) -> str:
    """A name for readers: the folder's, the Hub id, or the class's."""
    if isinstance(model, nn.Module):
        return type(model).__name__
    text = str(model)
    return (
        text.removeprefix(HUB_PREFIX)
        if text.startswith(HUB_PREFIX)
        else Path(os.path.realpath(Path(text).expanduser())).name
    )


def load_model(
    source: nn.Module | str | os.PathLike, only: Sequence[str] = (), what: str = "a model", finite: bool = True
) -> nn.Module:
    """A module as it is; a saved transformers model with the head that it was saved with.

    Args:
        source: a module, a folder with a `config.json`, or `hf://owner/name`, which is downloaded.
        only: classes that it may have been saved from, none of their weights left over; all where empty.
        what: those classes in words.
        finite: refuse weights that are NaN or infinite.

    Raises:
        ValueError: no such folder, a configuration that cannot be read, weights that do not fit it, or another class.
    """
    if isinstance(source, nn.Module):
        return source
    config = read_config(source)
    _require_class(source, config, only, what)
    model, info = read_model(_class_of(config, source), source, finite=finite, config=config)
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise ValueError(f"{source}: weights are missing or have another shape: {_first(wrong)}")
    extra = sorted(map(str, info["unexpected_keys"]))
    if extra and (only or type(model).__module__.startswith("opencrate.")):
        raise ValueError(f"{source}: there are weights that the model lacks: {_first(extra)}")
    if extra:  # other people's folders hold heads and counters that the class does not have
        logger.warning("%s: left out %d weights that the model lacks: %s", shown(source), len(extra), _first(extra))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _require_class(source: Any, config: transformers.PreTrainedConfig, only: Sequence[str], what: str) -> None:
    name = (config.architectures or ["a model of unknown class"])[0]
    if only and name not in only:
        raise ValueError(f"{source}: holds {shown(name)}, not {what} ({' or '.join(only)})")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _class_of(config: transformers.PreTrainedConfig, source: Any) -> Any:
    """The class the model was saved from, so that every weight has its place; AutoModel where that is not known.

    Raises:
        ValueError: a class of models of another type.
    """
    import opencrate

    name = (config.architectures or [""])[0]
    found = getattr(opencrate if name.startswith("Crate") else transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        return transformers.AutoModel
    if not isinstance(config, found.config_class or ()):
        raise ValueError(
            f"{shown(source)}/config.json: architectures names {name}, which is no class of the model_type "
            f"{config.model_type}; give the config.json that belongs to the weights"
        )
    return found
