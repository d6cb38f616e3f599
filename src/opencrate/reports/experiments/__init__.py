"""Experiments in words, tables and figures, one module each."""
