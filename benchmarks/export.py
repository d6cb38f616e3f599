"""Models in every form that `opencrate export` writes: the tables of docs/adapters_and_export.md, as Markdown.

    python benchmarks/export.py opencrate/digits=digits opencrate/cifar10=DATA/cifar10 opencrate/wikitext2-alpha=TEXT
    python benchmarks/export.py opencrate/digits=digits --no-speed      # what other work on the machine does not change

MODEL=DATA is a model and the labelled images, or the text, that it is checked on: all of their test part, or --inputs
of them. A form whose packages are missing, or that cannot hold the model, is named below the tables, with the reason.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from opencrate.export import Export, export_model
from opencrate.export.targets import TARGETS

CHECKED = ("model", "form", "MB", "largest difference", "same decisions, %", "accuracy, %", "eager, %", "of")
TIMED = ("model", "form", "inputs", "eager, ms", "exported, ms", "times as fast (quartiles)")


def main() -> None:
    """Export each model to each form, and print both tables."""
    given = _arguments()
    checked, timed, refused = [], [], []
    for pair in given.models:
        model, _, data = pair.partition("=")
        for form in given.forms:
            try:
                found = _exported(model, data, form, given)
            except ValueError as error:
                refused.append(f"- `{model}` as `{form}`: {error}")
                continue
            checked.append(_checked_row(model, found))
            timed += [] if given.no_speed else _timed_rows(model, found)
    print(_markdown(CHECKED, checked))
    if timed:
        print(f"\n{torch.get_num_threads()} threads:\n\n{_markdown(TIMED, timed)}")
    print("\n".join(["", *refused]) if refused else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--forms", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="at most so many (default: 10,000)")
    parser.add_argument("--repeats", type=int, default=50, metavar="N", help="timed calls of each (default: 50)")
    parser.add_argument("--no-speed", action="store_true", help="leave the table of times out")
    given = parser.parse_args()
    for pair in given.models:
        if not all(pair.partition("=")):
            parser.error(f"{pair}: give MODEL=DATA, as opencrate/digits=digits")
    return given


def _exported(model: str, data: str, form: str, given: argparse.Namespace) -> Export:
    with tempfile.TemporaryDirectory() as working:
        repeats = 1 if given.no_speed else given.repeats
        return export_model(model, Path(working) / "out", form, check=data, num_inputs=given.inputs, repeats=repeats)


def _checked_row(model: str, found: Export) -> tuple[str, ...]:
    check = found.check
    return (
        f"`{model}`",
        f"`{found.to}`",
        f"{found.bytes / 1e6:.2f}",
        f"{check.difference.relative:.1g}",
        _percent(check.agreement),
        _percent(check.accuracy),
        _percent(check.eager_accuracy),
        f"{check.decisions or check.count:,}",
    )


def _timed_rows(model: str, found: Export) -> list[tuple[str, ...]]:
    return [
        (
            *(f"`{model}`", f"`{found.to}`", str(one.batch), f"{1e3 * one.eager:.2f}", f"{1e3 * one.exported:.2f}"),
            f"{one.ratio[1]:.2f} ({one.ratio[0]:.2f} to {one.ratio[2]:.2f})",
        )
        for one in found.check.speed
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (columns, ("---",) * len(columns), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
