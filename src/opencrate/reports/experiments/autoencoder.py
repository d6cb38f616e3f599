"""The reconstruct experiment on trained autoencoders."""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure as Drawing

from ...analysis.autoencoder import AutoencoderMeasures
from ...studies.experiments.base import Experiment
from ..autoencoder_findings import describe as describe_measures
from ..autoencoder_findings import percent
from ..autoencoder_plots import plot_inverse, plot_noise, plot_rates
from ..tables import frame


def describe(found: Experiment) -> list[str]:
    """What the images are, then every model and the comparisons."""
    return [f"Images: {found.facts['data']}.", *describe_measures(found.facts["measures"])]


def table(found: Experiment) -> pandas.DataFrame:
    """One line per model: errors of one layer, of all, and of whole and masked images."""
    return frame(_cells(name, measures) for name, measures in found.facts["measures"].items())


def _cells(name: str, measures: AutoencoderMeasures) -> dict[str, str]:
    values = measures.values
    return {
        "model": name,
        "one layer": percent(values["layer_error"].mean(1)),
        "its directions": percent(values["layer_direction_error"].mean(1)),
        "all layers": percent(values["network_error"][:, -1]),
        "their directions": percent(values["network_direction_error"][:, -1]),
        "plain autoencoding": percent(values["whole_image"]),
        "masked patches": f"{float(values['masked'].mean()):.3g}" if "masked" in values else "–",
    }


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    measures = found.facts["measures"]
    return {
        f"{found.name}_inverse": plot_inverse(measures),
        f"{found.name}_rates": plot_rates(measures),
        f"{found.name}_noise": plot_noise(measures),
    }
