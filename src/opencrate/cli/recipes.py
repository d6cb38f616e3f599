"""List the recipes that come with the package, one line each."""

from __future__ import annotations

import argparse

from .common import Parser, print_table

HELP = "list the shipped recipes"


def add_arguments(parser: Parser) -> None:
    """`opencrate recipes` has no options of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from ..training.recipe import load_recipe, shipped_recipes

    rows = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        model = f"{recipe.model.type}-{recipe.model.size}" if recipe.model.size else recipe.model.type
        rows.append((name, recipe.task, model, recipe.data.path, recipe.description))
    print_table(("recipe", "task", "model", "data", "what"), rows)
    return 0
