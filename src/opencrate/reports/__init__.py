"""Results as pages, figures, tables and sentences: `write(result, folder)` writes the page of any result."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .html import Figure as Figure
    from .html import Part as Part
    from .html import Report as Report
    from .html import Table as Table
    from .pages import write as write

__all__ = ["Figure", "Part", "Report", "Table", "write"]
_NAMES = {**dict.fromkeys(("Figure", "Part", "Report", "Table"), "html"), "write": "pages"}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_NAMES[name]}", __name__), name)
