"""The doctor's checks: each reads what was measured and says what it found.

A check that lacks what it needs (images, labels, a log, a learned U) says so; it never passes in silence. What each
looks at, and its threshold, stands in `doctor_signatures.CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .doctor_signatures import (
    ACTIVATION_WARN,
    CHECKS,
    CONDITION_FAIL,
    CONDITION_WARN_PER_DIM,
    DEAD_FAIL,
    DEAD_WARN,
    FAIL,
    GAP_FAIL,
    GAP_WARN,
    GRADIENT_FAIL,
    GRADIENT_WARN,
    HALF_LIMIT,
    MIN_CLASS_IMAGES,
    NOT_CHECKED,
    OK,
    OVERLAP_FAIL,
    OVERLAP_WARN,
    RANK_FAIL,
    RANK_WARN,
    SATURATION_FAIL,
    SATURATION_WARN,
    SPIKE_FACTOR,
    SPIKE_WINDOW,
    STEP_FAIL,
    STEP_WARN,
    TOKEN_RANK_FAIL,
    TOKEN_RANK_WARN,
    WARN,
)
from .doctor_vitals import Accuracy, Vitals, accuracy_of
from .findings import describe_trend, percent, trend
from .geometry import DictionaryGeometry, SubspaceGeometry


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its id.
        verdict: "ok", "warn", "fail" or "not checked".
        evidence: in words with numbers; for "not checked" the reason.
        values: what was measured, per layer where it is per layer.
    """

    check: str
    verdict: str
    evidence: str
    values: Mapping[str, Any]

    @property
    def advice(self) -> str:
        """What to do; empty where all is well or nothing was checked."""
        return CHECKS[self.check].advice if self.verdict in (WARN, FAIL) else ""


@dataclass(frozen=True)
class Patient:
    """Everything the checks read; `missing` says why something is not there, by its name."""

    model: nn.Module
    is_crate: bool
    subspaces: tuple[SubspaceGeometry, ...]
    dictionaries: tuple[DictionaryGeometry, ...]
    vitals: Vitals | None
    gradients: Tensor | None
    training_accuracy: Accuracy | None
    log: Sequence[Mapping[str, Any]] | None
    missing: Mapping[str, str]

    def why_no(self, name: str) -> str:
        """Why something is not there, for the evidence."""
        return self.missing.get(name, f"no {name} given")


def skip(check: str, reason: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(check, NOT_CHECKED, reason, {})


def _judge(check: str, evidence: str, values: Mapping[str, Any], warn: bool, fail: bool) -> Finding:
    return Finding(check, FAIL if fail else WARN if warn else OK, evidence, values)


def _layer(values: Tensor, largest: bool = True) -> int:
    """The layer, from 1, of the largest (smallest) value."""
    return int(values.argmax() if largest else values.argmin()) + 1


def check_finite(patient: Patient, weights_finite: bool) -> Finding:
    """Whether weights, states and outputs are numbers; every other check needs that."""
    if not weights_finite:
        names = [name for name, weight in patient.model.named_parameters() if not torch.isfinite(weight).all()]
        evidence = f"{len(names)} weights hold NaN or infinite values, first {names[0]}"
        return Finding("finite", FAIL, evidence, {"weights": names})
    if patient.vitals is None:
        return Finding("finite", OK, f"all weights are finite; states: {patient.why_no('images')}", {})
    if patient.vitals.broken is not None:
        layer, state = patient.vitals.broken
        return Finding("finite", FAIL, f"layer {layer}: {state} holds NaN or infinite values", {"layer": layer})
    count = patient.vitals.num_images
    return Finding("finite", OK, f"all weights are finite, and all states of {count} images", {})


def _falling(check: str, name: str, field: str, unit: str, digits: int, warn_on_rise: bool, may_fail: bool):
    """A check of a quantity that should fall over the layers."""

    def run(patient: Patient) -> Finding:
        if not patient.is_crate:
            return skip(check, "the model learns no U and D, so nothing predicts that this falls")
        if patient.vitals is None:
            return skip(check, patient.why_no("images"))
        values = getattr(patient.vitals, field)
        if values is None:
            return skip(check, "the layers have no sparse code")
        if len(values) < 2:
            return skip(check, "there is only one layer")
        found = trend(values)
        flat = not found.last < found.first
        evidence = describe_trend(name, values, unit, digits)
        warn = flat or (warn_on_rise and found.falls < found.steps)
        return _judge(check, evidence, {"per_layer": values.tolist()}, warn, flat and may_fail)

    return run


def _dead_atoms(patient: Patient) -> Finding:
    if not patient.is_crate:
        return skip("dead-atoms", "the model has no dictionary")
    if patient.vitals is None:
        return skip("dead-atoms", patient.why_no("images"))
    if patient.vitals.dead is None:
        return skip("dead-atoms", "the layers have no sparse code")
    dead, worst = patient.vitals.dead, float(patient.vitals.dead.max())
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(dead)})" if worst else "none in any layer"
    evidence = f"{where}, {patient.vitals.num_images} images"
    return _judge("dead-atoms", evidence, {"per_layer": dead.tolist()}, worst > DEAD_WARN, worst > DEAD_FAIL)


