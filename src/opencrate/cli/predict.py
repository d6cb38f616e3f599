"""Name the class of image files.

  opencrate predict runs/photos cat.jpg holiday/ --top-k 3
  opencrate predict runs/photos holiday/ --format json

Folders are searched for image files, sub-folders included. The model is a run directory or any saved classifier.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .common import Parser, positive_int, prepare_libraries, print_table

HELP = "name the class of image files"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate predict`."""
    parser.add_argument("model", metavar="RUN", help="run directory, or any saved classifier folder")
    parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="image files or folders of them")
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="classes per image")
    parser.add_argument("--batch-size", type=positive_int, default=64, metavar="N")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    files = _files(arguments.inputs)
    prepare_libraries(arguments.debug)
    from ..training.saved import open_saved

    saved = open_saved(arguments.model)
    results = []
    for start in range(0, len(files), arguments.batch_size):
        results += _predict(saved, files[start : start + arguments.batch_size], arguments.top_k)
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


def _files(inputs: list[str]) -> list[Path]:
    from ..data.files import image_files

    files: list[Path] = []
    for name in inputs:
        path = Path(name).expanduser()
        if not path.exists():
            raise ValueError(f"{name}: no such file or folder")
        found = image_files(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{name}: no image files in this folder")
        files += found
    return files


def _predict(saved: Any, files: list[Path], top_k: int) -> list[dict[str, Any]]:
    """For each file, its `top_k` most probable classes, the most probable first."""
    import torch

    pixels = saved.transform([{"path": str(file), "bytes": None} for file in files])
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
        for file, row_indices, row_values in zip(files, indices, values)
    ]
