"""Run a model once and keep its states."""
