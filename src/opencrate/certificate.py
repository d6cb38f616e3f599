"""Does each layer do what it is derived from, on each input: lower R^c, then lower the objective of its LASSO?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Compression, Sparsification, compressions, sparsifications
from .objective import subspace_coding_rate
from .operators import ista, lasso_objective
from .rate_gradient import RateGradient
from .sparsification import ISTA


@dataclass(frozen=True)
class Certificate:
    """Objectives before and after every step, per layer and input; float64, nats for rates.

    Attributes:
        rates: R^c(Z | U) of the tokens ``(L, 2, B)``: Z^l and Z^{l+1/2}, against the layer's own U. NaN where a layer's
            compression has no bases.
        lasso: ``1/2 ||X - A D^T||^2 + lambda ||A||_1`` ``(L, T + 1, B)`` of the ISTA steps: at the start (the nearest
            code that the problem allows, 0 or X or its positive part) and after each. NaN where there are none.
        rate_guaranteed: by layer, whether R^c must fall on every input: an exact gradient step within its bound.
        lasso_guaranteed: by layer, whether every ISTA step must lower its objective: eta < 2/||D||^2 and a start that
            the problem allows.
    """

    rates: Tensor
    lasso: Tensor
    rate_guaranteed: tuple[bool, ...]
    lasso_guaranteed: tuple[bool, ...]

    @property
    def rate_change(self) -> Tensor:
        """R^c(Z^{l+1/2} | U) - R^c(Z^l | U), nats ``(L, B)``; below 0: compressed."""
        return self.rates[:, 1] - self.rates[:, 0]

    @property
    def lasso_change(self) -> Tensor:
        """Change of the LASSO objective over all ISTA steps ``(L, B)``; below 0: descended."""
        return self.lasso[:, -1] - self.lasso[:, 0]

    @property
    def margin(self) -> Tensor:
        """The smallest descent of any step, relative to the objective before it, ``(B,)``; 0 is a step that
        stays where it is."""
        rates = -self.rate_change / self.rates[:, 0]
        steps = self.lasso[:, :-1]
        lasso = ((steps - self.lasso[:, 1:]) / steps).amin(1) if steps.shape[1] else torch.full_like(rates, torch.nan)
        return torch.stack((rates, lasso)).nan_to_num(torch.inf).amin((0, 1))

    @property
    def holds(self) -> Tensor:
        """Whether no step of any layer ascends, per input ``(B,)``."""
        return self.margin >= 0

    @property
    def guaranteed(self) -> bool:
        """Whether they must, on any input."""
        return all(self.rate_guaranteed) and all(self.lasso_guaranteed)

    def __str__(self) -> str:
        count, total = int(self.holds.sum()), len(self.holds)
        layers = [f"R^c falls in every layer and every ISTA step descends on {count} of {total} inputs"]
        names = (("R^c", self.rate_change, self.rate_guaranteed), ("LASSO", self.lasso_change, self.lasso_guaranteed))
        for name, change, guaranteed in names:
            for layer, (values, sure) in enumerate(zip(change, guaranteed)):
                if values.isnan().any():
                    continue
                falls, proof = int((values < 0).sum()), ", guaranteed" if sure else ""
                low, high = values.amin().item(), values.amax().item()
                layers.append(f"layer {layer}: {name} {low:+.3g} to {high:+.3g}, falls on {falls} of {total}{proof}")
        return "\n".join(layers)


@torch.no_grad()
def certificate(model: nn.Module, *inputs: Any, eps: float | None = None, **kwargs: Any) -> Certificate:
    """The :class:`Certificate` of a CRATE model on a batch.

    Args:
        model: any CRATE model; of an autoencoder, its encoder.
        inputs, kwargs: what its forward takes.
        eps: of R^c; ``None`` is the model's ``compression_eps``.
    """
    base: Any = getattr(model, getattr(model, "base_model_prefix", ""), model)
    states = ("output_hidden_states", "output_compressed_states")
    training, _ = base.training, base.eval()
    try:
        outputs = base(*inputs, **kwargs, **dict.fromkeys(states, True))
    finally:
        base.train(training)
    eps = float(base.config.compression_eps if eps is None else eps)
    kept = _kept(kwargs.get("attention_mask"), outputs.hidden_states[0])
    layers = list(zip(compressions(base), sparsifications(base), outputs.hidden_states, outputs.compressed_states))
    pairs = [_rates(step, before, after, kept, eps) for step, _, before, after in layers]
    steps = [_lasso(step, half, kept) for _, step, _, half in layers]
    return Certificate(
        rates=torch.stack(pairs),
        lasso=torch.stack(steps),
        rate_guaranteed=tuple(_descends(step) for step, *_ in layers),
        lasso_guaranteed=tuple(_lasso_descends(step) for _, step, *_ in layers),
    )


def _kept(mask: Tensor | None, tokens: Tensor) -> list[Any]:
    """Of each input, the tokens that are no padding."""
    if mask is None or mask.ndim != 2:
        return [slice(None)] * len(tokens)
    return list(mask.bool())


def _rates(step: Compression, before: Tensor, after: Tensor, kept: list[Any], eps: float) -> Tensor:
    if not hasattr(step.operator, "bases"):
        return torch.full((2, len(before)), torch.nan, dtype=torch.float64)
    U = step.operator.bases().double()
    states = ([Z[own].double() for Z, own in zip(state, kept)] for state in (before, after))
    return torch.stack([torch.stack([subspace_coding_rate(Z, U, eps) for Z in state]) for state in states]).cpu()


def _lasso(step: Sparsification, half: Tensor, kept: list[Any]) -> Tensor:
    module, steps = step.operator, step.config.ista_num_steps
    if not isinstance(module, ISTA):
        return torch.full((steps + 1, len(half)), torch.nan, dtype=torch.float64)
    X, D = step.norm(half).double(), module.effective_dictionary().double()
    sizes = module.step_size(D), module.sparsity_weight()
    eta, lam = (size.double() if isinstance(size, Tensor) else size for size in sizes)
    start = module.start(X)
    first = X.new_zeros(*X.shape[:-1], D.shape[1]) if start is None else start
    codes = [first if module.signed else first.clamp(min=0)]
    codes += [ista(X, D, eta, lam, number, start, module.signed) for number in range(1, steps + 1)]
    found = [[lasso_objective(A[own], x[own], D, lam) for A, x, own in zip(code, X, kept)] for code in codes]
    return torch.stack([torch.stack(row) for row in found]).cpu()


def _descends(step: Compression) -> bool:
    module = step.operator
    exact = isinstance(module, RateGradient) and module.output_kind == "tied" and step.direction == 1
    return exact and not module.is_causal and isinstance(step.norm, nn.Identity)


def _lasso_descends(step: Sparsification) -> bool:
    module = step.operator
    if not isinstance(module, ISTA):
        return False
    D = module.effective_dictionary().double()
    feasible = module.signed or not module.from_input
    return feasible and float(module.step_size(D)) * torch.linalg.matrix_norm(D, 2).square().item() < 2
