"""Errors as the page shows them: one line, and no paths of the machine that it runs on."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from .._files import one_line

logger = logging.getLogger(__name__)

_PATH = re.compile(r"(?<![\w.:/\\<])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"<>|]+)+[/\\]?")
"""What begins with a slash, a tilde or a drive; not `opencrate/digits`, not `hf://owner/name`."""


class PageError(Exception):
    """What a reader of the page is told, in one line."""


def without_paths(text: str, names: Mapping[str, str] | None = None) -> str:
    """A message with every absolute path shortened to its last part; `names` are what known paths are called.

    >>> without_paths("/tmp/a1/cat.png: no such file")
    'cat.png: no such file'
    >>> without_paths("/srv/my models/big: damaged", {"/srv/my models/big": "big"})
    'big: damaged'
    """
    for path in sorted(names or {}, key=len, reverse=True):
        text = text.replace(path, (names or {})[path])
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def told(error: Exception, names: Mapping[str, str] | None = None) -> str:
    """What an error says to a reader; one that nobody foresaw says its kind only, and the log has all of it."""
    if isinstance(error, (ValueError, ArithmeticError, PageError)):
        return one_line(without_paths(str(error), names)) or type(error).__name__
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; give a smaller picture, text or model"
    logger.error("the page failed", exc_info=error)
    return f"failed ({type(error).__name__}); the terminal of the page says more"


def in_one_line(function: Callable[..., Any], names: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """The function, whose errors become a `PageError` that a reader may see."""

    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise PageError(told(error, names)) from error

    return run
