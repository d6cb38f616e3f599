"""Theory against practice: what the two steps of every layer of a trained CRATE do to their own objectives.

Compression claims to step down R^c(· | U^ℓ), sparsification down a LASSO over D^ℓ. Each form that the derivation
passes through, and the step that the model takes, is applied to the same recorded state, and the change is counted.

Tokens are rows, U as learned (not made orthonormal), rates in nats per image. Equations: [N] = arXiv 2306.01129.
The derivations, and what the words "descends", "ascends" and "cannot tell" mean, are in docs/theory.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..blocks import Compression, Sparsification
from ..objective import coding_rate
from ..operators import (
    coding_rate_gradient,
    gamma,
    lasso_objective,
    mssa,
    neumann_coding_rate_gradient,
    orthonormalize,
    project,
)
from .inputs import Batch
from .lasso import fista, token_objective
from .states import LayerStep, record
from .statistics import Interval, bootstrap_mean

STEP_SIZES = (0.1, 0.5, 1.0)
"""κL of the forms that have a step size; L bounds the curvature of R^c."""

DESCENDS, ASCENDS, CANNOT_TELL = "descends", "ascends", "cannot tell"


@dataclass(frozen=True)
class Form:
    """One way to write the compression step Z → Z + Δ.

    Attributes:
        formula: Z + Δ, tokens as rows.
        words: what it is.
        sized: whether it has a step size κ.
    """

    formula: str
    words: str
    sized: bool = False


FORMS: dict[str, Form] = {
    "exact": Form("Z − κ ∇R^c", "exact gradient step", sized=True),
    "neumann": Form("Z − κγ Σ (V_k − γ V_kV_kᵀV_k) U_kᵀ", "first-order Neumann step", sized=True),
    "softmax": Form("Z − κγ Σ (V_k − γ softmax(V_kV_kᵀ)V_k) U_kᵀ", "Neumann step with a softmax", sized=True),
    "paper": Form("(1 − κγ) Z + κγ MSSA(Z)", "the paper's step", sized=True),
    "plus": Form("Z + MSSA(Z)", "skip plus MSSA, output tied to U"),
    "minus": Form("Z − MSSA(Z)", "skip minus MSSA, output tied to U"),
    "model": Form("Z + MSSA(LN Z)", "the model's own step, learned output"),
    "model_minus": Form("Z − MSSA(LN Z)", "the model's own update, sign reversed"),
}
"""Every form by its key. [N, Eq. 9, 69, 71, 76, 12 and 18, 115]"""

STATES: dict[str, str] = {
    "raw": "Z^ℓ as it is between layers",
    "layernorm": "LN(Z^ℓ), what MSSA sees",
    "unit": "LN(Z^ℓ), every token scaled to length 1, as the derivation assumes",
}
"""The states that the forms are applied to; for the last two the model's own step is taken without its LayerNorm."""


@dataclass(frozen=True)
class Quantity:
    """What one kind of row is.

    Attributes:
        words: as in a table's head.
        unit: of the value.
        judged: whether its sign says that something descends or ascends.
    """

    words: str
    unit: str
    judged: bool = False


