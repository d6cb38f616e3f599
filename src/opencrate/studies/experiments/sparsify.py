"""How far ISTA steps go towards the converged code of their LASSO, and which step sizes may be taken."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from ..._values import Amount, Positive
from ...analysis.maths.lasso import LassoSolution, fista, token_objective
from ...operators import ista, lasso_objective
from .base import Experiment, Few, Positives, Row, Settings, Steps, Tokens, Track, Width, over_seeds
from .synthetic import SparseSignals, sparse_signals

OUTCOMES = ("converged", "still falling", "oscillating", "diverged")
DICTIONARIES = ("complete", "overcomplete")
GAP = "gap to the optimum (1 = the zero code)"
L1, L0 = "ℓ1 per token", "non-zero fraction"
RISES = "steps that raise the objective"


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
        return sparse_signals(self.ambient, atoms, num_tokens or self.tokens, self.active, self.noise, seed)


SETTINGS = SparsifySettings


def quick(settings: SparsifySettings) -> SparsifySettings:
    """The same in seconds."""
    grid = {"lam": (0.03, 0.1, 0.3), "step_size": (0.5, 1.0, 1.9, 3.0), "steps": (1, 2, 10), "long_run": 300}
    return replace(settings, seeds=3, tokens=16, ambient=16, active=2, **grid)


def outcome(X: Tensor, D: Tensor, lam: float, eta: float, num_steps: int, tol: float = 1e-8) -> str:
    """What many ISTA steps from zero come to; one of `OUTCOMES`.

    "converged": a step changes the code by less than `tol`, relative to its size. "diverged": the code leaves 1e6
    times the signal's size. Otherwise, after `num_steps`: "still falling" when no step of the last half raised the
    objective (up to rounding), else "oscillating".
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
                _add_sparsity(values, (dictionary, lam, 0.0, 0), best.code)
                for size in settings.step_size:
                    _grid_values(values, (dictionary, lam, size), X, D, unit * size, best, settings.steps)
            for size in settings.step_size:
                eta = unit * size
                outcomes[dictionary, size].append(outcome(X, D, settings.base_lam, eta, settings.long_run))
                rises = objective_rises(X, D, settings.base_lam, eta, max(settings.steps))
                values[RISES, dictionary, settings.base_lam, size, max(settings.steps)].append(float(rises))
            few = X[:8]
            mine = fista(few, D, settings.base_lam).objective
            theirs = scikit_learn_objective(few, D, settings.base_lam)
            solver_difference = max(solver_difference, float(((mine - theirs) / theirs).abs().max()))
    rows = [_row(*key, values=found) for key, found in values.items()]
    for (dictionary, size), words in outcomes.items():
        for word in OUTCOMES:
            key = (f"{word} (fraction of seeds)", dictionary, settings.base_lam, size, settings.long_run)
            rows.append(_row(*key, values=[float(one == word) for one in words], interval=False))
    return Experiment(
        name="sparsify",
        title="How far do ISTA steps go, and which step sizes may be taken?",
        settings=settings,
        rows=tuple(rows),
        facts={"solver_difference": solver_difference, "uncertified": uncertified, **_l1_facts(settings, values)},
    )


def _add_sparsity(values: dict, point: tuple, code: Tensor) -> None:
    values[(L1, *point)].append(float(code.sum(-1).mean()))
    values[(L0, *point)].append(float((code > 0).double().mean()))


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
        values[(GAP, *point, count)].append(gap)
        _add_sparsity(values, (*point, count), A)


def _row(
    quantity: str, dictionary: str, lam: float, size: float, steps: int, values: list[float], interval: bool = True
) -> Row:
    found = over_seeds(values)
    if not interval:
        found |= {"low": float("nan"), "high": float("nan")}
    where = {"dictionary": dictionary, "lam": lam, "step_size": size or None, "steps": steps or "converged"}
    return {"quantity": quantity, **where, **found}


def _l1_facts(settings: SparsifySettings, values: dict[tuple, list[float]]) -> dict[str, int]:
    """In how many comparisons, over seeds and neighbouring λ, ℓ1 of the converged code rises with λ."""
    rises = pairs = 0
    for dictionary in DICTIONARIES:
        columns = [values[L1, dictionary, lam, 0.0, 0] for lam in sorted(settings.lam)]
        for first, second in pairwise(columns):
            rises += sum(b > a * (1 + 1e-6) for a, b in zip(first, second))
            pairs += len(first)
    return {"l1_rises": rises, "l1_pairs": pairs}
