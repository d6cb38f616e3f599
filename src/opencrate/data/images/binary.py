"""Binary image files: IDX (MNIST and its relatives) and the binary versions of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..._files import read_bytes, read_limited
from ..parts import part_of
from .files import is_hidden, is_image, opened, start_of, what_it_is
from .labelled import Parts, labelled_dataset

_IDX = re.compile(r"(idx|ubyte)", re.IGNORECASE)
_IDX_IMAGES = re.compile(r"images?.*(idx|ubyte)", re.IGNORECASE)
_CIFAR10_TRAIN = "data_batch_*.bin"
_CIFAR_FILES = (_CIFAR10_TRAIN, "test_batch.bin", "train.bin", "test.bin")
_CIFAR_NAMES = ("*.meta.txt", "*_label_names.txt")
_CIFAR_SIDE = 32
_GZIP = b"\x1f\x8b"
_NAMES_LIMIT = 1 << 20


def idx_files(root: Path) -> list[Path]:
    """The IDX files in a folder: of images and, where there are some, all others."""
    return [file for file in sorted(root.iterdir()) if _IDX.search(file.name)] if _idx_images(root) else []


def cifar_files(root: Path) -> list[Path]:
    """The files in a folder that make the binary version of CIFAR-10 or CIFAR-100."""
    found = sorted(file for name in _CIFAR_FILES for file in root.glob(name))
    return found + [file for name in _CIFAR_NAMES for file in root.glob(name)] if found else []


def refuse_pickles(root: Path) -> None:
    """`ValueError` if the folder holds the Python version of CIFAR."""
    names = {"batches.meta", "data_batch_1", "test_batch"}, {"meta", "train", "test"}
    if any(all((root / name).is_file() for name in some) for some in names):
        raise ValueError(
            f"{root}: holds the Python version of CIFAR, pickles that can run any code when opened; give the binary "
            "version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, unpacked) or parquet files"
        )


def read_idx(root: Path, labelled: bool = True) -> Parts:
    """IDX files of 8-bit images and labels, `.gz` or not; classes are named by their numbers.

    A file's name gives its part (`t10k` is MNIST's word for test). Where labels are not needed (`labelled=False`),
    images without a file of them are of one class.
    """
    parts: Parts = {}
    for file in _idx_images(root):
        part = part_of(file.name) or "all"
        if part in parts:
            raise ValueError(f"{file}: a second image file for the {part} part; keep one of each part in {root}")
        images, labels_file = _read_idx_array(file), _idx_labels(file, labelled)
        labels = np.zeros(len(images), np.uint8) if labels_file is None else _read_idx_array(labels_file)
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or labels.ndim != 1:
            raise ValueError(
                f"{file}: images of shape {images.shape} with labels of shape {labels.shape}; need (N, height, "
                "width) or (N, height, width, 3), and (N)"
            )
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{file}: {len(images)} images but {len(labels)} labels; replace the files")
        names = [str(number) for number in range(int(labels.max()) + 1)]
        parts[part] = _dataset(images, labels, names, file)
    if len(parts) > 1 and "all" in parts:
        raise ValueError(f"{root}: has image files of parts ({', '.join(parts)}) and others; keep one kind")
    return parts


def read_cifar(root: Path, skipped: list[str] | None = None) -> Parts:
    """The binary version of CIFAR-10 (`data_batch_*.bin`, `test_batch.bin`) or CIFAR-100 (fine labels).

    Class names come from `batches.meta.txt` or `fine_label_names.txt` beside them. `skipped` gets a line for each
    record that is left out because of its label; without it such a one is an error.
    """
    ten = (root / "test_batch.bin").is_file() or any(root.glob(_CIFAR10_TRAIN))
    names_file = root / ("batches.meta.txt" if ten else "fine_label_names.txt")
    if not names_file.is_file():
        raise ValueError(f"{names_file}: missing; it comes with the binary version and names the classes")
    names = [line.strip() for line in _text(names_file).splitlines() if line.strip()]
    files = {
        "train": sorted(root.glob(_CIFAR10_TRAIN)) if ten else [root / "train.bin"],
        "test": [root / ("test_batch.bin" if ten else "test.bin")],
    }
    parts: Parts = {}
    for part, candidates in files.items():
        present = [file for file in candidates if file.is_file()]
        if present:
            read = [_read_cifar_file(file, 1 if ten else 2, len(names), skipped) for file in present]
            images, labels = (np.concatenate(arrays) for arrays in zip(*read))
            parts[part] = _dataset(images, labels, names, root / part)
    return parts


def _text(file: Path) -> str:
    try:
        return read_bytes(file, "a file of class names", _NAMES_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text, at byte {error.start}; replace it") from error


def _read_cifar_file(
    file: Path, label_bytes: int, num_classes: int, skipped: list[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N); the last label byte counts (CIFAR-100: coarse, fine)."""
    record = label_bytes + 3 * _CIFAR_SIDE**2
    content = np.frombuffer(read_bytes(file, "a CIFAR file"), np.uint8)
    if not len(content) or len(content) % record:
        raise ValueError(
            f"{file}: {len(content)} bytes are not whole records of {record}; truncated or damaged, replace it"
        )
    rows = content.reshape(-1, record)
    labels = rows[:, label_bytes - 1]
    wrong = labels >= num_classes
    reasons = [
        f"{file}, image {number}: label {labels[number]}, but {num_classes} classes are named"
        for number in np.flatnonzero(wrong)
    ]
    if reasons:
        if skipped is None:
            more = f"({len(reasons)} such of {len(rows)} images)"
            raise ValueError(f"{reasons[0]} {more}; replace the files or skip them")
        skipped += reasons
        rows, labels = rows[~wrong], labels[~wrong]
    return rows[:, label_bytes:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1), labels


