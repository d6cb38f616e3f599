"""List the recipes that come with the package, one line each.

  opencrate recipes
  opencrate recipes --keys

The second lists every key that a recipe can state: what it may be, and its default. Fields of `model.config` are those
of the model type's configuration class.
"""

from __future__ import annotations

import argparse

from .._values import shown_value
from .common import Parser, print_result, print_table

HELP = "list the shipped recipes"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate recipes`."""
    parser.add_argument("--keys", action="store_true", help="list the keys of a recipe instead")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from ..recipe.load import load_recipe, recipe_keys, shipped_recipes, stated_parameters
    from ..recipe.schema import READ_BY, recipe_value

    if arguments.keys:
        keys = recipe_keys()
        rows = [(key, words, shown_value(default)) for key, words, default in keys]
        document = [dict(zip(("key", "may_be", "default"), key)) for key in keys]
        print_result(arguments, document, lambda: print_table(("key", "may be", "default"), rows))
        return 0
    found = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        model = f"{recipe.model.type}-{recipe.model.size}" if recipe.model.size else recipe.model.type
        parameters = stated_parameters(name)
        data = recipe_value(recipe, f"{READ_BY[recipe.task][0]}.path")
        found.append((name, recipe.task, model, parameters, data, recipe.description))
    names = ("recipe", "task", "model", "parameters", "data", "what")
    rows = [(*row[:3], "–" if row[3] is None else f"{row[3] / 1e6:.2f} M", *row[4:]) for row in found]
    print_result(arguments, [dict(zip(names, row)) for row in found], lambda: print_table(names, rows))
    return 0