def _collapsed_subspaces(patient: Patient) -> Finding:
    if not patient.is_crate:
        return skip("collapsed-subspaces", "the model learns no U")
    p = patient.model.config.head_dim
    ranks = torch.stack([found.effective_ranks.min() for found in patient.subspaces])
    worst = float(ranks.min()) / p
    evidence = f"smallest effective rank {float(ranks.min()):.1f} of p = {p} (layer {_layer(ranks, largest=False)})"
    values = {"per_layer": ranks.tolist(), "subspace_dimension": p}
    return _judge("collapsed-subspaces", evidence, values, worst < RANK_WARN, worst < RANK_FAIL)


def _correlated_subspaces(patient: Patient) -> Finding:
    check = "correlated-subspaces"
    if not patient.is_crate:
        return skip(check, "the model learns no U")
    if len(patient.subspaces[0].ranks) < 2:
        return skip(check, "there is only one subspace per layer")
    chance = patient.model.config.head_dim / patient.subspaces[0].width
    if chance >= 1:
        return skip(check, "every subspace is the whole space")
    worst = torch.stack([found.pairs(found.overlaps).nan_to_num(0).max() for found in patient.subspaces])
    means = [float(found.pairs(found.overlaps).nan_to_num(0).mean()) for found in patient.subspaces]
    largest = float(worst.max())
    excess = (largest - chance) / (1 - chance)
    evidence = (
        f"largest overlap {largest:.3f} (layer {_layer(worst)}), {excess:.3f} beyond chance; means {min(means):.3f} to "
        f"{max(means):.3f}, random subspaces {chance:.3f}"
    )
    values = {"largest_per_layer": worst.tolist(), "mean_per_layer": means, "beyond_chance": excess}
    return _judge(check, evidence, values, excess > OVERLAP_WARN, excess > OVERLAP_FAIL)


def _dictionary_condition(patient: Patient) -> Finding:
    check = "dictionary-condition"
    if not patient.dictionaries:
        return skip(check, "the model has no dictionary")
    found = torch.tensor([one.condition for one in patient.dictionaries], dtype=torch.float64)
    worst, width = float(found.max()), patient.model.config.hidden_size
    evidence = f"largest condition number {worst:.3g} (layer {_layer(found)}), d = {width}"
    warn = worst > CONDITION_WARN_PER_DIM * width
    return _judge(check, evidence, {"per_layer": found.tolist()}, warn, worst > CONDITION_FAIL)


def _ista_step(patient: Patient) -> Finding:
    if not patient.dictionaries:
        return skip("ista-step", "the model has no dictionary")
    found = torch.tensor([one.step for one in patient.dictionaries], dtype=torch.float64)
    worst = float(found.max())
    evidence = f"largest η ‖D‖² {worst:.3f} (layer {_layer(found)}), η = {patient.dictionaries[0].step_size:g}"
    return _judge("ista-step", evidence, {"per_layer": found.tolist()}, worst > STEP_WARN, worst >= STEP_FAIL)


