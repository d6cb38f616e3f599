"""The objective, layer by layer: coding rates, sparsity and ranks of a model's states at every half-step, per input.

A layer has three states: before, Z^ℓ; compressed, Z^{ℓ+½}; after, Z^{ℓ+1}. All three are measured against the layer's
own subspaces U^ℓ, as they are. Tokens are taken raw (no LayerNorm), class token included, padding left out; the rows
that differ say so. `docs/measures.md` says what each measure can and cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..objective import coding_rate, sparsity
from .foreign import BlockHooks
from .inputs import Batch
from .states import LayerStates, LayerStep, record
from .statistics import Interval, bootstrap_mean

if TYPE_CHECKING:
    import pandas

RELEASED_EPS_SQUARED = 0.01
"""The `eps` of the published measuring code; it enters unsquared, so it stands for our ε²."""

STATES = {"before": "Z^ℓ", "compressed": "Z^{ℓ+½}", "after": "Z^{ℓ+1}"}
"""The states of a layer and their symbols."""


@dataclass(frozen=True)
class Measure:
    """What one row of a layer table is.

    Attributes:
        symbol: as in the paper; `^` raises one character or a `{group}`, `_` lowers.
        unit: of the value.
        tokens: which tokens it is taken on, and how they are scaled.
        words: what sets it apart from another measure of the same symbol.
        population_std: spread over images divides by n instead of n - 1 (the published code, for sparsity).
        quantity: what is measured, whatever the state.
        state: of the layer, a key of `STATES`; "code" for the sparse code.
    """

    symbol: str
    unit: str
    tokens: str
    words: str = ""
    population_std: bool = False
    quantity: str = ""
    state: str = ""

    @property
    def title(self) -> str:
        """Symbol and words."""
        return f"{self.symbol}, {self.words}" if self.words else self.symbol


_RAW = "all tokens, class token included, no LayerNorm"
_COUNT = _RAW + "; entries exactly zero count as zero"
_CODE = "the sparse code of all tokens"
_NATS = "nats per image"
_SPARSITY = {
    "nonzero_fraction": ("‖{Z}‖_0 / (d N)", "fraction non-zero", ""),
    "l1_per_token": ("‖{Z}‖_1 / N", "per token", ""),
    "gini": ("Gini({Z})", "0 uniform, 1 sparse", ""),
    "hoyer": ("Hoyer({Z})", "0 uniform, 1 sparse", ""),
}
_RANKS = {
    "effective_rank": ("erank({Z})", "dimensions", "exp of the entropy of the singular values"),
    "stable_rank": ("‖{Z}‖_F^2 / ‖{Z}‖_2^2", "dimensions", "stable rank"),
}
_RATES = {
    "rate": ("R({Z})", _NATS, ""),
    "subspace_rate": ("R^c({Z} | U^ℓ)", _NATS, ""),
    "rate_reduction": ("ΔR({Z} | U^ℓ)", _NATS, ""),
    "sparse_rate_reduction": ("ΔR({Z} | U^ℓ) − λ‖{Z}‖", _NATS, "sparse rate reduction"),
}
_MAIN_STATE = dict.fromkeys((*_RATES, *_RANKS), "compressed") | dict.fromkeys(_SPARSITY, "after")


def measure_key(quantity: str, state: str) -> str:
    """The key in `MEASURES` of a quantity at a state: rates and ranks of Z^{ℓ+½} and sparsity of Z^{ℓ+1} have the bare
    name, the others end in the state ("rate_before")."""
    return quantity if _MAIN_STATE[quantity] == state else f"{quantity}_{state}"


def _all_measures() -> dict[str, Measure]:
    found = {}
    for quantity, (symbol, unit, words) in (_RATES | _SPARSITY | _RANKS).items():
        tokens = _COUNT if quantity == "nonzero_fraction" else _RAW
        for state, name in STATES.items():
            one = Measure(symbol.replace("{Z}", name), unit, tokens, words, quantity=quantity, state=state)
            found[measure_key(quantity, state)] = one
    found["rate_reduction"] = replace(found["rate_reduction"], symbol="ΔR = R − R^c")
    found["subspace_rate_unit_norm"] = Measure(
        "R^c(Z^{ℓ+½} | U^ℓ)",
        _NATS,
        "all tokens, class token included, each scaled to length 1",
        words="unit-norm tokens",
        quantity="subspace_rate_unit_norm",
        state="compressed",
    )
    for quantity, (symbol, unit, _) in _SPARSITY.items():
        text = symbol.replace("{Z}", "A^ℓ").replace("d N", "m N")
        found[f"code_{quantity}"] = Measure(text, unit, _CODE, quantity=quantity, state="code")
    found["dead_atoms"] = Measure(
        "atoms that never fire", "fraction of m", f"{_CODE} of all images together", quantity="dead_atoms", state="code"
    )
    found["released_subspace_rate"] = Measure(
        "R^c(LN(Z^ℓ) | U^ℓ)",
        _NATS,
        "all tokens, projected after LayerNorm, each scaled to length 1 per head (the tool's eps is ε²)",
        words="released tool",
        quantity="released_subspace_rate",
        state="before",
    )
    found["released_zero_fraction"] = Measure(
        "1 − ‖Z^{ℓ+1}‖_0 / (d N)",
        "fraction exactly zero",
        _COUNT,
        words="released tool",
        population_std=True,
        quantity="released_zero_fraction",
        state="after",
    )
    return found


MEASURES: dict[str, Measure] = _all_measures()
"""Every measure by its key, in the order of the tables."""

_RELEASED = ("released_subspace_rate", "released_zero_fraction")
SETS: dict[str, tuple[str, ...]] = {
    "basic": (
        *("rate_before", "rate", "rate_after"),
        *("subspace_rate_before", "subspace_rate", "subspace_rate_unit_norm"),
        *("rate_reduction_before", "rate_reduction"),
        *("nonzero_fraction_before", "nonzero_fraction_compressed", "nonzero_fraction"),
        *("l1_per_token_before", "l1_per_token_compressed", "l1_per_token"),
    ),
    "full": tuple(key for key in MEASURES if key not in _RELEASED),
}
"""Named sets. "basic": R, R^c, ΔR, ℓ0 and ℓ1 at every half-step, and R^c on unit-norm tokens; R^c of Z^{ℓ+1} stands in
it as the next layer's Z^ℓ, under that layer's U. "full": everything but the released tool's rows."""


