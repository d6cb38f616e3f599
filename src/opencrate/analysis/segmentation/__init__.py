"""Masks from tokens and attention, and how good they are: tensors and arrays in, arrays out, no model."""
