"""Rates, rate reduction and sparsity, layer by layer."""