def _token_rank(patient: Patient) -> Finding:
    if patient.vitals is None:
        return skip("token-rank", patient.why_no("images"))
    ranks = patient.vitals.token_rank
    worst = float(ranks.min())
    evidence = f"smallest {worst:.1f} (layer {_layer(ranks, largest=False)}), last layer {float(ranks[-1]):.1f}"
    values = {"per_layer": ranks.tolist()}
    return _judge("token-rank", evidence, values, worst < TOKEN_RANK_WARN, worst < TOKEN_RANK_FAIL)


def _gradient_depth(patient: Patient) -> Finding:
    check = "gradient-depth"
    if patient.vitals is None:
        return skip(check, patient.why_no("images"))
    found = patient.gradients
    if found is None:
        return skip(check, "the model has no classification head, so there is no loss to take gradients of")
    if len(found) < 2:
        return skip(check, "there is only one layer")
    smallest, largest = float(found.min()), float(found.max())
    ratio = largest / smallest if smallest > 0 else math.inf
    evidence = f"from {smallest:.2e} (layer {_layer(found, largest=False)}) to {largest:.2e} (layer {_layer(found)})"
    evidence += f", ratio {ratio:.3g}"
    broken = not bool(torch.isfinite(found).all())
    values = {"per_layer": found.tolist(), "ratio": ratio}
    return _judge(check, evidence, values, ratio > GRADIENT_WARN, broken or ratio > GRADIENT_FAIL)


def _half_precision(patient: Patient) -> Finding:
    if patient.vitals is None:
        return skip("half-precision", patient.why_no("images"))
    peak = patient.vitals.peak
    worst = float(peak.max())
    half = next(patient.model.parameters()).dtype == torch.float16
    evidence = f"largest |entry| {worst:.3g} (layer {_layer(peak)}), float16 ends at {HALF_LIMIT:g}"
    values = {"per_layer": peak.tolist()}
    return _judge("half-precision", evidence, values, worst > ACTIVATION_WARN, half and worst > HALF_LIMIT)


def _softmax_saturation(patient: Patient) -> Finding:
    check = "softmax-saturation"
    if patient.vitals is None:
        return skip(check, patient.why_no("images"))
    found = patient.vitals.saturated
    if found is None:
        return skip(check, "attention maps are read from CRATE models only")
    worst = float(found.max())
    evidence = f"up to {percent(worst)} of a layer's attention rows (layer {_layer(found)})" if worst else "no row"
    return _judge(check, evidence, {"per_layer": found.tolist()}, worst > SATURATION_WARN, worst > SATURATION_FAIL)


