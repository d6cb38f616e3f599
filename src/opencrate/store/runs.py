"""The run directory: written under another name, renamed when it is complete, read back by every command."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from .._files import read_json, shown
from .._outputs import MARK, check_output, check_replaced, claim
from .._pretrained import read_config, read_tensors
from ..recipe.load import load_recipe
from ..recipe.locations import located
from ..recipe.schema import Recipe
from . import checkpoints
from .build import initialise

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing keeps two processes apart there
    fcntl = None

METRICS = "metrics.json"
RECIPE = "recipe.yaml"
PORTABLE_RECIPE = "training.yaml"
"""The recipe, beside a model that was given away: not `recipe.yaml`, by which a run directory is known."""
ENVIRONMENT = "environment.json"
LOG = "log.jsonl"
DATA = "data.json"
"""Of an unfinished run: fingerprints of its data, so that it can be resumed where the data lies in another place."""
DATA_PLACES = ("data.path", "text.path", "glue.path")
"""Keys of the places whose content these are."""
LAST_WEIGHTS = "last.safetensors"
START = "start.safetensors"
STUDENT, HEADS = "student.safetensors", "head.safetensors"
"""Of self-supervised training: the student's last weights where the model is its teacher's, and the heads."""
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
_LOCK = ".lock"
_LOCK_TEXT = "An unfinished run of OpenCRATE: --resume goes on with it.\n"
"""In the lock file: the mark by which an unfinished directory is known to be ours."""
_COMPLETE, _OLD = ".complete", ".replaced"
"""Marks of a run that only has to be put in its place, and of one that another takes the place of."""
_OUR_FILES = (
    *("*.json", "*.jsonl", "*.yaml", "*.safetensors", "*.html", "*.csv", "*.jinja", "vocab.txt", "merges.txt"),
    *("README.md", MARK, _LOCK, _COMPLETE, _OLD),
)
_OUR_FOLDERS = (CHECKPOINTS, "analysis", "audit", "features", "figures", "tensorboard")
_IN_FOLDERS = (*_OUR_FILES, "*.pt", "*.pth", "*.bin", "*.png", "*.svg", "*.md", "events.out.*")
"""What a directory that is replaced may hold: what runs, converted models, checkpoints and reports consist of."""
_METRICS = {"seed": int, "epochs": (int, float), "steps": int, "seconds": (int, float), "data": dict}
"""What is read of the metrics elsewhere."""


def partial_directory(final: str | Path) -> Path:
    """Where a run is while it is not complete: `<final>.partial`."""
    final = Path(final).expanduser().absolute()
    return final.with_name(final.name + ".partial")


@contextmanager
def new_directory(final: str | Path, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield `<final>.partial`; rename it to `final` when the block ends well.

    When the block fails, the partial directory stays only if it holds checkpoints. Nothing is touched that is not
    known to be ours. `overwrite` replaces a finished or unfinished one, `resume` continues an unfinished one.

    Raises:
        ValueError: `final` exists and is not to be overwritten, or is not ours; an unfinished run lies there and
            neither `overwrite` nor `resume` is given; or another process works in it.
    """
    final, partial = Path(final).expanduser().absolute(), partial_directory(final)
    check_place(final, overwrite, resume)
    if overwrite:
        recover(final)
    made = [parent for parent in partial.parents if not parent.exists()]  # innermost first
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        if not resume:
            _empty(partial)
        claim(partial)
        checkpoints.clean(partial / CHECKPOINTS)
        try:
            yield partial
        except BaseException:
            if checkpoints.newest(partial / CHECKPOINTS) is None:
                shutil.rmtree(partial, ignore_errors=True)
                with contextlib.suppress(OSError):  # one that is not empty
                    for folder in made:
                        folder.rmdir()
            raise
        _share(partial)
        (partial / _COMPLETE).touch()
        _replace(partial, final)


