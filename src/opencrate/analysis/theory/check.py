"""Theory against practice: what the two steps of every layer of a trained CRATE do to their own objectives.

Compression claims to step down R^c(· | U^ℓ), sparsification down a LASSO over D^ℓ. Each form that the derivation
passes through, and the model's own step, is applied to the same recorded state. Derivations: docs/theory.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ...blocks import compressions, sparsifications
from ...certificate import Certificate, certificate_of, joined
from ...evaluation.inputs import Batch
from ...registry import LEARNED
from ...sparsification import ISTA
from ...stats.intervals import ABOVE, BELOW, Interval, bootstrap_mean, sign
from ..maths.steps import FORMS
from ..record.states import LayerStep, record, require_finite
from .layers import QUANTITIES, STATES, Key, Layer, MeasureOptions, measure_layer, measure_weights

STEP_SIZES = (0.1, 0.5, 1.0)
"""κL of the forms that have a step size; L bounds the curvature of R^c."""

DESCENDS, ASCENDS, CANNOT_TELL = "descends", "ascends", "cannot tell"


@dataclass(frozen=True)
class TheoryCheck:
    """Theory against practice for n images at L layers.

    Attributes:
        eps: ε of the rates.
        per_image: float64 `(n, L)` by key, on the CPU.
        per_layer: float64 `(L)` by key, what depends on the weights alone.
        unconverged: layers (from 1) at which the LASSO solver ran out of steps, so that its numbers are bounds.
        signed: whether the codes may be negative.
        own: what the model's own compression step is, in symbols.
        normalised: whether the compression reads LN(Z^ℓ); else it reads Z^ℓ itself.
        certificate: what each step of the model does to its objective on each input, at the model's own ε.
        kind: what the inputs are, "images" or "texts".
        padded: how many texts were left out because they are padded.
    """

    eps: float
    per_image: Mapping[Key, Tensor]
    per_layer: Mapping[Key, Tensor]
    unconverged: tuple[int, ...]
    signed: bool
    own: str = FORMS["model"].formula
    normalised: bool = True
    certificate: Certificate | None = None
    kind: str = "images"
    padded: int = 0

    @property
    def forms(self) -> list[str]:
        """The forms of the compression step that were tried, in the order of `FORMS`."""
        tried = {key.form for key in self.per_image}
        return [form for form in FORMS if form in tried]

    @property
    def states(self) -> dict[str, str]:
        """The states that they were tried from, and what these are."""
        tried = {key.state for key in self.per_image}
        words = {state: what for state, what in STATES.items() if state in tried}
        return words if self.normalised else {state: what.replace("LN(Z^ℓ)", "Z^ℓ") for state, what in words.items()}

    def formula(self, form: str) -> str:
        """Of one of the `FORMS`, or of the model's own step."""
        if form == "model":
            return self.own
        if form == "model_minus":
            return self.own.replace(" + ", " − ", 1) if " + " in self.own else self.own.replace(" − ", " + ", 1)
        return FORMS[form].formula

    @property
    def num_images(self) -> int:
        """n, the images measured."""
        return next(iter(self.per_image.values())).shape[0]

    @property
    def num_layers(self) -> int:
        """L, the layers of the model."""
        return next(iter(self.per_image.values())).shape[1]

    @cached_property
    def intervals(self) -> dict[Key, Interval]:
        """Mean over images and its 95 % bootstrap interval, each `(L)`, of every key of `per_image`."""
        return {key: bootstrap_mean(values) for key, values in self.per_image.items()}

    def mean(self, quantity: str, state: str = "", form: str = "", step: str = "") -> Tensor:
        """Mean over images (or the layer's own value), float64 `(L)`."""
        key = Key(quantity, state, form, step)
        return self.per_layer[key] if key in self.per_layer else self.intervals[key].mean

    def verdicts(self, quantity: str, state: str = "", form: str = "", step: str = "") -> list[str]:
        """ "descends", "ascends" or "cannot tell" per layer."""
        interval = self.intervals[Key(quantity, state, form, step)]
        return [verdict(low, high) for low, high in zip(interval.low.tolist(), interval.high.tolist())]

    def to_rows(self) -> list[dict[str, object]]:
        """One dict per layer (from 1) and number; an undefined bound is `None`, and so is a verdict on no change."""
        rows = []
        for layer in range(self.num_layers):
            for key, interval in self.intervals.items():
                bounds = [float(bound[layer]) for bound in (interval.mean, interval.low, interval.high)]
                judged = verdict(*bounds[1:]) if QUANTITIES[key.quantity].judged else None
                rows.append(self._row(layer, key, bounds, judged, self.num_images))
            for key, values in self.per_layer.items():
                rows.append(self._row(layer, key, (float(values[layer]), math.nan, math.nan), None, None))
        return rows

    def _row(self, layer: int, key: Key, bounds: Sequence[float], judged: str | None, n: int | None):
        measure = QUANTITIES[key.quantity]
        return {
            "layer": layer + 1,
            **key._asdict(),
            "what": measure.title,
            "formula": self.formula(key.form) if key.form else "",
            "unit": measure.unit,
            **{name: None if math.isnan(value) else value for name, value in zip(("mean", "low", "high"), bounds)},
            "verdict": judged,
            "num_images": n,
            "eps": self.eps,
        }


