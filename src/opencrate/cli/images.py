"""Image files named on the command line: found, read, and left out on request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .._files import one_line, path_problem, read_standard_input, shown
from .common import Parser


def add_images(parser: Parser) -> None:
    """IMAGE ... and --skip-bad: what every command that reads unlabelled image files takes."""
    parser.add_argument("inputs", metavar="IMAGE", nargs="+", help="image files or folders of them; - reads a list")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")


def named_files(inputs: list[str], skip_missing: bool) -> list[Path]:
    """The image files that the words name, in order; missing ones too when they are to be skipped later.

    Raises:
        ValueError: a path that does not exist, a folder without images, or standard input that names nothing.
    """
    from ..data.images.files import LeftOut, image_files

    files: list[Path] = []
    for name in _names(inputs):
        path = Path(name).expanduser()
        if not skip_missing and (problem := path_problem(path)):
            raise ValueError(f"{shown(name)}: {problem}")
        left_out = LeftOut(path)
        found = image_files(path, left_out) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{shown(name)}: no image files in this folder, but {str(left_out) or 'nothing at all'}")
        if str(left_out):
            print(one_line(f"opencrate: {name}: left out {left_out}"), file=sys.stderr)
        files += found
    return files


def _names(inputs: list[str]) -> list[str]:
    """The words, with standard input's lines in the place of `-`."""
    if "-" not in inputs:
        return inputs
    if inputs.count("-") > 1:
        raise ValueError("'-' stands twice; standard input can be read once")
    lines = [line for line in read_standard_input().splitlines() if line.strip()]
    place = inputs.index("-")
    if not lines and len(inputs) == 1:
        raise ValueError("'-': standard input names no files; give one file or folder a line")
    return [*inputs[:place], *lines, *inputs[place + 1 :]]


def readable(transform: Any, files: list[Path], skipped: list[str] | None) -> list[tuple[Path, Any]]:
    """Each file with its pixel values; the reasons for the others go to `skipped`, or are raised if it is `None`."""
    images = []
    for file in files:
        try:
            images.append((file, transform([{"path": str(file), "bytes": None}])[0]))
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    return images


def report_skipped(skipped: list[str], total: int) -> None:
    """Name what was left out, and count it, on standard error."""
    for reason in skipped:
        print(f"opencrate: skipped {one_line(reason)}", file=sys.stderr)
    if skipped:
        print(f"opencrate: skipped {len(skipped)} of {total} images", file=sys.stderr)
