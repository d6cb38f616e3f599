"""Signs of a failed training, or of damage after it, as checks; their thresholds are in `signatures`.

What is measured is in `weights`, `vitals` (layers) and `outputs`; how it is judged in `checks` and `output_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...blocks import compressions
from ...evaluation.inputs import Batch
from ...sparsification import ISTA
from ..maths.geometry import dictionary_of, subspace_geometry
from . import output_checks  # noqa: F401  (its checks are in CHECKED once it is read)
from .checks import check_finite
from .outputs import measure_outputs, measure_score, take
from .patient import BROKEN, CHECKED, Finding, Patient, skip
from .signatures import CHECKS, FAIL, FINDING, NOT_CHECKED, OK, WARN, Check, Verdicts
from .vitals import accuracy_of, labels_of, logits_of, measure_vitals, modules_of, relative_gradients

__all__ = ["CHECKS", "FAIL", "FINDING", "NOT_CHECKED", "OK", "WARN", "Check", "Diagnosis", "Finding", "diagnose"]


@dataclass(frozen=True)
class Diagnosis(Verdicts):
    """All findings for one model, in the order of `CHECKS`."""

    model: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is infinite or NaN becomes a word."""
        rows = [
            {**asdict(CHECKS[finding.check]), **asdict(finding), "advice": finding.advice or None}
            for finding in self.findings
        ]
        return {"model": self.model, "healthy": self.healthy(), "findings": [_plain(row) for row in rows]}


def diagnose(
    model: nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    train_batches: Iterable[Batch] | None = None,
    scored: Iterable[Batch] | None = None,
    stored: Mapping[str, float] | None = None,
    log: Sequence[Mapping[str, Any]] | None = None,
    num_images: int | None = None,
    name: str = "",
    missing: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Check a model for the signs of a failed training, or of damage after it.

    Args:
        model: any transformer, with or without a head; a type that `states.record` does not take is checked by its
            weights and outputs alone, and what needs a learned U or D only on a CRATE.
        batches: held-out images, perhaps with `labels`, or texts (`input_ids`, of a language model with `labels`), a
            list or DataLoader; without them only weights are checked.
        train_batches: training images with `labels`, for the generalisation gap.
        scored: what `stored` was measured on; `batches` where not given.
        stored: "loss" (nats, or squared error of an autoencoder) and perhaps "accuracy", as written down after the
            training.
        log: of the training, one mapping per entry with `loss`.
        num_images: use at most this many of `batches` and of `train_batches`; `None` uses all.
        name: of the model, for readers.
        missing: why "images", "texts", "labels", "training images", "stored score" or "log" are not given, for the
            evidence.

    Raises:
        ValueError: no inputs in a given `batches`.
    """
    patient = Patient(model, bool(compressions(model)), log=log, stored=stored, missing=dict(missing or {}))
    weights_finite = all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    if weights_finite:
        learned = [step.operator.bases() for step in compressions(model) if step.entry.subspaces]
        dictionaries = tuple(dictionary_of(module) for module in modules_of(model, ISTA))
        patient = replace(patient, subspaces=tuple(map(subspace_geometry, learned)), dictionaries=dictionaries)
        if batches is not None:
            kept, _ = take(batches, num_images)
            patient = _with_states(patient, kept)
            if not patient.broken:
                patient = _with_outputs(patient, kept, train_batches, num_images)
            if stored is not None and not patient.broken:
                score, whole = measure_score(model, batches if scored is None else scored, _NUM_SCORED)
                patient = replace(patient, score=score, whole=whole)
    broken = not weights_finite or patient.broken
    findings = [check_finite(patient, weights_finite)]
    for check in list(CHECKS)[1:]:
        readable = not broken or check == "loss-curve"
        findings.append(CHECKED[check](patient) if readable else skip(check, BROKEN))
    return Diagnosis(name or type(model).__name__, tuple(findings))


_NUM_SCORED = 1024
"""At most this many held-out images or texts are scored against what the run wrote down."""


def _with_states(patient: Patient, batches: Sequence[dict[str, Tensor]]) -> Patient:
    """What one pass and one backward pass show; a model of an unknown type keeps its states to itself."""
    try:
        vitals = measure_vitals(patient.model, batches)
    except ValueError as error:
        if patient.is_crate:
            raise
        return replace(patient, missing={**patient.missing, "states": f"{error}"})
    gradients = None if vitals.broken is not None else relative_gradients(patient.model, batches[0])
    return replace(patient, vitals=vitals, gradients=gradients)


def _with_outputs(
    patient: Patient,
    batches: Sequence[dict[str, Tensor]],
    train_batches: Iterable[Batch] | None,
    num_images: int | None,
) -> Patient:
    training = None
    if train_batches is not None:
        kept, _ = take(train_batches, num_images)
        logits, labels = logits_of(patient.model, kept), labels_of(kept)
        training = None if logits is None or labels is None else accuracy_of(logits, labels)
    return replace(patient, outputs=measure_outputs(patient.model, batches), training_accuracy=training)


def _plain(value: Any) -> Any:
    """The value with numbers that JSON lacks as words."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
