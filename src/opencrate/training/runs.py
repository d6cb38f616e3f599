"""The run directory: written under another name, renamed when it is complete, read back by every command."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from . import checkpoints
from .locations import located
from .models import initialise
from .recipe import Recipe, load_recipe

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing keeps two processes apart there
    fcntl = None

METRICS = "metrics.json"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"
LAST_WEIGHTS = "last.safetensors"
START = "start.safetensors"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
_LOCK = ".lock"
MARKS = (METRICS, "config.json")
"""A folder with one of these was written by this package and may be replaced when asked."""


def partial_directory(final: str | Path) -> Path:
    """Where a run is while it is not complete: `<final>.partial`."""
    final = Path(final).expanduser().absolute()
    return final.with_name(final.name + ".partial")


@contextmanager
def new_directory(final: str | Path, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield `<final>.partial`; rename it to `final` when the block ends well.

    When the block fails, the partial directory stays only if it holds checkpoints.

    Args:
        final: the directory to be.
        overwrite: replace a finished or unfinished one.
        resume: go on in an unfinished one; start where there is none.

    Raises:
        ValueError: `final` exists and is not to be overwritten, or is not ours; an unfinished run lies there and
            neither `overwrite` nor `resume` is given; or another process works in it.
    """
    final, partial = Path(final).expanduser().absolute(), partial_directory(final)
    check_free(final, overwrite)
    if partial.exists() and not overwrite and not resume:
        raise ValueError(
            f"{partial}: an unfinished run lies there (still running, or killed); wait for it, go on with it by "
            "--resume, or pass --overwrite to start again"
        )
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        if not resume:
            _empty(partial)
        checkpoints.clean(partial / CHECKPOINTS)
        try:
            yield partial
        except BaseException:
            if checkpoints.newest(partial / CHECKPOINTS) is None:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        _share(partial)
        (partial / _LOCK).unlink()
        _replace(partial, final)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Keep other processes out of a directory; the system frees it when this process ends, however it ends."""
    with (partial / _LOCK).open("w") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not passed on to loader processes
            except OSError as error:
                raise ValueError(f"{partial}: another process is training there; wait for it or end it") from error
        yield


def _share(partial: Path) -> None:
    """Give every file the permissions of an ordinary one: safetensors' own are for its owner alone."""
    mode = (partial / _LOCK).stat().st_mode
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def check_same_recipe(partial: Path, recipe: Recipe) -> None:
    """Refuse to go on with a run under another recipe than the one it was started with.

    Raises:
        ValueError: names each key that differs, with both values.
    """
    if not (partial / RECIPE).is_file():
        return
    changed = in_words(changed_keys(read_recipe(partial), recipe))
    if changed:
        raise ValueError(
            f"{partial}: cannot resume with another recipe: {changed}; resume with `opencrate train {partial} --resume "
            f"--output {partial.with_name(partial.name.removesuffix('.partial'))}`, or pass --overwrite to start again"
        )


def changed_keys(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Each dotted key in which two recipes differ, with both its values; a place is the same however it is named."""
    old, new = (_flat(asdict(located(recipe))) for recipe in (before, now))
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def in_words(changed: dict[str, tuple[Any, Any]]) -> str:
    """The same for readers."""
    return ", ".join(f"{key} was {before!r}, now {now!r}" for key, (before, now) in changed.items())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat.update(_flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    write_bytes(path, text.encode("utf-8"))


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


def left_out_bad(run: str | Path) -> bool:
    """Whether a run was trained without the unreadable images of its data, so that its parts are those without them."""
    metrics = Path(run).expanduser() / METRICS
    return metrics.is_file() and bool(read_metrics(run)["data"].get("skipped"))


def initial_model(run: str | Path) -> PreTrainedModel:
    """The model of a run as it was before the first step, rebuilt from its configuration, seed and whitening."""
    recipe = read_recipe(run)
    model = initialise(AutoConfig.from_pretrained(run, local_files_only=True), recipe.training.seed, recipe.task)
    if (Path(run) / START).is_file():
        model.load_state_dict(load_file(Path(run) / START), strict=False)
    return model


def save_start(run: Path, model: PreTrainedModel) -> None:
    """Keep the patch embedding of a model that has not been trained yet, for `initial_model`."""
    state = {name: value for name, value in model.state_dict().items() if "patch_embeddings.projection" in name}
    assert state
    save_file(state, run / START)


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
