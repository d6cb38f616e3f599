"""One batch of recorded states, measured: what `rates` and `whitebox` add up over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...objective import coding_rate, sparsity
from ..maths.spectra import effective_rank, squared_singular_values, stable_rank
from ..record.states import LayerStates, LayerStep, require_finite
from .registry import MAIN_STATE, MEASURES, RELEASED, RELEASED_EPS_SQUARED, SETS, SPARSITY, STATES, measure_key
from .threads import single_threaded


def released_coding_rate(projected: Tensor, eps_squared: float = RELEASED_EPS_SQUARED) -> Tensor:
    """What the published measuring code calls the coding rate, of `(B, K, N, p)`: `(B)`, nats per image.

    Σ_k ½ logdet(I + p/(N ε²) V_kᵀ V_k) with every token of V_k = U_kᵀ LN(Z) scaled to length 1.
    """
    return coding_rate(normalize(projected, dim=-1), eps_squared**0.5).sum(-1)


EACH = "each subspace: "


@dataclass(frozen=True)
class Plan:
    """What is to be measured, checked; made by `plan_measures`."""

    keys: frozenset[str]
    eps: float
    lam: float
    norm: str
    tol: float
    each_subspace: bool
    codes_by_name: bool
    decoded: bool = False
    """The non-zero fraction of codes that are decoded is measured: they, and not the tokens, are to be sparse."""

    def wants(self, quantity: str, *states: str) -> bool:
        """Whether a quantity is requested at one of the states."""
        return any(measure_key(quantity, state) in self.keys for state in states)

    def wants_any(self, *quantities: str, at: Sequence[str]) -> bool:
        """Whether one of several quantities is requested at one of the states."""
        return any(self.wants(quantity, *at) for quantity in quantities)


def plan_measures(
    measures: str | Sequence[str], eps: float, lam: float, norm: str, tol: float, released_tool: bool
) -> Plan:
    """What `measure_states` is to measure; arguments and errors are those of `layer_measures`."""
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    unknown = [name for name in names if name not in SETS and name not in MEASURES]
    if unknown or not names:
        got = f"'{unknown[0]}'" if unknown else "nothing"
        raise ValueError(f"measures: {got}; choose {', '.join(SETS)}, or keys such as rate, subspace_rate_before, gini")
    if norm not in ("l0", "l1"):
        raise ValueError(f"norm='{norm}': must be l0 or l1")
    for name, value in (("lam", lam), ("tol", tol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be a finite number >= 0")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={eps}: must be a number > 0 (the distortion itself, not its square); reports use 0.5")
    keys = {key for name in names for key in SETS.get(name, (name,))} | set(RELEASED if released_tool else ())
    if keys == {"dead_atoms"}:
        keys.add("code_nonzero_fraction")  # something per image, so that it is known how many there were
    by_name = any(name in MEASURES and MEASURES[name].state == "code" for name in names)
    return Plan(frozenset(keys), eps, lam, norm, tol, "full" in names, by_name, "basic" in names)


def measure_states(states: LayerStates, plan: Plan) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """Measure one batch of recorded states: float64 `(B, L)` on the CPU by key (`(B, L, K)` for single subspaces).

    Also which atoms `(m)` of each layer fired in the batch, `None` if not requested or not readable.
    """
    values: dict[str, Tensor] = {}
    fired: list[Tensor] | None = None
    for rows, steps in _without_padding(states):
        measured, now = _measure_in_threads(steps, plan)
        fired = now if fired is None or now is None else [old | new for old, new in zip(fired, now)]
        for key, found in measured.items():
            values.setdefault(key, found.new_empty(states.num_inputs, *found.shape[1:]))[rows.cpu()] = found
    return values, fired


def _without_padding(states: LayerStates) -> Iterator[tuple[Tensor, tuple[LayerStep, ...]]]:
    """Groups of images with equally many real tokens: their rows in the batch, and their steps without the others."""
    steps = tuple(states.steps())
    if states.mask is None:
        yield torch.arange(states.num_inputs), steps
        return
    lengths = states.mask.sum(1)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        yield rows, _of_each_state(steps, partial(_real_tokens, rows=rows, real=states.mask[rows]))


def _real_tokens(Z: Tensor, rows: Tensor, real: Tensor) -> Tensor:
    """Some images of Z `(B, N, d)`, all with equally many real tokens, without the padding."""
    return Z[rows][real].unflatten(0, (len(rows), -1))


def _of_each_state(steps: Sequence[LayerStep], function: Callable[[Tensor], Tensor]) -> tuple[LayerStep, ...]:
    """The steps with a function of every tensor `(B, N, ...)` in its place; a state of two layers stays one tensor."""
    shared: dict[int, Tensor] = {}

    def once(Z: Tensor) -> Tensor:
        if id(Z) not in shared:
            shared[id(Z)] = function(Z)
        return shared[id(Z)]

    return tuple(
        replace(
            step,
            before=once(step.before),
            compressed=once(step.compressed),
            after=once(step.after),
            codes=None if step.codes is None else once(step.codes),
            projected=None if step.projected is None else function(step.projected.transpose(1, 2)).transpose(1, 2),
            mask=None,
        )
        for step in steps
    )


def _measure_in_threads(steps: Sequence[LayerStep], plan: Plan) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """As `_measure_layers`, stacked to `(B, L)`, the images shared out to torch's threads on a CPU.

    LAPACK factorises small matrices one after another, and with several threads at one of them more slowly than with
    one; so each thread measures images of its own.
    """
    count, threads = steps[0].before.shape[0], torch.get_num_threads()
    shares = [slice(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
    shares = [share for share in shares if share.stop > share.start]
    if steps[0].before.is_cuda or len(shares) < 2:
        found = [_measure_layers(steps, plan)]
    else:
        parts = [_of_each_state(steps, itemgetter(share)) for share in shares]
        found = list(single_threaded(threads).map(partial(_measure_layers, plan=plan), parts))
    values = [{key: torch.stack([layer[key] for layer in layers], dim=1) for key in layers[0]} for layers, _ in found]
    fired = [now for _, now in found]
    whole = {key: torch.cat([part[key] for part in values]).double().cpu() for key in values[0]}
    return whole, None if None in fired else [torch.stack(atoms).any(0) for atoms in zip(*fired)]


@torch.no_grad()
def _measure_layers(steps: Sequence[LayerStep], plan: Plan) -> tuple[list[dict[str, Tensor]], list[Tensor] | None]:
    """Every layer's values, and which of its atoms fired; what needs no subspaces is computed once per state."""
    layers, fired = [], []
    last, last_alone = None, {}
    for step in steps:
        alone = {
            "before": last_alone if step.before is last else _alone(step, "before", plan),
            "compressed": _alone(step, "compressed", plan),
            "after": _alone(step, "after", plan),
        }
        last, last_alone = step.after, alone["after"]
        layers.append(_combine(step, alone, plan))
        if step.codes is not None and "dead_atoms" in plan.keys:
            fired.append((step.codes.abs().amax((0, 1)) > plan.tol).cpu())
    return layers, fired if len(fired) == len(steps) else None


