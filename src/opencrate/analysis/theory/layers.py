"""One layer of a trained CRATE, measured: every number of the theory check, and the words for it.

Tokens are rows, U as learned (not made orthonormal), rates in nats per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...blocks import Compression, Sparsification
from ...objective import coding_rate
from ...operators import lasso_objective, orthonormalize, project
from ...positions import Places, places_argument
from ...sparsification import ISTA
from ..layers.registry import NATS, Measure
from ..maths.inverse import relative_error
from ..maths.lasso import fista, token_objective
from ..maths.steps import (
    FORMS,
    OWN,
    approximation_errors,
    best_gradient_step,
    coherence,
    cosine,
    gradient_lipschitz,
    projected_rate,
    scaled_to_unit,
    step_directions,
)
from ..record.states import LayerStep

STATES: dict[str, str] = {
    "raw": "Z^ℓ as it is between layers",
    "layernorm": "LN(Z^ℓ), what the compression reads",
    "unit": "LN(Z^ℓ), every token scaled to length 1, as the derivation assumes",
}
"""The states that the forms are applied to; for the last two the model's own step is taken without its LayerNorm.

A compression without a LayerNorm reads Z^ℓ itself: LN(Z^ℓ) is not among its states, and "unit" is Z^ℓ scaled.
"""

_RATIO = "relative to the norm of what it stands for"
QUANTITIES: dict[str, Measure] = {
    "rate": Measure("R^c(Z | U) before the step", NATS),
    "change": Measure("change of R^c(· | U)", NATS, judged=True),
    "change_unit": Measure("change of R^c(· | U), tokens scaled to length 1 before and after", NATS, judged=True),
    "cosine": Measure("cosine of the update to −∇R^c", "1"),
    "best_step": Measure("κL of the largest decrease along −∇R^c", "1"),
    "neumann_radius": Measure("max_k γ‖V_k‖²; the Neumann series needs < 1", "1"),
    "neumann_error": Measure("Neumann form against the exact gradient", _RATIO),
    "softmax_error": Measure("softmax form against the Neumann form", _RATIO),
    "identity_error": Measure("Σ Z U_k U_kᵀ against Z", _RATIO),
    "paper_error": Measure("γ(Z − MSSA(Z)) against the exact gradient", _RATIO),
    "coherence": Measure("max_{i≠j} ‖U_iᵀU_j‖, U as learned", "1"),
    "coherence_orthonormal": Measure("max_{i≠j} ‖U_iᵀU_j‖, each U_k made orthonormal: cosine of an angle", "1"),
    "basis_defect": Measure("max_k ‖U_kᵀU_k − I‖", "1"),
    "bases_norm_squared": Measure("‖[U_1 … U_K]‖²", "1"),
    "lasso_start": Measure("LASSO objective at the start, |a| for its negative entries", "per image"),
    "lasso_allowed": Measure("LASSO objective at the nearest code that the problem allows", "per image"),
    "lasso_after": Measure("LASSO objective after the layer's steps", "per image"),
    "lasso_change": Measure("change of the LASSO objective from the start", "per image", judged=True),
    "lasso_change_allowed": Measure(
        "change of the LASSO objective from the nearest allowed code", "per image", judged=True
    ),
    "lasso_gap": Measure("objective above the optimum, relative to the optimum (sample of tokens)", "1"),
    "lasso_distance": Measure("‖A − A*‖ / ‖A*‖ to the converged code (sample of tokens)", "1"),
    "lasso_nonzero": Measure("non-zero fraction of the code (sample of tokens)", "fraction"),
    "lasso_nonzero_converged": Measure("non-zero fraction of the converged code (sample of tokens)", "fraction"),
    "code_rate": Measure("R(A) of the code", NATS),
    "decoded_rate": Measure("R(A Dᵀ) of the decoded code", NATS),
    "input_rate": Measure("R(X) of the ISTA step's input", NATS),
    "step_size": Measure("η‖D‖²; descent is guaranteed up to 1, convergence below 2", "1"),
    "condition": Measure("condition number of D", "1"),
    "dictionary_defect": Measure("‖DᵀD − I‖ (‖DDᵀ − I‖ when overcomplete)", "1"),
}
"""Every kind of row by its key."""


class Key(NamedTuple):
    """Which number: the quantity and, where it has them, state, form and step size (κL, or "best")."""

    quantity: str
    state: str = ""
    form: str = ""
    step: str = ""


class MeasureOptions(NamedTuple):
    """What the measures of a layer depend on, as `theory.theory_check` takes it."""

    eps: float
    step_sizes: tuple[float, ...]
    solver_tolerance: float
    solver_steps: int


Layer = tuple[Compression, Sparsification]
"""The two steps of a layer."""


@torch.no_grad()
def measure_layer(
    layer: Layer, step: LayerStep, images: slice, chosen: Tensor, options: MeasureOptions
) -> tuple[dict[Key, Tensor], bool]:
    """All per-image numbers of one layer for some images, each float64 `(b)` on the CPU, and whether all converged."""
    compression, sparsification = layer
    before, compressed = step.before[images], step.compressed[images]
    normed = compression.norm(before)
    read = {"layernorm": normed} if compression.entry.normalised else {}
    read["unit"] = normalize(normed, dim=-1)
    places = {} if step.places is None else places_argument(_places_of(step.places, images))
    pairs = {"raw": (before, compressed - before)}
    with _bypassed(compression.norm):
        pairs |= {state: (tokens, compression(tokens, **places) - tokens) for state, tokens in read.items()}
    forms = tuple(FORMS) if compression.kind == "mssa" else OWN
    values: dict[Key, Tensor] = {}
    for state, (tokens, own) in pairs.items():
        values |= _compression(state, tokens.double(), own.double(), step.subspaces.double(), forms, options)
    assert step.codes is not None  # an ISTA step gives its code
    found, converged = _sparsification(sparsification, compressed, step.codes[images], chosen, options)
    return {key: value.cpu() for key, value in (values | found).items()}, converged


def _places_of(places: Places, some: slice) -> Places:
    """Of some images, where each image has tokens at places of its own."""
    offsets, rotation = places.offsets, places.rotation
    if offsets is not None and offsets.ndim == 3:
        offsets = offsets[some]
    if rotation is not None and rotation[0].ndim == 4:
        rotation = rotation[0][some], rotation[1][some]
    return replace(places, offsets=offsets, rotation=rotation)


@contextmanager
def _bypassed(norm: nn.Module) -> Iterator[None]:
    """The module hands its input through, for tokens that are normalised already."""
    handle = norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        yield
    finally:
        handle.remove()


def _compression(
    state: str, X: Tensor, own: Tensor, U: Tensor, forms: Sequence[str], options: MeasureOptions
) -> dict[Key, Tensor]:
    """What some forms do to R^c from one state; `X` and `own` `(b, N, d)`, `U (K, d, p)`, float64."""
    eps = options.eps
    lipschitz = gradient_lipschitz(U, X.shape[-2], eps)
    directions = {**step_directions(X, U, eps), "model": own, "model_minus": -own}
    V, length = project(X, U), X.norm(dim=-1)
    start, start_unit = projected_rate(V, eps), projected_rate(scaled_to_unit(V, length), eps)
    values = {Key("rate", state): start}
    descent = directions["exact"]
    for form in forms:
        direction = directions[form]
        values[Key("cosine", state, form)] = cosine(direction, descent)
        H = project(direction, U)
        sizes = {f"{t:g}": t / lipschitz for t in options.step_sizes} if FORMS[form].sized else {"": 1.0}
        for name, size in sizes.items():
            key = Key("change", state, form, name)
            moved = V + size * H
            values[key] = projected_rate(moved, eps) - start
            rescaled = scaled_to_unit(moved, (X + size * direction).norm(dim=-1))
            values[key._replace(quantity="change_unit")] = projected_rate(rescaled, eps) - start_unit
        if form == "exact":
            best, change = best_gradient_step(V, H, eps, lipschitz)
            values[Key("best_step", state)], values[Key("change", state, form, "best")] = best, change
    errors = approximation_errors(X, U, eps) if len(forms) == len(FORMS) else {}
    return values | {Key(name, state): error for name, error in errors.items()}


def _sparsification(
    module: Sparsification, compressed: Tensor, codes: Tensor, chosen: Tensor, options: MeasureOptions
) -> tuple[dict[Key, Tensor], bool]:
    """What the ISTA step does to its LASSO; `compressed (b, N, d)`, `codes (b, N, m)`, tokens `chosen (b, s)`."""
    ista: ISTA = module.operator
    X, A = module.norm(compressed).double(), codes.double()
    D, lam, signed = ista.effective_dictionary().double(), ista.sparsity_weight(), ista.signed
    lam = lam.double() if isinstance(lam, Tensor) else lam
    given = ista.start(X)
    start = torch.zeros_like(A) if given is None else given
    allowed = start if signed else start.clamp_min(0)
    at_start, at_allowed, after = (lasso_objective(code, X, D, lam) for code in (start, allowed, A))
    values = {
        "lasso_start": at_start,
        "lasso_allowed": at_allowed,
        "lasso_after": after,
        "lasso_change": after - at_start,
        "lasso_change_allowed": after - at_allowed,
        "code_rate": coding_rate(A, options.eps),
        "decoded_rate": coding_rate(A @ D.mT, options.eps),
        "input_rate": coding_rate(X, options.eps),
    }
    converged = True
    if (torch.as_tensor(lam) > 0).all():
        rows = chosen.to(X.device).unsqueeze(-1)
        some, code = X.take_along_dim(rows, 1), A.take_along_dim(rows, 1)
        best = fista(some, D, lam, signed=signed, tol=options.solver_tolerance, max_steps=options.solver_steps)
        converged = best.converged
        optimum = best.objective.sum(-1)
        values |= {
            "lasso_gap": token_objective(code, some, D, lam).sum(-1) / optimum - 1,
            "lasso_distance": relative_error(code, best.code),
            "lasso_nonzero": (code != 0).double().mean((-2, -1)),
            "lasso_nonzero_converged": (best.code != 0).double().mean((-2, -1)),
        }
    return {Key(name): value for name, value in values.items()}, converged


@torch.no_grad()
def measure_weights(compression: Compression, sparsification: Sparsification) -> dict[Key, float]:
    """What depends on U and D alone."""
    U = compression.operator.bases().detach().double()
    ista: ISTA = sparsification.operator
    D = ista.effective_dictionary().detach().double()
    joined = U.movedim(0, 1).flatten(1)
    inner = U.mT @ U
    gram = D.mT @ D if D.shape[0] >= D.shape[1] else D @ D.mT
    singular = torch.linalg.svdvals(D)
    values = {
        "coherence": coherence(U),
        "coherence_orthonormal": coherence(orthonormalize(U)),
        "basis_defect": torch.linalg.matrix_norm(inner - torch.eye(inner.shape[-1]).to(inner), 2).max().item(),
        "bases_norm_squared": torch.linalg.matrix_norm(joined, 2).square().item(),
        "step_size": float(ista.step_size(D)) * singular[0].square().item(),
        "condition": (singular[0] / singular[-1]).item(),
        "dictionary_defect": torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram), 2).item(),
    }
    return {Key(name): value for name, value in values.items()}
