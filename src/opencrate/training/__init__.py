"""Recipes, training runs and what they leave on disk."""
