"""Schedules of self-distillation, as functions of the step, and what they and DINO's clipping are applied to."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, _foreach_lerp_, _foreach_mul_, _foreach_norm, nn  # pyright: ignore[reportPrivateImportUsage]

from .inputs import checked_number


def cosine(step: int, steps: int, start: float, end: float, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """Half a cosine from `start` to `end` over `steps` steps, after a linear warm-up of the first `warmup` of them.

    With step t = 0, 1, ..., the warm-up goes from `warmup_start` at t = 0 to `start` at t = warmup - 1. Then, with
    n = steps - warmup, as in DINO's code,

        end + (start - end) (1 + cos(pi (t - warmup)/n)) / 2   before t = steps, and `end` from there on

    DINO's momentum goes from 0.996 to 1 and its weight decay from 0.04 to 0.4.

    Raises:
        ValueError: step < 0, steps < 1, or a warm-up that is longer than the steps.
    """
    _check_steps(step, steps, warmup)
    if step < warmup:
        return _on_line(step, warmup, warmup_start, start)
    if step >= steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def linear_then_constant(step: int, warmup: int, start: float, end: float) -> float:
    """A line from `start` at step 0 to `end` at step `warmup` - 1, and `end` from then on.

    DINO's teacher temperature goes from 0.04 to 0.07 in 30 steps of one epoch each. With `warmup` 0 it is `end`
    always; with 1 the first step has `start`.

    Raises:
        ValueError: step or warmup is negative.
    """
    _check_steps(step, None, warmup)
    return _on_line(step, warmup, start, end) if step < warmup else end


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """`teacher <- momentum teacher + (1 - momentum) student` for all parameters, in place; buffers stay.

    Args:
        teacher, student: modules of the same architecture, on the same devices.
        momentum: 0 to 1; 1 leaves the teacher.

    Raises:
        ValueError: they are not of the same architecture, or the momentum is out of its range.
    """
    checked_number("momentum", momentum, 0, inclusive=True, most=1)
    averages: list[Tensor] = list(teacher.parameters())
    weights: list[Tensor] = list(student.parameters())
    if [one.shape for one in averages] != [one.shape for one in weights]:
        raise ValueError(
            f"teacher and student must be of the same architecture, got {len(averages)} and {len(weights)} parameters "
            "or other shapes; make the teacher by copy.deepcopy(student)"
        )
    if averages:
        _foreach_lerp_(averages, weights, 1 - momentum)


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale each gradient down to an L2 norm of at most `limit`, tensor by tensor, in place, as DINO's code does.

    Each is multiplied by min(1, limit/(norm + 1e-6)): not the common clipping by the norm of all gradients together.

    Returns:
        The norms before, one for each gradient that there is, in the order of the parameters; `(n)`.

    Raises:
        ValueError: limit is not a number above 0.
    """
    checked_number("limit", limit)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(0)
    norms = list(_foreach_norm(gradients))
    _foreach_mul_(gradients, [(limit / (norm + 1e-6)).clamp(max=1) for norm in norms])
    return torch.stack([norm.float().to(norms[0].device) for norm in norms])


def _on_line(step: int, points: int, start: float, end: float) -> float:
    """Point `step` of as many on the line between two values, both included."""
    return start + (end - start) * step / max(1, points - 1)


def _check_steps(step: int, steps: int | None, warmup: int) -> None:
    if step < 0 or warmup < 0 or (steps is not None and (steps < 1 or warmup > steps)):
        total = "" if steps is None else f", steps={steps!r} (from 1)"
        raise ValueError(
            f"a schedule needs step >= 0 and a warm-up from 0 to its steps, got step={step!r}, warmup={warmup!r}{total}"
        )
