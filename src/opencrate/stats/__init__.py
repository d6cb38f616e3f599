"""Intervals of means, trends, and how both are put in words."""
