"""The whole tour on real data in a few minutes: train a CRATE and a matched baseline on scikit-learn's digits.

The baseline is attention and an MLP in the proportions of a ViT, in CRATE's own frame (embedding, norms, head), so that
nothing but the two operators differs. Both are evaluated on the same held-out images; the CRATE's white box is measured
against its own initialisation, and one report that opens offline shows everything. Training uses one thread: the order
of sums, and so the accuracies, then do not depend on the number of cores (on the kind of processor they still do).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._outputs import check_results
from .common import Parser, note, prepare_libraries, print_result, print_table, say

HELP = "train, evaluate and explain a CRATE on digits; start here"
RECIPES = ("digits", "digits-vit-like")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate demo`."""
    parser.takes_overrides = True
    parser.usage = "opencrate demo [key=value ...] [options]"
    parser.add_argument("--output", metavar="DIR", default="runs/demo", help="default: runs/demo")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(arguments: argparse.Namespace) -> int:
    """Train both, report, print the table."""
    start = time.perf_counter()
    from ..recipe.load import load_recipe

    output = Path(arguments.output)
    check_results(output, ("report.html", "layers.csv", "layers.json", "figures"), "report.html")
    recipes = [load_recipe(name, arguments.overrides) for name in RECIPES]
    prepare_libraries(arguments.debug)
    from ..reports.runs import report_runs
    from ..store.saved import open_saved
    from ..training.train import train

    runs = []
    for recipe in recipes:
        note(f"training {recipe.name} ...")
        with one_thread():
            runs.append(train(recipe, output / recipe.name, overwrite=True))
    note("measuring and writing the report ...")
    report = output / "report.html"
    report_runs([open_saved(one.directory) for one in runs], report, command=arguments.typed)
    minutes = (time.perf_counter() - start) / 60
    found = [
        {"recipe": recipe.name, "run": one.directory, "metrics": one.metrics} for recipe, one in zip(recipes, runs)
    ]
    document = {"report": report, "minutes": minutes, "models": found}
    print_result(arguments, document, lambda: _print(found, report, minutes))
    return 0


def _print(found: list[dict[str, Any]], report: Path, minutes: float) -> None:
    """The models side by side, whether they can be told apart, and what comes next."""
    rows = []
    for recipe, metrics in ((one["recipe"], one["metrics"]) for one in found):
        accuracy, training = f"{100 * metrics['accuracy']:.2f} %", f"{metrics['seconds'] / 60:.2f} minutes"
        low, high = (100 * end for end in metrics["test"]["top1_interval_95"])
        rows.append((recipe, accuracy, f"{low:.1f} to {high:.1f} %", training, f"{metrics['parameters']:,}"))
    print_table(("model", "accuracy", "95 % interval", "training", "parameters"), rows)
    say(_compared([one["metrics"]["test"]["top1_interval_95"] for one in found]))
    say(f"{minutes:.1f} minutes in all")
    say(f"report: {report}  (open it in a browser)")
    say(f"next:   opencrate train digits training.seed=1    opencrate predict {report.parent / 'digits'} IMAGE")


def _compared(intervals: list[list[float]]) -> str:
    """Whether two accuracies on the same few images can be told apart by their intervals."""
    (low, high), (other_low, other_high) = intervals
    if low <= other_high and other_low <= high:
        return "the intervals overlap: so few images do not tell the two apart (docs/results.md has five seeds)"
    return "the intervals do not overlap"
