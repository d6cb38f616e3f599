"""What the doctor's checks read, what they give back, and how a function becomes a check.

A check that lacks what it needs (images, labels, a log, a learned U) says so; it never passes silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..maths.geometry import DictionaryGeometry, SubspaceGeometry
from .outputs import Outputs, Score, TextAnswers
from .signatures import CHECKS, FAIL, FINDING, NOT_CHECKED, OK, WARN
from .vitals import Accuracy, Vitals


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its id.
        verdict: "ok", "finding" (theory says otherwise, healthy models do it too), "warn", "fail" or "not checked".
        evidence: in words with numbers; for "not checked" the reason.
        values: what was measured, per layer where it is per layer.
    """

    check: str
    verdict: str
    evidence: str
    values: Mapping[str, Any]

    @property
    def advice(self) -> str:
        """What to do; empty where all is well, where nothing has to be done, or where nothing was checked."""
        return CHECKS[self.check].advice if self.verdict in (WARN, FAIL) else ""


T = TypeVar("T")
BROKEN = "weights or states are not finite"


class NotChecked(Exception):
    """Why a check cannot be made."""


def needed(value: T | None, reason: str) -> T:
    """The value, if there is one; else the check is not made."""
    if value is None:
        raise NotChecked(reason)
    return value


class Judged(NamedTuple):
    """Evidence and values of a check, and what holds; the gravest counts. `note` is a "finding", which is no fault."""

    evidence: str
    values: Mapping[str, Any]
    warn: bool = False
    fail: bool = False
    note: bool = False

    @property
    def verdict(self) -> str:
        """The gravest verdict that holds."""
        return FAIL if self.fail else WARN if self.warn else FINDING if self.note else OK


@dataclass(frozen=True)
class Patient:
    """Everything the checks read; `missing` says why something is not there, by its name.

    The `score` is on held-out data, with `whole` on all of them; `stored` is what the run wrote down of it.
    """

    model: Any  # nn.Module
    is_crate: bool
    subspaces: tuple[SubspaceGeometry, ...] = ()
    dictionaries: tuple[DictionaryGeometry, ...] = ()
    vitals: Vitals | None = None
    outputs: Outputs | None = None
    gradients: Tensor | None = None
    training_accuracy: Accuracy | None = None
    score: Score | None = None
    whole: bool = True
    stored: Mapping[str, float] | None = None
    log: Sequence[Mapping[str, Any]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What its inputs are called."""
        return "texts" if getattr(self.model, "main_input_name", "") == "input_ids" else "images"

    @property
    def broken(self) -> bool:
        """Whether some state is not finite."""
        return self.vitals is not None and self.vitals.broken is not None

    def why_no(self, name: str) -> str:
        """Why something is not there, for the evidence."""
        return self.missing.get(name, f"no {name} given")

    # What a check needs: each gives it, or raises `NotChecked` with the reason.

    def need_dictionaries(self) -> tuple[DictionaryGeometry, ...]:
        """The geometry of every D."""
        return needed(self.dictionaries or None, "the model has no dictionary")

    def need_vitals(self) -> Vitals:
        """What a pass over the inputs showed."""
        return needed(self.vitals, self.missing.get("states") or self.why_no(self.kind))

    def need_vital(self, name: str, reason: str = BROKEN) -> Tensor:
        """One of the vitals; for one that not every model shows with the reason."""
        return needed(getattr(self.need_vitals(), name), reason)

    def need_outputs(self) -> Outputs:
        """Answers to the inputs."""
        return needed(self.outputs, self.why_no(self.kind))

    def need_text(self) -> TextAnswers:
        """Answers of a language model."""
        return needed(self.need_outputs().text, "the model has no language modelling head")

    def need_logits(self) -> Tensor:
        """Predictions of a classifier, `(n, C)`."""
        return needed(self.need_outputs().logits, "the model has no classification head")

    def need_labelled(self) -> tuple[Tensor, Tensor]:
        """Predictions `(n, C)` and labels `(n)` of at least two classes."""
        logits = self.need_logits()
        labels = needed(self.need_outputs().labels, self.missing.get("labels", "the images have no labels"))
        if len(labels.unique()) < 2:
            raise NotChecked("the images are all of one class")
        return logits, labels


CHECKED: dict[str, Callable[[Patient], Finding]] = {}
"""The function of every check but "finite", by its id."""


def check(name: str) -> Callable[[Callable[[Patient], Judged]], Callable[[Patient], Finding]]:
    """Make a function that judges a patient the check of this id."""

    def register(judge: Callable[[Patient], Judged]) -> Callable[[Patient], Finding]:
        def run(patient: Patient) -> Finding:
            try:
                found = judge(patient)
            except NotChecked as reason:
                return skip(name, str(reason))
            return Finding(name, found.verdict, found.evidence, found.values)

        CHECKED[name] = run
        return run

    return register


def skip(name: str, reason: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(name, NOT_CHECKED, reason, {})