_NATS = "nats per image"
_RATIO = "relative to the norm of what it stands for"
QUANTITIES: dict[str, Quantity] = {
    "rate": Quantity("R^c(Z | U) before the step", _NATS),
    "change": Quantity("change of R^c(· | U)", _NATS, judged=True),
    "change_unit": Quantity("change of R^c(· | U), tokens scaled to length 1 before and after", _NATS, judged=True),
    "cosine": Quantity("cosine of the update to −∇R^c", "1"),
    "best_step": Quantity("κL of the largest decrease along −∇R^c", "1"),
    "neumann_radius": Quantity("max_k γ‖V_k‖²; the Neumann series needs < 1", "1"),
    "neumann_error": Quantity("Neumann form against the exact gradient", _RATIO),
    "softmax_error": Quantity("softmax form against the Neumann form", _RATIO),
    "identity_error": Quantity("Σ Z U_k U_kᵀ against Z", _RATIO),
    "paper_error": Quantity("γ(Z − MSSA(Z)) against the exact gradient", _RATIO),
    "coherence": Quantity("max_{i≠j} ‖U_iᵀU_j‖, U as learned", "1"),
    "coherence_orthonormal": Quantity("max_{i≠j} ‖U_iᵀU_j‖, each U_k made orthonormal: cosine of an angle", "1"),
    "basis_defect": Quantity("max_k ‖U_kᵀU_k − I‖", "1"),
    "bases_norm_squared": Quantity("‖[U_1 … U_K]‖²", "1"),
    "lasso_start": Quantity("LASSO objective at the start, |a| for its negative entries", "per image"),
    "lasso_allowed": Quantity("LASSO objective at the nearest code that the problem allows", "per image"),
    "lasso_after": Quantity("LASSO objective after the layer's steps", "per image"),
    "lasso_change": Quantity("change of the LASSO objective from the start", "per image", judged=True),
    "lasso_change_allowed": Quantity(
        "change of the LASSO objective from the nearest allowed code", "per image", judged=True
    ),
    "lasso_gap": Quantity("objective above the optimum, relative to the optimum (sample of tokens)", "1"),
    "lasso_distance": Quantity("‖A − A*‖ / ‖A*‖ to the converged code (sample of tokens)", "1"),
    "lasso_nonzero": Quantity("non-zero fraction of the code (sample of tokens)", "fraction"),
    "lasso_nonzero_converged": Quantity("non-zero fraction of the converged code (sample of tokens)", "fraction"),
    "code_rate": Quantity("R(A) of the code", _NATS),
    "decoded_rate": Quantity("R(A Dᵀ) of the decoded code", _NATS),
    "input_rate": Quantity("R(X) of the ISTA step's input", _NATS),
    "step_size": Quantity("η‖D‖²; descent is guaranteed up to 1, convergence below 2", "1"),
    "condition": Quantity("condition number of D", "1"),
    "dictionary_defect": Quantity("‖DᵀD − I‖ (‖DDᵀ − I‖ when overcomplete)", "1"),
}
"""Every kind of row by its key."""


class Key(NamedTuple):
    """Which number: the quantity and, where it has them, state, form and step size (κL, or "best")."""

    quantity: str
    state: str = ""
    form: str = ""
    step: str = ""


@dataclass(frozen=True)
class TheoryReport:
    """Theory against practice for n images at L layers.

    Attributes:
        eps: ε of the rates.
        per_image: float64 `(n, L)` by key, on the CPU.
        per_layer: float64 `(L)` by key, what depends on the weights alone.
        unconverged: layers (from 1) at which the LASSO solver ran out of steps, so that its numbers are bounds.
        signed: whether the codes may be negative.
    """

    eps: float
    per_image: Mapping[Key, Tensor]
    per_layer: Mapping[Key, Tensor]
    unconverged: tuple[int, ...]
    signed: bool

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
                rows.append(self._row(layer, key, *bounds, judged, self.num_images))
            for key, values in self.per_layer.items():
                rows.append(self._row(layer, key, float(values[layer]), math.nan, math.nan, None, None))
        return rows

    def _row(self, layer: int, key: Key, mean: float, low: float, high: float, judged: str | None, n: int | None):
        return {
            "layer": layer + 1,
            **key._asdict(),
            "what": QUANTITIES[key.quantity].words,
            "formula": FORMS[key.form].formula if key.form else "",
            "unit": QUANTITIES[key.quantity].unit,
            "mean": None if math.isnan(mean) else mean,
            "low": None if math.isnan(low) else low,
            "high": None if math.isnan(high) else high,
            "verdict": judged,
            "num_images": n,
            "eps": self.eps,
        }


def verdict(low: float, high: float) -> str:
    """What a 95 % interval of a change allows to be said: all below 0, all above 0, or neither (NaN included)."""
    if high < 0:
        return DESCENDS
    return ASCENDS if low > 0 else CANNOT_TELL


# --- The compression step in its forms ----------------------------------------------------------------------------


def gradient_lipschitz(U: Tensor, num_tokens: int, eps: float) -> float:
    """L = γ ‖[U_1 … U_K]‖²: ∇R^c is L-Lipschitz, so that a gradient step with 0 < κ < 2/L lowers R^c.

    Proved in docs/theory.md. `U (K, d, p)`; γ = p/(Nε²). [N, Eq. 8]
    """
    joined = U.movedim(0, 1).flatten(1)
    return gamma(num_tokens, U.shape[-1], eps) * torch.linalg.matrix_norm(joined.double(), 2).square().item()


def step_directions(X: Tensor, U: Tensor, eps: float) -> dict[str, Tensor]:
    """Δ/κ of the sized forms and Δ of "plus" and "minus", from the operators. [N, Eq. 9, 69, 71, 76, 12]

    The factor γ of a tied MSSA and the softmax without 1/√p are the paper's.

    Args:
        X: tokens `(..., N, d)`.
        U: bases `(K, d, p)`.
        eps: ε > 0.

    Returns:
        Six updates `(..., N, d)` by the keys of `FORMS`.
    """
    g = gamma(X.shape[-2], U.shape[-1], eps)
    attention = mssa(X, U, scale=1.0, factor=g)
    return {
        "exact": -coding_rate_gradient(X, U, eps),
        "neumann": -neumann_coding_rate_gradient(X, U, eps),
        "softmax": g * (attention - _reprojected(X, U)),
        "paper": g * (attention - X),
        "plus": attention,
        "minus": -attention,
    }


