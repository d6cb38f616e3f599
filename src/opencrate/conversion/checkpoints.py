"""What a checkpoint file holds: read without running anything of it, wrappers peeled."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["peel", "read_checkpoint", "shorten", "source_state_dict"]

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and DistributedDataParallel, in either order


def source_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The plain ``name -> tensor`` mapping inside a source, wrappers peeled."""
    return peel(source if isinstance(source, Mapping) else read_checkpoint(source))


def peel(content: Any) -> dict[str, Tensor]:
    """The same of what a checkpoint holds."""
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise ValueError(_no_state_dict(content))
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(f"the checkpoint holds a {type(content).__name__}, not a mapping of names to tensors")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name[len(prefix) :]: value for name, value in content.items()}
    return dict(content)


def _no_state_dict(content: Mapping[str, Any]) -> str:
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if len(others) < len(content):
        return f"a state dict holds tensors only, but {shorten(others)} beside them are not: remove those entries"
    return (
        f"no state dict found: expected tensors by name, or such a mapping under {' or '.join(_WRAPPERS)}; "
        f"got the keys {shorten(others)}"
    )


def read_checkpoint(path: str | Path) -> Any:
    """Content of a ``.safetensors`` file or of a PyTorch file of plain tensors (``weights_only=True``).

    ``argparse.Namespace`` and NumPy scalars are allowed as well, since published training checkpoints hold them.
    """
    path = _download(str(path)) if str(path).startswith("hf://") else Path(path)
    if not path.is_file():
        hint = "; for a file on the Hugging Face Hub write hf://owner/name/file" if not path.exists() else ""
        raise FileNotFoundError(f"no checkpoint file at {path}{hint}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    with torch.serialization.safe_globals(_safe_globals()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(_refusal(path, error)) from error
        except Exception as error:  # damaged files make the unpickler trip in many ways (IndexError, KeyError, ...)
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise ValueError(f"{path} is not a readable PyTorch file, or damaged: {reason}") from error


def _refusal(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    reason = f"it would run {named.group(1)}" if named else "it is not a PyTorch file of plain tensors"
    return (
        f"{path} was not unpickled: {reason}, and loading it could run arbitrary code. If you trust its author, load "
        "it where it was made and save only the tensors: torch.save(model.state_dict(), ...) or safetensors"
    )


def _safe_globals() -> list[Any]:
    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLefd"]
    scalar = np.float64(0).__reduce__()[0]
    names = [f"{module}.multiarray.scalar" for module in ("numpy.core", "numpy._core")]  # NumPy 1 and 2
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def _download(url: str) -> Path:
    owner, name, file = (*url.removeprefix("hf://").split("/", 2), "", "", "")[:3]
    if not file:
        raise ValueError(f"{url!r} is not of the form hf://owner/name/file")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(f"{owner}/{name}", file))


def _is_state_dict(content: Mapping[str, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def shorten(names: Any) -> str:
    """A list of names for an error message: the first four, and how many more."""
    names = sorted(names)
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
