"""Try models in a browser: a picture or a text in, what the layers make of it out.

  opencrate app
  opencrate app runs/photos opencrate/digits --port 8000
  opencrate app opencrate/digits --space digits-space

MODEL is a run directory, a saved folder, opencrate/name or hf://owner/name, which is downloaded; by default all models
of opencrate-weights that are installed. Tabs: a picture (class, masks, heads, atoms, curves, reconstruction), a text
(go on, fill in, features of a word), two models side by side, and the report of a model that is uploaded.

The page needs the extra `app` (gradio). It listens on this machine only, unless --host says otherwise; then everybody
who reaches the address can use it, without a password. It calls no other host. --space writes a Hugging Face Space
instead: app.py, requirements.txt, README.md and the models.
"""

from __future__ import annotations

import argparse
import json
from typing import Annotated, Any

from .._values import Within
from .common import Parser, number_of, prepare_libraries, print_result, say

HELP = "try models in a browser, or write a Hugging Face Space"
PORT = Annotated[int, Within(1, 65_535)]
UPLOAD = Annotated[int, Within(1, 10_000)]


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate app`."""
    add = parser.add_argument
    words = "run directories, saved folders, opencrate/name or hf://owner/name (default: all installed models)"
    add("models", metavar="MODEL", nargs="*", help=words)
    add("--port", type=number_of(PORT), metavar="N", help="default: the first free one from 7860")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (default: this machine only)")
    add("--max-upload", type=number_of(UPLOAD), default=100, metavar="MB", help="of a file or model (default: 100)")
    add("--space", metavar="FOLDER", help="write a Hugging Face Space there, and start nothing")
    add("--overwrite", action="store_true", help="with --space: replace one that was written before")


def run(arguments: argparse.Namespace) -> int:
    """Serve, or write."""
    from ..app._gradio import require_gradio

    if arguments.overwrite and not arguments.space:
        raise ValueError("--overwrite: belongs to --space FOLDER; leave it out")
    if not arguments.space:
        require_gradio()
    prepare_libraries(arguments.debug)
    from ..app.shelf import default_models, open_shelf

    models = arguments.models or default_models()
    if arguments.space:
        from ..app.space import write_space

        options = {"max_upload": arguments.max_upload, "overwrite": arguments.overwrite}
        files = write_space(arguments.space, models, **options)
        words = f"wrote {len(files)} files to {arguments.space}; requirements.txt says what the Space still needs"
        print_result(arguments, {"folder": arguments.space, "files": files}, lambda: say(words))
        return 0
    from ..app.server import serve

    shelf = open_shelf(models)
    options: dict[str, Any] = {"host": arguments.host, "port": arguments.port, "max_upload": arguments.max_upload}
    if arguments.format == "json":
        options["started"] = lambda address: print(json.dumps({"address": address}), flush=True)
    serve(shelf, **options)
    return 0