def verdict(low: float, high: float) -> str:
    """What a 95 % interval of a change allows to be said: all below 0, all above 0, or neither (NaN included)."""
    return {BELOW: DESCENDS, ABOVE: ASCENDS}.get(sign(low, high), CANNOT_TELL)


def theory_check(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    eps: float = 0.5,
    num_images: int | None = None,
    step_sizes: Iterable[float] = STEP_SIZES,
    tokens_per_image: int = 2,
    solver_tolerance: float = 1e-6,
    solver_steps: int = 5000,
    chunk_images: int = 32,
    seed: int = 0,
) -> TheoryCheck:
    """Apply every form of both steps to every layer's recorded state and count what it does, in float64.

    Args:
        model: a CRATE model, with or without a head.
        batches: as :func:`opencrate.analysis.record.states.record` takes them; padded texts are left out.
        eps: ε of the coding rates, > 0.
        num_images: use this many images; `None` uses all.
        step_sizes: κL of the forms with a step size, each > 0.
        tokens_per_image: tokens, drawn anew (by `seed`) for every image, whose LASSO is solved to convergence.
        solver_tolerance: duality gap at which that counts as solved, relative to ½‖x‖².
        solver_steps: steps after which it is given up.
        chunk_images: images worked on at a time; bounds the memory.

    Raises:
        ValueError: ε, a step size or another number out of range; a model whose layers are not CRATE's; no text
            without padding; a state that is not finite (names its layer); what `record` raises.
    """
    steps = tuple(float(step) for step in step_sizes)
    numbers = {"tokens_per_image": tokens_per_image, "solver_steps": solver_steps, "chunk_images": chunk_images}
    for name, value in (("eps", eps), *numbers.items(), *(("step_sizes", step) for step in steps)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: must be a finite number > 0")
    layers = _layers(model)
    draw = random.Random(seed)
    options = MeasureOptions(eps, steps, solver_tolerance, solver_steps)
    parts: list[dict[Key, Tensor]] = []
    certificates: list[Certificate] = []
    unconverged: set[int] = set()
    padded = 0
    for states in record(model, batches, num_inputs=num_images):
        recorded = _without_padding(states.layers)
        count = len(recorded[0].before)
        padded += states.num_inputs - count
        if not count:
            continue
        _check_steps(recorded, len(layers))
        certificates.append(certificate_of(model, [(step.before, step.compressed, step.codes) for step in recorded]))
        num_tokens = recorded[0].before.shape[1]
        chosen = torch.tensor([[draw.randrange(num_tokens) for _ in range(tokens_per_image)] for _ in range(count)])
        for start in range(0, count, chunk_images):
            images = slice(start, start + chunk_images)
            values, given_up = _measure(layers, recorded, images, chosen[images], options)
            parts.append(values)
            unconverged |= given_up
    if not parts:
        raise ValueError("batches: every text is padded; give some that fill their block, or shorter blocks")
    per_layer = [measure_weights(*layer) for layer in layers]
    return TheoryCheck(
        eps=float(eps),
        per_image={key: torch.cat([part[key] for part in parts]) for key in parts[0]},
        per_layer={key: torch.tensor([one[key] for one in per_layer], dtype=torch.float64) for key in per_layer[0]},
        unconverged=tuple(sorted(unconverged)),
        signed=layers[0][1].operator.signed,
        own=layers[0][0].entry.half_step(layers[0][0].config),
        normalised=layers[0][0].entry.normalised,
        certificate=joined(certificates),
        kind="texts" if getattr(model, "main_input_name", "") == "input_ids" else "images",
        padded=padded,
    )


def _measure(
    layers: Sequence[Layer], steps: Sequence[LayerStep], images: slice, chosen: Tensor, options: MeasureOptions
) -> tuple[dict[Key, Tensor], set[int]]:
    """All layers' values for some images, each `(b, L)`, and the layers (from 1) whose LASSO was given up."""
    found = [measure_layer(layer, step, images, chosen, options) for layer, step in zip(layers, steps)]
    values = {key: torch.stack([one[key] for one, _ in found], dim=1) for key in found[0][0]}
    return values, {number for number, (_, converged) in enumerate(found, start=1) if not converged}


def _layers(model: nn.Module) -> list[Layer]:
    """The two steps of every layer, which must be a compression with bases and ISTA."""
    layers = list(zip(compressions(model), sparsifications(model)))
    derived = [first.entry.subspaces == LEARNED and isinstance(second.operator, ISTA) for first, second in layers]
    if not layers or not all(derived):
        raise ValueError(
            f"model={type(model).__name__}: its layers are not a compression with learned subspaces and ISTA steps, "
            "and the theory is about no other; pass a CRATE model whose compression and sparsification are so"
        )
    return layers


def _without_padding(steps: Sequence[LayerStep]) -> Sequence[LayerStep]:
    """The steps of the inputs that have no padding."""
    mask = steps[0].mask
    if mask is None:
        return steps
    rows, names = mask.all(1), ("before", "compressed", "after", "codes")
    return [
        replace(step, mask=None, projected=None, **{name: getattr(step, name)[rows] for name in names})
        for step in steps
    ]


def _check_steps(steps: Sequence[LayerStep], num_layers: int) -> None:
    """The recorded steps are those of the CRATE layers, and finite."""
    assert len(steps) == num_layers
    for step in steps:
        for name in ("before", "compressed", "after"):
            require_finite(getattr(step, name), f"layer {step.layer}: the state '{name}' holds")
