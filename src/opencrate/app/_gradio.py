"""gradio, asked for when a page is built and never before, and told to call nobody."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Read by gradio when it is imported, or when a page starts."""


def require_gradio() -> None:
    """Refuse, with a `ValueError` that names the extra, to make a page without gradio."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed; `pip install opencrate[app]`")


def load_gradio() -> ModuleType:
    """The module gradio, without analytics.

    Raises:
        ValueError: it is not installed.
    """
    require_gradio()
    os.environ.update(_QUIET)
    return importlib.import_module("gradio")
