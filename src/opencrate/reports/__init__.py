"""Results as pages, figures, tables and sentences: `write(result, folder)` writes the page of any result."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .html import Figure as Figure, Part as Part, Report as Report, Table as Table
    from .pages import write as write
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
