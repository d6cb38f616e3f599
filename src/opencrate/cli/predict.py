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
import sys
from pathlib import Path
from typing import Any

from .common import Parser, positive_int, prepare_libraries, print_table

HELP = "name the class of image files"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate predict`."""
    parser.add_argument("model", metavar="RUN", help="run directory, or any saved classifier folder")
    parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="image files or folders of them; - reads a list")
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="classes per image")
    parser.add_argument("--batch-size", type=positive_int, default=64, metavar="N")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def run(arguments: argparse.Namespace) -> int:
    """Predict and print."""
    files = _files(arguments.inputs, arguments.skip_bad)
    prepare_libraries(arguments.debug)
    from ..training.saved import open_saved

    saved = open_saved(arguments.model)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    for start in range(0, len(files), arguments.batch_size):
        images = _readable(saved, files[start : start + arguments.batch_size], skipped if arguments.skip_bad else None)
        results += _predict(saved, images, arguments.top_k) if images else []
    for reason in skipped:
        print(f"opencrate: skipped {reason}", file=sys.stderr)
    if skipped:
        print(f"opencrate: skipped {len(skipped)} of {len(files)} images", file=sys.stderr)
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


def _files(inputs: list[str], skip_missing: bool) -> list[Path]:
    """The image files that the words name, in order; missing ones too when they are to be skipped later."""
    from ..data.files import image_files

    files: list[Path] = []
    for name in _names(inputs):
        path = Path(name).expanduser()
        if not path.exists() and not skip_missing:
            raise ValueError(f"{name}: no such file or folder")
        found = image_files(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{name}: no image files in this folder")
        files += found
    return files


def _names(inputs: list[str]) -> list[str]:
    """The words, with standard input's lines in the place of `-`."""
    if "-" not in inputs:
        return inputs
    if inputs.count("-") > 1:
        raise ValueError("'-' stands twice; standard input can be read once")
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    place = inputs.index("-")
    if not lines and len(inputs) == 1:
        raise ValueError("'-': standard input names no files; give one file or folder a line")
    return [*inputs[:place], *lines, *inputs[place + 1 :]]


def _readable(saved: Any, files: list[Path], skipped: list[str] | None) -> list[tuple[Path, Any]]:
    """Each file with its pixel values; the reasons for the others go to `skipped`, or are raised if it is `None`."""
    images = []
    for file in files:
        try:
            images.append((file, saved.transform([{"path": str(file), "bytes": None}])[0]))
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    return images


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
