"""Train the arms of a sweep with several seeds, one after another, and compare them.

  opencrate ablate digits-structure
  opencrate ablate digits-structure --arms mlp,attention --seeds 0,1,2
  opencrate ablate cifar10-structure data.path=DATA --match compute
  opencrate ablate digits-ssl-objectives

SWEEP is a shipped sweep's name or a YAML file (keys: name, description, reference, seeds, arms, settings, untrained).
Bare `key=value` words change every arm. Finished runs are kept and unfinished ones resumed, so the same command resumes
after an interruption. The output folder holds the runs and the tables: ablation.md, .csv, .json and .png, and layer by
layer ablation-layers.csv and .png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .common import Parser, positive_int, prepare_libraries, print_result, print_table, say, seed

HELP = "compare recipes over seeds (are sparsity and structure necessary? what do objectives do to the layers?)"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate ablate`."""
    add = parser.add_argument
    parser.usage = "opencrate ablate SWEEP [key=value ...] [options]"
    parser.takes_overrides = True
    add("sweep", metavar="SWEEP", help="the name of a shipped sweep, or a YAML file")
    add("--seeds", type=_seeds, metavar="0,1,...", help="seeds (default: the sweep's)")
    add("--arms", type=_words, metavar="A,B,...", help="these arms, and the reference (default: all)")
    add("--output", metavar="DIR", help="folder of runs and table (default: ablations/<sweep>)")
    add(
        "--match",
        choices=("parameters", "compute"),
        default="parameters",
        help="compute: each arm takes the steps that give it the reference's operations (default: parameters)",
    )
    add("--images", type=positive_int, default=256, help="test images for the layer measures, at most")
    add("--smoke", action="store_true", help="the recipes' smoke forms: seconds on a laptop")


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, write the table and say where it is."""
    from ..studies.sweep import choose, load_sweep

    sweep = choose(load_sweep(arguments.sweep), arguments.arms, arguments.seeds)
    prepare_libraries(arguments.debug)
    from ..reports.sweep import FILES, write_ablation
    from ..studies.sweep import run_sweep

    suffix = "" if arguments.match == "parameters" else f"-{arguments.match}"
    output = Path(arguments.output or f"ablations/{sweep.name}{suffix}").expanduser()
    check_results(output, FILES.values(), FILES["markdown"], [arguments.sweep])
    found = run_sweep(
        sweep, output, arguments.overrides, arguments.match, smoke=arguments.smoke, num_images=arguments.images
    )
    cells = write_ablation(output, sweep, found, arguments.typed, arguments.match)
    files = {name: output / file for name, file in FILES.items()}
    document = {"sweep": sweep.name, "output": output, "files": files, "table": [cell.to_row() for cell in cells]}
    print_result(arguments, document, lambda: _print(sweep, cells, files["markdown"]))
    return 0


def _print(sweep: Any, cells: list[Any], path: Path) -> None:
    """A table for each headline measure, and where all of them are."""
    from ..stats.words import number
    from ..studies.sweep_measures import MEASURES
    from ..studies.sweep_table import headlines

    for key in headlines(cells):
        digits = MEASURES[key].digits
        rows = [
            (
                cell.arm,
                str(len(cell.values)),
                _with_spread(float(cell.found.mean), float(cell.found.std), digits),
                "" if cell.difference is None else number(cell.difference.mean, digits, signed=True),
                "reference" if cell.arm == sweep.reference else cell.verdict,
            )
            for cell in cells
            if cell.measure == key
        ]
        title = ", ".join(part for part in (MEASURES[key].title, MEASURES[key].unit) if part)
        print_table(("arm", "seeds", title, f"to {sweep.reference}", "95 % interval says"), rows)
    say(f"table:  {path}")


def _with_spread(mean: float, sd: float, digits: int) -> str:
    return f"{mean:.{digits}f}" if math.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _seeds(text: str) -> list[int]:
    return [seed(word) for word in text.split(",")]
