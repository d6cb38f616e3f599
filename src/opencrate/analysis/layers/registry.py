"""What is measured at a layer: the names, symbols and units of every row of a layer table (see `docs/measures.md`).

All three states of a layer are measured against its own subspaces U^ℓ, as they are. Tokens are taken raw (no
LayerNorm), class token included, padding left out; the rows that differ say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

RELEASED_EPS_SQUARED = 0.01
"""The `eps` of the published measuring code; it enters unsquared, so it corresponds to our ε²."""

STATES = {"before": "Z^ℓ", "compressed": "Z^{ℓ+½}", "after": "Z^{ℓ+1}"}
"""The states of a layer and their symbols."""


@dataclass(frozen=True)
class Measure:
    """What a measured number is: every analysis and study names its numbers by a table of these.

    Attributes:
        symbol: as in the paper, or its name; `^` raises one character or a `{group}`, `_` lowers.
        unit: of the value; empty for a plain number.
        how: what it is taken on and how, such as which tokens, and how they are scaled.
        words: what sets it apart from another measure of the same symbol.
        scale, digits: tables show `scale` times the value with this many decimals.
        judged: whether its sign says that something falls or rises.
        population_std: spread over images divides by n instead of n - 1 (the published code, for sparsity).
        quantity: what is measured, at any state.
        state: of the layer, a key of `STATES`; "code" for the sparse code.
    """

    symbol: str
    unit: str = ""
    how: str = ""
    words: str = ""
    scale: float = 1.0
    digits: int = 2
    judged: bool = False
    population_std: bool = False
    quantity: str = ""
    state: str = ""

    @property
    def title(self) -> str:
        """Symbol and words."""
        return f"{self.symbol}, {self.words}" if self.words else self.symbol

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_RAW = "all tokens, class token included, no LayerNorm"
_COUNT = _RAW + "; entries exactly zero count as zero"
_CODE = "the sparse code of all tokens"
NATS = "nats per image"
SPARSITY = {
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
    "rate": ("R({Z})", NATS, ""),
    "subspace_rate": ("R^c({Z} | U^ℓ)", NATS, ""),
    "rate_reduction": ("ΔR({Z} | U^ℓ)", NATS, ""),
    "sparse_rate_reduction": ("ΔR({Z} | U^ℓ) − λ‖{Z}‖", NATS, "sparse rate reduction"),
}
MAIN_STATE = dict.fromkeys((*_RATES, *_RANKS), "compressed") | dict.fromkeys(SPARSITY, "after")


def measure_key(quantity: str, state: str) -> str:
    """The key in `MEASURES` of a quantity at a state: rates and ranks of Z^{ℓ+½} and sparsity of Z^{ℓ+1} have the bare
    name, the others end in the state ("rate_before")."""
    return quantity if MAIN_STATE[quantity] == state else f"{quantity}_{state}"


def _all_measures() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for quantity, (symbol, unit, words) in (_RATES | SPARSITY | _RANKS).items():
        tokens = _COUNT if quantity == "nonzero_fraction" else _RAW
        for state, name in STATES.items():
            one = Measure(symbol.replace("{Z}", name), unit, tokens, words, quantity=quantity, state=state)
            found[measure_key(quantity, state)] = one
    found["rate_reduction"] = replace(found["rate_reduction"], symbol="ΔR = R − R^c")

    def add(key: str, state: str, symbol: str, unit: str, how: str, **more: Any) -> None:
        found[key] = Measure(symbol, unit, how, state=state, **{"quantity": key, **more})

    how = "all tokens, class token included, each scaled to length 1"
    words = "unit-norm tokens"
    add("subspace_rate_unit_norm", "compressed", "R^c(Z^{ℓ+½} | U^ℓ)", NATS, how, words=words)
    for quantity, (symbol, unit, _) in SPARSITY.items():
        text = symbol.replace("{Z}", "A^ℓ").replace("d N", "m N")
        add(f"code_{quantity}", "code", text, unit, _CODE, quantity=quantity)
    add("dead_atoms", "code", "atoms that never fire", "fraction of m", f"{_CODE} of all images together")
    how = "all tokens, projected after LayerNorm, each scaled to length 1 per head (the tool's eps is ε²)"
    add("released_subspace_rate", "before", "R^c(LN(Z^ℓ) | U^ℓ)", NATS, how, words="released tool")
    symbol, unit = "1 − ‖Z^{ℓ+1}‖_0 / (d N)", "fraction exactly zero"
    add("released_zero_fraction", "after", symbol, unit, _COUNT, words="released tool", population_std=True)
    return found


MEASURES: dict[str, Measure] = _all_measures()
"""Every measure by its key, in the order of the tables."""

RELEASED = ("released_subspace_rate", "released_zero_fraction")
SETS: dict[str, tuple[str, ...]] = {
    "basic": (
        *("rate_before", "rate", "rate_after"),
        *("subspace_rate_before", "subspace_rate", "subspace_rate_unit_norm"),
        *("rate_reduction_before", "rate_reduction"),
        *("nonzero_fraction_before", "nonzero_fraction_compressed", "nonzero_fraction"),
        *("l1_per_token_before", "l1_per_token_compressed", "l1_per_token"),
    ),
    "full": tuple(key for key in MEASURES if key not in RELEASED),
}
"""Named sets. "basic": R, R^c, ΔR, ℓ0 and ℓ1 at every half-step, and R^c on unit-norm tokens; R^c of Z^{ℓ+1} stands in
it as the next layer's Z^ℓ, under that layer's U. "full": everything but the released tool's rows."""
