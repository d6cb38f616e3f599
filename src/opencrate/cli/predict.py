"""Classify image files.

  opencrate predict runs/photos cat.jpg holiday/ --top-k 3
  opencrate predict runs/photos holiday/ --format json
  find . -name '*.jpg' | opencrate predict runs/photos - --skip-bad

Folders are searched for image files, sub-folders included; `-` reads files and folders from standard input, one a line.
The model is a run directory or any saved classifier.
"""

from __future__ import annotations

import argparse
import json

from .common import Parser, batch_size, named_files, positive_int, prepare_libraries, print_table, report_skipped

HELP = "classify image files"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate predict`."""
    parser.add_argument("model", metavar="RUN", help="run directory, saved classifier, or opencrate/name")
    parser.add_images()
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="classes per image")
    parser.add_argument("--batch-size", type=batch_size, default=64, metavar="N")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    from ..store.kinds import require_kind

    files = named_files(arguments.inputs, arguments.skip_bad)
    require_kind(arguments.model, ("classifier",))
    prepare_libraries(arguments.debug)
    from ..evaluation.classifier import predict
    from ..store.saved import open_saved

    saved = open_saved(arguments.model, ("classifier",))
    skipped: list[str] = []
    options = {"top_k": arguments.top_k, "batch_size": arguments.batch_size}
    results = predict(saved, files, **options, skipped=skipped if arguments.skip_bad else None)
    report_skipped(skipped, len(files))
    if arguments.format == "json":
        print(json.dumps(results, indent=2))
        return 0
    rows = [
        (result["file"] if rank == 0 else "", guess["label"], f"{100 * guess['probability']:.2f} %")
        for result in results
        for rank, guess in enumerate(result["predictions"])
    ]
    print_table(("file", "class", "probability"), rows)
    return 0
