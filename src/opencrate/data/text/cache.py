"""Tokens on disk: made once, read as a memory map.

A text is tokenised into `<cache>/tokens/<key>/`, where the key is a hash of the text, the tokenizer and the options
that change a token. It is written under another name and renamed when it is whole; what a killed process has written
is taken up where it stopped.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from ..._files import read_json
from ..._outputs import write_json
from ...calibration import cache_folder
from .documents import Documents, digest
from .tokenizers import encode, pieces, separator_of, tokenizer_identity, vocabulary_size

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes make the same tokens twice
    fcntl = None

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the layout; part of the key."""
_BATCH = 1 << 20  # characters between two notes of progress
_GROUP = 1024  # texts handed to the tokenizer at a time
_AGAIN = "delete its folder, and the text is tokenised again"
_TOKENS, _ENDS, _ABOUT, _PROGRESS = "tokens.bin", "ends.bin", "about.json", "progress.json"


@dataclass(frozen=True)
class Counts:
    """How much text was tokenised: `bytes` of UTF-8, `tokens` with one separator per document."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one part.

    Attributes:
        tokens: `(counts.tokens,)` uint16 or uint32, a memory map; a separator (if there is one) ends every document.
        ends: `(counts.documents,)` int64: the position after each document's separator.
        key: of the cache.
    """

    tokens: np.ndarray
    ends: np.ndarray
    counts: Counts
    key: str


def tokenised(documents: Documents, tokenizer: PreTrainedTokenizerBase) -> TokenFile:
    """The tokens of some documents, from the cache or made now.

    Raises:
        ValueError: no text, or bytes that are no UTF-8.
        OSError: the cache cannot be written.
    """
    key = digest(VERSION, documents.identity, tokenizer_identity(tokenizer), separator_of(tokenizer))
    folder = cache_folder() / "tokens" / key
    if not (folder / _ABOUT).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not (folder / _ABOUT).is_file():
                _make(folder, documents, tokenizer)
    return _open(folder)


def _make(folder: Path, documents: Documents, tokenizer: PreTrainedTokenizerBase) -> None:
    start = time.perf_counter()
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
    counts = _write(partial, documents, tokenizer, dtype)
    if counts.documents == 0:
        shutil.rmtree(partial)
        raise ValueError(f"{documents.where}: empty, it contains no text; give a text to read")
    about = {"where": documents.where, "dtype": np.dtype(dtype).name, "counts": asdict(counts)}
    (partial / _PROGRESS).unlink(missing_ok=True)
    write_json(partial / _ABOUT, about)
    partial.rename(folder)
    seconds = time.perf_counter() - start
    logger.info("tokenised %s: %s tokens in %.1f s", documents.where, f"{counts.tokens:,}", seconds)


def _write(partial: Path, documents: Documents, tokenizer: PreTrainedTokenizerBase, dtype: type) -> Counts:
    """Tokenise batch by batch; after each, `progress.json` says how far both files are valid."""
    counts = _resumed(partial, dtype)
    separator, unknown = separator_of(tokenizer), tokenizer.unk_token_id
    unknown = None if unknown == separator else unknown
    rest = islice(iter(documents), counts.documents, None)
    with (partial / _TOKENS).open("ab") as tokens, (partial / _ENDS).open("ab") as ends, _progress() as shown:
        for batch in _batches(rest):
            ids = _encoded(batch, tokenizer, separator, dtype)
            lengths = np.array([len(each) for each in ids], np.int64)
            flat = np.concatenate(ids)
            flat.tofile(tokens)
            (counts.tokens + lengths.cumsum()).tofile(ends)
            counts = Counts(
                documents=counts.documents + len(batch),
                characters=counts.characters + sum(map(len, batch)),
                bytes=counts.bytes + sum(len(text.encode()) for text in batch),
                tokens=counts.tokens + len(flat),
                unknown=counts.unknown + (0 if unknown is None else int((flat == unknown).sum())),
            )
            tokens.flush()
            ends.flush()
            write_json(partial / _PROGRESS, asdict(counts))
            shown(counts.characters)
    return counts


def _encoded(
    batch: list[str], tokenizer: PreTrainedTokenizerBase, separator: int | None, dtype: type
) -> list[np.ndarray]:
    """Each document's tokens and the separator, if there is one; long documents are tokenised in pieces."""
    flat = ((number, piece) for number, text in enumerate(batch) for piece in pieces(text))
    found: list[list[np.ndarray]] = [[] for _ in batch]
    while group := list(islice(flat, _GROUP)):
        for (number, _), ids in zip(group, encode(tokenizer, [piece for _, piece in group])):
            found[number].append(np.asarray(ids, dtype))
    end = np.asarray([] if separator is None else [separator], dtype)
    return [np.concatenate([*parts, end]) for parts in found]


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _resumed(partial: Path, dtype: type) -> Counts:
    """How far a killed process came; what it wrote beyond that is cut off."""
    progress = partial / _PROGRESS
    counts = _counts(read_json(progress, advice=_AGAIN), progress) if progress.is_file() else Counts()
    sizes = {_TOKENS: counts.tokens * np.dtype(dtype).itemsize, _ENDS: counts.documents * 8}
    for name, size in sizes.items():
        with (partial / name).open("ab") as file:
            file.truncate(size)
    return counts


def _open(folder: Path) -> TokenFile:
    about = read_json(folder / _ABOUT, advice=_AGAIN)
    counts = _counts(about.get("counts"), folder / _ABOUT)
    if about.get("dtype") not in ("uint16", "uint32"):
        raise ValueError(f"{folder / _ABOUT}: damaged; {_AGAIN}")
    tokens = np.memmap(folder / _TOKENS, dtype=about["dtype"], mode="r")
    ends = np.fromfile(folder / _ENDS, np.int64)
    if len(tokens) != counts.tokens or len(ends) != counts.documents:
        raise ValueError(f"{folder}: damaged, its files are not as long as {_ABOUT} says; delete the folder")
    return TokenFile(tokens, ends, counts, folder.name)


def _counts(fields: Any, path: Path) -> Counts:
    with suppress(TypeError):
        counts = Counts(**fields)
        if all(isinstance(number, int) and number >= 0 for number in asdict(counts).values()):
            return counts
    raise ValueError(f"{path}: damaged; {_AGAIN}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process makes these tokens; others wait. The system frees the lock when the process ends."""
    with folder.with_name(folder.name + ".lock").open("w") as file:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress() -> Iterator:
    """A bar on standard error where that is a terminal; called with the characters so far."""
    columns = TextColumn("tokenising"), TextColumn("{task.completed:,} characters"), TimeElapsedColumn()
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task("tokenising", total=None)
        yield lambda characters: bar.update(task, completed=characters)
