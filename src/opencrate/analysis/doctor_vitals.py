"""What the doctor measures of a model: one pass over the images, one backward pass, its predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..blocks import MSSA, CrateLayer
from ..objective import sparsity, subspace_coding_rate
from .doctor_signatures import SATURATED_WEIGHT
from .evaluation import wilson_interval
from .foreign import blocks_of, hooks_of
from .geometry import effective_rank, token_singular_values
from .inputs import Batch, evaluating, place, read_batches
from .states import LayerStates, record

EPS = 0.5
"""ε of the coding rates, as in the reports."""


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


def measure_vitals(model: nn.Module, batches: Iterable[Batch]) -> Vitals:
    """Run the model once over the images and keep what the checks read."""
    crate = bool(modules_of(model, MSSA))
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
    predictions, _ = predict(model, batches)
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
    blocks = modules_of(model, CrateLayer) or blocks_of(model, hooks_of(model))
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


def modules_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The modules of one kind, in the model's order."""
    return [module for module in model.modules() if isinstance(module, kind)]


def first_images(batches: Iterable[Batch], num_images: int | None) -> list[dict[str, Tensor]]:
    """The first images, in batches; all where there are fewer."""
    kept, left = [], math.inf if num_images is None else num_images
    for fields in read_batches(batches):
        if left <= 0:
            break
        kept.append({key: value[: int(min(left, len(value)))] for key, value in fields.items()})
        left -= len(next(iter(kept[-1].values())))
    return kept


def predict(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor | None, Tensor | None]:
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


def accuracy_of(predicted: Tensor | None, labels: Tensor | None) -> Accuracy | None:
    """Of predicted classes against labels, `(n)` each; `None` where one is not there."""
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
