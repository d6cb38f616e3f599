"""Trained CRATE models as package data, and the manifest that lists them.

`manifest()` says what the package holds, and `folder(name)` where a model lies: a folder that `from_pretrained` takes,
with every file compared with its SHA-256. Needs the standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "damage", "folder", "manifest"]

FORMAT = 1
"""Version of the manifest's form that this module reads."""
_ROOT = Path(__file__).parent
_AGAIN = "install opencrate-weights again"


@functools.cache
def manifest() -> dict[str, dict[str, Any]]:
    """The models by name, each with its `files` (SHA-256 and bytes by file name), task, data, metric and origin.

    Raises:
        ValueError: the manifest is missing, damaged, or of another form.
    """
    path = _ROOT / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form, models = content["format"], content["models"]
        named = all(_is_file_name(name) for model in models for name in (model, *models[model]["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: missing or damaged ({type(error).__name__}); {_AGAIN}") from error
    if form != FORMAT:
        raise ValueError(f"{path}: 'format' is {form!r}, and this version reads {FORMAT}; {_AGAIN}")
    if not named:
        raise ValueError(f"{path}: damaged (a name in it is no plain file name); {_AGAIN}")
    return models


def folder(name: str) -> Path:
    """The folder of a model. Each of its files is compared with the manifest once in a process.

    Raises:
        KeyError: the package holds no model of that name.
        ValueError: a file of it is missing or damaged.
    """
    manifest()[name]
    if problem := damage(name):
        raise ValueError(f"{problem}; {_AGAIN}")
    return _ROOT / name


def damage(name: str) -> str:
    """What is wrong with the files of a model, in words; empty if nothing is.

    Raises:
        KeyError: the package holds no model of that name.
    """
    for file, stated in manifest()[name]["files"].items():
        path = _ROOT / name / file
        try:
            found = path.stat()
            digest = _sha256(path, found.st_size, found.st_mtime_ns)
        except OSError as error:
            return f"{path}: {(error.strerror or 'cannot be read').lower()}"
        if digest != stated["sha256"]:
            return f"{path}: damaged (its SHA-256 is {digest[:16]}..., the manifest says {stated['sha256'][:16]}...)"
    return ""


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Of a file of that many bytes, last changed then: one that is replaced is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\\" not in name
