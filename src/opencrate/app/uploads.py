"""What readers of the page upload: pictures, and models in safetensors. Nothing of it is unpickled or executed."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from PIL import Image, UnidentifiedImageError

from .._files import read_limited, require_file, shown
from ..data.images.files import start_of, what_it_is
from ..store.saved import SavedModel, open_saved

MEGABYTE = 1 << 20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Of pictures. Others are read by code that few use, or by another program."""
MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""Of the files of a model that are read; others are left out."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PIXELS = 40_000_000
_SIDES = 4  # the longer side by the shorter one: patches are counted along the shorter
_FILES = 100


def read_picture(saved: SavedModel, file: str | Path | None) -> Image.Image:
    """An uploaded picture, decoded and upright, as a model reads it (mode `L` or `RGB`).

    Raises:
        ValueError: no file, no picture of `FORMATS`, one of more than 40 million pixels, much longer than wide, damaged
            or smaller than a patch.
    """
    if not file:
        raise ValueError("picture: none; upload one, or choose an example below")
    path = require_file(file, "a picture", Path(file).name)
    name = shown(path.name)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise ValueError(f"{name}: it is {what_it_is(start_of(path))}, not a whole picture ({kinds})") from None
    except Exception as error:  # decoders can raise anything on damaged bytes
        raise ValueError(f"{name}: not a readable picture ({type(error).__name__}); give another") from error
    if width * height > _PIXELS:
        raise ValueError(f"{name}: {width} x {height} pixels, more than {_PIXELS:,}; make it smaller")
    if max(width, height) > _SIDES * min(width, height):
        raise ValueError(f"{name}: {width} x {height} pixels, one side more than {_SIDES} times the other; crop it")
    return saved.transform.read({"path": str(path), "bytes": None, "name": name})


@contextmanager
def opened_model(files: Sequence[str | Path] | None, limit: int) -> Iterator[SavedModel]:
    """A model that was uploaded, open while the block runs; its files lie in a temporary folder that is then deleted.

    Args:
        files: a zip file of a folder written by `save_pretrained`, or the files of such a folder.
        limit: bytes of all of them together, unpacked.

    Raises:
        ValueError: no files, one of another kind, too many bytes, or a model that cannot be opened.
    """
    folder = Path(tempfile.mkdtemp(prefix="opencrate-model-"))
    try:
        _fill(folder, [Path(file) for file in files or ()], limit)
        yield open_saved(folder / "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, files: list[Path], limit: int) -> None:
    """Put the files of a model into `folder/model`, under their last names; what no model needs is left out."""
    place = folder / "model"
    place.mkdir()
    if not files:
        raise ValueError("model: no files; upload a zip file, or config.json and model.safetensors with what is beside")
    if len(files) == 1 and zipfile.is_zipfile(files[0]):
        left_out = _unzip(files[0], place, limit)
    else:
        left_out = _copy(files, place, limit)
    if not (place / "config.json").exists():
        raise ValueError("model: holds no config.json; give all files of a folder written by `save_pretrained`")
    if not any(place.glob("*.safetensors")):
        pickled = [name for name in left_out if name.endswith(PICKLED)]
        why = f"; {shown(pickled[0])} is a pickle, which is never opened: save it as safetensors" if pickled else ""
        raise ValueError(f"model: holds no model.safetensors{why or '; give all files of the model'}")


def _copy(files: list[Path], place: Path, limit: int) -> list[str]:
    """Copy files that were uploaded one by one; the names of those left out."""
    left_out, left = [], limit
    for file in files:
        path = require_file(file, "a file of a model", shown(file.name))
        if not path.name.endswith(MODEL_SUFFIXES):
            left_out.append(path.name)
            continue
        left -= path.stat().st_size
        _require(left >= 0, path.name, limit)
        shutil.copyfile(path, _free(place, path.name))
    return left_out


def _unzip(file: Path, place: Path, limit: int) -> list[str]:
    """Unpack the folder of a zip file in which config.json lies; the names of the files left out."""
    left_out, left = [], limit
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {PurePosixPath(one.filename): one for one in archive.infolist() if not one.is_dir()}
            roots = [path.parent for path in entries if path.name == "config.json"]
            root = min(roots, key=lambda path: len(path.parts), default=PurePosixPath())
            beside = {path.name: entry for path, entry in entries.items() if path.parent == root}
            if len(beside) > _FILES:
                raise ValueError(f"{shown(file.name)}: holds {len(beside)} files, more than {_FILES}; leave some out")
            for name, entry in beside.items():
                if not name.endswith(MODEL_SUFFIXES) or "\\" in name:
                    left_out.append(name)
                    continue
                _require(entry.file_size <= left, name, limit)
                with archive.open(entry) as stream:
                    content = read_limited(
                        cast(BinaryIO, stream), name, left
                    )  # what it unpacks to, whatever the archive states
                left -= len(content)
                _free(place, name).write_bytes(content)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{shown(file.name)}: a zip file that cannot be read ({type(error).__name__})") from error
    return left_out


def _require(fits: bool, name: str, limit: int) -> None:
    if not fits:
        raise ValueError(f"{shown(name)}: with it the model has more than {limit // MEGABYTE} MB; give a smaller one")


def _free(place: Path, name: str) -> Path:
    if (place / name).exists():
        raise ValueError(f"{shown(name)}: there twice; give the files of one model")
    return place / name
