"""Where results may be written, whole or not at all, and nothing of somebody else's ever replaced."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ._files import encoded, kind_of, os_reason, shown

MARK = ".opencrate"
"""In every folder that results were written to: what lies there under their names is ours to replace."""
_MARK_TEXT = "OpenCRATE wrote results here, and replaces them when it is asked to.\n"
_NEEDED = 1 << 20
_WORDS = ("digits", "stdlib")  # sources that are not paths


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = (), within: str | Path | None = None) -> None:
    """Refuse an output that cannot be written, that is an input, or that lies inside one.

    Among `inputs`, Hub names, words like `digits` and what does not exist do not matter. The output may lie inside the
    input `within`: a model whose report goes to a folder of its own.

    Raises:
        ValueError: as said; a link to nothing, a path through a file, no permission, or a full disk.
    """
    path = Path(path).expanduser().absolute()
    try:
        _check_writable(path)
        for source in filter(None, inputs):
            if Path(source).expanduser().exists() and str(source) not in _WORDS:
                _check_apart(path.resolve(), source, source is within)
    except OSError as error:
        raise ValueError(f"{shown(path)}: {os_reason(error)}; choose another output path") from error
    except RuntimeError as error:  # Python's word for a circle of links
        raise ValueError(f"{shown(path)}: is a link that leads to itself; choose another output path") from error


def _check_writable(path: Path) -> None:
    if "\0" in str(path):  # the one character besides / that no name has
        raise ValueError(f"{shown(path)}: holds a NUL character; choose another output path")
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if there.is_symlink() and not there.exists():
        raise ValueError(
            f"{shown(there)}: is a link to nothing, or to itself; remove it, or choose another output path"
        )
    folder = there.parent if there == path else there
    if not folder.is_dir():
        raise ValueError(f"{shown(path)}: {shown(folder)} is {kind_of(folder)}, no folder; choose another output path")
    if there == path and path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        folder = path
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{shown(path)}: {shown(folder)} may not be written to; choose another output path")
    if shutil.disk_usage(folder).free < _NEEDED:
        raise ValueError(f"{shown(path)}: the disk of {shown(folder)} is full; free some space, or choose another path")


def _check_apart(path: Path, source: str | Path, inside_allowed: bool) -> None:
    where = Path(source).expanduser().resolve()
    if path == where:
        raise ValueError(f"{shown(path)}: is an input too ({shown(source)}); choose another output path")
    if where in path.parents and not inside_allowed:
        raise ValueError(f"{shown(path)}: lies inside an input ({shown(source)}); choose an output path outside it")


def check_replaced(path: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse, with a `ValueError`, an output that is to be replaced as a whole while an input lies in it."""
    path = Path(path).expanduser().resolve()
    for source in filter(None, inputs):
        where = Path(source).expanduser()
        if str(source) not in _WORDS and where.exists() and path in where.resolve().parents:
            raise ValueError(f"{shown(path)}: would be replaced, but an input lies in it ({shown(source)}); move one")


def check_results(
    folder: str | Path,
    names: Iterable[str],
    main: str,
    inputs: Iterable[str | Path | None] = (),
    within: str | Path | None = None,
    overwrite: bool = True,
) -> None:
    """Refuse a folder that results cannot be written to, or in which files that are not ours have their names.

    `names` are what will be written; the content of the file `main` shows who wrote a folder that has no mark.

    Raises:
        ValueError: as `check_output` and `check_free`; the path is no folder, or it holds such a file.
    """
    check_output(folder, inputs, within)
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{shown(folder)}: is {kind_of(folder)}; give a folder")
    taken = [name for name in names if os.path.lexists(folder / name)]
    if taken and not (folder / MARK).is_file() and not _is_ours(folder / main):
        raise ValueError(
            f"{shown(folder / taken[0])}: exists, and no command of ours wrote it; choose another output folder"
        )
    check_free(folder, (main,), overwrite)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"opencrate" in file.read(1 << 22).lower()


def check_free(folder: str | Path, marks: Iterable[str], overwrite: bool = False) -> None:
    """Refuse, with a `ValueError`, a folder with finished results, known by the files `marks`, unless `overwrite`."""
    for path in (Path(folder).expanduser() / name for name in marks):
        if os.path.lexists(path) and not overwrite:
            raise ValueError(
                f"{shown(path)}: exists; choose another output folder, or pass overwrite=True to replace it"
            )


def claim(folder: str | Path) -> Path:
    """Make a folder for results, with the mark that they are ours, and return it."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(_MARK_TEXT, encoding="utf-8")
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; control characters and what is no text are escaped."""
    write_whole(path, encoded(text))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
