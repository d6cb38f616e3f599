"""What a checkpoint file holds: read without running anything of it, wrappers peeled."""

import argparse
import logging
import pathlib
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .._files import check_size, path_problem, require_file, shown
from .._pretrained import check_torch_file, reason, shards_of
from .._suggest import suggest

logger = logging.getLogger(__name__)

_AVERAGED = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "params_ema", "ema"),
    "teacher",
)
"""What trainers call averaged weights (timm, DINO's teacher, ...); the better ones, so taken before the others."""
_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
_WRAPPERS = (*_AVERAGED, *_PLAIN, "student")
_PREFIXES = (*_WRAPPERS, "backbone", "encoder")
"""First parts of names that a training module has around the model."""
_MARKS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""What torch.compile, FSDP, activation checkpointing and Lightning put into names, at any depth."""
_DEEPEST = 8
_INDEX = (".safetensors.index.json", ".bin.index.json")
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers and accelerate leave in a folder; the first that is there is read."""


def source_state_dict(source: str | Path | Mapping[str, Any], weights: str | None = None) -> dict[str, Tensor]:
    """The plain ``name -> tensor`` mapping inside a source, wrappers peeled; ``weights`` as in ``peel``."""
    return peel(source if isinstance(source, Mapping) else read_checkpoint(source), weights)


def peel(content: Any, weights: str | None = None) -> dict[str, Tensor]:
    """The same of what a checkpoint holds.

    Wrappers (``state_dict``, ``model``, ``model_ema``, ``teacher``, ...) are peeled in any order and depth, as are the
    parts of names that trainers put before and into the model's own. Of several sets of weights, those in the wrapper
    ``weights`` are taken, by default the averaged ones; which was taken, and what was left out, is logged.

    Raises:
        ValueError: no tensors by name, or no such wrapper.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"the checkpoint holds a {type(content).__name__}, not a mapping of names to tensors")
    found = _candidates(content)
    if not found:
        raise ValueError(_no_state_dict(content))
    chosen = _chosen(found, weights)
    others = [path for path in found if path != chosen]
    if others:
        logger.warning(
            "the checkpoint holds several sets of weights: took %s, left out %s; weights=KEY takes another",
            _named(chosen),
            ", ".join(f"{_named(path)} ({len(found[path])} tensors)" for path in others),
        )
    return found[chosen]


_Path = tuple[str, ...]
"""The wrappers around some weights, the outermost first."""


def _chosen(found: Mapping[_Path, dict[str, Tensor]], weights: str | None) -> _Path:
    if weights is not None and not any(weights in path for path in found):
        names = sorted({name for path in found for name in path})
        hint = suggest(weights, names) if names else "it holds one set, without a wrapper"
        raise ValueError(f"weights={weights!r}: the checkpoint holds no such weights; {hint}")
    fitting = {path: tensors for path, tensors in found.items() if weights is None or weights in path}
    most = max(map(len, fitting.values()))  # of far fewer tensors is a head or a loss beside a model
    return min((path for path, tensors in fitting.items() if len(tensors) >= most / 2), key=_rank)


def _rank(path: _Path) -> tuple[bool, list[int]]:
    """Averaged weights come first, then the order of the table."""
    return not any(name in _AVERAGED for name in path), [_PREFIXES.index(name) for name in path]


def _candidates(content: Mapping[str, Any], path: _Path = (), seen: tuple[int, ...] = ()) -> dict[_Path, dict]:
    """Every set of weights in a checkpoint by the wrappers around it."""
    if len(path) > _DEEPEST:
        raise ValueError(f"no state dict found within {_DEEPEST} wrappers inside each other; save the tensors alone")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        if not all(isinstance(name, str) for name in content):
            raise ValueError("no state dict found: the tensors have no names; save the state dict of the model")
        return _by_prefix({_MARKS.sub("", name): value for name, value in content.items()}, path)
    found = {}
    for key in _WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and id(inner) not in seen:
            found.update(_candidates(inner, (*path, key), (*seen, id(content))))
    return found


def _by_prefix(tensors: dict[str, Tensor], path: _Path) -> dict[_Path, dict[str, Tensor]]:
    """The tensors in one set for each part of a training module that wraps a model, without that part's name."""
    sets: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        prefix, rest = (first, rest) if first in _PREFIXES and rest else ("", name)
        sets.setdefault(prefix, {})[rest] = value
    if set(sets) == {""}:
        return {path: tensors}
    found = {}
    for prefix, part in sets.items():
        found.update(_by_prefix(part, (*path, prefix)) if prefix else {path: part})
    return found


def _named(path: _Path) -> str:
    return f"'{'.'.join(path)}'" if path else "the others"


