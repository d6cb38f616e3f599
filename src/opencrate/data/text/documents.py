"""A sequence of documents: what every source of text ends in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice


class Documents:
    """Texts in a fixed order, read again at every iteration; those of white space only are left out.

    `where` names the source in messages; `identity()` hashes what the texts depend on, when that is needed.
    """

    def __init__(self, where: str, read: Callable[[], Iterator[str]], identity: Callable[[], str]) -> None:
        self.where = where
        self._read = read
        self._identity = identity

    def __iter__(self) -> Iterator[str]:
        return (text for text in self._read() if text and not text.isspace())

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what the texts depend on; see `of_content`."""
        return self._identity()

    @cached_property
    def characters(self) -> int:
        """Characters in all documents; reads them once."""
        return sum(map(len, self))

    def part(self, name: str, start: int, stop: int) -> Documents:
        """Characters `start` to `stop` of the concatenated documents; one that a border falls into is cut there."""
        return Documents(
            f"{self.where}, {name} part",
            lambda: _between(self, start, stop),
            lambda: digest("characters", start, stop, self.identity),
        )

    def first(self, count: int) -> Documents:
        """The first `count` documents."""
        return self.after(0, count)

    def after(self, count: int, stop: int) -> Documents:
        """Documents `count` to `stop`."""
        return Documents(
            self.where, lambda: islice(iter(self), count, stop), lambda: digest("documents", count, stop, self.identity)
        )

    def require_text(self) -> Documents:
        """These documents; `ValueError` if there is no text in them."""
        if next(iter(self), None) is None:
            raise ValueError(f"{self.where}: empty, it contains no text; give a text to read")
        return self


TextParts = dict[str, Documents]
"""What a source holds: `train`, `validation` and `test` as far as it has them, or `all` where it is not divided."""


def digest(*values: object) -> str:
    """SHA-256 of a few values."""
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()


def held_out_by_position(
    whole: Documents, validation_fraction: float, test_fraction: float
) -> tuple[Documents, Documents | None, Documents | None]:
    """Train, validation and test part by position in the text: the first characters, the next, the last.

    Of `n` characters the training part is the first `round(n (1 - validation - test))`, the validation part extends to
    `round(n (1 - test))`; a part of fraction 0 is `None`.
    """
    if validation_fraction == 0 and test_fraction == 0:
        return whole, None, None
    total = whole.characters
    first, second = round(total * (1 - validation_fraction - test_fraction)), round(total * (1 - test_fraction))
    validation = whole.part("validation", first, second).require_text() if validation_fraction else None
    test = whole.part("test", second, total).require_text() if test_fraction else None
    return whole.part("train", 0, first).require_text(), validation, test


def _between(documents: Documents, start: int, stop: int) -> Iterator[str]:
    position = 0
    for text in documents:
        if position >= stop:
            return
        piece = text[max(0, start - position) : stop - position]
        position += len(text)
        if position > start and piece:
            yield piece
