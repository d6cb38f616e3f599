"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, _foreach_add_, _foreach_lerp, _foreach_lerp_, _foreach_mul_, nn  # pyright: ignore[reportPrivateImportUsage]
from torch.optim.adamw import adamw

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
TOGETHER_ON_CPU = 1 << 15
"""Larger matrices are worked on one by one on a CPU: there one already fills the cores, and stacking them costs."""
_STACK = 1 << 24


def near_orthogonal(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Matrices `(..., n, m)`, of two or three axes, with their singular values moved near 1.

    Five quintic Newton-Schulz steps from M/||M||_F, each matrix by itself:

        M <- a M + (b M M^T + c (M M^T)^2) M,   (a, b, c) = (3.4445, -4.7750, 2.0315)

    [K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024]. The coefficients push small
    singular values up fastest and leave them between about 0.7 and 1.2; those below about 1e-3 of the norm stay
    smaller; a zero matrix stays zero. The steps are taken in `dtype` (the matrices' own by default; bfloat16 in the
    published code), and the result has the matrices' dtype.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    result = matrices if wide else matrices.mT
    result = (result / result.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype or matrices.dtype)
    add_product = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.mT
        result = add_product(result, add_product(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return (result if wide else result.mT).to(matrices.dtype)


def is_plain(parameter: Tensor) -> bool:
    """Whether it is an ordinary tensor, not one that is sharded (DTensor)."""
    return type(parameter) in (Tensor, nn.Parameter)


def alike(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The matrices in groups to be stacked: of one shape, dtype and device, of bounded size together.

    A sharded one (DTensor) is a group of its own, as is on a CPU one of more than `TOGETHER_ON_CPU` numbers.
    """
    groups: dict[Any, list[list[Tensor]]] = {}
    for number, parameter in enumerate(parameters):
        alone = not is_plain(parameter) or (parameter.device.type == "cpu" and parameter.numel() > TOGETHER_ON_CPU)
        own = groups.setdefault(number if alone else (parameter.shape, parameter.dtype, parameter.device), [[]])
        if len(own[-1]) >= max(1, _STACK // parameter.numel()):
            own.append([])
        own[-1].append(parameter)
    return [group for same in groups.values() for group in same]


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `orthogonal=True` take Muon's step, the others AdamW's; one learning rate serves both.

    Muon, with gradient g, momentum m (0 at the start) and O = `near_orthogonal`, on an n x m matrix:

        m <- mu m + (1 - mu) g;   theta <- (1 - lr w) theta - lr 0.2 sqrt(max(n, m)) O(mu m + (1 - mu) g)

    The factor gives the step the root mean square that AdamW's usually has [arXiv 2502.16982, Eq. 4], so that
    learning rate and decay w mean the same in both. `betas` and `eps` are AdamW's. O's products are taken in bfloat16
    on an accelerator (as published), and on a CPU with `half`; float64 matrices keep their dtype.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        half: bool = False,
    ) -> None:
        self.half = half
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
                for same in alike(parameters):
                    self._muon(same, group["lr"], group["weight_decay"])
            elif parameters:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """Of matrices that can be stacked."""
        first, gradients = parameters[0], [cast(Tensor, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        _foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = _foreach_lerp(gradients, momenta, MOMENTUM)
        half = first.dtype == torch.float32 and (self.half or first.device.type != "cpu")
        stacked = ahead[0] if len(ahead) == 1 else torch.stack(ahead)
        directions = near_orthogonal(stacked, torch.bfloat16 if half else None)
        _foreach_mul_(parameters, 1 - lr * weight_decay)
        steps = [directions] if len(ahead) == 1 else list(directions.unbind(0))
        _foreach_add_(parameters, steps, alpha=-lr * 0.2 * max(first.shape) ** 0.5)

    def _adamw(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        fused = all(is_plain(parameter) and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        for parameter in parameters if fused else ():
            state = self.state[parameter]
            if state["step"].device != parameter.device:  # new, or from a checkpoint
                state["step"] = state["step"].to(parameter.device)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            fused=fused or None,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
