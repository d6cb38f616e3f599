"""Failure signatures of a trained model as checks: what, which threshold and why, what was measured, what to do.

A check that lacks what it needs (images, labels, a log, a learned U) says so; it never passes in silence. Every
threshold is a constant below and stands, with its reason, in `CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..blocks import ISTA, MSSA, CrateLayer
from ..objective import sparsity, subspace_coding_rate
from .evaluation import wilson_interval
from .findings import describe_trend, percent, trend
from .foreign import blocks_of, hooks_of
from .geometry import (
    DictionaryGeometry,
    SubspaceGeometry,
    dictionary_geometry,
    effective_rank,
    subspace_geometry,
    token_singular_values,
)
from .inputs import Batch, evaluating, place, read_batches
from .states import LayerStates, record

OK, WARN, FAIL, NOT_CHECKED = "ok", "warn", "fail", "not checked"
EPS = 0.5
"""ε of the coding rates, as in the reports."""

RANK_WARN, RANK_FAIL = 0.5, 0.25
OVERLAP_WARN, OVERLAP_FAIL = 0.5, 0.9
CONDITION_WARN_PER_DIM, CONDITION_FAIL = 1e3, 1e7
STEP_WARN, STEP_FAIL = 1.0, 2.0
DEAD_WARN, DEAD_FAIL = 0.1, 0.5
TOKEN_RANK_WARN, TOKEN_RANK_FAIL = 2.0, 1.1
GRADIENT_WARN, GRADIENT_FAIL = 1e2, 1e4
HALF_LIMIT = 65504.0
ACTIVATION_WARN = HALF_LIMIT / 16
SATURATED_WEIGHT = 0.999
SATURATION_WARN, SATURATION_FAIL = 0.5, 0.95
SPIKE_FACTOR, SPIKE_WINDOW = 2.0, 5
MIN_CLASS_IMAGES = 5
GAP_WARN, GAP_FAIL = 0.1, 0.3


@dataclass(frozen=True)
class Check:
    """One failure signature.

    Attributes:
        what: is looked at.
        threshold: when it warns and when it fails.
        reason: why the threshold lies there.
        advice: what to do about a warning or a failure.
    """

    what: str
    threshold: str
    reason: str
    advice: str


CHECKS: dict[str, Check] = {
    "finite": Check(
        "weights, states and outputs are numbers",
        "fails at the first NaN or infinity",
        "no later number means anything",
        "training diverged or the file is damaged: go back to the last good checkpoint, lower the learning rate, or "
        "clip gradients",
    ),
    "rate-trend": Check(
        "R^c(Z^{ℓ+½} | U^ℓ) over the layers",
        "warns if it rises at some layer, fails if the last layer is not below the first",
        "the layers are derived as steps that lower it; trained models are known not to do so at every layer, but the "
        "published ones do overall",
        "train longer, or add the sparse rate reduction as a regulariser; `opencrate analyze` shows the curve",
    ),
    "l0-trend": Check(
        "fraction of non-zero entries of the sparse codes over the layers",
        "warns if it rises at some layer, fails if the last layer is not below the first",
        "sparsification is the second half of every layer, and published models get sparser with depth overall",
        "raise model.config.ista_lambda, or train longer",
    ),
    "l1-trend": Check(
        "ℓ1 norm of the sparse codes, per token, over the layers",
        "warns if the last layer is not below the first; never fails",
        "the LASSO step lowers ℓ1, but every layer starts with a LayerNorm, so its scale is free",
        "look at the ℓ0 curve beside it before changing anything",
    ),
    "dead-atoms": Check(
        "atoms of D that no token of any image uses",
        f"warns above {100 * DEAD_WARN:g} % in a layer, fails above {100 * DEAD_FAIL:g} %",
        "an atom that is never used gets no gradient through the ReLU; a tenth is wasted width, a half is a collapse",
        "lower model.config.ista_lambda or the learning rate, lengthen the warm-up; few or uniform images also do this",
    ),
    "collapsed-subspaces": Check(
        "effective rank of each U_k against its dimension p",
        f"warns below {RANK_WARN:g} p, fails below {RANK_FAIL:g} p",
        "a random U_k has more than 0.9 p for K >= 4; below a half most of the head's columns repeat one another",
        "lower weight decay on U, raise model.config.subspace_penalty, or use fewer dimensions per head",
    ),
    "correlated-subspaces": Check(
        "overlap of two subspaces (mean squared cosine of their principal angles), beyond chance: 0 for random ones, "
        "which overlap by p/d, 1 for equal ones",
        f"warns above {OVERLAP_WARN:g}, fails above {OVERLAP_FAIL:g}",
        "R^c counts a shared direction once per subspace; at a half two heads share most of what they see, above "
        "nine tenths one of them is a copy",
        "raise model.config.subspace_penalty, set subspace_constraint=joint, or use fewer heads",
    ),
    "dictionary-condition": Check(
        "condition number of D (of the smaller side)",
        f"warns above {CONDITION_WARN_PER_DIM:g} d, fails above {CONDITION_FAIL:.0e}",
        "a square Gaussian D exceeds x d with probability about 2/x [Edelman 1988]: one untrained layer in 500 warns; "
        "at 1e7 the weakest direction drowns in float32's rounding",
        "raise model.config.dictionary_penalty or set dictionary_constraint=orthonormal",
    ),
    "ista-step": Check(
        "η ‖D‖² of the ISTA step",
        f"warns above {STEP_WARN:g}, fails from {STEP_FAIL:g} on",
        "up to 1 ISTA's rate of convergence is proven and below 2 a step still descends; from 2 on it can raise its "
        "LASSO objective, and repeated steps diverge",
        "lower model.config.ista_step_size or raise the weight decay of D",
    ),
    "token-rank": Check(
        "effective rank of an image's tokens after each layer, mean over images",
        f"warns below {TOKEN_RANK_WARN:g}, fails below {TOKEN_RANK_FAIL:g}",
        "at 1 all tokens are multiples of one vector and attention has nothing left to tell apart",
        "fewer layers, a smaller learning rate or a residual; the last layers of a mean-pooled classifier come closest",
    ),
    "gradient-depth": Check(
        "gradient norm over weight norm of every layer, largest against smallest, one backward pass",
        f"warns above {GRADIENT_WARN:g}, fails above {GRADIENT_FAIL:g} or where a layer gets none",
        "one learning rate serves layers within about two orders of magnitude; beyond four some do not learn",
        "lengthen the warm-up, clip gradients, lower the depth, or check for layers that are cut off",
    ),
    "half-precision": Check(
        "largest |entry| of any state",
        f"warns above {ACTIVATION_WARN:g} (1/16 of float16's limit {HALF_LIMIT:g}), fails above the limit if the model "
        "is float16",
        "products of two such states overflow float16; bfloat16 and float32 have the range",
        "use bf16 instead of fp16, or raise the weight decay",
    ),
    "softmax-saturation": Check(
        f"attention rows whose largest weight is above {SATURATED_WEIGHT:g}",
        f"warns above {100 * SATURATION_WARN:g} % of a layer's rows, fails above {100 * SATURATION_FAIL:g} %",
        "a saturated row copies one token and passes no gradient to its scores",
        "lower the learning rate, raise the weight decay of U, or set model.config.attention_scale lower",
    ),
    "loss-curve": Check(
        "training loss in the log",
        f"fails on NaN or infinity; warns where it is above {SPIKE_FACTOR:g} times the median of the {SPIKE_WINDOW} "
        "entries before it, or does not end below its start",
        "noise between epochs stays well below a doubling",
        "lower the learning rate, lengthen the warm-up, clip gradients (training.max_grad_norm)",
    ),
    "class-collapse": Check(
        "which classes are predicted",
        f"fails if all images get one class though the labels have several; warns if a class with at least "
        f"{MIN_CLASS_IMAGES} images is never predicted",
        "a constant prediction is what is left when the states carry nothing",
        "look at the class balance of the training data and at the checks above",
    ),
    "above-chance": Check(
        "accuracy against naming the most frequent class",
        "fails if the 95 % interval does not lie above",
        "a model at chance has learnt nothing that its other numbers could describe",
        "train longer or with another learning rate; check that labels and classes belong together",
    ),
    "generalisation-gap": Check(
        "accuracy on training images (no augmentation) minus on held-out images",
        f"warns above {100 * GAP_WARN:g} %, fails above {100 * GAP_FAIL:g} %, where the 95 % intervals do not overlap",
        "a tenth is the size of what regularisation usually changes; at a third most of what was learnt is memory",
        "more data or augmentation, weight decay, a smaller model, fewer epochs",
    ),
}
"""Every check by its id, in the order of the output."""


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


@dataclass(frozen=True)
class Accuracy:
    """How many of how many images were named right."""

    num_correct: int
    num_images: int

    @property
    def fraction(self) -> float:
        """Of images named right."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class Vitals:
    """What one pass over the images shows; per-layer tensors are float64 `(L)`, means over images unless said.

    Attributes:
        num_images: looked at.
        subspace_rate: R^c(Z^{ℓ+½} | U^ℓ), nats; `None` for a model without a learned U.
        nonzero: fraction of non-zero entries of the codes; `None` where a model shows none.
        l1: ℓ1 of the codes per token.
        dead: fraction of code coordinates that are zero at every token of every image.
        token_rank: effective rank of the tokens Z^{ℓ+1}.
        peak: largest |entry| of any state.
        saturated: fraction of attention rows with a weight above `SATURATED_WEIGHT`; `None` where maps are not shown.
        broken: (layer, state) of the first state that is not finite; nothing else is known then.
        predictions: `(n)`, `None` for a model without a head.
        labels: `(n)`, `None` where the images have none.
    """

    num_images: int = 0
    subspace_rate: Tensor | None = None
    nonzero: Tensor | None = None
    l1: Tensor | None = None
    dead: Tensor | None = None
    token_rank: Tensor | None = None
    peak: Tensor | None = None
    saturated: Tensor | None = None
    broken: tuple[int, str] | None = None
    predictions: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class _Patient:
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
        return self.missing.get(name, f"no {name} given")


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
    uses, steps = _modules(model, MSSA), _modules(model, ISTA)
    vitals = gradients = training = None
    if weights_finite and batches is not None:
        kept = _first_images(batches, num_images)
        vitals = measure_vitals(model, kept)
        if vitals.broken is None:
            gradients = relative_gradients(model, kept[0])
            if train_batches is not None:
                training = _accuracy(*_predict(model, _first_images(train_batches, num_images)))
    patient = _Patient(
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
    findings = [_finite(patient, weights_finite)]
    for check in list(CHECKS)[1:]:
        readable = not broken or check == "loss-curve"
        findings.append(_CHECKED[check](patient) if readable else _skip(check, "weights or states are not finite"))
    return Diagnosis(name or type(model).__name__, tuple(findings))


def measure_vitals(model: nn.Module, batches: Iterable[Batch]) -> Vitals:
    """Run the model once over the images and keep what the checks read."""
    crate = bool(_modules(model, MSSA))
    totals: dict[str, Tensor] = {}
    used: list[Tensor] = []
    peak = torch.zeros(0)
    num_images, labels = 0, []
    for fields in read_batches(batches):
        if "labels" in fields:
            labels.append(fields["labels"].cpu())
        inputs = {key: value for key, value in fields.items() if key != "labels"}
        for states in record(model, [inputs], attentions=crate):
            broken = _broken(states)
            if broken is not None:
                return Vitals(broken=broken)
            sums, active, highest = _batch_vitals(states, crate)
            totals = {key: value + totals.get(key, 0) for key, value in sums.items()}
            used = [now | before for now, before in zip(active, used)] if used else active
            peak = torch.maximum(highest, peak) if len(peak) else highest
            num_images += states.num_images
    means = {key: value / num_images for key, value in totals.items()}
    predictions, _ = _predict(model, batches)
    return Vitals(
        num_images=num_images,
        subspace_rate=means.get("subspace_rate"),
        nonzero=means.get("nonzero"),
        l1=means.get("l1"),
        dead=torch.stack([1 - one.double().mean() for one in used]) if used else None,
        token_rank=means["token_rank"],
        peak=peak,
        saturated=means.get("saturated"),
        predictions=predictions,
        labels=torch.cat(labels) if labels else None,
    )


def relative_gradients(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """Gradient norm over weight norm of every layer for one batch's mean cross-entropy, float64 `(L)`.

    Without labels the model's own predictions stand for them. No gradient is left in the model. `None` for a model
    without a head.
    """
    blocks = _modules(model, CrateLayer) or blocks_of(model, hooks_of(model))
    weights = [[weight for weight in block.parameters() if weight.requires_grad] for block in blocks]
    flat = [weight for block in weights for weight in block]
    inputs = {key: place(value, model) for key, value in batch.items() if key != "labels"}
    with evaluating(model), torch.enable_grad():
        logits = getattr(model(**inputs), "logits", None)
        if logits is None or logits.ndim != 2:
            return None
        labels = batch["labels"].to(logits.device) if "labels" in batch else logits.argmax(1)
        found = iter(torch.autograd.grad(cross_entropy(logits.float(), labels), flat, allow_unused=True))
    ratios = []
    for block in weights:
        pairs = [(next(found), weight) for weight in block]
        gradient = sum(float(grad.double().square().sum()) for grad, _ in pairs if grad is not None)
        size = sum(float(weight.detach().double().square().sum()) for _, weight in pairs)
        ratios.append(math.sqrt(gradient / size) if size else 0.0)
    return torch.tensor(ratios, dtype=torch.float64)


def _modules(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def _dictionary(module: nn.Module) -> DictionaryGeometry:
    return dictionary_geometry(module.effective_dictionary(), module.config.ista_step_size)


def _first_images(batches: Iterable[Batch], num_images: int | None) -> list[dict[str, Tensor]]:
    """The first images, in batches; all where there are fewer."""
    kept, left = [], math.inf if num_images is None else num_images
    for fields in read_batches(batches):
        if left <= 0:
            break
        kept.append({key: value[: int(min(left, len(value)))] for key, value in fields.items()})
        left -= len(next(iter(kept[-1].values())))
    return kept


def _predict(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor | None, Tensor | None]:
    """Predicted classes and labels `(n)`; `None` for what is not there."""
    predicted, labels = [], []
    for fields in read_batches(batches):
        inputs = {key: place(value, model) for key, value in fields.items() if key != "labels"}
        with evaluating(model):
            logits = getattr(model(**inputs), "logits", None)
        if logits is None or logits.ndim != 2:
            return None, None
        predicted.append(logits.argmax(1).cpu())
        if "labels" in fields:
            labels.append(fields["labels"].cpu())
    return torch.cat(predicted), torch.cat(labels) if labels else None


def _accuracy(predicted: Tensor | None, labels: Tensor | None) -> Accuracy | None:
    if predicted is None or labels is None:
        return None
    return Accuracy(int((predicted == labels).sum()), len(labels))


def _broken(states: LayerStates) -> tuple[int, str] | None:
    for step in states.steps():
        for name in ("before", "compressed", "after"):
            if not torch.isfinite(getattr(step, name)).all():
                return step.layer, name
    if states.logits is not None and not torch.isfinite(states.logits).all():
        return len(states.layers), "logits"
    return None


def _batch_vitals(states: LayerStates, crate: bool) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Sums over images per layer, which code coordinates were used, and the largest entry per layer."""
    sums: dict[str, list[Tensor]] = {}
    used, peaks = [], []
    for index, step in enumerate(states.steps()):
        found = {"token_rank": effective_rank(token_singular_values(step.after))}
        if crate:
            found["subspace_rate"] = subspace_coding_rate(step.compressed, step.subspaces, EPS)
            if step.codes is not None:
                found["nonzero"] = sparsity(step.codes, "l0")
                found["l1"] = sparsity(step.codes, "l1") / step.codes.shape[1]
                used.append((step.codes != 0).flatten(0, 1).any(0).cpu())
            if states.attentions is not None:
                saturated = states.attentions[index].amax(-1) > SATURATED_WEIGHT
                found["saturated"] = saturated.double().mean((1, 2))
        for key, values in found.items():
            sums.setdefault(key, []).append(values.double().sum().cpu())
        peaks.append(max(float(state.abs().max()) for state in (step.before, step.compressed, step.after)))
    return {key: torch.stack(values) for key, values in sums.items()}, used, torch.tensor(peaks, dtype=torch.float64)


# --- The checks -------------------------------------------------------------------------------------------------


def _skip(check: str, reason: str) -> Finding:
    return Finding(check, NOT_CHECKED, reason, {})


def _judge(check: str, evidence: str, values: Mapping[str, Any], warn: bool, fail: bool) -> Finding:
    return Finding(check, FAIL if fail else WARN if warn else OK, evidence, values)


def _layer(values: Tensor, largest: bool = True) -> int:
    """The layer, from 1, of the largest (smallest) value."""
    return int(values.argmax() if largest else values.argmin()) + 1


def _finite(patient: _Patient, weights_finite: bool) -> Finding:
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

    def run(patient: _Patient) -> Finding:
        if not patient.is_crate:
            return _skip(check, "the model learns no U and D, so nothing predicts that this falls")
        if patient.vitals is None:
            return _skip(check, patient.why_no("images"))
        values = getattr(patient.vitals, field)
        if values is None:
            return _skip(check, "the layers have no sparse code")
        if len(values) < 2:
            return _skip(check, "there is only one layer")
        found = trend(values)
        flat = not found.last < found.first
        evidence = describe_trend(name, values, unit, digits)
        warn = flat or (warn_on_rise and found.falls < found.steps)
        return _judge(check, evidence, {"per_layer": values.tolist()}, warn, flat and may_fail)

    return run


def _dead_atoms(patient: _Patient) -> Finding:
    if not patient.is_crate:
        return _skip("dead-atoms", "the model has no dictionary")
    if patient.vitals is None:
        return _skip("dead-atoms", patient.why_no("images"))
    if patient.vitals.dead is None:
        return _skip("dead-atoms", "the layers have no sparse code")
    dead, worst = patient.vitals.dead, float(patient.vitals.dead.max())
    where = f"up to {percent(worst)} of a layer's atoms (layer {_layer(dead)})" if worst else "none in any layer"
    evidence = f"{where}, {patient.vitals.num_images} images"
    return _judge("dead-atoms", evidence, {"per_layer": dead.tolist()}, worst > DEAD_WARN, worst > DEAD_FAIL)


def _collapsed_subspaces(patient: _Patient) -> Finding:
    if not patient.is_crate:
        return _skip("collapsed-subspaces", "the model learns no U")
    p = patient.model.config.head_dim
    ranks = torch.stack([found.effective_ranks.min() for found in patient.subspaces])
    worst = float(ranks.min()) / p
    evidence = f"smallest effective rank {float(ranks.min()):.1f} of p = {p} (layer {_layer(ranks, largest=False)})"
    values = {"per_layer": ranks.tolist(), "subspace_dimension": p}
    return _judge("collapsed-subspaces", evidence, values, worst < RANK_WARN, worst < RANK_FAIL)


def _correlated_subspaces(patient: _Patient) -> Finding:
    check = "correlated-subspaces"
    if not patient.is_crate:
        return _skip(check, "the model learns no U")
    if len(patient.subspaces[0].ranks) < 2:
        return _skip(check, "there is only one subspace per layer")
    chance = patient.model.config.head_dim / patient.subspaces[0].width
    if chance >= 1:
        return _skip(check, "every subspace is the whole space")
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


def _dictionary_condition(patient: _Patient) -> Finding:
    check = "dictionary-condition"
    if not patient.dictionaries:
        return _skip(check, "the model has no dictionary")
    found = torch.tensor([one.condition for one in patient.dictionaries], dtype=torch.float64)
    worst, width = float(found.max()), patient.model.config.hidden_size
    evidence = f"largest condition number {worst:.3g} (layer {_layer(found)}), d = {width}"
    warn = worst > CONDITION_WARN_PER_DIM * width
    return _judge(check, evidence, {"per_layer": found.tolist()}, warn, worst > CONDITION_FAIL)


def _ista_step(patient: _Patient) -> Finding:
    if not patient.dictionaries:
        return _skip("ista-step", "the model has no dictionary")
    found = torch.tensor([one.step for one in patient.dictionaries], dtype=torch.float64)
    worst = float(found.max())
    evidence = f"largest η ‖D‖² {worst:.3f} (layer {_layer(found)}), η = {patient.dictionaries[0].step_size:g}"
    return _judge("ista-step", evidence, {"per_layer": found.tolist()}, worst > STEP_WARN, worst >= STEP_FAIL)


def _token_rank(patient: _Patient) -> Finding:
    if patient.vitals is None:
        return _skip("token-rank", patient.why_no("images"))
    ranks = patient.vitals.token_rank
    worst = float(ranks.min())
    evidence = f"smallest {worst:.1f} (layer {_layer(ranks, largest=False)}), last layer {float(ranks[-1]):.1f}"
    values = {"per_layer": ranks.tolist()}
    return _judge("token-rank", evidence, values, worst < TOKEN_RANK_WARN, worst < TOKEN_RANK_FAIL)


def _gradient_depth(patient: _Patient) -> Finding:
    check = "gradient-depth"
    if patient.vitals is None:
        return _skip(check, patient.why_no("images"))
    found = patient.gradients
    if found is None:
        return _skip(check, "the model has no classification head, so there is no loss to take gradients of")
    if len(found) < 2:
        return _skip(check, "there is only one layer")
    smallest, largest = float(found.min()), float(found.max())
    ratio = largest / smallest if smallest > 0 else math.inf
    evidence = f"from {smallest:.2e} (layer {_layer(found, largest=False)}) to {largest:.2e} (layer {_layer(found)})"
    evidence += f", ratio {ratio:.3g}"
    broken = not bool(torch.isfinite(found).all())
    values = {"per_layer": found.tolist(), "ratio": ratio}
    return _judge(check, evidence, values, ratio > GRADIENT_WARN, broken or ratio > GRADIENT_FAIL)


def _half_precision(patient: _Patient) -> Finding:
    if patient.vitals is None:
        return _skip("half-precision", patient.why_no("images"))
    peak = patient.vitals.peak
    worst = float(peak.max())
    half = next(patient.model.parameters()).dtype == torch.float16
    evidence = f"largest |entry| {worst:.3g} (layer {_layer(peak)}), float16 ends at {HALF_LIMIT:g}"
    values = {"per_layer": peak.tolist()}
    return _judge("half-precision", evidence, values, worst > ACTIVATION_WARN, half and worst > HALF_LIMIT)


def _softmax_saturation(patient: _Patient) -> Finding:
    check = "softmax-saturation"
    if patient.vitals is None:
        return _skip(check, patient.why_no("images"))
    found = patient.vitals.saturated
    if found is None:
        return _skip(check, "attention maps are read from CRATE models only")
    worst = float(found.max())
    evidence = f"up to {percent(worst)} of a layer's attention rows (layer {_layer(found)})" if worst else "no row"
    return _judge(check, evidence, {"per_layer": found.tolist()}, worst > SATURATION_WARN, worst > SATURATION_FAIL)


def _loss_curve(patient: _Patient) -> Finding:
    if patient.log is None:
        return _skip("loss-curve", patient.why_no("log"))
    losses = [float(entry["loss"]) for entry in patient.log if "loss" in entry]
    if not losses:
        return _skip("loss-curve", "the log holds no training loss")
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


def _labelled(patient: _Patient) -> str | None:
    """Why predictions cannot be set against labels, or `None`."""
    if patient.vitals is None:
        return patient.why_no("images")
    if patient.vitals.predictions is None:
        return "the model has no classification head"
    return "the images have no labels" if patient.vitals.labels is None else None


def _class_collapse(patient: _Patient) -> Finding:
    reason = _labelled(patient)
    if reason:
        return _skip("class-collapse", reason)
    predicted, labels = patient.vitals.predictions, patient.vitals.labels
    size = int(max(predicted.max(), labels.max())) + 1
    given, named = torch.bincount(labels, minlength=size), torch.bincount(predicted, minlength=size)
    if int((given > 0).sum()) < 2:
        return _skip("class-collapse", "the images are all of one class")
    constant = int((named > 0).sum()) == 1
    never = ((given >= MIN_CLASS_IMAGES) & (named == 0)).nonzero()[:, 0].tolist()
    evidence = f"{int((named > 0).sum())} classes named for images of {int((given > 0).sum())}; most frequent "
    evidence += f"{percent(float(named.max() / named.sum()))} of {len(labels)} images"
    if never:
        evidence += f"; never named: {', '.join(map(str, never[:5]))}{' ...' if len(never) > 5 else ''}"
    return _judge("class-collapse", evidence, {"never_named": never}, bool(never), constant)


def _above_chance(patient: _Patient) -> Finding:
    reason = _labelled(patient)
    if reason:
        return _skip("above-chance", reason)
    labels = patient.vitals.labels
    chance = float(torch.bincount(labels).max() / len(labels))
    if chance == 1:
        return _skip("above-chance", "the images are all of one class")
    found = _accuracy(patient.vitals.predictions, labels)
    low, high = found.interval
    evidence = (
        f"accuracy {percent(found.fraction)} ({percent(low)} to {percent(high)}); most frequent class {percent(chance)}"
    )
    return _judge("above-chance", evidence, {"accuracy": found.fraction, "chance": chance}, False, low <= chance)


def _generalisation_gap(patient: _Patient) -> Finding:
    check = "generalisation-gap"
    reason = _labelled(patient)
    if reason:
        return _skip(check, reason)
    if patient.training_accuracy is None:
        return _skip(check, patient.why_no("training images"))
    train, held_out = patient.training_accuracy, _accuracy(patient.vitals.predictions, patient.vitals.labels)
    gap = train.fraction - held_out.fraction
    apart = train.interval[0] > held_out.interval[1]
    evidence = (
        f"{percent(train.fraction)} of {train.num_images} training images, {percent(held_out.fraction)} of "
        f"{held_out.num_images} held-out ones: {100 * gap:+.1f} points"
    )
    return _judge(check, evidence, {"gap": gap}, apart and gap > GAP_WARN, apart and gap > GAP_FAIL)


_CHECKED: dict[str, Callable[[_Patient], Finding]] = {
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


def _plain(value: Any) -> Any:
    """The value with numbers that JSON lacks as words."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