def approximation_errors(X: Tensor, U: Tensor, eps: float) -> dict[str, Tensor]:
    """Relative error of each approximation between ∇R^c and the paper's step, `(...)` each. [N, Eq. 66 to 76]

    Arguments as :func:`step_directions`; keys are those of `QUANTITIES`.
    """
    found, g = step_directions(X, U, eps), gamma(X.shape[-2], U.shape[-1], eps)
    radius = g * torch.linalg.matrix_norm(project(X, U), 2).square().amax(-1)
    return {
        "neumann_radius": radius,
        "neumann_error": _relative(found["neumann"], found["exact"]),
        "softmax_error": _relative(found["softmax"], found["neumann"]),
        "identity_error": _relative(_reprojected(X, U), X),
        "paper_error": _relative(found["paper"], found["exact"]),
    }


def coherence(U: Tensor) -> float:
    """max_{i≠j} ‖U_iᵀU_j‖, the cosine of the smallest angle when every U_k is orthonormal; 0 for one subspace."""
    if len(U) == 1:
        return 0.0
    first, second = torch.triu_indices(len(U), len(U), 1)
    return torch.linalg.matrix_norm(U[first].mT @ U[second], 2).max().item()


def best_gradient_step(V: Tensor, H: Tensor, eps: float, lipschitz: float) -> tuple[Tensor, Tensor]:
    """κL and change of R^c of the best step along a direction, by two rounds of a grid.

    Args:
        V: projected tokens `(..., K, N, p)`.
        H: projected direction, same shape.
        eps: ε > 0.
        lipschitz: L, the unit of the step size.

    Returns:
        κL and the change in nats, each `(...)`; κL between 0.01 and 1000.
    """
    grid = torch.logspace(-2, 3, 21, dtype=V.dtype, device=V.device)
    start = _rate(V, eps)

    def changes(sizes: Tensor) -> Tensor:
        """Changes for step sizes `(S, ...)`, one size at a time."""
        return torch.stack([_rate(V + size[..., None, None, None] / lipschitz * H, eps) - start for size in sizes])

    coarse = grid.reshape(-1, *(1,) * start.ndim).expand(-1, *start.shape)
    centre = coarse.gather(0, changes(coarse).argmin(0, keepdim=True))
    fine = centre * torch.logspace(-0.25, 0.25, 11, dtype=V.dtype, device=V.device).reshape(-1, *(1,) * start.ndim)
    found = changes(fine).min(0)
    return fine.gather(0, found.indices[None])[0], found.values


# --- Over the layers of a model ---------------------------------------------------------------------------------------


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
) -> TheoryReport:
    """Apply every form of both steps to every layer's recorded state and count what it does, in float64.

    Args:
        model: a CRATE model, with or without a head.
        batches: as :func:`opencrate.analysis.states.record` takes them; without padding.
        eps: ε of the coding rates, > 0.
        num_images: use this many images; `None` uses all.
        step_sizes: κL of the forms with a step size, each > 0.
        tokens_per_image: tokens, drawn anew for every image, whose LASSO is solved to convergence.
        solver_tolerance: duality gap at which that counts as solved, relative to ½‖x‖².
        solver_steps: steps after which it is given up.
        chunk_images: images worked on at a time; bounds the memory.
        seed: of the drawn tokens.

    Raises:
        ValueError: ε, a step size or another number out of range; a model whose layers are not CRATE's; padded
            inputs; a state that is not finite (names its layer); what `record` raises.
    """
    steps = tuple(float(step) for step in step_sizes)
    _check_positive(eps=eps, tokens_per_image=tokens_per_image, solver_steps=solver_steps, chunk_images=chunk_images)
    for step in steps:
        _check_positive(step_sizes=step)
    layers = _layers(model)
    draw = random.Random(seed)
    options = _Options(eps, steps, solver_tolerance, solver_steps)
    parts: list[dict[Key, Tensor]] = []
    unconverged: set[int] = set()
    for states in record(model, batches, num_images=num_images):
        recorded = list(states.steps())
        _check_steps(recorded, len(layers))
        num_tokens = recorded[0].before.shape[1]
        chosen = [[draw.randrange(num_tokens) for _ in range(tokens_per_image)] for _ in range(states.num_images)]
        for start in range(0, states.num_images, chunk_images):
            images = slice(start, start + chunk_images)
            found = []
            for number, (layer, step) in enumerate(zip(layers, recorded), start=1):
                values, converged = _measure(layer, step, images, torch.tensor(chosen[images]), options)
                found.append(values)
                unconverged |= set() if converged else {number}
            parts.append({key: torch.stack([values[key] for values in found], dim=1) for key in found[0]})
    per_layer = [_of_weights(*layer) for layer in layers]
    return TheoryReport(
        eps=float(eps),
        per_image={key: torch.cat([part[key] for part in parts]) for key in parts[0]},
        per_layer={key: torch.tensor([one[key] for one in per_layer], dtype=torch.float64) for key in per_layer[0]},
        unconverged=tuple(sorted(unconverged)),
        signed=layers[0][1].ista.config.ista_threshold == "soft",
    )