def _alone(step: LayerStep, state: str, plan: Plan) -> dict[str, Tensor]:
    """What a state's tokens say without the subspaces, by quantity, each `(B)`.

    The end of a layer is the start of the next: what is requested at either is computed for both.
    """
    Z = getattr(step, state)
    states = (state,) if state == "compressed" else ("before", "after")
    values = _sparsity(Z, plan, lambda quantity: plan.wants(quantity, *states))
    if not values["l1"].isfinite().all():  # which may also be a sum too large
        require_finite(Z, f"layer {step.layer}: the state '{state}' holds")
    if plan.wants_any("rate", "rate_reduction", "sparse_rate_reduction", at=states):
        values["rate"] = coding_rate(Z, plan.eps).double()
    if plan.wants_any("effective_rank", "stable_rank", at=states):
        squared = squared_singular_values(Z)
        values["effective_rank"], values["stable_rank"] = effective_rank(squared), stable_rank(squared)
    return values


def _sparsity(Z: Tensor, plan: Plan, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The sparsity of states or codes `(B, N, m)`: l1 always (it tells whether all is finite), the others if wanted."""
    l1 = sparsity(Z, "l1").double()
    values = {"l1": l1, "l1_per_token": l1 / Z.shape[-2]}
    if wanted("nonzero_fraction") or wanted("sparse_rate_reduction"):
        values["nonzero_fraction"] = sparsity(Z, "l0", plan.tol).double()
        values["l0"] = values["nonzero_fraction"] * (Z.shape[-2] * Z.shape[-1])
    values |= {quantity: sparsity(Z, quantity) for quantity in ("gini", "hoyer") if wanted(quantity)}
    return values


def _combine(step: LayerStep, alone: dict[str, dict[str, Tensor]], plan: Plan) -> dict[str, Tensor]:
    """All values of one layer, by key, each `(B)` (`(B, K)` for the subspaces one by one)."""
    values: dict[str, Tensor] = {}
    for state in STATES:
        here = alone[state] | _against_subspaces(step, state, plan)
        if "rate" in here and "subspace_rate" in here:
            here["rate_reduction"] = here["rate"] - here["subspace_rate"]
        if plan.wants("sparse_rate_reduction", state):
            here["sparse_rate_reduction"] = here["rate_reduction"] - plan.lam * here[plan.norm]
        values |= {measure_key(q, state): here[q] for q in MAIN_STATE if plan.wants(q, state)}
        values |= {key: here[key] for key in here if key == "subspace_rate_unit_norm" or key.startswith(EACH)}
    values |= _code_values(step, alone["after"], plan)
    if "released_subspace_rate" in plan.keys:
        assert step.projected is not None
        values["released_subspace_rate"] = released_coding_rate(step.projected)
    if "released_zero_fraction" in plan.keys:
        values["released_zero_fraction"] = 1 - sparsity(step.after, "l0").double()
    return values


def _against_subspaces(step: LayerStep, state: str, plan: Plan) -> dict[str, Tensor]:
    """R^c of a state against the layer's subspaces, and on unit-norm tokens from the same projection."""
    unit_norm = state == "compressed" and "subspace_rate_unit_norm" in plan.keys
    total = plan.wants_any("subspace_rate", "rate_reduction", "sparse_rate_reduction", at=(state,))
    if not total and not unit_norm:
        return {}
    Z, values = getattr(step, state), {}
    dtype = torch.promote_types(Z.dtype, torch.float32)
    V = torch.einsum("bnd,kdp->bknp", Z.to(dtype), step.subspaces.to(dtype))
    if total:
        each = coding_rate(V, plan.eps).double()
        values["subspace_rate"] = each.sum(-1)
        if plan.each_subspace:
            values[EACH + measure_key("subspace_rate", state)] = each
    if unit_norm:
        lengths = torch.linalg.vector_norm(Z, dim=-1, dtype=V.dtype).clamp_min(torch.finfo(V.dtype).tiny)
        values["subspace_rate_unit_norm"] = coding_rate(V / lengths[:, None, :, None], plan.eps).double().sum(-1)
    return values


def _code_values(step: LayerStep, after: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The sparsity of the layer's code; a complete dictionary's code is Z^{ℓ+1}, measured already."""
    wanted = [quantity for quantity in SPARSITY if f"code_{quantity}" in plan.keys]
    if plan.decoded and step.decoded and "nonzero_fraction" not in wanted:
        wanted.append("nonzero_fraction")
    if step.codes is None:
        if plan.codes_by_name:
            raise ValueError(
                f"measures: layer {step.layer} has no code that can be read; leave out code_... and dead_atoms, or "
                "pass hooks that name the MLP's activation"
            )
        return {}
    if not wanted and "dead_atoms" not in plan.keys:
        return {}
    known = step.codes is step.after and after.keys() >= set(wanted)
    values = after if known else _sparsity(step.codes, plan, wanted.__contains__)
    if not values["l1"].isfinite().all():
        require_finite(step.codes, f"layer {step.layer}: the state 'codes' holds")
    return {f"code_{quantity}": values[quantity] for quantity in wanted}
