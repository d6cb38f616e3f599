"""Which forms of the compression step lower R^c, on tokens from a union of subspaces whose bases are known."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from ..._values import Amount, Positive
from ...analysis.maths.steps import FORMS, gradient_lipschitz, step_directions
from ...analysis.theory.check import ASCENDS, CANNOT_TELL, DESCENDS
from ...objective import subspace_coding_rate
from ...operators import gamma
from ...reports.figures import COLOURS, _style
from .base import (
    Amounts,
    Angle,
    Experiment,
    Few,
    Positives,
    Row,
    Settings,
    Steps,
    Tokens,
    Track,
    Width,
    judged,
    over_seeds,
    select,
)
from .synthetic import UnionOfSubspaces, union_of_subspaces

TESTED = ("exact", "neumann", "softmax", "paper", "plus", "minus")
MEASURES = ("as it is", "unit length")
_SWEEPS = ("noise", "angle", "step_size")
_MARKERS = ("o", "s", "^", "D", "v", "P")


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
        tokens = self.tokens if num_tokens is None else num_tokens
        return union_of_subspaces(self.subspaces, self.dim, self.ambient, tokens, noise, angle, seed)


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
    """R^c before and after each of `steps` repeated steps, as it is and with tokens scaled to length 1.

    Returns:
        Two float64 tensors `(steps + 1)`, nats.
    """
    plain, unit = [_rate(Z, U, eps)], [_rate(normalize(Z, dim=-1), U, eps)]
    for _ in range(steps):
        Z = one_step(Z, U, form, eps, size)
        plain.append(_rate(Z, U, eps))
        unit.append(_rate(normalize(Z, dim=-1), U, eps))
    return torch.stack(plain), torch.stack(unit)


def run(settings: CompressSettings, track: Track = iter) -> Experiment:
    """The sweeps of the first step, and R^c along repeated steps, each over all seeds."""
    first: dict[tuple, list[float]] = defaultdict(list)
    paths: dict[tuple, list[Tensor]] = defaultdict(list)
    for seed in track(range(settings.seeds)):
        for sweep in _SWEEPS:
            for value in getattr(settings, sweep):
                point = {name: getattr(settings, f"base_{name}") for name in _SWEEPS} | {sweep: value}
                data = settings.data(seed, point["noise"], point["angle"])
                for form in TESTED:
                    before, after = _first_step(data, form, settings.eps, point["step_size"])
                    for measure, change in zip(MEASURES, after - before):
                        first[sweep, value, form, measure].append(float(change))
        data = settings.data(seed, settings.base_noise, settings.base_angle)
        for form in TESTED:
            found = trajectory(data.tokens, data.bases, form, settings.eps, settings.base_step_size, settings.steps)
            for measure, values in zip(MEASURES, found):
                paths[form, measure].append(values)
    rows = [_row(sweep, value, form, measure, values) for (sweep, value, form, measure), values in first.items()]
    for (form, measure), values in paths.items():
        total = [float(path[-1] - path[0]) for path in values]
        rows.append(_row("all steps", float(settings.steps), form, measure, total))
        for step, column in enumerate(torch.stack(values, dim=1)):
            rows.append(_row("repeated", float(step), form, measure, column.tolist(), quantity="R^c (nats)"))
    return Experiment(
        name="compress",
        title="Which forms of the compression step lower R^c?",
        settings=settings,
        rows=tuple(rows),
        summary=tuple(_summary(settings, rows)),
        columns=("form", "κL = " + " / ".join(f"{value:g}" for value in settings.step_size), "noise", "angle"),
        shown=tuple(_shown(rows)),
        figures={"compress": plot_steps(rows), "compress_sweeps": plot_sweeps(rows)},
    )


def _first_step(data: UnionOfSubspaces, form: str, eps: float, size: float) -> tuple[Tensor, Tensor]:
    """R^c, as it is and at unit length, before and after one step: two tensors `(2)`."""
    plain, unit = trajectory(data.tokens, data.bases, form, eps, size, 1)
    return torch.stack((plain[0], unit[0])), torch.stack((plain[1], unit[1]))


def _rate(Z: Tensor, U: Tensor, eps: float) -> Tensor:
    """R^c, NaN where the tokens have left the range of floating-point numbers."""
    return subspace_coding_rate(Z, U, eps)


def _row(
    sweep: str, value: float, form: str, measure: str, values: list[float], quantity: str = "change of R^c (nats)"
) -> Row:
    found = over_seeds(values)
    row = {"sweep": sweep, "value": value, "form": form, "formula": FORMS[form].formula, "tokens": measure}
    return {**row, "quantity": quantity, **found, "verdict": "" if sweep == "repeated" else judged(found)}


# --- Words --------------------------------------------------------------------------------------------------------


def _summary(settings: CompressSettings, rows: list[Row]) -> list[str]:
    g = gamma(settings.tokens, settings.dim, settings.eps)
    sentences = [
        f"{settings.seeds} seeds; K = {settings.subspaces} subspaces of dimension {settings.dim} in "
        f"{settings.ambient} dimensions, {settings.tokens} tokens of length 1, ε = {settings.eps:g} (γ = {g:.3g})."
    ]
    for form in TESTED:
        found = [row for row in select(rows, form=form, tokens=MEASURES[0]) if row["sweep"] in _SWEEPS]
        sentences.append(f"{FORMS[form].words[0].upper()}{FORMS[form].words[1:]}: {_count(found)}.")
    sentences += [_repeated(settings, rows, measure) for measure in MEASURES]
    beyond = [row for row in select(rows, sweep="step_size", form="exact", tokens=MEASURES[0]) if row["value"] > 2]
    if beyond:
        rising = [f"{row['value']:g}" for row in beyond if row["verdict"] != DESCENDS]
        told = (
            f"it no longer descends at κL = {', '.join(rising)}" if rising else "it still descends at every one tried"
        )
        sentences.append(f"The exact gradient step is only guaranteed to descend for κ < 2/L; beyond, {told}.")
    return sentences


def _repeated(settings: CompressSettings, rows: list[Row], measure: str) -> str:
    """What many steps come to, form by form."""
    parts = []
    for form in TESTED:
        (start,) = select(rows, sweep="repeated", value=0.0, form=form, tokens=measure)
        (found,) = select(rows, sweep="all steps", form=form, tokens=measure)
        change = f"{found['verdict']} ({found['mean']:+.3g} nats)"
        parts.append(f"{FORMS[form].formula}: {change if math.isfinite(found['mean']) else 'leaves all bounds'}")
    how = "as they are" if measure == MEASURES[0] else "scaled to length 1 to measure, so that only directions count"
    return (
        f"After {settings.steps} steps (κL = {settings.base_step_size:g}) from {start['mean']:.3g} nats, tokens {how}: "
        f"{'; '.join(parts)}."
    )


def _count(rows: list[Row]) -> str:
    """'descends at 15 of 19 points, ascends at 4 (+0.1 to +2.3 nats)'."""
    words = [row["verdict"] for row in rows]
    text = f"descends at {words.count(DESCENDS)} of {len(rows)} points"
    text += f", ascends at {words.count(ASCENDS)}" if ASCENDS in words else ""
    text += f", cannot tell at {words.count(CANNOT_TELL)}" if CANNOT_TELL in words else ""
    changes = [row["mean"] for row in rows]
    return f"{text} (mean changes {min(changes):+.3g} to {max(changes):+.3g} nats)"


def _shown(rows: list[Row]) -> list[tuple[str, ...]]:
    """One line per form: the change at every value of each sweep, tokens as they are."""
    lines = []
    for form in TESTED:
        cells = [
            " ".join(f"{row['mean']:+.2f}" for row in select(rows, sweep=sweep, form=form, tokens=MEASURES[0]))
            for sweep in ("step_size", "noise", "angle")
        ]
        lines.append((FORMS[form].words, *cells))
    return lines


# --- Figures ------------------------------------------------------------------------------------------------------


def plot_steps(rows: list[Row]) -> Figure:
    """R^c along repeated steps of each form, tokens as they are (left) and scaled to length 1 (right)."""
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, measure, title in zip(panels, MEASURES, ("tokens as they are", "tokens scaled to length 1")):
        for index, form in enumerate(TESTED):
            _line(axes, select(rows, sweep="repeated", form=form, tokens=measure), index, FORMS[form].words)
        start = select(rows, sweep="repeated", value=0.0, tokens=measure)[0]["mean"]
        axes.set_ylim(-0.1 * start, 3 * start if measure == MEASURES[0] else 1.4 * start)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps")
        axes.set_ylabel(r"$R^c$ (nats)")
        _style(axes)
        axes.get_legend().remove()
    _legend(figure, panels[0])
    return figure


def plot_sweeps(rows: list[Row]) -> Figure:
    """Change of R^c by the first step against the step size, the noise and the angle between the subspaces."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    labels = {"step_size": "step size κL", "noise": "noise (relative length)", "angle": "angle (degrees)"}
    for axes, (sweep, label) in zip(panels, labels.items()):
        for index, form in enumerate(TESTED):
            _line(axes, select(rows, sweep=sweep, form=form, tokens=MEASURES[0]), index, FORMS[form].words)
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlabel(label)
        _style(axes)
        axes.get_legend().remove()
    panels[0].set_ylabel(r"change of $R^c$ by one step (nats)")
    _legend(figure, panels[0])
    return figure


def _line(axes, rows: list[Row], index: int, name: str) -> None:
    x, mean = [row["value"] for row in rows], [row["mean"] for row in rows]
    marker = _MARKERS[index] if len(rows) < 15 else None
    line = "--" if name == FORMS["paper"].words else "-"  # it often lies on the softmax form
    axes.plot(x, mean, color=COLOURS[index], linestyle=line, marker=marker, markersize=3.5, linewidth=1.5, label=name)
    axes.fill_between(
        x, [row["low"] for row in rows], [row["high"] for row in rows], color=COLOURS[index], alpha=0.2, linewidth=0
    )


def _legend(figure: Figure, axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8.5, frameon=False)
