"""Name the class of image files.

  opencrate predict runs/photos cat.jpg holiday/ --top-k 3
  opencrate predict runs/photos holiday/ --format json
  find . -name '*.jpg' | opencrate predict runs/photos - --skip-bad

Folders are searched for image files, sub-folders included; `-` reads files and folders from standard input, one a line.
The model is a run directory or any saved classifier.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .common import Parser, batch_size, positive_int, prepare_libraries, print_table
from .images import add_images, named_files, readable, report_skipped

HELP = "name the class of image files"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate predict`."""
    parser.add_argument("model", metavar="RUN", help="run directory, or any saved classifier folder")
    add_images(parser)
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="classes per image")
    parser.add_argument("--batch-size", type=batch_size, default=64, metavar="N")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    files = named_files(arguments.inputs, arguments.skip_bad)
    prepare_libraries(arguments.debug)
    from ..store.kinds import require_kind
    from ..store.saved import open_saved

    require_kind(arguments.model, ["classifier"])
    saved = open_saved(arguments.model)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    for start in range(0, len(files), arguments.batch_size):
        batch = files[start : start + arguments.batch_size]
        images = readable(saved.transform, batch, skipped if arguments.skip_bad else None)
        results += _predict(saved, images, arguments.top_k) if images else []
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


def _predict(saved: Any, images: list[tuple[Path, Any]], top_k: int) -> list[dict[str, Any]]:
    """For each file, its `top_k` most probable classes, the most probable first."""
    import torch

    pixels = torch.stack([pixel_values for _, pixel_values in images])
    with torch.no_grad():
        probabilities = saved.model(pixel_values=pixels.to(saved.model.device)).logits.float().softmax(-1)
    values, indices = probabilities.topk(min(top_k, probabilities.shape[-1]))
    names = saved.label_names
    return [
        {
            "file": str(file),
            "predictions": [
                {"label": names[index], "probability": value}
                for index, value in zip(row_indices.tolist(), row_values.tolist())
            ],
        }
        for (file, _), row_indices, row_values in zip(images, indices, values)
    ]
