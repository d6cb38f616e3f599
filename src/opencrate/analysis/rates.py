"""The objective, layer by layer: coding rates and sparsity of a model's states, per image.

Tokens are taken raw (no LayerNorm), class token included, and U^ℓ as learned; the rows that differ say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..objective import coding_rate, sparsity, subspace_coding_rate
from .inputs import Batch
from .states import LayerStep, record

RELEASED_EPS_SQUARED = 0.01
"""The `eps` of the published measuring code; it enters unsquared, so it stands for our ε²."""


@dataclass(frozen=True)
class Measure:
    """What one row of a layer table is.

    Attributes:
        symbol: as in the paper; `^` raises one character or a `{group}`, `_` lowers.
        unit: of the value.
        tokens: which tokens it is taken on, and how they are scaled.
        words: what sets it apart from another measure of the same symbol.
        population_std: spread over images divides by n instead of n - 1 (the published code, for sparsity).
    """

    symbol: str
    unit: str
    tokens: str
    words: str = ""
    population_std: bool = False

    @property
    def title(self) -> str:
        """Symbol and words."""
        return f"{self.symbol}, {self.words}" if self.words else self.symbol


_RAW = "all tokens, class token included, no LayerNorm"
_CODE = _RAW + "; entries exactly zero count as zero"
_NATS = "nats per image"
MEASURES: dict[str, Measure] = {
    "subspace_rate_before": Measure("R^c(Z^ℓ | U^ℓ)", _NATS, _RAW),
    "subspace_rate": Measure("R^c(Z^{ℓ+½} | U^ℓ)", _NATS, _RAW),
    "rate": Measure("R(Z^{ℓ+½})", _NATS, _RAW),
    "rate_reduction": Measure("ΔR = R − R^c", _NATS, _RAW),
    "nonzero_fraction": Measure("‖Z^{ℓ+1}‖_0 / (d N)", "fraction non-zero", _CODE),
    "l1_per_token": Measure("‖Z^{ℓ+1}‖_1 / N", "per token", _RAW),
    "subspace_rate_unit_norm": Measure(
        "R^c(Z^{ℓ+½} | U^ℓ)",
        _NATS,
        "all tokens, class token included, each scaled to length 1",
        words="unit-norm tokens",
    ),
    "released_subspace_rate": Measure(
        "R^c(LN(Z^ℓ) | U^ℓ)",
        _NATS,
        "all tokens, projected after LayerNorm, each scaled to length 1 per head (the tool's eps is ε²)",
        words="released tool",
    ),
    "released_zero_fraction": Measure(
        "1 − ‖Z^{ℓ+1}‖_0 / (d N)", "fraction exactly zero", _CODE, words="released tool", population_std=True
    ),
}
"""Every measure by its key, in the order of the tables."""


@dataclass(frozen=True)
class LayerMeasures:
    """Measures of n images at L layers.

    Attributes:
        eps: ε of all rates but the released tool's.
        values: by key of `MEASURES`: float64 `(n, L)` on the CPU.
    """

    eps: float
    values: dict[str, Tensor]

    @property
    def num_images(self) -> int:
        """n, the images measured."""
        return next(iter(self.values.values())).shape[0]

    @property
    def num_layers(self) -> int:
        """L, the layers of the model."""
        return next(iter(self.values.values())).shape[1]

    def mean(self, key: str) -> Tensor:
        """Mean over images, float64 `(L)`."""
        return self.values[key].mean(0)

    def std(self, key: str) -> Tensor:
        """Standard deviation over images, float64 `(L)`; NaN for one image unless it divides by n."""
        if MEASURES[key].population_std:
            return self.values[key].std(0, correction=0)
        if self.num_images == 1:
            return torch.full((self.num_layers,), math.nan, dtype=torch.float64)
        return self.values[key].std(0)

    def to_rows(self) -> list[dict[str, object]]:
        """One dict per measure and layer (layers count from 1); a spread that is undefined is `None`."""
        rows = []
        for key in self.values:
            measure = MEASURES[key]
            for layer, (mean, std) in enumerate(zip(self.mean(key).tolist(), self.std(key).tolist()), start=1):
                rows.append(
                    {
                        "layer": layer,
                        "measure": key,
                        "quantity": measure.title,
                        "unit": measure.unit,
                        "mean": mean,
                        "std": None if math.isnan(std) else std,
                        "num_images": self.num_images,
                        "eps": self.eps_of(key),
                        "tokens": measure.tokens,
                    }
                )
        return rows

    def eps_of(self, key: str) -> float | None:
        """ε of a rate, `None` for what has none."""
        if MEASURES[key].unit != _NATS:
            return None
        return RELEASED_EPS_SQUARED**0.5 if key == "released_subspace_rate" else self.eps

    def to_dict(self) -> dict[str, object]:
        """The per-image values as plain lists, for JSON; `from_dict` reads it back."""
        return {"eps": self.eps, "values": {key: value.tolist() for key, value in self.values.items()}}

    @classmethod
    def from_dict(cls, data: dict) -> LayerMeasures:
        """The measures that `to_dict` wrote."""
        values = {key: torch.tensor(value, dtype=torch.float64) for key, value in data["values"].items()}
        return cls(eps=data["eps"], values=values)


def layer_measures(
    model: nn.Module,
    batches: Iterable[Batch],
    eps: float = 0.5,
    *,
    num_images: int | None = None,
    released_tool: bool = False,
) -> LayerMeasures:
    """Measure every layer on every image, one batch at a time.

    Args:
        model: a CRATE model.
        batches: pixel values `(B, C, H, W)` or mappings with `pixel_values`.
        eps: ε > 0 of the coding rates.
        num_images: use this many images; `None` uses all.
        released_tool: add the rows that the published measuring code prints.

    Raises:
        ValueError: ε <= 0; no images or fewer than asked for; a state that is not finite (names its layer).
    """
    batch_values = []
    for states in record(model, batches, num_images=num_images):
        layers = []
        for layer, step in enumerate(states.steps(), start=1):
            _check_finite(step, layer)
            layers.append(_measure(step, eps, released_tool))
        batch_values.append({key: torch.stack([v[key] for v in layers], dim=1) for key in layers[0]})
    values = {key: torch.cat([v[key] for v in batch_values]) for key in batch_values[0]}
    return LayerMeasures(eps=eps, values=values)


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


def _measure(step: LayerStep, eps: float, released_tool: bool) -> dict[str, Tensor]:
    """All measures of one layer, each float64 `(B)` on the CPU."""
    bases, half, after = step.subspaces, step.compressed, step.after
    rate, subspace_rate = coding_rate(half, eps), subspace_coding_rate(half, bases, eps)
    values = {
        "subspace_rate_before": subspace_coding_rate(step.before, bases, eps),
        "subspace_rate": subspace_rate,
        "rate": rate,
        "rate_reduction": rate - subspace_rate,
        "nonzero_fraction": sparsity(after, "l0"),
        "l1_per_token": sparsity(after, "l1") / after.shape[1],
        "subspace_rate_unit_norm": subspace_coding_rate(normalize(half, dim=-1), bases, eps),
    }
    if released_tool:
        values["released_subspace_rate"] = released_coding_rate(step.projected)
        values["released_zero_fraction"] = 1 - values["nonzero_fraction"].double()
    assert values.keys() <= MEASURES.keys()
    return {key: value.double().cpu() for key, value in values.items()}


def _check_finite(step: LayerStep, layer: int) -> None:
    """Name the layer and the state where numbers stopped being finite."""
    for name in ("before", "compressed", "after"):
        if not torch.isfinite(getattr(step, name)).all():
            raise ValueError(
                f"layer {layer}: the state '{name}' holds NaN or infinite values; "
                "the model's weights or its input are damaged, or training diverged"
            )