def _loss_curve(patient: Patient) -> Finding:
    if patient.log is None:
        return skip("loss-curve", patient.why_no("log"))
    losses = [float(entry["loss"]) for entry in patient.log if "loss" in entry]
    if not losses:
        return skip("loss-curve", "the log holds no training loss")
    bad = [number for number, loss in enumerate(losses, start=1) if not math.isfinite(loss)]
    if bad:
        evidence = f"{len(bad)} of {len(losses)} logged losses are not finite, first entry {bad[0]}"
        return Finding("loss-curve", FAIL, evidence, {"entries": bad})
    spikes = [
        number
        for number in range(SPIKE_WINDOW, len(losses))
        if losses[number] > SPIKE_FACTOR * sorted(losses[number - SPIKE_WINDOW : number])[SPIKE_WINDOW // 2]
    ]
    stuck = len(losses) > 1 and not losses[-1] < losses[0]
    evidence = f"from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} entries, spikes: {len(spikes)}"
    if spikes:
        first = spikes[0]
        evidence += f", first at entry {first + 1} ({losses[first]:.3g} after {losses[first - 1]:.3g})"
    return _judge("loss-curve", evidence, {"spikes": [spike + 1 for spike in spikes]}, bool(spikes) or stuck, False)


def _labelled(patient: Patient) -> str | None:
    """Why predictions cannot be set against labels, or `None`."""
    if patient.vitals is None:
        return patient.why_no("images")
    if patient.vitals.predictions is None:
        return "the model has no classification head"
    return "the images have no labels" if patient.vitals.labels is None else None


def _class_collapse(patient: Patient) -> Finding:
    reason = _labelled(patient)
    if reason:
        return skip("class-collapse", reason)
    predicted, labels = patient.vitals.predictions, patient.vitals.labels
    size = int(max(predicted.max(), labels.max())) + 1
    given, named = torch.bincount(labels, minlength=size), torch.bincount(predicted, minlength=size)
    if int((given > 0).sum()) < 2:
        return skip("class-collapse", "the images are all of one class")
    constant = int((named > 0).sum()) == 1
    never = ((given >= MIN_CLASS_IMAGES) & (named == 0)).nonzero()[:, 0].tolist()
    evidence = f"{int((named > 0).sum())} classes named for images of {int((given > 0).sum())}; most frequent "
    evidence += f"{percent(float(named.max() / named.sum()))} of {len(labels)} images"
    if never:
        evidence += f"; never named: {', '.join(map(str, never[:5]))}{' ...' if len(never) > 5 else ''}"
    return _judge("class-collapse", evidence, {"never_named": never}, bool(never), constant)


def _above_chance(patient: Patient) -> Finding:
    reason = _labelled(patient)
    if reason:
        return skip("above-chance", reason)
    labels = patient.vitals.labels
    chance = float(torch.bincount(labels).max() / len(labels))
    if chance == 1:
        return skip("above-chance", "the images are all of one class")
    found = accuracy_of(patient.vitals.predictions, labels)
    low, high = found.interval
    evidence = (
        f"accuracy {percent(found.fraction)} ({percent(low)} to {percent(high)}); most frequent class {percent(chance)}"
    )
    return _judge("above-chance", evidence, {"accuracy": found.fraction, "chance": chance}, False, low <= chance)


def _generalisation_gap(patient: Patient) -> Finding:
    check = "generalisation-gap"
    reason = _labelled(patient)
    if reason:
        return skip(check, reason)
    if patient.training_accuracy is None:
        return skip(check, patient.why_no("training images"))
    train, held_out = patient.training_accuracy, accuracy_of(patient.vitals.predictions, patient.vitals.labels)
    gap = train.fraction - held_out.fraction
    apart = train.interval[0] > held_out.interval[1]
    evidence = (
        f"{percent(train.fraction)} of {train.num_images} training images, {percent(held_out.fraction)} of "
        f"{held_out.num_images} held-out ones: {100 * gap:+.1f} points"
    )
    return _judge(check, evidence, {"gap": gap}, apart and gap > GAP_WARN, apart and gap > GAP_FAIL)


CHECKED: dict[str, Callable[[Patient], Finding]] = {
    "rate-trend": _falling("rate-trend", "R^c", "subspace_rate", "nats", 1, True, True),
    "l0-trend": _falling("l0-trend", "The non-zero fraction", "nonzero", "", 3, True, True),
    "l1-trend": _falling("l1-trend", "ℓ1 per token", "l1", "", 2, False, False),
    "dead-atoms": _dead_atoms,
    "collapsed-subspaces": _collapsed_subspaces,
    "correlated-subspaces": _correlated_subspaces,
    "dictionary-condition": _dictionary_condition,
    "ista-step": _ista_step,
    "token-rank": _token_rank,
    "gradient-depth": _gradient_depth,
    "half-precision": _half_precision,
    "softmax-saturation": _softmax_saturation,
    "loss-curve": _loss_curve,
    "class-collapse": _class_collapse,
    "above-chance": _above_chance,
    "generalisation-gap": _generalisation_gap,
}
"""Every check of `CHECKS` but "finite", by its id."""
