"""Experiments with known truth: do the steps of a layer do what theory says, and where not?"""