@dataclass(frozen=True)
class LayerMeasures:
    """Measures of n images (or texts) at L layers.

    Attributes:
        eps: ε of all rates but the released tool's.
        values: by key of `MEASURES`: float64 `(n, L)` on the CPU.
        layers: the numbers of the measured layers, from 1; empty stands for 1 to L.
        totals: what is taken over all images together, by key: float64 `(L)`.
        subspace_values: R^c of each subspace, by key: float64 `(n, L, K)`; empty where not asked for.
        lam: λ of the sparse rate reduction, nats per non-zero entry (or per unit of absolute value).
        norm: its sparsity term, "l0" or "l1".
    """

    eps: float
    values: dict[str, Tensor]
    layers: tuple[int, ...] = ()
    totals: dict[str, Tensor] = field(default_factory=dict)
    subspace_values: dict[str, Tensor] = field(default_factory=dict)
    lam: float = 0.1
    norm: str = "l0"

    @property
    def num_images(self) -> int:
        """n, the images measured."""
        return next(iter(self.values.values())).shape[0]

    @property
    def num_layers(self) -> int:
        """L, the layers measured."""
        return next(iter(self.values.values())).shape[1]

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The numbers of the measured layers, from 1."""
        return self.layers or tuple(range(1, self.num_layers + 1))

    def mean(self, key: str) -> Tensor:
        """Mean over images (or the total, where that is what the measure is), float64 `(L)`."""
        return self.totals[key] if key in self.totals else self.values[key].mean(0)

    def std(self, key: str) -> Tensor:
        """Standard deviation over images, float64 `(L)`; NaN for one image unless it divides by n."""
        if MEASURES[key].population_std:
            return self.values[key].std(0, correction=0)
        if key in self.totals or self.num_images == 1:
            return torch.full((self.num_layers,), math.nan, dtype=torch.float64)
        return self.values[key].std(0)

    def interval(self, key: str, level: float = 0.95) -> Interval:
        """Mean over images with its bootstrap interval, `(L)`; the same draws for every measure."""
        return bootstrap_mean(self.values[key], level)

    def to_rows(self) -> list[dict[str, object]]:
        """One dict per measure and layer; a spread or bound that is undefined is `None`.

        "low" and "high" bound the mean over images with 95 % confidence (bootstrap).
        """
        columns = {key: (found.mean, self.std(key), found.low, found.high) for key, found in self._intervals().items()}
        unknown = torch.full((self.num_layers,), math.nan)
        columns |= {key: (total, unknown, unknown, unknown) for key, total in self.totals.items()}
        return [
            {"layer": layer, **self._row(key, *numbers)}
            for key, column in columns.items()
            for layer, *numbers in zip(self.layer_numbers, *(part.tolist() for part in column))
        ]

    def subspace_rows(self) -> list[dict[str, object]]:
        """One dict per measure, layer and subspace (from 1): R^c of that subspace alone."""
        rows = []
        for key, values in self.subspace_values.items():
            found = bootstrap_mean(values)
            parts = torch.stack([found.mean, found.std, found.low, found.high], dim=-1).tolist()
            for layer, subspaces in zip(self.layer_numbers, parts):
                for subspace, numbers in enumerate(subspaces, start=1):
                    rows.append({"layer": layer, "subspace": subspace, **self._row(key, *numbers)})
        return rows

    def to_frame(self) -> pandas.DataFrame:
        """The rows of `to_rows` as a data frame."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def _intervals(self) -> dict[str, Interval]:
        """The interval of every measure, from one set of draws."""
        found = bootstrap_mean(torch.stack(list(self.values.values()), dim=1))
        return {key: found[index] for index, key in enumerate(self.values)}

    def _row(self, key: str, mean: float, std: float, low: float, high: float) -> dict[str, object]:
        measure = MEASURES[key]
        return {
            "measure": key,
            "quantity": measure.title,
            "unit": measure.unit,
            "mean": mean,
            "std": None if math.isnan(std) else std,
            "low": None if math.isnan(low) else low,
            "high": None if math.isnan(high) else high,
            "num_images": self.num_images,
            "eps": self.eps_of(key),
            "lam": self.lam if measure.quantity == "sparse_rate_reduction" else None,
            "tokens": measure.tokens,
        }

    def eps_of(self, key: str) -> float | None:
        """ε of a rate, `None` for what has none."""
        if MEASURES[key].unit != _NATS:
            return None
        return RELEASED_EPS_SQUARED**0.5 if key == "released_subspace_rate" else self.eps

    def to_dict(self) -> dict[str, object]:
        """The per-image values as plain lists, for JSON; `from_dict` reads it back."""
        tables = {name: getattr(self, name) for name in _TABLES}
        lists = {name: {key: value.tolist() for key, value in table.items()} for name, table in tables.items()}
        return {"eps": self.eps, "layers": list(self.layers), "lam": self.lam, "norm": self.norm, **lists}

    @classmethod
    def from_dict(cls, data: dict) -> LayerMeasures:
        """The measures that `to_dict` wrote."""
        tables = {
            name: {key: torch.tensor(value, dtype=torch.float64) for key, value in data[name].items()}
            for name in _TABLES
            if name in data
        }
        known = {name: data[name] for name in ("lam", "norm") if name in data}
        return cls(eps=data["eps"], layers=tuple(data.get("layers", ())), **known, **tables)