def check_place(
    final: str | Path, overwrite: bool = False, resume: bool = False, inputs: Sequence[str | None] = ()
) -> None:
    """Refuse a place that a run or model cannot be written to, before any work; `inputs` are what is read.

    Raises:
        ValueError: as `check_free` and `check_output`; an unfinished run lies there and neither `overwrite` nor
            `resume` is given; or something that is not ours has the name of an unfinished or a replaced run.
    """
    final, partial = Path(final).expanduser().absolute(), partial_directory(final)
    check_output(final, inputs)
    check_output(partial)
    check_replaced(final, inputs)
    check_free(final, overwrite)
    if final.is_symlink():
        raise ValueError(f"{shown(final)}: is a link; give the folder that it leads to")
    old = _old_directory(final)
    for path, ours in ((partial, _is_ours(partial)), (old, (old / _OLD).is_file())):
        if os.path.lexists(path) and not ours:
            raise ValueError(
                f"{shown(path)}: is in the way, and no unfinished run of ours; rename it, or choose another output path"
            )
    if overwrite or resume or not partial.exists():
        return
    if (partial / _COMPLETE).is_file():
        raise ValueError(
            f"{shown(partial)}: a finished run that was not put in its place; resume=True puts it there, "
            "overwrite=True starts again"
        )
    raise ValueError(
        f"{shown(partial)}: there is an unfinished run (still running, or killed); wait for it, continue it with "
        "resume=True, or pass overwrite=True to start again"
    )


