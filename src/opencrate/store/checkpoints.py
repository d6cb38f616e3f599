"""Checkpoints that are written whole or not at all.

A checkpoint is written below `STAGING`, flushed to the disk, and renamed to `checkpoint-<step>`; one that is to go
is renamed back before it is deleted. However the process ends, every `checkpoint-<step>` can be resumed from.
"""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .._files import read_json, shown
from .._pretrained import safetensors_dtypes

STAGING = ".staging"
"""Below the checkpoints' folder: what is being written or deleted."""

_PREFIX = "checkpoint-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container", "iostream error")
_NEARLY_FULL = 1 << 20  # bytes left when torch.save, which hides the reason, fails on a full disk


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the most steps; `None` when there is none."""
    return next(reversed(complete(folder)), None)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    if (folder / STAGING).exists():
        shutil.rmtree(folder / STAGING)


def publish(folder: Path, step: int, keep: int | None) -> None:
    """Make the staged `checkpoint-<step>` visible; then remove all but the newest `keep` (`None`: keep all)."""
    staged = folder / STAGING / f"{_PREFIX}{step}"
    for path in staged.iterdir():
        _flush(path)
    _flush(staged)
    staged.rename(folder / staged.name)
    _flush(folder)
    for old in complete(folder)[: -keep if keep else 0]:
        old.rename(folder / STAGING / old.name)
    clean(folder)


def check_readable(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file is damaged, before anything is trained.

    Raises:
        ValueError: names the file.
    """
    advice = f"remove {shown(checkpoint)} to resume from the one before"
    read_json(checkpoint / "trainer_state.json", advice=advice)
    for path in sorted((*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"))):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{shown(path)}: damaged (not a file that torch wrote); {advice}")
    for path in sorted(checkpoint.glob("*.safetensors")):
        safetensors_dtypes(path)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say it in one line when the block fails because the disk of `folder` is full.

    Raises:
        OSError: `errno.ENOSPC`, with what to do. Every other error passes unchanged.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error, folder):
            raise
        last = newest(folder)
        stands = f"the last good checkpoint is {last}; free some space, then resume" if last else "free some space"
        message = f"disk full while saving ({folder}): {stands}, or choose another output path"
        full = OSError(message)
        full.errno = errno.ENOSPC
        raise full from error


def _is_full(error: BaseException, folder: Path) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _FULL or "No space left" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    writing = isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITES)
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return writing and existing is not None and shutil.disk_usage(existing).free < _NEARLY_FULL


def _flush(path: Path) -> None:
    """Force a file or a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
