"""List the recipes that come with the package, one line each."""

from __future__ import annotations

import argparse

from .common import Parser, print_table

HELP = "list the shipped recipes"


def add_arguments(parser: Parser) -> None:
    """`opencrate recipes` has no options of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from ..training.recipe import load_recipe, shipped_recipes, stated_parameters

    rows = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        model = f"{recipe.model.type}-{recipe.model.size}" if recipe.model.size else recipe.model.type
        parameters = stated_parameters(name)
        count = "–" if parameters is None else f"{parameters / 1e6:.2f} M"
        rows.append((name, recipe.task, model, count, recipe.data.path, recipe.description))
    print_table(("recipe", "task", "model", "parameters", "data", "what"), rows)
    return 0
