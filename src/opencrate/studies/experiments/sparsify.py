"""How far ISTA steps go towards the converged code of their LASSO, and which step sizes may be taken."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from sklearn.linear_model import Lasso
from torch import Tensor

from ..._values import Amount, Positive
from ...analysis.maths.lasso import LassoSolution, fista, token_objective
from ...operators import ista, lasso_objective
from ...reports.figures import COLOURS, _style
from .base import (
    Experiment,
    Few,
    Positives,
    Row,
    Settings,
    Steps,
    Tokens,
    Track,
    Width,
    over_seeds,
    select,
)
from .synthetic import SparseSignals, sparse_signals

OUTCOMES = ("converged", "still falling", "oscillating", "diverged")
DICTIONARIES = ("complete", "overcomplete")
_OUTCOME_COLOURS = ("#9ecae9", "#d9ecd0", "#f3d57a", "#e8896b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


@dataclass(frozen=True)
class SparsifySettings(Settings):
    """Settings of `opencrate experiment sparsify`.

    Attributes:
        ambient, tokens: d, N.
        expansion: m/d of the overcomplete dictionary.
        active: non-zero entries per true code.
        noise: length of the noise on a signal.
        lam: λ, swept.
        step_size: η‖D‖², swept.
        steps: T, swept.
        base_lam: λ at which the outcome of many steps is told.
        long_run: steps of that long run.
    """

    ambient: Width = 32
    tokens: Tokens = 64
    expansion: Few = 4
    active: Width = 4
    noise: Amount = 0.1
    lam: Positives = (0.01, 0.03, 0.1, 0.3, 1.0)
    step_size: Positives = (0.1, 0.5, 1.0, 1.5, 1.9, 2.1, 2.5, 2.75, 3.0, 4.0)
    steps: tuple[Steps, ...] = (1, 2, 5, 10, 30, 100)
    base_lam: Positive = 0.1
    long_run: Steps = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data(0, "complete", num_tokens=1)

    def data(self, seed: int, dictionary: str, num_tokens: int | None = None) -> SparseSignals:
        """The signals of one seed."""
        atoms = self.ambient * (self.expansion if dictionary == "overcomplete" else 1)
        tokens = self.tokens if num_tokens is None else num_tokens
        return sparse_signals(self.ambient, atoms, tokens, self.active, self.noise, seed)


SETTINGS = SparsifySettings


def quick(settings: SparsifySettings) -> SparsifySettings:
    """The same in seconds."""
    return replace(
        settings,
        seeds=3,
        tokens=16,
        ambient=16,
        active=2,
        lam=(0.03, 0.1, 0.3),
        step_size=(0.5, 1.0, 1.9, 3.0),
        steps=(1, 2, 10),
        long_run=300,
    )


def outcome(X: Tensor, D: Tensor, lam: float, eta: float, num_steps: int, tol: float = 1e-8) -> str:
    """What many ISTA steps from zero come to; one of `OUTCOMES`.

    "converged": a step changes the code by less than `tol`, relative to its size. "diverged": the code leaves 1e6
    times the signal's size. Otherwise, after `num_steps`: "still falling" when no step of the last half raised the
    objective (up to rounding), else "oscillating".

    Args:
        X: signals `(N, d)`.
        D: dictionary `(d, m)`.
        lam: λ >= 0.
        eta: η > 0.
        num_steps: where to stop.
        tol: relative change that counts as none.
    """
    A, rises, last = X.new_zeros(len(X), D.shape[1]), False, torch.inf
    limit = 1e6 * (1 + X.norm().item())
    for step in range(num_steps):
        new = ista(X, D, eta, lam, 1, A)
        size = new.norm().item()
        if not size <= limit:
            return "diverged"
        if (new - A).norm().item() <= tol * max(size, 1e-30):
            return "converged"
        value = lasso_objective(new, X, D, lam).item()
        rises |= step >= num_steps // 2 and value > last * (1 + 1e-12)
        A, last = new, value
    return "oscillating" if rises else "still falling"


def objective_rises(X: Tensor, D: Tensor, lam: float, eta: float, num_steps: int) -> int:
    """At how many of the first `num_steps` ISTA steps from zero the objective rises (by more than rounding)."""
    A, last, rises = X.new_zeros(len(X), D.shape[1]), X.square().sum().item() / 2, 0
    for _ in range(num_steps):
        A = ista(X, D, eta, lam, 1, A)
        value = lasso_objective(A, X, D, lam).item()
        rises += not value <= last * (1 + 1e-12)
        last = value
    return rises


def scikit_learn_objective(X: Tensor, D: Tensor, lam: float) -> Tensor:
    """The optimum of every token by scikit-learn's `Lasso(positive=True)`, whose alpha is λ/d; `(N)`."""
    solver = Lasso(alpha=lam / X.shape[-1], fit_intercept=False, positive=True, tol=1e-10, max_iter=100_000)
    code = torch.from_numpy(solver.fit(D.numpy(), X.mT.numpy()).coef_).reshape(len(X), -1)
    return token_objective(code, X, D, lam)


