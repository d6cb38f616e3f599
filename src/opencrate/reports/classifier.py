"""Figures that only a classifier has: what it confuses, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping

from . import figures as plots
from .html import ReportFigure
from .tables import TrainedModel


def confusion_figure(model: TrainedModel) -> ReportFigure:
    """Confusion matrix of a model, with its most frequent mistake in words."""
    found = model.evaluation
    wrong = found.confusion.clone().fill_diagonal_(0)
    measured = f"{found.num_images - found.num_correct:,} of {found.num_images:,} images are given a wrong class."
    if int(wrong.max()) > 0:
        true, guess = divmod(int(wrong.argmax()), len(wrong))
        pair = f"{found.labels[true]} taken for {found.labels[guess]} ({int(wrong.max())} times)"
        measured += f" Most often: {pair}."
    return ReportFigure(
        name="confusion",
        title="Which classes are confused",
        figure=plots.plot_confusion(found),
        alt="Confusion matrix of the trained model, true classes in rows",
        measured=measured,
        how=f"Largest logit on {found.num_images:,} images, one crop.",
    )


def training_figure(histories: Mapping[str, plots.TrainingHistory]) -> ReportFigure:
    """Training curves of one or more models, by name."""
    return ReportFigure(
        name="training",
        title="Training",
        figure=plots.plot_training(histories),
        alt="Loss and held-out accuracy over the epochs of training",
        how="Training loss as logged, a mean since the point before; held-out values as logged.",
    )
