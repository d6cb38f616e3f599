"""Classify image files.

  opencrate predict runs/photos cat.jpg holiday/ --top-k 3
  opencrate predict runs/photos holiday/ --format json
  opencrate predict photos-onnx holiday/ --backend onnx
  find . -name '*.jpg' | opencrate predict runs/photos - --skip-bad

Folders are searched for image files, sub-folders included; `-` reads files and folders from standard input, one a line.
The model is a run directory or any saved classifier; with --backend, a folder that `opencrate export` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import (
    Parser,
    batch_size,
    named_files,
    positive_int,
    prepare_libraries,
    print_result,
    print_table,
    report_skipped,
)

HELP = "classify image files"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate predict`."""
    parser.add_argument(
        "model", metavar="RUN", help="run directory, saved classifier, exported folder, or opencrate/name"
    )
    parser.add_images()
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="classes per image")
    parser.add_argument("--batch-size", type=batch_size, default=64, metavar="N")
    words = "of an exported model: onnx (ONNX Runtime) or openvino"
    parser.add_argument("--backend", choices=("onnx", "openvino"), help=words)


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    from ..export.targets import FACTS
    from ..store.kinds import require_kind

    files = named_files(arguments.inputs, arguments.skip_bad)
    require_kind(arguments.model, ("classifier",))
    if arguments.backend is None and Path(arguments.model, FACTS).expanduser().is_file():
        raise ValueError(f"{arguments.model}: holds an exported model; say what runs it by --backend onnx or openvino")
    prepare_libraries(arguments.debug)
    skipped: list[str] = []
    options = {"top_k": arguments.top_k, "batch_size": arguments.batch_size}
    options["skipped"] = skipped if arguments.skip_bad else None
    results = (_exported if arguments.backend else _eager)(arguments, files, options)
    report_skipped(skipped, len(files))
    print_result(arguments, results, lambda: _print(results))
    return 0


def _print(results: list[dict[str, Any]]) -> None:
    rows = [
        (result["file"] if rank == 0 else "", guess["label"], f"{100 * guess['probability']:.2f} %")
        for result in results
        for rank, guess in enumerate(result["predictions"])
    ]
    print_table(("file", "class", "probability"), rows)


def _eager(arguments: argparse.Namespace, files: list[Path], options: dict[str, Any]) -> list[dict[str, Any]]:
    from ..evaluation.classifier import predict
    from ..store.saved import open_saved

    return predict(open_saved(arguments.model, ("classifier",)), files, **options)


def _exported(arguments: argparse.Namespace, files: list[Path], options: dict[str, Any]) -> list[dict[str, Any]]:
    from ..evaluation.classifier import classify_files
    from ..export.exported import open_exported

    model = open_exported(arguments.model, arguments.backend)
    return classify_files(model.logits, model.transform, model.label_names, files, **options)