class _Options(NamedTuple):
    eps: float
    step_sizes: tuple[float, ...]
    solver_tolerance: float
    solver_steps: int


_Layer = tuple[Compression, Sparsification]


def _layers(model: nn.Module) -> list[_Layer]:
    """The two steps of every layer, which must be MSSA and ISTA."""
    compressions = [module for module in model.modules() if isinstance(module, Compression)]
    sparsifications = [module for module in model.modules() if isinstance(module, Sparsification)]
    crate = all(hasattr(module, "mssa") for module in compressions)
    crate &= all(hasattr(module, "ista") for module in sparsifications)
    if not compressions or not crate:
        raise ValueError(
            f"model={type(model).__name__}: its layers are not MSSA and ISTA steps, and the theory is about no other; "
            "pass a CRATE model without replaced parts"
        )
    return list(zip(compressions, sparsifications, strict=True))


def _check_steps(steps: list[LayerStep], num_layers: int) -> None:
    """The recorded steps are those of the CRATE layers, unpadded and finite."""
    assert len(steps) == num_layers
    mask = steps[0].mask
    if mask is not None and not mask.all():
        raise ValueError("batches: some inputs are padded; the theory check needs inputs of one length, unpadded")
    for layer, step in enumerate(steps, start=1):
        for name in ("before", "compressed", "after"):
            if not torch.isfinite(getattr(step, name)).all():
                raise ValueError(
                    f"layer {layer}: the state '{name}' holds NaN or infinite values; "
                    "the model's weights or its input are damaged, or training diverged"
                )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: must be a finite number > 0")


@torch.no_grad()
def _measure(
    layer: _Layer, step: LayerStep, images: slice, chosen: Tensor, options: _Options
) -> tuple[dict[Key, Tensor], bool]:
    """All per-image numbers of one layer for some images, each float64 `(b)` on the CPU, and whether all converged."""
    compression, sparsification = layer
    before, compressed = step.before[images], step.compressed[images]
    normed = compression.norm(before)
    unit = normalize(normed, dim=-1)
    with _bypassed(compression.norm):
        own = {
            "raw": compressed - before,
            "layernorm": compression(normed) - normed,
            "unit": compression(unit) - unit,
        }
    values: dict[Key, Tensor] = {}
    for state, tokens in (("raw", before), ("layernorm", normed), ("unit", unit)):
        values |= _compression(state, tokens.double(), own[state].double(), step.subspaces.double(), options)
    found, converged = _sparsification(sparsification, compressed, step.codes[images], chosen, options)
    return {key: value.cpu() for key, value in (values | found).items()}, converged


@contextmanager
def _bypassed(norm: nn.Module) -> Iterator[None]:
    """The module hands its input through, for tokens that are normalised already."""
    handle = norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        yield
    finally:
        handle.remove()


def _compression(state: str, X: Tensor, own: Tensor, U: Tensor, options: _Options) -> dict[Key, Tensor]:
    """What every form does to R^c from one state; `X` and `own` `(b, N, d)`, `U (K, d, p)`, float64."""
    eps = options.eps
    lipschitz = gradient_lipschitz(U, X.shape[-2], eps)
    directions = {**step_directions(X, U, eps), "model": own, "model_minus": -own}
    V, length = project(X, U), X.norm(dim=-1)
    start, start_unit = _rate(V, eps), _rate(_scaled(V, length), eps)
    values = {Key("rate", state): start}
    descent = directions["exact"]
    for form, direction in directions.items():
        values[Key("cosine", state, form)] = _cosine(direction, descent)
        H = project(direction, U)
        sizes = {f"{t:g}": t / lipschitz for t in options.step_sizes} if FORMS[form].sized else {"": 1.0}
        for name, size in sizes.items():
            key = Key("change", state, form, name)
            moved = V + size * H
            values[key] = _rate(moved, eps) - start
            rescaled = _scaled(moved, (X + size * direction).norm(dim=-1))
            values[key._replace(quantity="change_unit")] = _rate(rescaled, eps) - start_unit
        if form == "exact":
            best, change = best_gradient_step(V, H, eps, lipschitz)
            values[Key("best_step", state)], values[Key("change", state, form, "best")] = best, change
    errors = approximation_errors(X, U, eps)
    return values | {Key(name, state): error for name, error in errors.items()}


