"""The run directory: written under another name, renamed when it is complete, read back by every command."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from .models import initialise
from .recipe import Recipe, load_recipe

METRICS = "metrics.json"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
MARKS = (METRICS, "config.json")
"""A folder with one of these was written by this package and may be replaced when asked."""


@contextmanager
def new_directory(final: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield `<final>.partial`; rename it to `final` when the block ends well.

    When the block fails, the partial directory stays only if it holds checkpoints.

    Raises:
        ValueError: `final` exists and is not to be overwritten, or is not ours; or another process may be
            working in the partial directory.
    """
    final = Path(final).expanduser().absolute()
    partial = final.with_name(final.name + ".partial")
    check_free(final, overwrite)
    if partial.exists():
        if not overwrite:
            raise ValueError(
                f"{partial}: an unfinished run lies there (still running, or killed); wait for it, remove it, or "
                "pass --overwrite to start again"
            )
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        if not any((partial / CHECKPOINTS).glob("checkpoint-*")):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    _replace(partial, final)


def check_free(final: str | Path, overwrite: bool = False) -> None:
    """Refuse a target that exists, unless it is empty, or is ours and is to be overwritten.

    Raises:
        ValueError: as said.
    """
    final = Path(final).expanduser()
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir() or not any((final / mark).is_file() for mark in MARKS):
        raise ValueError(f"{final}: exists and is no run or model directory; choose another output path")
    if not overwrite:
        raise ValueError(f"{final}: exists; choose another output path, or pass --overwrite to replace it")


def _replace(partial: Path, final: Path) -> None:
    """Put `partial` in the place of `final`; the old directory goes only after the new one stands."""
    if final.exists() and any(final.iterdir()):
        old = final.with_name(final.name + ".replaced")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old)
    else:
        partial.rename(final)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_recipe(run: str | Path) -> Recipe:
    """The resolved recipe of a run directory.

    Raises:
        ValueError: the folder holds none.
    """
    path = Path(run).expanduser() / RECIPE
    if not path.is_file():
        raise ValueError(f"{run}: no {RECIPE} there; give a directory written by `opencrate train`")
    return load_recipe(path)


def read_metrics(run: str | Path) -> dict[str, Any]:
    """The metrics of a run directory.

    Raises:
        ValueError: the folder holds none.
    """
    path = Path(run).expanduser() / METRICS
    if not path.is_file():
        raise ValueError(f"{run}: no {METRICS} there; give a directory written by `opencrate train`")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged ({error}); train again") from error


def initial_model(run: str | Path) -> PreTrainedModel:
    """The model of a run as it was before the first step, rebuilt from its configuration and seed."""
    return initialise(AutoConfig.from_pretrained(run, local_files_only=True), read_recipe(run).training.seed)


def environment() -> dict[str, Any]:
    """What a run was made with: versions, processor and threads; no host or user names."""
    packages = ("opencrate", "torch", "transformers", "accelerate", "datasets")
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str | None:
    """The commit of this package's own source tree, with `+changes` where it differs; `None` if installed."""
    source = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
