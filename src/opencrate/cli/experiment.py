"""Experiments with known truth, one command each: intervals over seeds, pictures, tables and a summary in words.

  opencrate experiment compress       which forms of the compression step lower R^c
  opencrate experiment sparsify       how far ISTA steps go, and which step sizes may be taken
  opencrate experiment reconstruct    how well the decoder's layers undo the encoder's, against a bound
  opencrate experiment denoise        what attention takes out of noisy tokens, against the best any denoiser can

  opencrate experiment compress noise=0,0.2,0.5 eps=1 --seeds 20 --output noise
  opencrate experiment sparsify --quick
  opencrate experiment reconstruct --model runs/digits-mae-seed0 --untrained

Settings are key=value words, lists with commas; `opencrate experiment NAME --settings` shows them all. Writes
NAME.csv, NAME.json and its figures as PNG and SVG. With --model, reconstruct measures trained CRATE autoencoders on
images instead, with intervals over images; its results are named autoencoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .._suggest import suggest
from .common import Parser, positive_int, prepare_libraries, print_result, print_table, say

HELP = "experiments with known truth: compress, sparsify, reconstruct, denoise"
NAMES = ("compress", "sparsify", "reconstruct", "denoise")


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
    trained = parser.add_argument_group("reconstruct, of trained autoencoders")
    trained.add_argument("--model", metavar="RUN", action="append", help="an autoencoder; again for one beside it")
    trained.add_argument("--untrained", action="store_true", help="beside them fresh copies, and a tied one")
    trained.add_argument("--data", metavar="IMAGES", help="images, as a recipe's data.path (default: the run's own)")


def run(arguments: argparse.Namespace) -> int:
    """Run, write, print the table and the summary."""
    if arguments.name not in NAMES:
        raise ValueError(f"unknown experiment '{arguments.name}'; {suggest(arguments.name, NAMES)}")
    _check_options(arguments)
    from ..reports.experiments.write import describe, write_experiment
    from ..studies.experiments import autoencoder, base as results, compress, denoise, reconstruct, sparsify

    known = {"compress": compress, "sparsify": sparsify, "reconstruct": reconstruct, "denoise": denoise}
    module: Any = autoencoder if arguments.model else known[arguments.name]
    settings = module.SETTINGS()
    if arguments.quick:
        settings = module.quick(settings)
    words = [*arguments.overrides, *([f"seeds={arguments.seeds}"] if arguments.seeds else [])]
    settings = results.with_overrides(settings, words)
    if arguments.settings:
        print_result(arguments, settings, lambda: print("\n".join(results.settings_words(settings))))
        return 0
    name = autoencoder.NAME if arguments.model else arguments.name
    output = Path(arguments.output or f"experiments/{name}")
    names, read = (f"{name}.csv", f"{name}.json", f"{name}.png"), [*(arguments.model or []), arguments.data]
    check_results(output, names, f"{name}.json", read, overwrite=arguments.overwrite)
    if arguments.model:
        prepare_libraries(arguments.debug)
        found = autoencoder.run_saved(arguments.model, settings, arguments.data, arguments.untrained)
    else:
        found = module.run(settings, _track)
    write_experiment(found, output, arguments.typed)
    document = {**found.to_dict(), "summary": describe(found), "output": output}
    print_result(arguments, document, lambda: _print(found, output))
    return 0


def _print(found: Any, output: Path) -> None:
    from ..reports.experiments.write import describe, table

    say(found.title)
    shown = table(found)
    print_table(tuple(shown.columns), list(shown.itertuples(index=False, name=None)))
    say("\n".join(describe(found)))
    say(f"results: {output}")


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that belong to another form of the command."""
    if arguments.model and arguments.name != "reconstruct":
        raise ValueError(f"--model: belongs to `opencrate experiment reconstruct`, not to {arguments.name}")
    if arguments.model and arguments.seeds:
        raise ValueError("--seeds: with --model the intervals are over images; set images=N (and seed=S)")
    for option in ("untrained", "data"):
        if getattr(arguments, option) and not arguments.model:
            raise ValueError(f"--{option}: needs --model RUN")


def _track(items: Sequence) -> Iterable:
    """The items with a bar over the seeds on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description="seeds", console=console, transient=True, disable=not sys.stderr.isatty())
