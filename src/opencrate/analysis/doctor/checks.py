"""The doctor's checks of weights, states and the log: each reads what was measured and says what it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...stats.intervals import trend
from ...stats.words import describe_trend, percent
from . import signatures as limits
from .patient import BROKEN, Finding, Judged, NotChecked, Patient, check, needed
from .signatures import FAIL, OK
from .weights import fewest_values, fresh_parameters, scale_outlier


def _layer(values: Tensor, largest: bool = True) -> int:
    """The layer, from 1, of the largest (smallest) value."""
    return int(values.argmax() if largest else values.argmin()) + 1


def _by_layer(
    evidence: str, found: Tensor, warn: bool = False, fail: bool = False, note: bool = False, **more: float
) -> Judged:
    """What was found per layer, and more numbers, judged."""
    return Judged(evidence, {"per_layer": found.tolist(), **more}, warn, fail, note)


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


@check("fresh-parameters")
def _fresh_parameters(patient: Patient) -> Judged:
    found = fresh_parameters(patient.model)
    if not found.vectors:
        raise NotChecked("the model has no gains or biases")
    evidence = f"{len(found.fresh)} of {found.vectors} gains, biases and other vectors are as before training"
    if found.odd:
        evidence += f", {len(found.odd)} of them unlike most layers', first {found.odd[0]}"
    elif found.every_gain:
        evidence += ", all gains among them"
    elif found.head:
        evidence += ", the classifier's bias among them"
    values = {"odd": found.odd, "fresh": found.fresh}
    return Judged(evidence, values, warn=found.head, fail=found.every_gain or bool(found.odd))


@check("layer-scale")
def _layer_scale(patient: Patient) -> Judged:
    factor, name = scale_outlier(patient.model)
    evidence = f"largest factor {factor:.3g} ({name})" if name else "no parameter has another one to stand beside"
    values = {"factor": factor, "parameter": name}
    return Judged(evidence, values, warn=factor > limits.SCALE_WARN, fail=factor > limits.SCALE_FAIL)


@check("few-values")
def _few_values(patient: Patient) -> Judged:
    fewest, name = needed(fewest_values(patient.model), "the model has no matrices of that size")
    return Judged(f"fewest {fewest} ({name})", {"fewest": fewest, "parameter": name}, fail=fewest <= limits.FEW_VALUES)


@check("duplicate-atoms")
def _duplicate_atoms(patient: Patient) -> Judged:
    nearest = [one.nearest for one in patient.need_dictionaries()]
    shares = torch.stack([(cosines > limits.TWIN_COSINE).double().mean() for cosines in nearest])
    worst, closest = float(shares.max()), max(float(cosines.max()) for cosines in nearest)
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(shares)})" if worst else "none in any layer"
    evidence = f"{where}; largest |cosine| between two {closest:.3f}"
    return _by_layer(evidence, shares, worst > 0, worst > limits.TWINS_FAIL, largest_cosine=closest)


def _falling(name: str, field: str, unit: str, digits: int, everywhere: bool, patient: Patient) -> Judged:
    """Of a quantity that theory says falls over the layers, `everywhere` or overall; never more than a note."""
    if not patient.is_crate:
        raise NotChecked("the model learns no U and D, so nothing predicts that this falls")
    missing = "the layers learn no U" if field == "subspace_rate" else "the layers have no sparse code"
    values = patient.need_vital(field, missing)
    if len(values) < 2:
        raise NotChecked("there is only one layer")
    found = trend(values)
    note = not found.last < found.first or (everywhere and found.falls < found.steps)
    return _by_layer(describe_trend(name, values, unit, digits), values, note=note)


for _name, _options in {
    "rate-trend": ("R^c", "subspace_rate", "nats", 1, True),
    "l0-trend": ("The non-zero fraction", "nonzero", "", 3, True),
    "l1-trend": ("ℓ1 per token", "l1", "", 2, False),
}.items():
    check(_name)(partial(_falling, *_options))


@check("certificate")
def _certificate(patient: Patient) -> Judged:
    if not patient.is_crate:
        raise NotChecked("the model learns no U and D, so nothing is claimed of its steps")
    found = needed(patient.need_vitals().certificate, BROKEN)
    rows = found.to_rows()
    if not rows:
        raise NotChecked("the layers have neither subspaces nor a sparse code")
    count, total, broken = int(found.holds.sum()), found.num_inputs, found.broken
    evidence = f"no step rises on {count} of {total} {patient.kind}"
    if broken:
        layer, objective, margin = min(broken, key=lambda one: one[2])
        evidence += f"; {objective} must fall in layer {layer}, and rises by up to {-margin:.2g} of it"
    elif count < total:
        worst = min(rows, key=lambda row: row["margin"])
        evidence += f"; {worst['objective']} rises by up to {-worst['margin']:.2g} of it in layer {worst['layer']}"
    evidence += "; guaranteed" if found.guaranteed and not broken else ""
    values = {"descends_on": count, "guaranteed": found.guaranteed, "steps": rows}
    return Judged(evidence, values, fail=bool(broken), note=count < total)


@check("dead-atoms")
def _dead_atoms(patient: Patient) -> Judged:
    if not patient.is_crate:
        raise NotChecked("the model has no dictionary")
    dead = patient.need_vital("dead", "the layers have no sparse code")
    worst = float(dead.max())
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(dead)})" if worst else "none in any layer"
    evidence = f"{where}, {patient.need_vitals().num_images} {patient.kind}"
    return _by_layer(evidence, dead, worst > limits.DEAD_WARN, worst > limits.DEAD_FAIL)


@check("collapsed-subspaces")
def _collapsed_subspaces(patient: Patient) -> Judged:
    if not patient.subspaces:
        raise NotChecked("the model learns no U")
    p = patient.model.config.head_dim
    ranks = torch.stack([found.effective_ranks.min() for found in patient.subspaces])
    worst = float(ranks.min()) / p
    evidence = f"smallest effective rank {float(ranks.min()):.1f} of p = {p} (layer {_layer(ranks, largest=False)})"
    return _by_layer(evidence, ranks, worst < limits.RANK_WARN, worst < limits.RANK_FAIL, subspace_dimension=p)


@check("correlated-subspaces")
def _correlated_subspaces(patient: Patient) -> Judged:
    if not patient.subspaces:
        raise NotChecked("the model learns no U")
    if len(patient.subspaces[0].ranks) < 2:
        raise NotChecked("there is only one subspace per layer")
    chance = patient.model.config.head_dim / patient.subspaces[0].width
    if chance >= 1:
        raise NotChecked("every subspace is the whole space")
    worst = torch.stack([found.pairs(found.overlaps).nan_to_num(0).max() for found in patient.subspaces])
    means = [float(found.pairs(found.overlaps).nan_to_num(0).mean()) for found in patient.subspaces]
    largest = float(worst.max())
    excess = (largest - chance) / (1 - chance)
    evidence = (
        f"largest overlap {largest:.3f} (layer {_layer(worst)}), {excess:.3f} beyond chance; means {min(means):.3f} to "
        f"{max(means):.3f}, random subspaces {chance:.3f}"
    )
    values = {"largest_per_layer": worst.tolist(), "mean_per_layer": means, "beyond_chance": excess}
    return Judged(evidence, values, excess > limits.OVERLAP_WARN, excess > limits.OVERLAP_FAIL)


@check("dictionary-condition")
def _dictionary_condition(patient: Patient) -> Judged:
    found = torch.tensor([one.condition for one in patient.need_dictionaries()], dtype=torch.float64)
    worst, width = float(found.max()), patient.model.config.hidden_size
    evidence = f"largest condition number {worst:.3g} (layer {_layer(found)}), d = {width}"
    note = worst > limits.CONDITION_PER_DIM * width
    return _by_layer(evidence, found, note=note, fail=worst > limits.CONDITION_FAIL)


@check("ista-step")
def _ista_step(patient: Patient) -> Judged:
    dictionaries = patient.need_dictionaries()
    found = torch.tensor([one.step for one in dictionaries], dtype=torch.float64)
    worst = float(found.max())
    smallest = min(one.step_size for one in dictionaries)
    evidence = f"largest η ‖D‖² {worst:.3f} (layer {_layer(found)}), η = {smallest:g}"
    fail = smallest <= 0 or worst > limits.STEP_FAIL
    return _by_layer(evidence, found, note=worst > limits.STEP_FINDING, fail=fail)


@check("token-rank")
def _token_rank(patient: Patient) -> Judged:
    ranks = patient.need_vital("token_rank")
    worst = float(ranks.min())
    evidence = f"smallest {worst:.1f} (layer {_layer(ranks, largest=False)}), last layer {float(ranks[-1]):.1f}"
    return _by_layer(evidence, ranks, worst < limits.TOKEN_RANK_WARN, worst < limits.TOKEN_RANK_FAIL)


@check("attention-effect")
def _attention_effect(patient: Patient) -> Judged:
    reason = "a norm follows the sum, so what attention added cannot be separated"
    found = patient.need_vital("attention_effect", reason)
    worst = float(found.min())
    evidence = f"smallest {worst:.3g} (layer {_layer(found, largest=False)}), largest {float(found.max()):.3g}"
    return _by_layer(evidence, found, worst < limits.EFFECT_WARN, not worst >= limits.EFFECT_FAIL)


@check("gradient-depth")
def _gradient_depth(patient: Patient) -> Judged:
    patient.need_vitals()
    found = needed(patient.gradients, "the model has no head with a loss to take gradients of")
    if len(found) < 2:
        raise NotChecked("there is only one layer")
    smallest, largest = float(found.min()), float(found.max())
    ratio = largest / smallest if smallest > 0 else math.inf
    evidence = f"from {smallest:.2e} (layer {_layer(found, largest=False)}) to {largest:.2e} (layer {_layer(found)})"
    evidence += f", ratio {ratio:.3g}"
    broken = not bool(torch.isfinite(found).all())
    fail = broken or ratio > limits.GRADIENT_FAIL
    return _by_layer(evidence, found, ratio > limits.GRADIENT_WARN, fail, ratio=ratio)


@check("half-precision")
def _half_precision(patient: Patient) -> Judged:
    peak = patient.need_vital("peak")
    worst = float(peak.max())
    half = next(patient.model.parameters()).dtype == torch.float16
    evidence = f"largest |entry| {worst:.3g} (layer {_layer(peak)}), float16 ends at {limits.HALF_LIMIT:g}"
    return _by_layer(evidence, peak, worst > limits.ACTIVATION_WARN, half and worst > limits.HALF_LIMIT)


@check("softmax-saturation")
def _softmax_saturation(patient: Patient) -> Judged:
    found = patient.need_vital("saturated", "attention maps are read from CRATE models that have them")
    worst = float(found.max())
    evidence = f"up to {percent(worst)} of a layer's attention rows (layer {_layer(found)})" if worst else "no row"
    return _by_layer(evidence, found, worst > limits.SATURATION_WARN, worst > limits.SATURATION_FAIL)


@check("loss-curve")
def _loss_curve(patient: Patient) -> Judged:
    log = needed(patient.log, patient.why_no("log"))
    losses = needed(
        [float(entry["loss"]) for entry in log if "loss" in entry] or None, "the log holds no training loss"
    )
    bad = [number for number, loss in enumerate(losses, start=1) if not math.isfinite(loss)]
    if bad:
        evidence = f"{len(bad)} of {len(losses)} logged losses are not finite, first entry {bad[0]}"
        return Judged(evidence, {"entries": bad}, fail=True)
    if _monitored(log):
        raise NotChecked("the loss of self-supervised training need not fall: its teacher moves too")
    window = limits.SPIKE_WINDOW
    medians = {number: median(losses[number - window : number]) for number in range(window, len(losses))}
    spikes = [number for number, usual in medians.items() if losses[number] > limits.SPIKE_FACTOR * usual]
    stuck = len(losses) > 1 and not losses[-1] < losses[0]
    evidence = f"from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} entries, spikes: {len(spikes)}"
    if spikes:
        first = spikes[0]
        evidence += f", first at entry {first + 1} ({losses[first]:.3g} after {losses[first - 1]:.3g})"
    values = {"spikes": [spike + 1 for spike in spikes], "first": losses[0], "last": losses[-1]}
    return Judged(evidence, values, warn=bool(spikes), fail=stuck)


@check("self-supervision")
def _self_supervision(patient: Patient) -> Judged:
    rows = _monitored(needed(patient.log, patient.why_no("log")))
    last = needed(rows[-1] if rows else None, "the log is not of self-supervised training")
    collapsed = last.get("collapsed")
    unwell = [one for one in last["readings"] if not one["fine"]]
    words = [f"{one['name']} {one['value']:.3g} (healthy: {one['healthy']})" for one in unwell or last["readings"]]
    advice = [f"collapsed ({collapsed['kind']}): {collapsed['advice']}"] if collapsed else []
    advice += [one["advice"] for one in unwell if one["advice"] and not collapsed]
    values = {"readings": {one["name"]: one["value"] for one in last["readings"]}}
    return Judged("; ".join([*words, *advice]), values, warn=bool(unwell), fail=bool(collapsed))


def _monitored(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of a log that hold readings of self-supervised training."""
    return [entry for entry in log if entry.get("readings")]
