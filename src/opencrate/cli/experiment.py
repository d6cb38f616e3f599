"""Experiments with known truth, one command each: intervals over seeds, pictures, tables and a summary in words.

  opencrate experiment compress       which forms of the compression step lower R^c
  opencrate experiment sparsify       how far ISTA steps go, and which step sizes may be taken
  opencrate experiment reconstruct    how well the decoder's layers undo the encoder's, against a bound

  opencrate experiment compress noise=0,0.2,0.5 eps=1 --seeds 20 --output noise
  opencrate experiment sparsify --quick

Settings are key=value words, lists with commas; `opencrate experiment NAME --settings` shows them all. Writes
NAME.csv, NAME.json and its figures as PNG and SVG.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._suggest import suggest
from .common import Parser, positive_int, print_table

HELP = "experiments with known truth: compress, sparsify, reconstruct"
NAMES = ("compress", "sparsify", "reconstruct")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate experiment`."""
    parser.takes_overrides = True
    parser.usage = "opencrate experiment NAME [key=value ...] [options]"
    parser.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=positive_int, metavar="N", help="repetitions, at least 2 (default: 10)")
    parser.add_argument("--output", metavar="DIR", help="folder of the results (default: experiments/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="replace finished results in that folder")
    parser.add_argument("--quick", action="store_true", help="small settings, done in seconds")
    parser.add_argument("--settings", action="store_true", help="print the settings and end")


def run(arguments: argparse.Namespace) -> int:
    """Run, write, print the table and the summary."""
    if arguments.name not in NAMES:
        raise ValueError(f"unknown experiment '{arguments.name}'; {suggest(arguments.name, NAMES)}")
    from ..experiments import compress, reconstruct, results, sparsify

    module: Any = {"compress": compress, "sparsify": sparsify, "reconstruct": reconstruct}[arguments.name]
    settings = module.SETTINGS()
    if arguments.quick:
        settings = module.quick(settings)
    words = [*arguments.overrides, *([f"seeds={arguments.seeds}"] if arguments.seeds else [])]
    settings = results.with_overrides(settings, words)
    if arguments.settings:
        print("\n".join(results.settings_words(settings)))
        return 0
    output = Path(arguments.output or f"experiments/{arguments.name}")
    results.check_output(output, arguments.name, arguments.overwrite)
    found = module.run(settings, _track)
    results.write_experiment(found, output, arguments.typed)
    print(found.title)
    print_table(found.columns, found.shown)
    print("\n".join(found.summary))
    print(f"results: {output}")
    return 0


def _track(items: Sequence) -> Iterable:
    """The items with a bar over the seeds on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description="seeds", console=console, transient=True, disable=not sys.stderr.isatty())
