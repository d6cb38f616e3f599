"""Which forms of the compression step lower R^c, on tokens from a union of subspaces whose bases are known."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..._values import Amount, Positive
from ...analysis.maths.steps import FORMS, gradient_lipschitz, step_directions
from ...analysis.theory.check import verdict
from ...objective import subspace_coding_rate
from .base import Amounts, Angle, Experiment, Few, Positives, Row, Settings, Steps, Tokens, Track, Width, over_seeds
from .synthetic import UnionOfSubspaces, union_of_subspaces

TESTED = ("exact", "neumann", "softmax", "paper", "plus", "minus")
MEASURES = ("as it is", "unit length")
SWEEPS = ("noise", "angle", "step_size")


@dataclass(frozen=True)
class CompressSettings(Settings):
    """Settings of `opencrate experiment compress`.

    Attributes:
        subspaces, dim, ambient, tokens: K, p, d, N.
        eps: ε of R^c.
        noise, angle, step_size: what is swept, one at a time; the others at their base value.
        base_noise, base_angle, base_step_size: those base values; step sizes are κL.
        steps: repeated steps of the trajectory.
    """

    subspaces: Few = 4
    dim: Width = 8
    ambient: Width = 64
    tokens: Tokens = 128
    eps: Positive = 0.5
    noise: Amounts = (0.0, 0.1, 0.2, 0.4, 0.8)
    angle: tuple[Angle, ...] = (90.0, 75.0, 60.0, 45.0, 30.0, 15.0)
    step_size: Positives = (0.1, 0.25, 0.5, 1.0, 1.5, 1.9, 2.5, 4.0)
    base_noise: Amount = 0.1
    base_angle: Angle = 90.0
    base_step_size: Positive = 0.5
    steps: Steps = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for noise in (self.base_noise, *self.noise):
            for angle in (self.base_angle, *self.angle):
                self.data(0, noise, angle, num_tokens=1)

    def data(self, seed: int, noise: float, angle: float, num_tokens: int | None = None) -> UnionOfSubspaces:
        """The tokens of one seed."""
        sizes = (self.subspaces, self.dim, self.ambient, num_tokens or self.tokens)
        return union_of_subspaces(*sizes, noise, angle, seed)


SETTINGS = CompressSettings


def quick(settings: CompressSettings) -> CompressSettings:
    """The same in seconds."""
    return replace(settings, seeds=3, tokens=64, noise=(0.0, 0.4), angle=(90.0, 45.0), step_size=(0.5, 2.5), steps=8)


def one_step(Z: Tensor, U: Tensor, form: str, eps: float, size: float) -> Tensor:
    """Z after one step of a form; `size` is κL and used by the forms that have a step size."""
    update = step_directions(Z, U, eps)[form]
    kappa = size / gradient_lipschitz(U, Z.shape[-2], eps) if FORMS[form].sized else 1.0
    return Z + kappa * update


def trajectory(Z: Tensor, U: Tensor, form: str, eps: float, size: float, steps: int) -> tuple[Tensor, Tensor]:
    """R^c before and after each of `steps` steps `(steps + 1)` in nats, as it is and with tokens scaled to length 1.

    It is NaN once the tokens have left the range of floating-point numbers.
    """
    plain, unit = [subspace_coding_rate(Z, U, eps)], [subspace_coding_rate(normalize(Z, dim=-1), U, eps)]
    for _ in range(steps):
        Z = one_step(Z, U, form, eps, size)
        plain.append(subspace_coding_rate(Z, U, eps))
        unit.append(subspace_coding_rate(normalize(Z, dim=-1), U, eps))
    return torch.stack(plain), torch.stack(unit)


def run(settings: CompressSettings, track: Track = iter) -> Experiment:
    """The sweeps of the first step, and R^c along repeated steps, each over all seeds."""
    first: dict[tuple, list[float]] = defaultdict(list)
    paths: dict[tuple, list[Tensor]] = defaultdict(list)
    for seed in track(range(settings.seeds)):
        for sweep in SWEEPS:
            for value in getattr(settings, sweep):
                point = {name: getattr(settings, f"base_{name}") for name in SWEEPS} | {sweep: value}
                data = settings.data(seed, point["noise"], point["angle"])
                for form in TESTED:
                    found = trajectory(data.tokens, data.bases, form, settings.eps, point["step_size"], 1)
                    for measure, (before, after) in zip(MEASURES, found):
                        first[sweep, value, form, measure].append(float(after - before))
        data = settings.data(seed, settings.base_noise, settings.base_angle)
        for form in TESTED:
            found = trajectory(data.tokens, data.bases, form, settings.eps, settings.base_step_size, settings.steps)
            for measure, values in zip(MEASURES, found):
                paths[form, measure].append(values)
    rows = [_row(*key, values=values) for key, values in first.items()]
    for (form, measure), values in paths.items():
        total = [float(path[-1] - path[0]) for path in values]
        rows.append(_row("all steps", float(settings.steps), form, measure, total))
        for step, column in enumerate(torch.stack(values, dim=1)):
            rows.append(_row("repeated", float(step), form, measure, column.tolist(), quantity="R^c (nats)"))
    return Experiment(
        name="compress", title="Which forms of the compression step lower R^c?", settings=settings, rows=tuple(rows)
    )


def _row(
    sweep: str, value: float, form: str, measure: str, values: list[float], quantity: str = "change of R^c (nats)"
) -> Row:
    found = over_seeds(values)
    told = "" if sweep == "repeated" else verdict(found["low"], found["high"])
    row = {"sweep": sweep, "value": value, "form": form, "formula": FORMS[form].formula, "tokens": measure}
    return {**row, "quantity": quantity, **found, "verdict": told}
