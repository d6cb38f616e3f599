"""Does each layer do what it is derived from, on each input: lower R^c, then lower the objective of its LASSO?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Compression, Sparsification, compressions, sparsifications
from .objective import subspace_coding_rate
from .operators import ista, lasso_objective
from .sparsification import ISTA

RATE, LASSO = "R^c", "LASSO"
"""The two objectives: of the compression, and of the sparsification."""

ROUNDING = 16
"""Spacings of the states' type by which an objective may seem to rise."""

Step = tuple[Tensor, Tensor, Tensor | None]
"""Of one layer, Z^l and Z^{l+1/2} ``(B, N, d)``, and the code ``(B, N, m)`` where the layer has one."""


@dataclass(frozen=True)
class Certificate:
    """Objectives before and after every step, per layer and input; float64, nats for rates.

    Attributes:
        rates: R^c(Z | U) of the tokens ``(L, 2, B)``: Z^l and Z^{l+1/2}, against the layer's own U. NaN where a layer's
            compression has no bases.
        lasso: ``1/2 ||X - A D^T||^2 + lambda ||A||_1`` ``(L, T + 1, B)`` of the ISTA steps: at the start (the nearest
            code that the problem allows, 0 or X or its positive part) and after each, the last of the model's own
            code. NaN where there are none.
        rate_guaranteed: by layer, whether R^c must fall on every input: by a guard, or of an operator that
            ``always_descends``.
        lasso_guaranteed: by layer, whether every ISTA step must lower its objective: eta < 2/||D||^2 and a start that
            the problem allows.
        rounding: a rise up to it, relative to the objective, is rounding of the states' type.
        rates_at_length: R^c of Z^{l+1/2} scaled to the length of Z^l, all tokens of an input together, ``(L, B)``.
            Longer tokens have a larger R^c, and a norm that reads them next does not see their length.
    """

    rates: Tensor
    lasso: Tensor
    rate_guaranteed: tuple[bool, ...]
    lasso_guaranteed: tuple[bool, ...]
    rounding: float = 0.0
    rates_at_length: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        """B, the inputs measured."""
        return self.rates.shape[-1]

    @property
    def rate_change(self) -> Tensor:
        """R^c(Z^{l+1/2} | U) - R^c(Z^l | U), nats ``(L, B)``; below 0: compressed."""
        return self.rates[:, 1] - self.rates[:, 0]

    @property
    def rate_change_at_length(self) -> Tensor:
        """The same with Z^{l+1/2} scaled to the length of Z^l, ``(L, B)``; NaN where that is not known."""
        unknown = torch.full_like(self.rates[:, 0], torch.nan)
        return unknown if self.rates_at_length is None else self.rates_at_length - self.rates[:, 0]

    @property
    def lasso_change(self) -> Tensor:
        """Change of the LASSO objective over all ISTA steps ``(L, B)``; below 0: descended."""
        return self.lasso[:, -1] - self.lasso[:, 0]

    @property
    def rate_margin(self) -> Tensor:
        """How much R^c falls, relative to R^c before, ``(L, B)``; NaN where there are no bases."""
        return _descents(self.rates)

    @property
    def lasso_margin(self) -> Tensor:
        """The smallest fall of any ISTA step, relative to the objective before it, ``(L, B)``; NaN without ISTA."""
        return _descents(self.lasso)

    @property
    def margin(self) -> Tensor:
        """The smallest descent of any step, relative to the objective before it, ``(B,)``; 0 is a step that
        stays where it is, infinity a model without such steps."""
        return torch.stack((self.rate_margin, self.lasso_margin)).nan_to_num(torch.inf).amin((0, 1))

    @property
    def holds(self) -> Tensor:
        """Whether no step of any layer ascends by more than rounding, per input ``(B,)``."""
        return self.margin >= -self.rounding

    @property
    def guaranteed(self) -> bool:
        """Whether they must, on any input."""
        return all(self.rate_guaranteed) and all(self.lasso_guaranteed)

    @property
    def broken(self) -> list[tuple[int, str, float]]:
        """Layer (from 1), objective and smallest margin of every step that must not ascend and does."""
        return [
            (row["layer"], row["objective"], row["margin"])
            for row in self.to_rows()
            if row["guaranteed"] and row["margin"] < -self.rounding
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per layer (from 1) and objective that the layer has: means and extremes over the inputs.

        ``relative_...`` are changes relative to the objective before the steps; ``margin`` is the smallest descent of
        any single step; ``descends_on`` counts the inputs on which no step ascends by more than rounding.
        """
        rows = []
        parts = (
            (RATE, self.rates, self.rate_margin, self.rate_guaranteed),
            (LASSO, self.lasso, self.lasso_margin, self.lasso_guaranteed),
        )
        for layer in range(len(self.rates)):
            for objective, values, margins, guaranteed in parts:
                if not margins[layer].isnan().any():
                    row = {"layer": layer + 1, "objective": objective}
                    row |= self._row(values[layer], margins[layer]) | {"guaranteed": guaranteed[layer]}
                    if objective == RATE:
                        row["change_at_length"] = self.rate_change_at_length[layer].mean().item()
                    rows.append(row)
        return rows

    def _row(self, values: Tensor, margins: Tensor) -> dict[str, Any]:
        changes = {"change": values[-1] - values[0], "relative": -_descents(values[[0, -1]].unsqueeze(0))[0]}
        extremes = {
            name + end: function(change).item()
            for name, change in changes.items()
            for end, function in (("", torch.mean), ("_smallest", torch.amin), ("_largest", torch.amax))
        }
        descends_on = int((margins >= -self.rounding).sum())
        return {
            "before": values[0].mean().item(),
            **extremes,
            "margin": margins.amin().item(),
            "descends_on": descends_on,
            "num_inputs": self.num_inputs,
        }

    def __str__(self) -> str:
        count, total = int(self.holds.sum()), self.num_inputs
        lines = [f"R^c falls in every layer and every ISTA step descends on {count} of {total} inputs"]
        for row in self.to_rows():
            spread = f"{row['change_smallest']:+.3g} to {row['change_largest']:+.3g}"
            spread += f" ({row['change_at_length']:+.3g} at equal length)" if row["objective"] == RATE else ""
            proof = ", guaranteed" if row["guaranteed"] else ""
            words = f"{row['objective']} {spread}, falls on {row['descends_on']} of {total}{proof}"
            lines.append(f"layer {row['layer']}: {words}")
        return "\n".join(lines)


def _descents(values: Tensor) -> Tensor:
    """The smallest relative fall from one step to the next, ``(L, S + 1, B)`` -> ``(L, B)``; 0 stays 0."""
    before, after = values[:, :-1], values[:, 1:]
    return ((before - after) / before.clamp(min=torch.finfo(values.dtype).tiny)).amin(1)


def joined(parts: Sequence[Certificate]) -> Certificate:
    """The certificate of one model on several batches, as of one."""
    rates, lasso = (torch.cat([getattr(part, name) for part in parts], dim=-1) for name in ("rates", "lasso"))
    of_parts = [part.rates_at_length for part in parts]
    known = [part for part in of_parts if part is not None]
    return Certificate(
        rates,
        lasso,
        parts[0].rate_guaranteed,
        parts[0].lasso_guaranteed,
        max(part.rounding for part in parts),
        torch.cat(known, dim=-1) if len(known) == len(of_parts) else None,
    )


@torch.no_grad()
def guarantees(model: nn.Module, eps: float | None = None) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """By layer, what must fall on every input by construction: R^c, and the LASSO objective in every ISTA step.

    Args:
        model: any CRATE model; of an autoencoder, its encoder.
        eps: of R^c; ``None`` is the model's ``compression_eps``, the only one for which a gradient step must descend.
    """
    base = _base(model)
    own = eps is None or eps == base.config.compression_eps
    steps = sparsifications(base)
    return (
        tuple(_descends(step, own) for step, _ in zip(compressions(base), steps)),
        tuple(_lasso_descends(step) for step in steps),
    )


def certificate(model: nn.Module, *inputs: Any, eps: float | None = None, **kwargs: Any) -> Certificate:
    """The :class:`Certificate` of a CRATE model on a batch.

    Args:
        model: any CRATE model; of an autoencoder, its encoder.
        inputs, kwargs: what its forward takes.
        eps: of R^c; ``None`` is the model's ``compression_eps``.

    Raises:
        ValueError: a state that is not finite (names its layer).
    """
    base = _base(model)
    states = ("output_hidden_states", "output_compressed_states", "output_sparse_codes")
    training, _ = base.training, base.eval()
    try:
        with torch.no_grad():
            outputs = base(*inputs, **kwargs, **dict.fromkeys(states, True))
    finally:
        base.train(training)
    codes = outputs.sparse_codes or [None] * len(outputs.compressed_states)
    steps = list(zip(outputs.hidden_states, outputs.compressed_states, codes))
    mask = kwargs.get("attention_mask")
    return certificate_of(model, steps, mask if mask is not None and mask.ndim == 2 else None, eps)


@torch.no_grad()
def certificate_of(
    model: nn.Module, states: Sequence[Step], mask: Tensor | None = None, eps: float | None = None
) -> Certificate:
    """The :class:`Certificate` of a model from the states of all its layers, first layer first.

    Args:
        model, eps: as :func:`certificate` takes them.
        states: of each layer.
        mask: ``(B, N)``, true for tokens that are no padding; ``None``: all are.

    Raises:
        ValueError: a state that is not finite (names its layer).
    """
    base = _base(model)
    for number, step in enumerate(states, start=1):
        if not all(state.isfinite().all() for state in step if state is not None):
            raise ValueError(f"layer {number}: a state holds NaN or infinite values; the weights or inputs are damaged")
    size = float(base.config.compression_eps if eps is None else eps)
    steps = list(zip(compressions(base), sparsifications(base), states))
    rates, lasso = guarantees(base, eps)
    of_rates = torch.stack([_rates(step, before, half, mask, size) for step, _, (before, half, _) in steps])
    return Certificate(
        rates=of_rates[:, :2],
        lasso=torch.stack([_lasso(step, half, code, mask) for _, step, (_, half, code) in steps]),
        rate_guaranteed=rates,
        lasso_guaranteed=lasso,
        rounding=ROUNDING * torch.finfo(states[0][1].dtype).eps,
        rates_at_length=of_rates[:, 2],
    )


def _base(model: nn.Module) -> Any:
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def _each(function: Callable[..., Tensor], mask: Tensor | None, *states: Tensor) -> Tensor:
    """A function of tokens ``(..., N, d)`` on every input without its padding, float64 ``(B)`` on the CPU."""
    wide = [state.double() for state in states]
    if mask is None:
        return function(*wide).cpu()
    inputs = zip(*wide, mask.bool())
    return torch.stack([function(*(state[real] for state in one)) for *one, real in inputs]).cpu()


def _rates(step: Compression, before: Tensor, after: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """``(3, B)``: of Z^l, of Z^{l+1/2}, and of the latter at the length of the former."""
    if not hasattr(step.operator, "bases"):
        return torch.full((3, len(before)), torch.nan, dtype=torch.float64)
    U = step.operator.bases().double()

    def rate(tokens: Tensor) -> Tensor:
        return subspace_coding_rate(tokens, U, eps)

    def at_length(tokens: Tensor, other: Tensor) -> Tensor:
        length, own = (torch.linalg.matrix_norm(one, keepdim=True) for one in (other, tokens))
        return rate(tokens * (length / own.clamp(min=torch.finfo(own.dtype).tiny)))

    return torch.stack([_each(rate, mask, before), _each(rate, mask, after), _each(at_length, mask, after, before)])


def _lasso(step: Sparsification, half: Tensor, own: Tensor | None, mask: Tensor | None) -> Tensor:
    module, steps = step.operator, step.config.ista_num_steps
    if not isinstance(module, ISTA):
        return torch.full((steps + 1, len(half)), torch.nan, dtype=torch.float64)
    X, D = step.norm(half).double(), module.effective_dictionary().double()
    sizes = module.step_size(D), module.sparsity_weight()
    eta, lam = (size.double() if isinstance(size, Tensor) else size for size in sizes)
    start = module.start(X)
    first = X.new_zeros(*X.shape[:-1], D.shape[1]) if start is None else start
    codes = [first if module.signed else first.clamp(min=0)]
    codes += [ista(X, D, eta, lam, number, start, module.signed) for number in range(1, steps + (own is None))]
    codes += [] if own is None else [own]
    return torch.stack([_each(lambda A, x: lasso_objective(A, x, D, lam), mask, code, X) for code in codes])


def _descends(step: Compression, own_eps: bool) -> bool:
    if step.guarded:
        return own_eps
    always: Callable[[bool], bool] = getattr(step.operator, "always_descends", lambda _: False)
    return always(own_eps) and step.direction == 1 and isinstance(step.norm, nn.Identity)


def _lasso_descends(step: Sparsification) -> bool:
    module = step.operator
    if not isinstance(module, ISTA):
        return False
    D = module.effective_dictionary().double()
    feasible = module.signed or not module.from_input
    return feasible and float(module.step_size(D)) * torch.linalg.matrix_norm(D, 2).square().item() < 2