def _read_idx_array(file: Path) -> np.ndarray:
    try:
        with opened(file, start_of(file).startswith(_GZIP)) as stream:  # by content, not by name
            content = read_limited(stream, file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: not a readable gzip file, truncated or damaged ({error}); replace it") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{file}: not an IDX file (it is {what_it_is(content)}); replace it")
    if content[2] != 8:
        raise ValueError(f"{file}: IDX data of type 0x{content[2]:02x}; need 0x08, unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) >= start:
        shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
        values = np.frombuffer(content, np.uint8, offset=start)
        if len(values) == math.prod(shape):
            return values.reshape(shape)
    raise ValueError(f"{file}: {len(content)} bytes do not fit its header; truncated or damaged, replace it")


def _idx_images(root: Path) -> list[Path]:
    """Image files, one of each: an unpacked file goes before its `.gz`."""
    found = {}
    for file in sorted(root.iterdir(), key=lambda file: file.suffix == ".gz"):
        if file.is_file() and not is_hidden(file.name) and not is_image(file) and _IDX_IMAGES.search(file.name):
            found.setdefault(file.name.removesuffix(".gz"), file)
    return list(found.values())


def _idx_labels(file: Path, needed: bool) -> Path | None:
    stem = re.sub("idx[34]", "idx1", file.name.removesuffix(".gz").replace("image", "label"))
    for candidate in (file.with_name(stem), file.with_name(f"{stem}.gz")):
        if candidate.is_file():
            return candidate
    if not needed:
        return None
    raise ValueError(f"{file}: its labels are missing; need {stem} or {stem}.gz beside it")


def _dataset(images: np.ndarray, labels: np.ndarray, names: list[str], where: Path) -> Dataset:
    """Arrays as binary PGM or PPM: a fixed header and the raw pixels, bytes that no encoder's version changes."""
    height, width = images.shape[1:3]
    header = f"P{5 if images.ndim == 3 else 6} {width} {height} 255\n".encode()
    cells = [
        {"path": f"{where}, image {number}", "bytes": header + np.ascontiguousarray(image).tobytes()}
        for number, image in enumerate(images)
    ]
    return labelled_dataset(cells, labels.astype(np.int64).tolist(), names, where)
