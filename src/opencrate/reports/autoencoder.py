"""The part of a report that says how far an autoencoder's decoder undoes its encoder."""

from __future__ import annotations

from collections.abc import Mapping

from ..analysis.autoencoder import AutoencoderMeasures
from .autoencoder_findings import describe
from .autoencoder_plots import plot_inverse, plot_noise, plot_rates
from .html import ReportFigure, ReportSection

_TITLE = "The decoder as the encoder's inverse"


def autoencoder_section(subjects: Mapping[str, AutoencoderMeasures]) -> ReportSection:
    """Errors of undoing layers, R^c along encoder and decoder, and noise on tokens; `describe`'s sentences."""
    found = next(iter(subjects.values()))
    how = f"{found.num_images} whole images, mean and its 95 % bootstrap interval (band)"
    figures = (
        ReportFigure(
            name="autoencoder_inverse",
            title="How far decoder layers undo encoder layers",
            figure=plot_inverse(subjects, narrow=True),
            alt="Relative error of each encoder layer followed by its decoder layer, and of several together",
            theory="Decoder layer L + 1 − ℓ is the reverse of encoder layer ℓ: the error is near 0.",
            how=f"{how}; the layers as they are, at the states that enter them, without the norms after each part.",
        ),
        ReportFigure(
            name="autoencoder_rates",
            title="R^c along encoder and decoder",
            figure=plot_rates(subjects, narrow=True),
            alt="Coding rate against each layer's own subspaces, before and after attention, encoder then decoder",
            theory="R^c falls along the encoder and rises along the decoder, and so does each attention step.",
            how=f"{how}; every layer under its own U, so levels of different layers are under different subspaces.",
        ),
        ReportFigure(
            name="autoencoder_noise",
            title="Where tokens leave the model's assumptions",
            figure=plot_noise(subjects, narrow=True),
            alt="Error of directions of a layer and its inverse over the length of the noise on its tokens",
            theory="Tokens near the subspaces come back; noise is taken out by the encoder layer and not put back.",
            how=f"{how}; Gaussian noise on the input of each layer, mean over layers.",
        ),
    )
    return ReportSection(_TITLE, tuple(describe(subjects)), figures, summary=())
