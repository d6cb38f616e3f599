"""The reconstruct experiment on trained autoencoders."""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure as Drawing

from ...studies.experiments.base import Experiment
from ..autoencoder import describe as describe_measures, errors_frame, plot_inverse, plot_noise, plot_rates


def describe(found: Experiment) -> list[str]:
    """What the images are, then every model and the comparisons."""
    return [f"Images: {found.facts['data']}.", *describe_measures(found.facts["measures"])]


def table(found: Experiment) -> pandas.DataFrame:
    """One line per model: errors of one layer, of all, and of whole and masked images."""
    return errors_frame(found.facts["measures"])


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    measures = found.facts["measures"]
    return {
        f"{found.name}_inverse": plot_inverse(measures),
        f"{found.name}_rates": plot_rates(measures),
        f"{found.name}_noise": plot_noise(measures),
    }
