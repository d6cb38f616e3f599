"""List the trained models that are installed, one line each.

  opencrate models
  opencrate models --format json

They come with the package opencrate-weights, and every command takes them by name, without a network:
`opencrate predict opencrate/digits scan.png`. Each file is compared with its SHA-256.
"""

from __future__ import annotations

import argparse
from typing import Any

from .._weights import how_to_install, installed_models, weights_package
from .common import Parser, note, print_result, print_table

HELP = "list the installed trained models"
_COLUMNS = ("model", "task", "data", "parameters", "held-out result", "over seeds", "size", "installed")


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate models`."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    models = installed_models()
    print_result(arguments, models, lambda: models and print_table(_COLUMNS, [_row(model) for model in models]))
    if not models:
        missing = weights_package() is None
        why = f"opencrate-weights is not installed; {how_to_install()}" if missing else "opencrate-weights is empty"
        note(why)
    return 0


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    score = next(iter(model["scores"]), None)
    return (
        model["name"],
        model["task"],
        model["dataset"],
        f"{model['parameters'] / 1e6:.2f} M",
        f"{score['name']} {_number(score, 'value')}" if score else "–",
        _spread(score) if score else "–",
        f"{model['bytes'] / 1e6:.1f} MB",
        model["damage"] or "yes",
    )


def _spread(score: dict[str, Any]) -> str:
    seeds = len(score["seeds"])
    if score["deviation"] is None:
        return "one seed"
    return f"{_number(score, 'mean')} ± {_number(score, 'deviation')} ({seeds} seeds)"


def _number(score: dict[str, Any], key: str) -> str:
    return f"{100 * score[key]:.2f} %" if score["percent"] else f"{score[key]:.4g}"