_TABLES = ("values", "totals", "subspace_values")


def layer_measures(
    model: nn.Module,
    batches: Iterable[Batch],
    eps: float = 0.5,
    *,
    measures: str | Sequence[str] = "basic",
    num_images: int | None = None,
    layers: Sequence[int] | None = None,
    lam: float = 0.1,
    norm: str = "l0",
    tol: float = 0.0,
    released_tool: bool = False,
    subspaces: str = "values",
    hooks: BlockHooks | None = None,
) -> LayerMeasures:
    """Measure every layer on every image, one batch at a time; the states of a batch are dropped once measured.

    States are projected onto the subspaces in their own dtype (float32 at least), which moves R^c of float32 states by
    less than their own rounding does; the rates of the projections are exact to 1e-6 (see `objective.coding_rate`).

    Args:
        model: a CRATE model, or one that `states.record` reads.
        batches: pixel values `(B, C, H, W)`, token ids `(B, N)`, or mappings with `pixel_values` or `input_ids`.
        eps: ε > 0 of the coding rates.
        measures: "basic", "full" (see `SETS`; "full" keeps every subspace's R^c too), or keys of `MEASURES` and names
            of sets in any mix.
        num_images: use this many images; `None` uses all.
        layers: layer numbers from 1; `None` measures all.
        lam: λ >= 0 of the sparse rate reduction.
        norm: its sparsity term, "l0" (entries above `tol`) or "l1".
        tol: entries with |z| <= tol count as zero, and atoms as silent.
        released_tool: add the rows that the published measuring code prints.
        subspaces, hooks: of a model that is no CRATE; see `states.record`.

    Raises:
        ValueError: ε <= 0; an unknown measure; no images or fewer than asked for; layers that the model does not have;
            a state that is not finite (names its layer); "code_..." or "dead_atoms" by name of a model whose code
            cannot be read; and whatever `states.record` refuses.
    """
    plan = plan_measures(measures, eps, lam, norm, tol, released_tool)
    recorded = record(model, batches, num_images=num_images, layers=layers, subspaces=subspaces, hooks=hooks)
    parts: list[dict[str, Tensor]] = []
    fired: list[Tensor] | None = None
    numbers: tuple[int, ...] = ()
    for states in recorded:
        numbers = tuple(step.layer for step in states.steps())
        values, now = measure_states(states, plan)
        del states  # before the next batch is run
        parts.append(values)
        fired = now if fired is None or now is None else [old | new for old, new in zip(fired, now)]
    values = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    split = {key.removeprefix(_EACH): values.pop(key) for key in list(values) if key.startswith(_EACH)}
    totals = {} if fired is None else {"dead_atoms": torch.stack([(~one).double().mean() for one in fired]).cpu()}
    ordered = {key: values[key] for key in MEASURES if key in values}
    return LayerMeasures(eps, ordered, numbers, totals, split, lam, norm)


