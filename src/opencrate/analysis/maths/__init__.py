"""Tensors in, tensors out: no model."""
