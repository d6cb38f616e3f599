"""The files of a data set by their paths in it, whether it is a folder or a zip file."""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..._files import check_size, parse_json, path_problem, read_bytes, require_file, shown
from ...image_processing_crate import read_picture
from ..images.files import IMAGE_SUFFIXES, LeftOut, is_hidden, visible_files
from ..images.tensors import ImageTransform

JSON_LIMIT = 1 << 30
"""Bytes of a file of annotations; COCO's largest have half of it."""
_FILE_LIMIT = 1 << 28
_READ = ImageTransform(None, 3)


class DataFiles:
    """A data set's files. Paths have slashes, whatever the system; names in messages lead to the file.

    Raises:
        ValueError: no such folder or file, or a file that is no zip file.
    """

    def __init__(self, root: str | Path, what: str = "a folder or a .zip file") -> None:
        self.root = Path(root).expanduser()
        if problem := path_problem(self.root):
            raise ValueError(f"{shown(self.root)}: {problem}; give {what}")
        self._zip = None
        if not self.root.is_dir():
            require_file(self.root, what)
            if not zipfile.is_zipfile(self.root):
                raise ValueError(f"{shown(self.root)}: is no zip file; give {what}")
            self._zip = zipfile.ZipFile(self.root)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The paths of all files, sorted, without hidden and system ones."""
        if self._zip is None:
            found = visible_files(self.root, LeftOut(self.root))
            return tuple(file.relative_to(self.root).as_posix() for file in found)
        files = (one.filename for one in self._zip.infolist() if not one.is_dir())
        return tuple(sorted(name for name in files if not any(is_hidden(part) for part in name.split("/"))))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._known if self._zip is not None else (self.root / name).is_file()

    def below(self, folder: str, suffix: str | None = None) -> list[str]:
        """The image files of a folder, or those that end in `suffix`, at any depth, sorted."""
        start = f"{folder}/" if folder else ""
        ends = IMAGE_SUFFIXES if suffix is None else {suffix}
        return [name for name in self.names if name.startswith(start) and Path(name).suffix.lower() in ends]

    def where(self, name: str) -> str:
        """A file for messages."""
        return shown(self.root / name, 500)

    def bytes(self, name: str, limit: int = _FILE_LIMIT) -> bytes:
        """A file's content; `ValueError` where it is not there, too large or damaged."""
        if self._zip is None:
            return read_bytes(self.root / name, limit=limit)
        try:
            check_size(self.where(name), self._zip.getinfo(name).file_size, limit)
            return self._zip.read(name)
        except KeyError:
            raise ValueError(f"{self.where(name)}: no such file in the zip file") from None
        except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.where(name)}: cannot be read ({error}); replace the zip file") from error

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's mapping."""
        return parse_json(self.bytes(name, JSON_LIMIT), self.where(name))

    def lines(self, name: str) -> list[str]:
        """A text file's lines that are not empty."""
        return [line.strip() for line in self.bytes(name).decode("utf-8", "replace").splitlines() if line.strip()]

    def image(self, name: str) -> Image.Image:
        """A picture in RGB, upright; `ValueError` where it is not there or damaged."""
        return read_image(self.bytes(name), self.where(name))

    def values(self, name: str) -> tuple[NDArray[Any], str]:
        """The numbers in a mask's file, `(height, width)`, and its PIL mode; a palette is not applied."""
        return read_values(self.bytes(name), self.where(name))


def read_image(content: bytes, where: str) -> Image.Image:
    """An image file's picture in RGB, upright; `ValueError` where it is damaged."""
    return _READ.read({"bytes": content, "path": None, "name": where})


def read_values(content: bytes, where: str) -> tuple[NDArray[Any], str]:
    """The numbers in an image file with one channel: `(height, width)` and the PIL mode."""
    try:
        picture = read_picture(io.BytesIO(content))
        mode, values = picture.mode, np.asarray(picture)
    except Exception as error:  # decoders can raise anything on damaged bytes
        raise ValueError(f"{where}: not a readable mask ({type(error).__name__}: {error}); replace it") from error
    if values.ndim != 2:
        raise ValueError(
            f"{where}: a picture of mode {mode}; a mask has one channel: a palette, grey values, or black and white"
        )
    return values, mode