def released_coding_rate(projected: Tensor, eps_squared: float = RELEASED_EPS_SQUARED) -> Tensor:
    """What the published measuring code calls the coding rate.

    Σ_k ½ logdet(I + p/(N ε²) V_kᵀ V_k) with every token of V_k = U_kᵀ LN(Z) scaled to length 1.

    Args:
        projected: `(B, K, N, p)`.
        eps_squared: the code's `eps`, which enters unsquared.

    Returns:
        `(B)`, nats per image.
    """
    return coding_rate(normalize(projected, dim=-1), eps_squared**0.5).sum(-1)


def squared_singular_values(Z: Tensor) -> Tensor:
    """Squared singular values of each (N, d) matrix of Z (..., N, d), ascending, float64 (..., min(N, d)).

    They are the eigenvalues of the smaller Gram matrix, summed in float64; what its rounding leaves of a zero is zero.
    """
    Z = Z.to(torch.float64)
    gram = Z @ Z.mT if Z.shape[-2] < Z.shape[-1] else Z.mT @ Z
    values = torch.linalg.eigvalsh(gram)
    noise = gram.shape[-1] * torch.finfo(torch.float64).eps * values[..., -1:]
    return torch.where(values > noise, values, 0)


def effective_rank(squared: Tensor) -> Tensor:
    """exp(−Σ_i p_i log p_i) with p_i = σ_i / Σ_j σ_j [Roy & Vetterli, EUSIPCO 2007]; between 1 and the rank.

    Args:
        squared: σ_i², `(..., n)`, from `squared_singular_values`.

    Returns:
        `(...)`; 0 where all are zero.
    """
    sigma = squared.sqrt()
    total = sigma.sum(-1, keepdim=True)
    share = sigma / torch.where(total == 0, 1, total)
    return torch.where(total[..., 0] == 0, 0, torch.special.entr(share).sum(-1).exp())