def run(settings: SparsifySettings, track: Track = iter) -> Experiment:
    """Gap, ℓ0 and ℓ1 over the grid of λ, η and T; ℓ1 of the converged code; outcome of many steps per step size."""
    values: dict[tuple, list[float]] = defaultdict(list)
    outcomes: dict[tuple, list[str]] = defaultdict(list)
    solver_difference, uncertified = 0.0, 0
    for seed in track(range(settings.seeds)):
        for dictionary in DICTIONARIES:
            data = settings.data(seed, dictionary)
            X, D = data.signals, data.dictionary
            unit = 1 / torch.linalg.matrix_norm(D, 2).square().item()
            for lam in settings.lam:
                best = fista(X, D, lam)
                uncertified += not best.converged
                _converged_values(values, dictionary, lam, best)
                for size in settings.step_size:
                    _grid_values(values, (dictionary, lam, size), X, D, unit * size, best, settings.steps)
            for size in settings.step_size:
                eta = unit * size
                outcomes[dictionary, size].append(outcome(X, D, settings.base_lam, eta, settings.long_run))
                rises = objective_rises(X, D, settings.base_lam, eta, max(settings.steps))
                values[
                    "steps that raise the objective", dictionary, settings.base_lam, size, max(settings.steps)
                ].append(float(rises))
            few = X[:8]
            mine = fista(few, D, settings.base_lam).objective
            theirs = scikit_learn_objective(few, D, settings.base_lam)
            solver_difference = max(solver_difference, float(((mine - theirs) / theirs).abs().max()))
    rows = [_row(*key, values=found) for key, found in values.items()]
    for (dictionary, size), words in outcomes.items():
        counts = Counter(words)
        for word in OUTCOMES:
            key = (f"{word} (fraction of seeds)", dictionary, settings.base_lam, size, settings.long_run)
            rows.append(_row(*key, values=[float(one == word) for one in words], interval=False))
        assert sum(counts.values()) == settings.seeds
    return Experiment(
        name="sparsify",
        title="How far do ISTA steps go, and which step sizes may be taken?",
        settings=settings,
        rows=tuple(rows),
        summary=tuple(_summary(settings, rows, values, solver_difference, uncertified)),
        columns=("η‖D‖²", *(f"{name}: {what}" for name in DICTIONARIES for what in ("gap at T", "outcome"))),
        shown=tuple(_shown(settings, rows, outcomes)),
        figures={
            "sparsify_steps": plot_gaps(settings, rows),
            "sparsify_lambda": plot_lambda(settings, rows),
            "sparsify_outcomes": plot_outcomes(settings, rows),
        },
    )


_GAP = "gap to the optimum (1 = the zero code)"
_L1, _L0 = "ℓ1 per token", "non-zero fraction"


def _converged_values(values: dict, dictionary: str, lam: float, best: LassoSolution) -> None:
    values[_L1, dictionary, lam, 0.0, 0].append(float(best.code.sum(-1).mean()))
    values[_L0, dictionary, lam, 0.0, 0].append(float((best.code > 0).double().mean()))


def _grid_values(
    values: dict, point: tuple, X: Tensor, D: Tensor, eta: float, best: LassoSolution, steps: tuple[int, ...]
) -> None:
    """Gap, ℓ1 and ℓ0 after each number of steps, at one dictionary, λ and η."""
    lam = point[1]
    zero, optimum = X.square().sum().item() / 2, best.objective.sum().item()
    A, taken = None, 0
    for count in sorted(steps):
        A = ista(X, D, eta, lam, count - taken, A)
        taken = count
        gap = (lasso_objective(A, X, D, lam).item() - optimum) / (zero - optimum)
        values[(_GAP, *point, count)].append(gap)
        values[(_L1, *point, count)].append(float(A.sum(-1).mean()))
        values[(_L0, *point, count)].append(float((A > 0).double().mean()))


