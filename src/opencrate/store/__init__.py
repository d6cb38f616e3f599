"""Models and runs on disk: built from a recipe, written as a whole, opened again."""
