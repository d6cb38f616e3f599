"""The doctor's checks of weights, states and the log: each reads what was measured and says what it found.

A check that lacks what it needs (images, labels, a log, a learned U) says so; it never passes in silence. What each
looks at, and its threshold, stands in `doctor_signatures.CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...stats.intervals import trend
from ...stats.words import describe_trend, percent
from ..maths.geometry import DictionaryGeometry, SubspaceGeometry
from .outputs import Outputs, Score
from .signatures import (
    ACTIVATION_WARN,
    CHECKS,
    CONDITION_FAIL,
    CONDITION_PER_DIM,
    DEAD_FAIL,
    DEAD_WARN,
    EFFECT_FAIL,
    EFFECT_WARN,
    FAIL,
    FEW_VALUES,
    FINDING,
    GRADIENT_FAIL,
    GRADIENT_WARN,
    HALF_LIMIT,
    NOT_CHECKED,
    OK,
    OVERLAP_FAIL,
    OVERLAP_WARN,
    RANK_FAIL,
    RANK_WARN,
    SATURATION_FAIL,
    SATURATION_WARN,
    SCALE_FAIL,
    SCALE_WARN,
    SPIKE_FACTOR,
    SPIKE_WINDOW,
    STEP_FAIL,
    STEP_FINDING,
    TOKEN_RANK_FAIL,
    TOKEN_RANK_WARN,
    TWIN_COSINE,
    TWINS_FAIL,
    WARN,
)
from .vitals import Accuracy, Vitals
from .weights import fewest_values, fresh_parameters, scale_outlier


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


@dataclass(frozen=True)
class Patient:
    """Everything the checks read; `missing` says why something is not there, by its name.

    Attributes:
        score: on the held-out data, with `whole`: all of them.
        stored: "loss" and perhaps "accuracy" as the run wrote them down.
    """

    model: nn.Module
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

    def why_no_states(self) -> str:
        """Why there are no `vitals`."""
        return self.missing.get("states") or self.why_no(self.kind)

    def why_no(self, name: str) -> str:
        """Why something is not there, for the evidence."""
        return self.missing.get(name, f"no {name} given")


CheckFunction = Callable[[Patient], Finding]


def skip(check: str, reason: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(check, NOT_CHECKED, reason, {})


def judge(
    check: str, evidence: str, values: Mapping[str, Any], warn: bool = False, fail: bool = False, note: bool = False
) -> Finding:
    """The finding with the gravest verdict that holds; `note` makes it a "finding", which is no fault."""
    return Finding(check, FAIL if fail else WARN if warn else FINDING if note else OK, evidence, values)


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
    return Finding("finite", OK, f"all weights are finite, and all states of {count} {patient.kind}", {})


def _fresh_parameters(patient: Patient) -> Finding:
    found = fresh_parameters(patient.model)
    if not found.vectors:
        return skip("fresh-parameters", "the model has no gains or biases")
    evidence = f"{len(found.fresh)} of {found.vectors} gains, biases and other vectors are as before training"
    if found.odd:
        evidence += f", {len(found.odd)} of them unlike most layers', first {found.odd[0]}"
    elif found.every_gain:
        evidence += ", all gains among them"
    elif found.head:
        evidence += ", the classifier's bias among them"
    fail = found.every_gain or bool(found.odd)
    return judge("fresh-parameters", evidence, {"odd": found.odd, "fresh": found.fresh}, warn=found.head, fail=fail)


def _layer_scale(patient: Patient) -> Finding:
    factor, name = scale_outlier(patient.model)
    evidence = f"largest factor {factor:.3g} ({name})" if name else "no parameter has another one to stand beside"
    values = {"factor": factor, "parameter": name}
    return judge("layer-scale", evidence, values, warn=factor > SCALE_WARN, fail=factor > SCALE_FAIL)


def _few_values(patient: Patient) -> Finding:
    found = fewest_values(patient.model)
    if found is None:
        return skip("few-values", "the model has no matrices of that size")
    evidence = f"fewest {found[0]} ({found[1]})"
    return judge("few-values", evidence, {"fewest": found[0], "parameter": found[1]}, fail=found[0] <= FEW_VALUES)


def _duplicate_atoms(patient: Patient) -> Finding:
    check = "duplicate-atoms"
    if not patient.dictionaries:
        return skip(check, "the model has no dictionary")
    nearest = [one.nearest for one in patient.dictionaries]
    shares = torch.stack([(cosines > TWIN_COSINE).double().mean() for cosines in nearest])
    worst, closest = float(shares.max()), max(float(cosines.max()) for cosines in nearest)
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(shares)})" if worst else "none in any layer"
    evidence = f"{where}; largest |cosine| between two {closest:.3f}"
    values = {"per_layer": shares.tolist(), "largest_cosine": closest}
    return judge(check, evidence, values, warn=worst > 0, fail=worst > TWINS_FAIL)


def _falling(check: str, name: str, field: str, unit: str, digits: int, everywhere: bool) -> CheckFunction:
    """A check of a quantity that theory says falls over the layers, `everywhere` or overall; never more than a note."""

    def run(patient: Patient) -> Finding:
        if not patient.is_crate:
            return skip(check, "the model learns no U and D, so nothing predicts that this falls")
        if patient.vitals is None:
            return skip(check, patient.why_no_states())
        values = getattr(patient.vitals, field)
        if values is None:
            return skip(
                check, "the layers have no sparse code" if field != "subspace_rate" else "the layers learn no U"
            )
        if len(values) < 2:
            return skip(check, "there is only one layer")
        found = trend(values)
        note = not found.last < found.first or (everywhere and found.falls < found.steps)
        return judge(check, describe_trend(name, values, unit, digits), {"per_layer": values.tolist()}, note=note)

    return run


def _dead_atoms(patient: Patient) -> Finding:
    if not patient.is_crate:
        return skip("dead-atoms", "the model has no dictionary")
    if patient.vitals is None:
        return skip("dead-atoms", patient.why_no_states())
    if patient.vitals.dead is None:
        return skip("dead-atoms", "the layers have no sparse code")
    dead, worst = patient.vitals.dead, float(patient.vitals.dead.max())
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(dead)})" if worst else "none in any layer"
    evidence = f"{where}, {patient.vitals.num_images} {patient.kind}"
    return judge("dead-atoms", evidence, {"per_layer": dead.tolist()}, worst > DEAD_WARN, worst > DEAD_FAIL)


def _collapsed_subspaces(patient: Patient) -> Finding:
    if not patient.subspaces:
        return skip("collapsed-subspaces", "the model learns no U")
    p = patient.model.config.head_dim
    ranks = torch.stack([found.effective_ranks.min() for found in patient.subspaces])
    worst = float(ranks.min()) / p
    evidence = f"smallest effective rank {float(ranks.min()):.1f} of p = {p} (layer {_layer(ranks, largest=False)})"
    values = {"per_layer": ranks.tolist(), "subspace_dimension": p}
    return judge("collapsed-subspaces", evidence, values, worst < RANK_WARN, worst < RANK_FAIL)


def _correlated_subspaces(patient: Patient) -> Finding:
    check = "correlated-subspaces"
    if not patient.subspaces:
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
    return judge(check, evidence, values, excess > OVERLAP_WARN, excess > OVERLAP_FAIL)


def _dictionary_condition(patient: Patient) -> Finding:
    check = "dictionary-condition"
    if not patient.dictionaries:
        return skip(check, "the model has no dictionary")
    found = torch.tensor([one.condition for one in patient.dictionaries], dtype=torch.float64)
    worst, width = float(found.max()), patient.model.config.hidden_size
    evidence = f"largest condition number {worst:.3g} (layer {_layer(found)}), d = {width}"
    note = worst > CONDITION_PER_DIM * width
    return judge(check, evidence, {"per_layer": found.tolist()}, note=note, fail=worst > CONDITION_FAIL)


def _ista_step(patient: Patient) -> Finding:
    if not patient.dictionaries:
        return skip("ista-step", "the model has no dictionary")
    found = torch.tensor([one.step for one in patient.dictionaries], dtype=torch.float64)
    worst = float(found.max())
    smallest = min(one.step_size for one in patient.dictionaries)
    evidence = f"largest η ‖D‖² {worst:.3f} (layer {_layer(found)}), η = {smallest:g}"
    fail = smallest <= 0 or worst > STEP_FAIL
    return judge("ista-step", evidence, {"per_layer": found.tolist()}, note=worst > STEP_FINDING, fail=fail)


def _token_rank(patient: Patient) -> Finding:
    if patient.vitals is None:
        return skip("token-rank", patient.why_no_states())
    ranks = patient.vitals.token_rank
    worst = float(ranks.min())
    evidence = f"smallest {worst:.1f} (layer {_layer(ranks, largest=False)}), last layer {float(ranks[-1]):.1f}"
    values = {"per_layer": ranks.tolist()}
    return judge("token-rank", evidence, values, worst < TOKEN_RANK_WARN, worst < TOKEN_RANK_FAIL)


def _attention_effect(patient: Patient) -> Finding:
    if patient.vitals is None:
        return skip("attention-effect", patient.why_no_states())
    found = patient.vitals.attention_effect
    if found is None:
        return skip("attention-effect", "a norm follows the sum, so what attention added cannot be told apart")
    worst = float(found.min())
    evidence = f"smallest {worst:.3g} (layer {_layer(found, largest=False)}), largest {float(found.max()):.3g}"
    values = {"per_layer": found.tolist()}
    return judge("attention-effect", evidence, values, warn=worst < EFFECT_WARN, fail=not worst >= EFFECT_FAIL)


def _gradient_depth(patient: Patient) -> Finding:
    check = "gradient-depth"
    if patient.vitals is None:
        return skip(check, patient.why_no_states())
    found = patient.gradients
    if found is None:
        return skip(check, "the model has no head with a loss to take gradients of")
    if len(found) < 2:
        return skip(check, "there is only one layer")
    smallest, largest = float(found.min()), float(found.max())
    ratio = largest / smallest if smallest > 0 else math.inf
    evidence = f"from {smallest:.2e} (layer {_layer(found, largest=False)}) to {largest:.2e} (layer {_layer(found)})"
    evidence += f", ratio {ratio:.3g}"
    broken = not bool(torch.isfinite(found).all())
    values = {"per_layer": found.tolist(), "ratio": ratio}
    return judge(check, evidence, values, ratio > GRADIENT_WARN, broken or ratio > GRADIENT_FAIL)


def _half_precision(patient: Patient) -> Finding:
    if patient.vitals is None:
        return skip("half-precision", patient.why_no_states())
    peak = patient.vitals.peak
    worst = float(peak.max())
    half = next(patient.model.parameters()).dtype == torch.float16
    evidence = f"largest |entry| {worst:.3g} (layer {_layer(peak)}), float16 ends at {HALF_LIMIT:g}"
    values = {"per_layer": peak.tolist()}
    return judge("half-precision", evidence, values, worst > ACTIVATION_WARN, half and worst > HALF_LIMIT)


def _softmax_saturation(patient: Patient) -> Finding:
    check = "softmax-saturation"
    if patient.vitals is None:
        return skip(check, patient.why_no_states())
    found = patient.vitals.saturated
    if found is None:
        return skip(check, "attention maps are read from CRATE models that have them")
    worst = float(found.max())
    evidence = f"up to {percent(worst)} of a layer's attention rows (layer {_layer(found)})" if worst else "no row"
    return judge(check, evidence, {"per_layer": found.tolist()}, worst > SATURATION_WARN, worst > SATURATION_FAIL)


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
    values = {"spikes": [spike + 1 for spike in spikes], "first": losses[0], "last": losses[-1]}
    return judge("loss-curve", evidence, values, warn=bool(spikes), fail=stuck)


STATE_CHECKS: dict[str, CheckFunction] = {
    "fresh-parameters": _fresh_parameters,
    "layer-scale": _layer_scale,
    "few-values": _few_values,
    "duplicate-atoms": _duplicate_atoms,
    "collapsed-subspaces": _collapsed_subspaces,
    "correlated-subspaces": _correlated_subspaces,
    "dictionary-condition": _dictionary_condition,
    "ista-step": _ista_step,
    "rate-trend": _falling("rate-trend", "R^c", "subspace_rate", "nats", 1, True),
    "l0-trend": _falling("l0-trend", "The non-zero fraction", "nonzero", "", 3, True),
    "l1-trend": _falling("l1-trend", "ℓ1 per token", "l1", "", 2, False),
    "dead-atoms": _dead_atoms,
    "token-rank": _token_rank,
    "attention-effect": _attention_effect,
    "gradient-depth": _gradient_depth,
    "half-precision": _half_precision,
    "softmax-saturation": _softmax_saturation,
    "loss-curve": _loss_curve,
}
"""The checks of `CHECKS` that read weights, states or the log, but "finite", by their ids."""