def _no_state_dict(content: Mapping[str, Any]) -> str:
    inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if inner is not None and inner is not content and any(isinstance(value, Tensor) for value in inner.values()):
        return _no_state_dict(inner)
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if len(others) < len(content):
        return f"a state dict holds tensors only, but {shorten(others)} beside them are not: remove those entries"
    return (
        f"no state dict found: expected tensors by name, or such a mapping under one of {', '.join(_WRAPPERS)}; "
        f"got the keys {shorten(others)}"
    )


def read_checkpoint(path: str | Path) -> Any:
    """Content of a ``.safetensors`` file, of a PyTorch file of plain tensors (``weights_only=True``), or of a folder.

    A folder is one that transformers or accelerate wrote: ``model.safetensors`` or ``pytorch_model.bin``, or the index
    of their parts. Beside tensors, the settings that trainers keep (``argparse.Namespace``, NumPy scalars, paths,
    Lightning's, yacs' and OmegaConf's mappings) are read as plain values: nothing of theirs is imported or run.
    """
    path = _download(str(path)) if str(path).startswith("hf://") else Path(path).expanduser()
    if path.is_dir():
        path = _file_in(path)
    if path.is_dir() or path_problem(path):
        hint = "; for a file on the Hugging Face Hub write hf://owner/name/file"
        raise FileNotFoundError(f"no checkpoint file at {shown(path)}{hint}")
    check_size(path, require_file(path, "a checkpoint file").stat().st_size)
    if path.name.endswith(_INDEX):
        parts = (read_checkpoint(path.with_name(name)) for name in shards_of(path))
        return {name: tensor for part in parts for name, tensor in part.items()}
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, KeyError, OSError) as error:  # KeyError: numbers of a type that torch does not have
            raise ValueError(f"{path} is not a readable safetensors file: {reason(error)}") from error
    check_torch_file(path)
    with torch.serialization.safe_globals(_safe_globals()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(_refusal(path, error)) from error
        except Exception as error:  # damaged files make the unpickler trip in many ways (IndexError, KeyError, ...)
            raise ValueError(f"{shown(path)} is not a readable PyTorch file, or damaged: {reason(error)}") from error


def _file_in(folder: Path) -> Path:
    """The weights in a folder; the folder itself where there are none."""
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if not found and (folder / ".metadata").is_file():
        raise ValueError(
            f"{folder}: a sharded checkpoint of torch.distributed; make one file of it first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
        )
    if len(found) > 1:
        logger.warning("%s: took %s, left out %s", folder, found[0].name, ", ".join(file.name for file in found[1:]))
    return found[0] if found else folder


def _refusal(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    why = f"it would run {shown(named.group(1))}" if named else "it is not a PyTorch file of plain tensors"
    return (
        f"{shown(path)} was not unpickled: {why}, and loading it could run arbitrary code. If you trust its author, "
        "load it where it was made and save only the tensors: torch.save(model.state_dict(), ...) or safetensors"
    )


_SETTINGS = (
    *(f"{package}.utilities.parsing.AttributeDict" for package in ("pytorch_lightning", "lightning.pytorch")),
    *(f"{package}.utilities.data.AttributeDict" for package in ("lightning_fabric", "lightning.fabric")),
    *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata"),
    *("omegaconf.base.Metadata", *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer"))),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Float", "Boolean", "Bytes", "Path", "Enum")),
    *("typing.Any", "typing.Dict", "typing.List", "typing.Optional", "typing.Union"),
)
"""Mappings and values in which trainers keep settings: read as plain mappings, into which nothing looks."""
_PATHS = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}


def _safe_globals() -> list[Any]:
    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLefd"]
    scalar = np.float64(0).__reduce__()[0]
    names = [f"{module}.multiarray.scalar" for module in ("numpy.core", "numpy._core")]  # NumPy 1 and 2
    paths = [(cls, f"{module}.{name}") for name, cls in _PATHS.items() for module in ("pathlib", "pathlib._local")]
    settings = [(OrderedDict, name) for name in _SETTINGS]  # of mappings, torch fills only its own kinds
    plain = [argparse.Namespace, defaultdict, dict, list, str, int, float, bool]
    return [*plain, np.dtype, *dtypes, *((scalar, name) for name in names), *paths, *settings]


def _download(url: str) -> Path:
    owner, name, file = (*url.removeprefix("hf://").split("/", 2), "", "", "")[:3]
    if not file:
        raise ValueError(f"{url!r} is not of the form hf://owner/name/file")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(f"{owner}/{name}", file))


def shorten(names: Any) -> str:
    """A list of names for an error message: the first four, and how many more."""
    names = sorted(names)
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