def stable_rank(squared: Tensor) -> Tensor:
    """Σ_i σ_i² / max_i σ_i², between 1 and the rank.

    Args:
        squared: σ_i², `(..., n)`.

    Returns:
        `(...)`; 0 where all are zero.
    """
    largest = squared.amax(-1)
    return squared.sum(-1) / torch.where(largest == 0, 1, largest)


# --- one batch -------------------------------------------------------------------------------------------------

_EACH = "each subspace: "


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

    def wants(self, quantity: str, *states: str) -> bool:
        """Whether a quantity is asked for at one of the states."""
        return any(measure_key(quantity, state) in self.keys for state in states)

    def prices(self, *states: str) -> bool:
        """Whether the sparse rate reduction is asked for at one of the states."""
        return self.wants("sparse_rate_reduction", *states)


def plan_measures(
    measures: str | Sequence[str] = "basic",
    eps: float = 0.5,
    lam: float = 0.1,
    norm: str = "l0",
    tol: float = 0.0,
    released_tool: bool = False,
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
    keys = {key for name in names for key in SETS.get(name, (name,))} | set(_RELEASED if released_tool else ())
    if keys == {"dead_atoms"}:
        keys.add("code_nonzero_fraction")  # something per image, so that it is known how many there were
    by_name = any(name in MEASURES and MEASURES[name].state == "code" for name in names)
    return Plan(frozenset(keys), eps, lam, norm, tol, "full" in names, by_name)


def measure_states(states: LayerStates, plan: Plan) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """Measure one batch of recorded states.

    Returns:
        Values float64 `(B, L)` on the CPU by key (`(B, L, K)` for the subspaces one by one), and per layer which atoms
        `(m)` fired in the batch, `None` where that is not asked for or cannot be read.
    """
    values: dict[str, Tensor] = {}
    fired: list[Tensor] | None = None
    for rows, steps in _without_padding(states):
        layers, now = _measure_layers(steps, plan)
        fired = now if fired is None or now is None else [old | new for old, new in zip(fired, now)]
        for key in layers[0]:
            found = torch.stack([layer[key] for layer in layers], dim=1).double().cpu()
            values.setdefault(key, found.new_empty(states.num_images, *found.shape[1:]))[rows.cpu()] = found
    return values, fired


def _without_padding(states: LayerStates) -> Iterator[tuple[Tensor, tuple[LayerStep, ...]]]:
    """Groups of images with equally many real tokens: their rows in the batch, and their steps without the others."""
    if states.mask is None:
        yield torch.arange(states.num_images), tuple(states.steps())
        return
    lengths = states.mask.sum(1)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        yield rows, _real_tokens(states, rows)


def _real_tokens(states: LayerStates, rows: Tensor) -> tuple[LayerStep, ...]:
    """The steps of some images, all with equally many real tokens, without the padding."""
    real = states.mask[rows]
    shared: dict[int, Tensor] = {}  # a state of two layers stays one tensor

    def real_tokens(Z: Tensor) -> Tensor:
        return Z[rows][real].unflatten(0, (len(rows), -1))

    def of_state(Z: Tensor) -> Tensor:
        if id(Z) not in shared:
            shared[id(Z)] = real_tokens(Z)
        return shared[id(Z)]

    return tuple(
        replace(
            step,
            before=of_state(step.before),
            compressed=of_state(step.compressed),
            after=of_state(step.after),
            codes=None if step.codes is None else of_state(step.codes),
            projected=real_tokens(step.projected.transpose(1, 2)).transpose(1, 2),
            mask=None,
        )
        for step in states.steps()
    )


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

    An end of a layer is the start of the next: what is asked for at either is computed for both.
    """
    Z = getattr(step, state)
    states = (state,) if state == "compressed" else ("before", "after")
    values = _sparsity(Z, plan, lambda quantity: plan.wants(quantity, *states))
    if not values["l1"].isfinite().all():
        _check_finite(Z, step.layer, state)
    if plan.wants("rate", *states) or plan.wants("rate_reduction", *states) or plan.prices(*states):
        values["rate"] = coding_rate(Z, plan.eps).double()
    if plan.wants("effective_rank", *states) or plan.wants("stable_rank", *states):
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
        if plan.prices(state):
            here["sparse_rate_reduction"] = here["rate_reduction"] - plan.lam * here[plan.norm]
        values |= {measure_key(q, state): here[q] for q in _MAIN_STATE if plan.wants(q, state)}
        values |= {key: here[key] for key in here if key == "subspace_rate_unit_norm" or key.startswith(_EACH)}
    return values | _code_values(step, alone["after"], plan) | _released_values(step, plan)


def _against_subspaces(step: LayerStep, state: str, plan: Plan) -> dict[str, Tensor]:
    """R^c of a state against the layer's subspaces, and on unit-norm tokens from the same projection."""
    unit_norm = state == "compressed" and "subspace_rate_unit_norm" in plan.keys
    total = plan.wants("subspace_rate", state) or plan.wants("rate_reduction", state) or plan.prices(state)
    if not total and not unit_norm:
        return {}
    Z, values = getattr(step, state), {}
    V = _project(Z, step.subspaces)
    if total:
        each = coding_rate(V, plan.eps).double()
        values["subspace_rate"] = each.sum(-1)
        if plan.each_subspace:
            values[_EACH + measure_key("subspace_rate", state)] = each
    if unit_norm:
        lengths = torch.linalg.vector_norm(Z, dim=-1, dtype=V.dtype).clamp_min(torch.finfo(V.dtype).tiny)
        values["subspace_rate_unit_norm"] = coding_rate(V / lengths[:, None, :, None], plan.eps).double().sum(-1)
    return values


def _project(Z: Tensor, U: Tensor) -> Tensor:
    """Tokens (B, N, d) in every subspace (K, d, p): (B, K, N, p), in float32 at least."""
    dtype = torch.promote_types(Z.dtype, torch.float32)
    return torch.einsum("bnd,kdp->bknp", Z.to(dtype), U.to(dtype))


def _code_values(step: LayerStep, after: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The sparsity of the layer's code; a complete dictionary's code is Z^{ℓ+1}, measured already."""
    wanted = [quantity for quantity in _SPARSITY if f"code_{quantity}" in plan.keys]
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
        _check_finite(step.codes, step.layer, "codes")
    return {f"code_{quantity}": values[quantity] for quantity in wanted}


def _released_values(step: LayerStep, plan: Plan) -> dict[str, Tensor]:
    """The rows of the published measuring code."""
    values = {}
    if "released_subspace_rate" in plan.keys:
        values["released_subspace_rate"] = released_coding_rate(step.projected)
    if "released_zero_fraction" in plan.keys:
        values["released_zero_fraction"] = 1 - sparsity(step.after, "l0").double()
    return values


def _check_finite(Z: Tensor, layer: int, state: str) -> None:
    """Name the layer and the state where numbers stopped being finite."""
    if not torch.isfinite(Z).all():
        raise ValueError(
            f"layer {layer}: the state '{state}' holds NaN or infinite values; "
            "the model's weights or its input are damaged, or training diverged"
        )
