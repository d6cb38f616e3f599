"""Where text comes from, by one argument: see `_ALLOWED`; only `hf://` uses the network."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

from ..._files import HUB_PREFIX, path_problem, read_bytes, require_file, shown
from ..fingerprint import CONTENT_LIMIT
from ..images.files import LeftOut, visible_files, what_it_is
from ..parts import files_by_part, is_part, of_no_part
from .documents import Documents, TextParts, digest
from .options import TextData
from .tables import JSON_SUFFIXES, hub_parts, table_documents

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py", ".tokens")
"""Plain text files of a folder; a single file may have any suffix that is no table's."""
DESCRIPTIONS = frozenset({"readme", "license", "licence", "citation", "changelog", "notice"})
"""Names, without suffix and in lower case, of files that describe the data; they are read only if alone."""
TABLE_SUFFIXES = (".parquet", *JSON_SUFFIXES)
_ALLOWED = "'stdlib', a text, .jsonl or .parquet file, a folder of them, or hf://owner/name"
_NOT_STDLIB = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "distutils"}
    | {"lib2to3", "turtledemo", "__pycache__"}
)


def read_parts(data: TextData) -> TextParts:
    """All documents that a source holds, in its own parts.

    Raises:
        ValueError: a source that is missing, empty or cannot be read, or bytes that are no UTF-8 (file and offset).
    """
    if data.path == "stdlib":
        parts = {"all": stdlib_documents()}
    elif data.path.startswith(HUB_PREFIX):
        parts = hub_parts(data)
    else:
        parts = {part: _documents(files, data) for part, files in _files(Path(data.path).expanduser()).items()}
    limit = data.max_documents
    if limit is not None and not data.streaming:
        parts = {part: documents.first(limit) for part, documents in parts.items()}
    return {part: documents.require_text() for part, documents in parts.items()}


def stdlib_documents() -> Documents:
    """Python's standard library: one document per file, in the order of the SHA-256 of their names.

    Left out are tests, the generated tables of `encodings` and `pydoc_data`, and packages that newer versions lack.
    About 10 million characters in 600 files for CPython 3.11; every version of Python has its own.
    """
    return Documents("stdlib", lambda: iter(_stdlib_texts()), lambda: digest(*_stdlib_texts()))


@lru_cache(maxsize=1)
def _stdlib_texts() -> tuple[str, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    kept = [name.as_posix() for name in names if not _NOT_STDLIB.intersection(name.parts)]
    return tuple(read_text(root / name) for name in sorted(kept, key=digest))


def read_text(file: Path) -> str:
    """A file's text as it is (line ends too), without a byte order mark; `ValueError` says where it is not UTF-8."""
    content = read_bytes(file, "a text file")
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{shown(file)}: not text but {what_it_is(content)}; give UTF-8 text")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown(file)}: not UTF-8 text, {error.reason} at byte {error.start} (0x{content[error.start]:02x}); "
            "convert it, for example with `iconv -t utf-8`"
        ) from error


def _documents(files: list[Path], data: TextData) -> Documents:
    """The documents of some files of one kind."""
    where = str(files[0] if len(files) == 1 else files[0].parent)
    identity = partial(_identity, tuple(files), data.document, data.text_column)
    if _ends(files[0], TABLE_SUFFIXES):
        return table_documents(files, data.text_column, where, identity)
    return Documents(where, lambda: _texts(files, data.document), identity)


def _texts(files: list[Path], document: str) -> Iterator[str]:
    for file in files:
        text = read_text(file)
        if document == "file":
            yield text
        elif document == "line":
            yield from text.split("\n")
        else:
            yield from re.split(r"\n[ \t\r]*\n", text)


def _identity(files: tuple[Path, ...], *options: object) -> str:
    """SHA-256 over the files' content, or over names, sizes and times of change where they are very large."""
    found = hashlib.sha256(digest(*options).encode())
    by_content = sum(file.stat().st_size for file in files) <= CONTENT_LIMIT
    for file in files:
        if by_content:
            with file.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            found.update(f"{file.name}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\0".encode())
    return found.hexdigest()


def _files(path: Path) -> dict[str, list[Path]]:
    """The files of each part."""
    if path_problem(path):
        raise ValueError(f"{shown(path)}: no such folder or file; give {_ALLOWED}")
    if not path.is_dir():
        return {"all": [require_file(path, _ALLOWED)]}
    found = _of_one_kind(path)
    parts = files_by_part(found, path)
    if len(parts) < 2 or "all" not in parts:
        return parts
    named = [file for part, some in parts.items() if part != "all" for file in some]
    if {"train", "all"} < parts.keys() or any(is_part(file.name.partition(".")[0]) for file in named):
        raise ValueError(of_no_part(parts["all"][0], path))
    return {"all": found}


def _of_one_kind(folder: Path) -> list[Path]:
    """The readable files below a folder, sorted by name; the others are reported."""
    left_out = LeftOut(folder)
    files = visible_files(folder, left_out)
    data = [file for file in files if file.name.lower().partition(".")[0] not in DESCRIPTIONS]
    kinds = {"text": TEXT_SUFFIXES, "parquet": (".parquet",), "json lines": JSON_SUFFIXES}
    found = _by_kind(data, kinds) or _by_kind(files, kinds)
    if not found:
        raise ValueError(f"{folder}: holds no {', '.join(TEXT_SUFFIXES)}, .parquet or .jsonl files")
    if len(found) > 1:
        first = {kind: of_kind[0].name for kind, of_kind in found.items()}
        names = ", ".join(f"{kind} ({name})" for kind, name in first.items())
        raise ValueError(f"{folder}: holds files of several kinds, {names}; give a folder of one kind, or one file")
    used = next(iter(found.values()))
    left_out.add_files(sorted(set(files) - set(used)))
    left_out.say()
    return used


def _by_kind(files: list[Path], kinds: dict[str, tuple[str, ...]]) -> dict[str, list[Path]]:
    """The files of each kind of which there are some."""
    found = {kind: [file for file in files if _ends(file, ends)] for kind, ends in kinds.items()}
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def _ends(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(suffixes)