def _row(
    quantity: str, dictionary: str, lam: float, size: float, steps: int, values: list[float], interval: bool = True
) -> Row:
    found = over_seeds(values)
    if not interval:
        found |= {"low": float("nan"), "high": float("nan")}
    where = {"dictionary": dictionary, "lam": lam, "step_size": size or None, "steps": steps or "converged"}
    return {"quantity": quantity, **where, **found}


# --- Words --------------------------------------------------------------------------------------------------------


def _summary(
    settings: SparsifySettings, rows: list[Row], values: dict, solver_difference: float, uncertified: int
) -> list[str]:
    return [
        f"{settings.seeds} seeds; {settings.tokens} signals in {settings.ambient} dimensions from codes with "
        f"{settings.active} positive entries; dictionaries of {settings.ambient} and "
        f"{settings.ambient * settings.expansion} atoms; codes >= 0; ISTA starts from zero.",
        f"The converged codes are FISTA's with a duality gap of at most 1e-8 of ½‖x‖² per token"
        f"{f' ({uncertified} solves missed it)' if uncertified else ''}; scikit-learn's Lasso agrees on the optimum "
        f"to {solver_difference:.1g} (relative).",
        _l1_sentence(settings, values),
        *(_gap_sentence(settings, rows, dictionary) for dictionary in DICTIONARIES),
        _descent_sentence(settings, rows),
        *(_outcome_sentence(settings, rows, dictionary) for dictionary in DICTIONARIES),
    ]


def _l1_sentence(settings: SparsifySettings, values: dict) -> str:
    """Whether ℓ1 of the converged code falls with λ, counted over seeds and neighbouring λ."""
    rises, pairs = 0, 0
    for dictionary in DICTIONARIES:
        columns = [values[_L1, dictionary, lam, 0.0, 0] for lam in sorted(settings.lam)]
        for first, second in pairwise(columns):
            rises += sum(b > a * (1 + 1e-6) for a, b in zip(first, second))
            pairs += len(first)
    if not pairs:
        return "One λ only, so nothing can be said of ℓ1 against λ."
    if not rises:
        return f"ℓ1 of the converged code falls with λ in all {pairs} comparisons of neighbouring λ, as it must."
    return f"ℓ1 of the converged code rises with λ in {rises} of {pairs} comparisons, which the theory excludes."


def _gap_sentence(settings: SparsifySettings, rows: list[Row], dictionary: str) -> str:
    size = min(settings.step_size, key=lambda value: abs(value - 1))
    found = [
        row
        for row in select(rows, quantity=_GAP, dictionary=dictionary, step_size=size)
        if row["lam"] == _near_base(settings)
    ]
    gaps = ", ".join(f"{100 * row['mean']:.2g} % after {row['steps']}" for row in found)
    where = f"{dictionary.capitalize()} D, λ = {_near_base(settings):g}, η = {size:g}/‖D‖²"
    return f"{where}: gap to the optimum {gaps} steps."


def _descent_sentence(settings: SparsifySettings, rows: list[Row]) -> str:
    found = select(rows, quantity="steps that raise the objective")
    safe = [row for row in found if row["step_size"] <= 1]
    rising = sum(row["largest"] > 0 for row in safe)
    told = (
        "never raises the objective" if not rising else f"raises the objective at {rising} points, against the theorem"
    )
    first = min((row["step_size"] for row in found if row["largest"] > 0), default=None)
    beyond = (
        f"; the smallest step size that ever raised it is η‖D‖² = {first:g}" if first else "; nor does a larger one"
    )
    return f"A step with η <= 1/‖D‖² {told} (first {max(settings.steps)} steps){beyond}."


def _outcome_sentence(settings: SparsifySettings, rows: list[Row], dictionary: str) -> str:
    parts = []
    for size in settings.step_size:
        found = {word: _fraction(rows, dictionary, size, word) for word in OUTCOMES}
        words = [f"{word} {100 * value:.0f} %" for word, value in found.items() if value]
        parts.append(f"{size:g}: {words[0].rpartition(' 100')[0] or ', '.join(words)}")
    return f"{dictionary.capitalize()} D, up to {settings.long_run} steps, by η‖D‖²: {'; '.join(parts)}."


def _fraction(rows: list[Row], dictionary: str, size: float, word: str) -> float:
    quantity = f"{word} (fraction of seeds)"
    (row,) = select(rows, quantity=quantity, dictionary=dictionary, step_size=size)
    return row["mean"]


def _near_base(settings: SparsifySettings) -> float:
    """The swept λ nearest to the base value."""
    return min(settings.lam, key=lambda lam: abs(lam - settings.base_lam))


