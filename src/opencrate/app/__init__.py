"""A page to try models on: pictures and texts in, what the layers make of them out. Needs the extra `app` (gradio)."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .server import serve as serve
    from .shelf import Shelf as Shelf, open_shelf as open_shelf
    from .space import write_space as write_space
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
