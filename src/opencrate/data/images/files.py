"""Which files lie below a folder, which of them are images, and what is left out."""

from __future__ import annotations

import codecs
import gzip
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..._files import is_text, shown

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""In lower case; any case counts."""
_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "system volume information", "@eadir"}
    | {"lost+found", "__pycache__"}
)
_BEGINNINGS = {
    b"": "an empty file",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3": "an SQLite database",
}
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a]")
_START = 512


class LeftOut:
    """What below a folder is not read, by kind, to be said in one line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[str, list[Path]] = {}

    def add(self, kind: str, path: Path) -> None:
        """One thing; `{s}` in its kind becomes an s where there are several."""
        self._found.setdefault(kind, []).append(path)

    def add_files(self, files: Iterable[Path]) -> None:
        """Files that are not data, by their suffix."""
        for file in files:
            self.add(f"{file.suffix.lower()} file{{s}}" if file.suffix else "file{s} without suffix", file)

    def __str__(self) -> str:
        words = []
        for kind, paths in self._found.items():
            first = shown(os.path.relpath(paths[0], self.root))
            several = len(paths) > 1
            words.append(f"{len(paths)} {kind.replace('{s}', 's' * several)} ({first}{', ...' * several})")
        return ", ".join(words)

    def say(self) -> None:
        """Log it, if there is anything."""
        if self._found:
            logger.warning("%s: left out %s", shown(self.root), self)


def visible_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """All files below a folder, sorted; links are followed, hidden and system things are left out at every depth."""
    return sorted(_walk(folder, left_out, frozenset()))


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden and system ones."""
    folders = sorted(item for item in folder.iterdir() if item.is_dir() and not is_hidden(item.name))
    for item in folders:
        if not is_text(item.name):
            raise ValueError(f"{shown(item)}: its name, a class, holds control characters or no UTF-8; rename it")
    return folders


def image_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The image files below a folder, by suffix, sorted; `left_out` gets the rest."""
    left_out = left_out or LeftOut(folder)
    files = visible_files(folder, left_out)
    left_out.add_files(file for file in files if not is_image(file))
    return [file for file in files if is_image(file)]


def is_image(file: Path) -> bool:
    """Whether a file's name ends as an image's."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the operating system or a tool."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def what_it_is(start: bytes) -> str:
    """What a file is by its first bytes, in words: `an HTML page`, `text`, `binary data`."""
    if not start:
        return _BEGINNINGS[b""]
    for beginning, words in _BEGINNINGS.items():
        if beginning and start.startswith(beginning):
            return words
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start[:_START])  # a letter may be cut at the end
    except UnicodeDecodeError:
        return "binary data"
    return "binary data" if _CONTROL.search(text) else "text"


def start_of(file: Path) -> bytes:
    """The first bytes of a file, as many as `what_it_is` looks at."""
    with file.open("rb") as stream:
        return stream.read(_START)


def opened(file: Path, packed: bool) -> Any:
    """A file's bytes as a stream, unpacked by gzip where they are packed."""
    return gzip.open(file) if packed else file.open("rb")


def _walk(folder: Path, left_out: LeftOut, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        left_out.add("link{s} to a folder above", folder)
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"{shown(folder)}: cannot be read ({error.strerror}); check its permissions") from error
    for entry in entries:
        if is_hidden(entry.name):
            left_out.add("hidden folder{s}" if entry.is_dir() else "hidden file{s}", Path(entry.path))
        elif entry.is_dir():
            yield from _walk(Path(entry.path), left_out, above | {real})
        elif entry.is_file():
            yield Path(entry.path)
        else:
            left_out.add("link{s} or device{s} without a file", Path(entry.path))