def _sparsification(
    module: Sparsification, compressed: Tensor, codes: Tensor, chosen: Tensor, options: _Options
) -> tuple[dict[Key, Tensor], bool]:
    """What the ISTA step does to its LASSO; `compressed (b, N, d)`, `codes (b, N, m)`, tokens `chosen (b, s)`."""
    block, config = module.ista, module.ista.config
    X, A = module.norm(compressed).double(), codes.double()
    D, lam, signed = block.effective_dictionary().double(), config.ista_lambda, config.ista_threshold == "soft"
    start = X if config.ista_start == "input" else torch.zeros_like(A)
    allowed = start if signed else start.clamp_min(0)
    at = {name: lasso_objective(code, X, D, lam) for name, code in (("start", start), ("allowed", allowed))}
    after = lasso_objective(A, X, D, lam)
    values = {f"lasso_{name}": value for name, value in at.items()}
    values |= {"lasso_after": after, "lasso_change": after - at["start"], "lasso_change_allowed": after - at["allowed"]}
    values |= {
        "code_rate": coding_rate(A, options.eps),
        "decoded_rate": coding_rate(A @ D.mT, options.eps),
        "input_rate": coding_rate(X, options.eps),
    }
    converged = True
    if lam > 0:
        rows = chosen.to(X.device).unsqueeze(-1)
        some, code = X.take_along_dim(rows, 1), A.take_along_dim(rows, 1)
        best = fista(some, D, lam, signed=signed, tol=options.solver_tolerance, max_steps=options.solver_steps)
        converged = best.converged
        optimum = best.objective.sum(-1)
        values |= {
            "lasso_gap": token_objective(code, some, D, lam).sum(-1) / optimum - 1,
            "lasso_distance": _relative(code, best.code),
            "lasso_nonzero": (code != 0).double().mean((-2, -1)),
            "lasso_nonzero_converged": (best.code != 0).double().mean((-2, -1)),
        }
    return {Key(name): value for name, value in values.items()}, converged


def _of_weights(compression: Compression, sparsification: Sparsification) -> dict[Key, float]:
    """What depends on U and D alone."""
    U = compression.mssa.bases().detach().double()
    D = sparsification.ista.effective_dictionary().detach().double()
    joined = U.movedim(0, 1).flatten(1)
    inner = U.mT @ U
    gram = D.mT @ D if D.shape[0] >= D.shape[1] else D @ D.mT
    singular = torch.linalg.svdvals(D)
    values = {
        "coherence": coherence(U),
        "coherence_orthonormal": coherence(orthonormalize(U)),
        "basis_defect": torch.linalg.matrix_norm(inner - torch.eye(inner.shape[-1]).to(inner), 2).max().item(),
        "bases_norm_squared": torch.linalg.matrix_norm(joined, 2).square().item(),
        "step_size": sparsification.ista.config.ista_step_size * singular[0].square().item(),
        "condition": (singular[0] / singular[-1]).item(),
        "dictionary_defect": torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram), 2).item(),
    }
    return {Key(name): value for name, value in values.items()}


def _rate(V: Tensor, eps: float) -> Tensor:
    """R^c from projected tokens `(..., K, N, p)`."""
    return coding_rate(V, eps).sum(-1)


def _scaled(V: Tensor, length: Tensor) -> Tensor:
    """Projected tokens `(..., K, N, p)` of tokens that are scaled from `length (..., N)` to 1."""
    return V / length.clamp_min(torch.finfo(V.dtype).tiny)[..., None, :, None]


def _reprojected(X: Tensor, U: Tensor) -> Tensor:
    """Σ_k X U_k U_kᵀ, `(..., N, d)`."""
    return (project(X, U) @ U.mT).sum(-3)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last two axes; NaN where one is zero."""
    return (a * b).sum((-2, -1)) / (a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1)))


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ / ‖b‖ over the last two axes."""
    return (a - b).norm(dim=(-2, -1)) / b.norm(dim=(-2, -1))
