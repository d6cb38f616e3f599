"""The recipe: one strict YAML file that states a whole run; no torch."""

from typing import TYPE_CHECKING

from .._exports import lazy_exports

if TYPE_CHECKING:
    from .load import load_recipe as load_recipe, recipe_yaml as recipe_yaml, shipped_recipes as shipped_recipes
    from .schema import Recipe as Recipe
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
