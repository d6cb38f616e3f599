"""Results as pages, figures, tables and sentences: `write(result, folder)` writes the page of any result."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .html import Figure as Figure
    from .html import Part as Part
    from .html import Report as Report
    from .html import Table as Table
    from .pages import write as write
else:
    __getattr__, __dir__, __all__ = lazy_exports(
        __name__, {"html": ("Figure", "Part", "Report", "Table"), "pages": ("write",)}
    )
