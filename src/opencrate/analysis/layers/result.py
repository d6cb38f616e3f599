"""The objective, layer by layer: coding rates, sparsity and ranks of a model's states at every half-step, per input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...evaluation.inputs import Batch
from ...stats.intervals import Interval, bootstrap_mean, paired_difference
from ..record.hooks import BlockHooks
from ..record.states import record
from .measure import EACH, measure_states, plan_measures
from .registry import MEASURES, NATS, RELEASED_EPS_SQUARED

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class LayerMeasures:
    """Measures of n images (or texts) at L layers.

    Attributes:
        eps: ε of all rates but the released tool's.
        values: by key of `MEASURES`: float64 `(n, L)` on the CPU.
        layers: the numbers of the measured layers, from 1; empty means 1 to L.
        totals: what is taken over all images together, by key: float64 `(L)`.
        subspace_values: R^c of each subspace, by key: float64 `(n, L, K)`; empty if not requested.
        lam: λ of the sparse rate reduction, nats per non-zero entry (or per unit of absolute value).
        norm: its sparsity term, "l0" or "l1".
        decoded: whether tokens are made from the codes, so that these, and not the tokens, are to be sparse.
    """

    eps: float
    values: dict[str, Tensor]
    layers: tuple[int, ...] = ()
    totals: dict[str, Tensor] = field(default_factory=dict)
    subspace_values: dict[str, Tensor] = field(default_factory=dict)
    lam: float = 0.1
    norm: str = "l0"
    decoded: bool = False

    @property
    def num_inputs(self) -> int:
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
        if key in self.totals or self.num_inputs == 1:
            return torch.full((self.num_layers,), math.nan, dtype=torch.float64)
        return self.values[key].std(0)

    def interval(self, key: str, level: float = 0.95) -> Interval:
        """Mean over inputs with its bootstrap interval, `(L)`, the same draws for every measure; a total has none."""
        if key in self.totals:
            unknown = torch.full_like(self.totals[key], math.nan)
            return Interval(self.totals[key], unknown, unknown, unknown, self.num_inputs, level)
        return bootstrap_mean(self.values[key], level)

    def compression_changes(self) -> Interval:
        """Change of R^c, nats, in each layer's step Z^ℓ → Z^{ℓ+½} under its own subspaces, paired by input, `(L)`."""
        return paired_difference(self.values["subspace_rate"], self.values["subspace_rate_before"])

    def to_rows(self) -> list[dict[str, object]]:
        """One dict per measure and layer; a spread or bound that is undefined is `None`.

        "low" and "high" bound the mean over images with 95 % confidence (bootstrap).
        """
        found = bootstrap_mean(torch.stack(list(self.values.values()), dim=1))  # one set of draws for all measures
        columns = {
            key: (found.mean[i], self.std(key), found.low[i], found.high[i]) for i, key in enumerate(self.values)
        }
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

    def _row(self, key: str, mean: float, std: float, low: float, high: float) -> dict[str, object]:
        measure, spread = MEASURES[key], {"std": std, "low": low, "high": high}
        return {
            "measure": key,
            "quantity": measure.title,
            "unit": measure.unit,
            "mean": mean,
            **{name: None if math.isnan(value) else value for name, value in spread.items()},
            "num_images": self.num_inputs,
            "eps": self.eps_of(key),
            "lam": self.lam if measure.quantity == "sparse_rate_reduction" else None,
            "tokens": measure.how,
        }

    def eps_of(self, key: str) -> float | None:
        """ε of a rate, `None` for what has none."""
        if MEASURES[key].unit != NATS:
            return None
        return RELEASED_EPS_SQUARED**0.5 if key == "released_subspace_rate" else self.eps

    def to_dict(self) -> dict[str, object]:
        """The per-image values as plain lists, for JSON; `from_dict` reads it back."""
        tables = {name: getattr(self, name) for name in _TABLES}
        lists = {name: {key: value.tolist() for key, value in table.items()} for name, table in tables.items()}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {"eps": self.eps, "layers": list(self.layers), **settings, **lists}

    @classmethod
    def from_dict(cls, data: dict) -> LayerMeasures:
        """The measures that `to_dict` wrote."""
        known: dict[str, Any] = {name: data[name] for name in _SETTINGS if name in data}
        for name in (name for name in _TABLES if name in data):
            known[name] = {key: torch.tensor(value, dtype=torch.float64) for key, value in data[name].items()}
        return cls(eps=data["eps"], layers=tuple(data.get("layers", ())), **known)


_SETTINGS = ("lam", "norm", "decoded")
_TABLES = ("values", "totals", "subspace_values")


def layer_measures(
    model: nn.Module,
    batches: Iterable[Batch],
    eps: float = 0.5,
    *,
    measures: str | Sequence[str] = "basic",
    num_inputs: int | None = None,
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
        model, batches: as `states.record` takes them.
        eps: ε > 0 of the coding rates.
        measures: "basic", "full" (see `SETS`; "full" keeps every subspace's R^c too), or keys of `MEASURES` and names
            of sets in any mix.
        num_inputs, layers, subspaces, hooks: see `states.record`.
        lam: λ >= 0 of the sparse rate reduction.
        norm: its sparsity term, "l0" (entries above `tol`) or "l1".
        tol: entries with |z| <= tol count as zero, and atoms as silent.
        released_tool: add the rows that the published measuring code prints.

    Raises:
        ValueError: ε <= 0; an unknown measure; a state that is not finite (names its layer); "code_..." or "dead_atoms"
            by name of a model whose code cannot be read; and whatever `states.record` refuses.
    """
    plan = plan_measures(measures, eps, lam, norm, tol, released_tool)
    recorded = record(model, batches, num_inputs=num_inputs, layers=layers, subspaces=subspaces, hooks=hooks)
    parts: list[dict[str, Tensor]] = []
    fired: list[Tensor] | None = None
    numbers: tuple[int, ...] = ()
    decoded = False
    for states in recorded:
        numbers = tuple(step.layer for step in states.steps())
        decoded = any(step.decoded for step in states.steps())
        values, now = measure_states(states, plan)
        del states  # before the next batch is run
        parts.append(values)
        fired = now if fired is None or now is None else [old | new for old, new in zip(fired, now)]
    values = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    split = {key.removeprefix(EACH): values.pop(key) for key in list(values) if key.startswith(EACH)}
    totals = {} if fired is None else {"dead_atoms": torch.stack([(~one).double().mean() for one in fired]).cpu()}
    ordered = {key: values[key] for key in MEASURES if key in values}
    return LayerMeasures(eps, ordered, numbers, totals, split, lam, norm, decoded)
