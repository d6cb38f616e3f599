"""Any result as a page: `write(result, folder)`."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path
from typing import Any

from ..analysis.audit.audit import Audit
from ..analysis.autoencoder import AutoencoderMeasures
from ..analysis.features.find import Features
from ..analysis.features.patches import PatchFeatures
from ..analysis.layers.analyze import LayerAnalysis
from ..analysis.theory.check import TheoryCheck
from ..evaluation.classifier import Evaluation
from . import audit, autoencoder, classifier, features, html, patch_features, theory, whitebox


@singledispatch
def page_of(result: Any) -> html.Report:
    """The page of a result; kinds that have none are refused."""
    known = ", ".join(kind.__name__ for kind in page_of.registry if kind is not object)
    raise ValueError(f"result: {type(result).__name__} has no page; give one of {known}")


page_of.register(html.Report, lambda report: report)
page_of.register(LayerAnalysis, whitebox.page)
page_of.register(TheoryCheck, theory.page)
page_of.register(AutoencoderMeasures, autoencoder.page)
page_of.register(Evaluation, classifier.page)
page_of.register(Audit, lambda found: audit.audit_report([found]))
page_of.register(Features, lambda found: features.features_report([found]))
page_of.register(PatchFeatures, lambda found: patch_features.patch_features_report([found]))


def write(result: Any, folder: str | Path, overwrite: bool = False) -> Path:
    """Write the page of a result, its figures, and its numbers as CSV and JSON; gives the path of the page.

    Args:
        result: what `analyze`, `theory_check`, `audit`, `find_features`, `find_patch_features`,
            `measure_autoencoder` or `evaluate_classifier` gave, or a `Report`.
        folder: made where it does not exist.
        overwrite: replace a page that lies there.

    Raises:
        ValueError: a result of another kind, or there is a page already and it is not to be replaced.
    """
    return html.write(page_of(result), folder, overwrite)
