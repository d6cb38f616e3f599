"""What the doctor measures of a model's layers: one pass over images or texts, and one backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...blocks import CrateLayer, compressions
from ...certificate import Certificate, certificate_of, joined
from ...evaluation.classifier import wilson_interval
from ...evaluation.inputs import Batch, evaluating, place, read_batches
from ...objective import sparsity, subspace_coding_rate
from ..maths.spectra import effective_rank, gram_eigenvalues
from ..record.hooks import POST_NORM, blocks_of, hooks_of
from ..record.states import SUBSPACES, LayerStates, has_maps, record
from .signatures import SATURATED_WEIGHT

M = TypeVar("M", bound=nn.Module)
EPS = 0.5
"""ε of the coding rates, as in the reports."""


@dataclass(frozen=True)
class Accuracy:
    """Number of correct predictions and of images."""

    num_correct: int
    num_images: int

    @property
    def fraction(self) -> float:
        """Share of correct predictions."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class Vitals:
    """What one pass over the images shows; per-layer tensors are float64 `(L)`, means over images unless said.

    Attributes:
        num_images: number of inputs measured, images or texts.
        subspace_rate: R^c(Z^{ℓ+½} | U^ℓ), nats; `None` for a model without a learned U.
        nonzero, l1: fraction of non-zero entries of the codes, and their ℓ1 per token; `None` where a model has none.
        dead: fraction of code coordinates that are zero at every token of every image.
        token_rank: effective rank of the tokens Z^{ℓ+1}.
        peak: largest |entry| of any state.
        saturated: fraction of attention rows with a weight above `SATURATED_WEIGHT`; `None` where maps are not shown.
        attention_effect: deviation of Z^{ℓ+½} - Z^ℓ from its mean over tokens and inputs, against that of Z^ℓ, the mean
            over batches; `None` where a norm stands between the two.
        certificate: what each step does to its objective on each input; `None` for a model that is no CRATE.
        broken: (layer, state) of the first state that is not finite; nothing else is known then.
    """

    num_images: int = 0
    subspace_rate: Tensor | None = None
    nonzero: Tensor | None = None
    l1: Tensor | None = None
    dead: Tensor | None = None
    token_rank: Tensor | None = None
    peak: Tensor | None = None
    saturated: Tensor | None = None
    attention_effect: Tensor | None = None
    certificate: Certificate | None = None
    broken: tuple[int, str] | None = None


def measure_vitals(model: nn.Module, batches: Iterable[Batch]) -> Vitals:
    """Run the model once over the inputs and keep what the checks read."""
    crate = bool(compressions(model))
    totals: dict[str, Tensor] = {}
    used: list[Tensor] = []
    peak = torch.zeros(0)
    num_images = 0
    certificates: list[Certificate] = []
    for states in record(model, batches, attentions=has_maps(model)):
        broken = _broken(states)
        if broken is not None:
            return Vitals(broken=broken)
        sums, active, highest = _batch_vitals(states, crate)
        totals = {key: value + totals.get(key, 0) for key, value in sums.items()}
        used = [now | before for now, before in zip(active, used)] if used else active
        peak = torch.maximum(highest, peak) if len(peak) else highest
        num_images += states.num_inputs
        if crate:
            steps = [(step.before, step.compressed, step.codes) for step in states.steps()]
            certificates.append(certificate_of(model, steps, states.mask))
    means: dict[str, Any] = {key: value / num_images for key, value in totals.items()}
    dead = torch.stack([1 - one.double().mean() for one in used]) if used else None
    certificate = joined(certificates) if certificates else None
    return Vitals(num_images, **means, dead=dead, peak=peak, certificate=certificate)


def relative_gradients(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """Gradient norm over weight norm of every layer for one batch's loss, float64 `(L)`.

    The loss is the mean cross-entropy of images (without labels, of the model's own predictions) or of tokens, or an
    autoencoder's own loss. `None` for a model without a head.
    """
    blocks = modules_of(model, CrateLayer) or blocks_of(model, hooks_of(model))
    weights = [[weight for weight in block.parameters() if weight.requires_grad] for block in blocks]
    flat = [weight for block in weights for weight in block]
    with evaluating(model), torch.enable_grad():
        loss = _loss(model, {key: place(value, model) for key, value in batch.items()})
        if loss is None:
            return None
        found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    ratios = []
    for block in weights:
        pairs = [(next(found), weight) for weight in block]
        gradient = sum(float(grad.double().square().sum()) for grad, _ in pairs if grad is not None)
        size = sum(float(weight.detach().double().square().sum()) for _, weight in pairs)
        ratios.append(math.sqrt(gradient / size) if size else 0.0)
    return torch.tensor(ratios, dtype=torch.float64)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
    """The loss of one batch on the model's device; `None` for a model without a head."""
    labels = batch.pop("labels", None)
    if "input_ids" in batch:
        return None if labels is None else getattr(model(**batch, labels=labels), "loss", None)
    outputs = model(**batch)
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim != 2:
        return getattr(outputs, "loss", None)
    return cross_entropy(logits.float(), logits.argmax(1) if labels is None else labels)


def modules_of(model: nn.Module, kind: type[M]) -> list[M]:
    """The modules of one kind, in the model's order."""
    return [module for module in model.modules() if isinstance(module, kind)]


def logits_of(model: nn.Module, batches: Iterable[Batch]) -> Tensor | None:
    """Logits of images, float32 `(n, C)` on the CPU; `None` for a model without a classification head."""
    found = []
    for fields in read_batches(batches):
        inputs = {key: place(value, model) for key, value in fields.items() if key != "labels"}
        with evaluating(model):
            logits = getattr(model(**inputs), "logits", None)
        if logits is None or logits.ndim != 2:
            return None
        found.append(logits.float().cpu())
    return torch.cat(found)


def labels_of(batches: Iterable[Batch]) -> Tensor | None:
    """Labels `(n)`; `None` where the images have none."""
    found = list(read_batches(batches))
    return torch.cat([fields["labels"] for fields in found]).cpu() if all("labels" in one for one in found) else None


def accuracy_of(logits: Tensor, labels: Tensor) -> Accuracy:
    """Of logits `(n, C)` against labels `(n)`."""
    return Accuracy(int((logits.argmax(1) == labels).sum()), len(labels))


def _broken(states: LayerStates) -> tuple[int, str] | None:
    """Layer and name of the first state that is not finite."""
    for step in states.steps():
        for name in ("before", "compressed", "after"):
            if not torch.isfinite(getattr(step, name)).all():
                return step.layer, name
    if states.logits is not None and not torch.isfinite(states.logits).all():
        return len(states.layers), "logits"
    return None


def _deviation(tokens: Tensor) -> Tensor:
    """Norm of the distance of tokens `(B, N, d)` from their mean, a scalar."""
    flat = tokens.flatten(0, 1).double()
    return (flat - flat.mean(0)).norm()


def _batch_vitals(states: LayerStates, crate: bool) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Sums over images per layer, which code coordinates were used, and the largest entry per layer."""
    sums: dict[str, list[Tensor]] = {}
    used, peaks = [], []
    for index, step in enumerate(states.steps()):
        found = {"token_rank": effective_rank(gram_eigenvalues(step.after))}
        if states.half_step != POST_NORM:
            effect = _deviation(step.compressed - step.before) / _deviation(step.before).clamp_min(1e-30)
            found["attention_effect"] = effect.expand(states.num_inputs)
        if crate and states.subspace_kind != SUBSPACES["pca"]:
            found["subspace_rate"] = subspace_coding_rate(step.compressed, step.subspaces, EPS)
        if crate:
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