def _shown(settings: SparsifySettings, rows: list[Row], outcomes: dict) -> list[tuple[str, ...]]:
    """One line per step size: the gap after each number of steps and the outcome of the long run."""
    lines = []
    for size in settings.step_size:
        cells = []
        for dictionary in DICTIONARIES:
            found = select(rows, quantity=_GAP, dictionary=dictionary, lam=_near_base(settings), step_size=size)
            cells.append(" ".join(f"{row['steps']}: {row['mean']:.2g}" for row in found))
            counts = Counter(outcomes[dictionary, size])
            cells.append(", ".join(f"{word} {counts[word]}" for word in OUTCOMES if counts[word]))
        lines.append((f"{size:g}", *cells))
    return lines


# --- Figures ------------------------------------------------------------------------------------------------------


def plot_gaps(settings: SparsifySettings, rows: list[Row]) -> Figure:
    """Gap to the optimum against the number of steps, one line per stable step size; both dictionaries."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sizes = [size for size in settings.step_size if size < 2]
    for axes, dictionary in zip(panels, DICTIONARIES):
        for index, size in enumerate(sizes):
            found = select(rows, quantity=_GAP, dictionary=dictionary, lam=_near_base(settings), step_size=size)
            _line(axes, found, "steps", index, f"η‖D‖² = {size:g}", floor=1e-10)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("ISTA steps T")
        axes.set_title(f"{dictionary} D", fontsize=10)
        _style(axes)
    panels[0].set_ylabel("gap to the optimum\n(1 = the zero code)")
    _one_legend(figure, panels)
    return figure


def plot_lambda(settings: SparsifySettings, rows: list[Row]) -> Figure:
    """ℓ1 and ℓ0 against λ, converged and after some steps of size 1/‖D‖²; both dictionaries."""
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    size = min(settings.step_size, key=lambda value: abs(value - 1))
    few = [("converged", None), *((count, size) for count in sorted(settings.steps)[:4])]
    for line, quantity in zip(grid, (_L1, _L0)):
        for axes, dictionary in zip(line, DICTIONARIES):
            for index, (steps, at) in enumerate(few):
                name = "converged" if steps == "converged" else f"T = {steps}"
                found = select(rows, quantity=quantity, dictionary=dictionary, steps=steps, step_size=at)
                _line(axes, found, "lam", index, name)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            _style(axes)
    for axes, dictionary in zip(grid[0], DICTIONARIES):
        axes.set_title(f"{dictionary} D", fontsize=10)
    for axes in grid[1]:
        axes.set_xlabel("λ")
    grid[0, 0].set_ylabel("ℓ1 per token")
    grid[1, 0].set_ylabel("non-zero fraction")
    _one_legend(figure, list(grid.flat))
    return figure


def plot_outcomes(settings: SparsifySettings, rows: list[Row]) -> Figure:
    """What many steps come to, as fractions of the seeds, for every step size; both dictionaries."""
    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = range(len(settings.step_size))
    for axes, dictionary in zip(panels, DICTIONARIES):
        bottom = torch.zeros(len(settings.step_size))
        for word, colour in zip(OUTCOMES, _OUTCOME_COLOURS):
            height = torch.tensor([_fraction(rows, dictionary, size, word) for size in settings.step_size])
            axes.bar(places, height, bottom=bottom, color=colour, label=word, width=0.8)
            bottom += height
        axes.set_xticks(places, [f"{size:g}" for size in settings.step_size])
        axes.set_xlabel("η‖D‖²")
        axes.set_title(f"{dictionary} D", fontsize=10)
        _style(axes)
    panels[0].set_ylabel("fraction of seeds")
    _one_legend(figure, panels)
    return figure


def _line(axes, rows: list[Row], x: str, index: int, name: str, floor: float | None = None) -> None:
    style = {"color": COLOURS[index % len(COLOURS)], "marker": _MARKERS[index % len(_MARKERS)], "markersize": 3.5}
    mean, low, high = ([max(row[key], floor) if floor else row[key] for row in rows] for key in ("mean", "low", "high"))
    axes.plot([row[x] for row in rows], mean, linewidth=1.4, label=name, **style)
    axes.fill_between([row[x] for row in rows], low, high, color=style["color"], alpha=0.2, linewidth=0)


def _one_legend(figure: Figure, panels) -> None:
    for axes in panels:
        axes.get_legend().remove()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=5, fontsize=8.5, frameon=False)
