"""The page as a server: on the loopback unless asked otherwise, with no word to or from any other host."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from ..reports.html import fragment
from ._gradio import load_gradio, require_gradio
from .images import look
from .page import build, example_pictures, style
from .shelf import Shelf
from .uploads import MEGABYTE

HOST = "127.0.0.1"
MAX_UPLOAD = 100
"""MB of an upload."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
"""A browser loads nothing from elsewhere, whatever gradio's own page asks for."""


class Headers:
    """An ASGI middleware that adds the headers to every answer."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer, with the headers where the answer begins."""

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def start(shelf: Shelf, *, host: str | None = HOST, port: int | None = None, max_upload: int = MAX_UPLOAD) -> Any:
    """Start the page in threads of its own; what is given back has `local_url`, `close()` and `block_thread()`.

    Args:
        shelf: the models that it offers.
        host: address to listen at; `None` leaves it to gradio, which a Space of the Hub tells where.
        port: by default the first free one from 7860.
        max_upload: MB of an upload.

    Raises:
        ValueError: gradio is not installed, or there is no place at that address.
    """
    gr = load_gradio()
    page = build(shelf, max_upload)
    font = ("ui-sans-serif", "system-ui", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    page.queue(max_size=32)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            show_error=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            allowed_paths=[],
            max_file_size=max_upload * MEGABYTE,
            app_kwargs={"middleware": [(Headers, (), {})], "docs_url": None, "redoc_url": None, "openapi_url": None},
            theme=gr.themes.Default(primary_hue="blue", font=font, font_mono=mono),
            css=style(),
        )
    except OSError as error:
        where = f"port={port}" if port else "port"
        raise ValueError(f"{where}: nothing free at {host or 'this machine'}; give another port") from error
    return page


def prepare(shelf: Shelf) -> None:
    """Look at one picture before the first reader does: what is imported and set up once is there then."""
    names, examples = shelf.names(reads="images"), example_pictures()
    if names and examples:
        with contextlib.suppress(ValueError):  # a model that needs a larger picture, say
            fragment(look(shelf[names[0]], names[0], str(examples[0]), patches=8))


def _print_address(address: str) -> None:
    print(f"page: {address} (Ctrl-C ends it)", flush=True)


def serve(
    shelf: Shelf,
    *,
    host: str | None = HOST,
    port: int | None = None,
    max_upload: int = MAX_UPLOAD,
    started: Callable[[str], object] = _print_address,
) -> None:
    """Serve the page until it is interrupted; uploads lie in a temporary folder that is deleted then.

    `started` is called with the page's address once it can be opened.

    Raises:
        ValueError: as `start`.
    """
    require_gradio()
    prepare(shelf)
    with tempfile.TemporaryDirectory(prefix="opencrate-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = start(shelf, host=host, port=port, max_upload=max_upload)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: uploads are deleted
        try:
            started(page.local_url)
            page.block_thread()
        except KeyboardInterrupt:  # it came before gradio waits for it
            page.close()
