"""Failure signatures of a run or a model."""