def _is_ours(partial: Path) -> bool:
    """Whether a directory has our mark of an unfinished run, or nothing yet."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    lock = partial / _LOCK
    marked = lock.is_file() and lock.stat().st_size < 1000 and lock.read_bytes() == _LOCK_TEXT.encode()
    return marked or all(path == lock and path.stat().st_size == 0 for path in partial.iterdir())


def recover(final: str | Path) -> bool:
    """Put a complete run in its place, where a process was killed before it could; whether there was one."""
    final, partial = Path(final).expanduser().absolute(), partial_directory(final)
    if not (partial / _COMPLETE).is_file() or not _is_ours(partial):
        return False
    with _locked(partial):
        _replace(partial, final)
    return True


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Keep other processes out of a directory; the system frees it when this process ends, however it ends."""
    with (partial / _LOCK).open("a", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not passed on to loader processes
            except OSError as error:
                raise ValueError(f"{partial}: another process is training there; wait for it or end it") from error
        if file.tell() == 0:
            file.write(_LOCK_TEXT)
            file.flush()
        yield


def _share(partial: Path) -> None:
    """Give every file the permissions of an ordinary one: safetensors' own are for its owner alone."""
    mode = (partial / _LOCK).stat().st_mode
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def check_same_recipe(partial: Path, recipe: Recipe) -> None:
    """Refuse, by `ValueError`, to resume a run with another recipe; names each key that differs, with both values.

    The data may lie in another place where the run noted what it consists of; `check_same_data` then compares that.
    """
    if not (partial / RECIPE).is_file():
        return
    changed = changed_keys(read_recipe(partial), recipe)
    if (partial / DATA).is_file():
        changed = {key: values for key, values in changed.items() if key not in DATA_PLACES}
    if changed:
        raise ValueError(
            f"{partial}: cannot resume with another recipe: {in_words(changed)}; resume with the recipe in "
            f"{partial}, or pass overwrite=True to start again"
        )


def check_same_data(partial: Path, data: dict[str, Any]) -> None:
    """Refuse, by `ValueError`, to resume a run with other data than it began with, wherever that lies.

    Args:
        partial: the directory of the unfinished run; one that did not note its data yet is let pass.
        data: of the recipe at hand, as in `metrics.json`: fingerprints by part.
    """
    if not (partial / DATA).is_file():
        return
    before = read_json(partial / DATA, advice="pass overwrite=True to start again")
    changed = [part for part in sorted(before.keys() | data.keys()) if before.get(part) != data.get(part)]
    if changed:
        raise ValueError(
            f"{partial}: cannot resume with other data: {', '.join(changed)} differ from what the run began with; give "
            "the same data, or pass overwrite=True to start again"
        )


def changed_keys(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Each dotted key in which two recipes differ, with both its values; a place is the same however it is named.

    The description is left out: other words do not make another run.
    """
    old, new = (_flat(asdict(located(recipe))) for recipe in (before, now))
    both = {key: (old.get(key), new.get(key)) for key in sorted((old.keys() | new.keys()) - {"description"})}
    return {key: values for key, values in both.items() if values[0] != values[1]}


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
    """Refuse, by `ValueError`, a target that exists, unless it is empty, or is ours and is to be overwritten."""
    final = Path(final).expanduser()
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir() or not _is_run_or_model(final):
        raise ValueError(f"{shown(final)}: exists and is not a run or model directory; choose another output path")
    if not overwrite:
        raise ValueError(f"{shown(final)}: exists; choose another output path, or pass overwrite=True to replace it")
    if foreign := next((path for path in sorted(final.rglob("*")) if not _may_be_ours(path, final)), None):
        raise ValueError(
            f"{shown(foreign)}: no command of ours wrote it, and overwrite=True would remove it; move it elsewhere"
        )


def _is_run_or_model(folder: Path) -> bool:
    """Whether this package wrote a directory: it has our mark, or (of older versions) what every run or model has."""
    if (folder / MARK).is_file() or ((folder / METRICS).is_file() and (folder / RECIPE).is_file()):
        return True
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except ValueError:
        return False
    return str(kind).startswith("crate") and (folder / "model.safetensors").is_file()


def _may_be_ours(path: Path, final: Path) -> bool:
    at_top = path.parent == final
    if path.is_dir() and not path.is_symlink():
        return not at_top or path.name in _OUR_FOLDERS
    if path.suffix == ".py":  # the code of a model, as save_pretrained puts it beside the weights
        return (Path(__file__).parent.parent / path.name).is_file()
    return any(path.match(pattern) for pattern in (_OUR_FILES if at_top else _IN_FOLDERS))


def _replace(partial: Path, final: Path) -> None:
    """Put `partial` in the place of `final`; the old directory is removed only after the new one is in place.

    Wherever this is interrupted, `recover` or the next run in this place continues from there.
    """
    old = _old_directory(final)
    if final.exists() and any(final.iterdir()):
        if old.exists():  # marked: of an earlier run that was killed here
            shutil.rmtree(old)
        (final / _OLD).touch()
        final.rename(old)
    partial.rename(final)
    for mark in (_COMPLETE, _LOCK):
        (final / mark).unlink()
    if old.exists():
        shutil.rmtree(old)


def _old_directory(final: Path) -> Path:
    return final.with_name(final.name + ".replaced")


def read_recipe(run: str | Path) -> Recipe:
    """The resolved recipe of a run directory.

    Raises:
        ValueError: the folder holds none.
    """
    return load_recipe(_file_of(run, RECIPE))


def read_metrics(run: str | Path) -> dict[str, Any]:
    """The metrics of a run directory.

    Raises:
        ValueError: the folder holds none.
    """
    path = _file_of(run, METRICS)
    metrics = read_json(path, advice="train again")
    for name, kind in _METRICS.items():
        if not isinstance(metrics.get(name), kind):
            raise ValueError(f"{shown(path)}: damaged ('{name}' is missing or of the wrong kind); train again")
    return metrics


def _file_of(run: str | Path, name: str) -> Path:
    path = Path(run).expanduser() / name
    if not path.is_file():
        raise ValueError(f"{run}: no {name} there; give a directory written by `opencrate train`")
    return path


def left_out_bad(run: str | Path) -> bool:
    """Whether a run was trained without the unreadable images of its data, so that its parts are those without them."""
    metrics = Path(run).expanduser() / METRICS
    return metrics.is_file() and bool(read_metrics(run)["data"].get("skipped"))


def initial_model(run: str | Path, seed: int | None = None) -> PreTrainedModel:
    """The model of a run as it was before the first step, rebuilt from its configuration, seed and whitening.

    Args:
        run: its directory, or the folder of a model that was given away with its recipe (`PORTABLE_RECIPE`).
        seed: as if the run had had this one; `None` is its own.

    Raises:
        ValueError: the file with the whitened patch embedding is missing or damaged.
    """
    recipe = load_recipe(Path(run) / PORTABLE_RECIPE) if was_given_away(run) else read_recipe(run)
    model = initialise(read_config(run), recipe.training.seed if seed is None else seed, recipe.task)
    if (Path(run) / START).is_file():
        tensors = read_tensors(Path(run) / START)
        wrong = [name for name, value in tensors.items() if model.state_dict().get(name, value).shape != value.shape]
        if wrong:
            raise ValueError(f"{run}/{START}: damaged ('{shown(wrong[0])}' has another shape); train again")
        model.load_state_dict(tensors, strict=False)
    elif recipe.model.starts_whitened:
        raise ValueError(
            f"{run}/{START}: missing; it holds the whitened patch embedding that the run started with. Copy it from "
            "where the run was made, or train again"
        )
    return model


def was_given_away(folder: str | Path) -> bool:
    """Whether a folder is no run, but holds the recipe of one beside the model."""
    return (Path(folder) / PORTABLE_RECIPE).is_file() and not (Path(folder) / RECIPE).is_file()


def save_start(run: Path, model: PreTrainedModel) -> None:
    """Keep the patch embedding of a model that has not been trained yet, for `initial_model`."""
    state = {name: value for name, value in model.state_dict().items() if "patch_embeddings.projection" in name}
    assert state
    save_file(state, run / START)
