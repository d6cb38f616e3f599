"""Failure signatures of a trained model as checks: what, which threshold and why, what was measured, what to do.

The signatures and their thresholds are in `doctor_signatures`, what is measured in `doctor_vitals`, and how each is
judged in `doctor_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..blocks import ISTA, MSSA
from .doctor_checks import CHECKED, Finding, Patient, check_finite, skip
from .doctor_signatures import CHECKS, FAIL, NOT_CHECKED, OK, WARN, Check
from .doctor_vitals import accuracy_of, first_images, measure_vitals, modules_of, predict, relative_gradients
from .geometry import DictionaryGeometry, dictionary_geometry, subspace_geometry
from .inputs import Batch

__all__ = ["CHECKS", "FAIL", "NOT_CHECKED", "OK", "WARN", "Check", "Diagnosis", "Finding", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """All findings for one model, in the order of `CHECKS`."""

    model: str
    findings: tuple[Finding, ...]

    def count(self, verdict: str) -> int:
        """How many checks came to this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def healthy(self, strict: bool = False) -> bool:
        """No check failed; with `strict` none warned either. Checks that could not be made do not count."""
        return not self.count(FAIL) and not (strict and self.count(WARN))

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
    log: Sequence[Mapping[str, Any]] | None = None,
    num_images: int | None = None,
    name: str = "",
    missing: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Check a model for the signatures of a failed training.

    Args:
        model: a CRATE, or any transformer that `states.record` takes; what needs a learned U or D is then not checked.
        batches: held-out images, perhaps with `labels`, a list or DataLoader; without them only weights are checked.
        train_batches: training images with `labels`, for the generalisation gap.
        log: of the training, one mapping per entry with `loss`.
        num_images: use at most this many of each; `None` uses all.
        name: of the model, for readers.
        missing: why "images", "training images" or "log" are not given, for the evidence.

    Raises:
        ValueError: no images in a given `batches`, or a model of an unknown type.
    """
    weights_finite = all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    uses, steps = modules_of(model, MSSA), modules_of(model, ISTA)
    vitals = gradients = training = None
    if weights_finite and batches is not None:
        kept = first_images(batches, num_images)
        vitals = measure_vitals(model, kept)
        if vitals.broken is None:
            gradients = relative_gradients(model, kept[0])
            if train_batches is not None:
                training = accuracy_of(*predict(model, first_images(train_batches, num_images)))
    patient = Patient(
        model=model,
        is_crate=bool(uses),
        subspaces=tuple(subspace_geometry(module.bases()) for module in uses) if weights_finite else (),
        dictionaries=tuple(_dictionary(module) for module in steps) if weights_finite else (),
        vitals=vitals,
        gradients=gradients,
        training_accuracy=training,
        log=log,
        missing=missing or {},
    )
    broken = not weights_finite or (vitals is not None and vitals.broken is not None)
    findings = [check_finite(patient, weights_finite)]
    for check in list(CHECKS)[1:]:
        readable = not broken or check == "loss-curve"
        findings.append(CHECKED[check](patient) if readable else skip(check, "weights or states are not finite"))
    return Diagnosis(name or type(model).__name__, tuple(findings))


def _dictionary(module: nn.Module) -> DictionaryGeometry:
    return dictionary_geometry(module.effective_dictionary(), module.config.ista_step_size)


def _plain(value: Any) -> Any:
    """The value with numbers that JSON lacks as words."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
