"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def near_orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values moved near 1: five quintic Newton-Schulz steps from M/||M||_F.

        M <- a M + (b M M^T + c (M M^T)^2) M,   (a, b, c) = (3.4445, -4.7750, 2.0315)

    [K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024]. The coefficients push small
    singular values up fastest and leave them between about 0.7 and 1.2; those below about 1e-3 of the norm stay
    smaller; a zero matrix stays zero. The matrix's own dtype is worked in: torch.optim.Muon always works in bfloat16,
    which on a CPU without such instructions takes longer than the rest of the training step.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    result = matrix if wide else matrix.mT
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.mT
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result if wide else result.mT


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `orthogonal=True` take Muon's step, the others AdamW's; one learning rate serves both.

    Muon, with gradient g, momentum m (0 at the start) and O = `near_orthogonal`, on an n x m matrix:

        m <- mu m + (1 - mu) g;   theta <- (1 - lr w) theta - lr 0.2 sqrt(max(n, m)) O(mu m + (1 - mu) g)

    The factor gives the step the root mean square that AdamW's usually has [arXiv 2502.16982, Eq. 4], so that
    learning rate and decay w mean the same in both. `betas` and `eps` are AdamW's.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; the closure's value, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                for parameter in parameters:
                    self._muon(parameter, parameter.grad, group["lr"], group["weight_decay"])
            elif parameters:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        direction = near_orthogonal(gradient.lerp(state["momentum"], MOMENTUM))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(direction, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)

    def _adamw(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
