"""The sparsify experiment: gaps to the optimum, sparsity against λ, and what many steps come to."""

from __future__ import annotations

import numpy as np
import pandas
from matplotlib.figure import Figure as Drawing

from ...stats.words import number
from ...studies.experiments.base import Experiment, Row
from ...studies.experiments.sparsify import DICTIONARIES, GAP, L0, L1, OUTCOMES, RISES
from ..figures import band, finish, panels
from ..tables import frame

_OUTCOME_COLOURS = ("#9ecae9", "#d9ecd0", "#f3d57a", "#e8896b")


def describe(found: Experiment) -> list[str]:
    """What was run, how the solver was checked, and what theory and numbers say of steps, gaps and outcomes."""
    s, facts = found.settings, found.facts
    missed = f" ({facts['uncertified']} solves missed it)" if facts["uncertified"] else ""
    return [
        f"{s.seeds} seeds; {s.tokens} signals in {s.ambient} dimensions from codes with {s.active} positive entries; "
        f"dictionaries of {s.ambient} and {s.ambient * s.expansion} atoms; codes >= 0; ISTA starts from zero.",
        f"The converged codes are FISTA's with a duality gap of at most 1e-8 of ½‖x‖² per token{missed}; "
        f"scikit-learn's Lasso agrees on the optimum to {facts['solver_difference']:.1g} (relative).",
        _l1_sentence(facts["l1_rises"], facts["l1_pairs"]),
        *(_gap_sentence(found, dictionary) for dictionary in DICTIONARIES),
        _descent_sentence(found),
        *(_outcome_sentence(found, dictionary) for dictionary in DICTIONARIES),
    ]


def _l1_sentence(rises: int, pairs: int) -> str:
    """Whether ℓ1 of the converged code falls with λ, counted over seeds and neighbouring λ."""
    if not pairs:
        return "One λ only, so nothing can be said of ℓ1 against λ."
    if not rises:
        return f"ℓ1 of the converged code falls with λ in all {pairs} comparisons of neighbouring λ, as it must."
    return f"ℓ1 of the converged code rises with λ in {rises} of {pairs} comparisons, which the theory excludes."


def _gaps(found: Experiment, dictionary: str, size: float) -> list[Row]:
    """The gap after each number of steps at one step size, at the swept λ nearest to the base value."""
    return found.select(quantity=GAP, dictionary=dictionary, lam=_near_base(found), step_size=size)


def _near_base(found: Experiment) -> float:
    return min(found.settings.lam, key=lambda lam: abs(lam - found.settings.base_lam))


def _unit_size(found: Experiment) -> float:
    """The swept step size nearest to 1/‖D‖²."""
    return min(found.settings.step_size, key=lambda value: abs(value - 1))


def _gap_sentence(found: Experiment, dictionary: str) -> str:
    size = _unit_size(found)
    rows = _gaps(found, dictionary, size)
    gaps = ", ".join(f"{100 * row['mean']:.2g} % after {row['steps']}" for row in rows)
    where = f"{dictionary.capitalize()} D, λ = {_near_base(found):g}, η = {size:g}/‖D‖²"
    return f"{where}: gap to the optimum {gaps} steps."


def _descent_sentence(found: Experiment) -> str:
    rows = found.select(quantity=RISES)
    rising = [row["step_size"] for row in rows if row["largest"] > 0]
    wrong = sum(size <= 1 for size in rising)
    told = f"raises the objective at {wrong} points, against the theorem" if wrong else "never raises the objective"
    beyond = f"; the smallest step size that ever raised it is η‖D‖² = {min(rising):g}" if rising else ""
    beyond = beyond or "; nor does a larger one"
    return f"A step with η <= 1/‖D‖² {told} (first {max(found.settings.steps)} steps){beyond}."


def _outcome_sentence(found: Experiment, dictionary: str) -> str:
    parts = []
    for size in found.settings.step_size:
        shares = {word: _fraction(found, dictionary, size, word) for word in OUTCOMES}
        words = [word if share == 1 else f"{word} {100 * share:.0f} %" for word, share in shares.items() if share]
        parts.append(f"{size:g}: {', '.join(words)}")
    return f"{dictionary.capitalize()} D, up to {found.settings.long_run} steps, by η‖D‖²: {'; '.join(parts)}."


def _fraction(found: Experiment, dictionary: str, size: float, word: str) -> float:
    (row,) = found.select(quantity=f"{word} (fraction of seeds)", dictionary=dictionary, step_size=size)
    return row["mean"]


def table(found: Experiment) -> pandas.DataFrame:
    """One line per step size: the gap after each number of steps and the outcome of the long run."""
    rows = []
    for size in found.settings.step_size:
        row = {"η‖D‖²": f"{size:g}"}
        for dictionary in DICTIONARIES:
            gaps = _gaps(found, dictionary, size)
            row[f"{dictionary}: gap at T"] = " ".join(
                f"{one['steps']}: {number(one['mean'], 2, significant=True)}" for one in gaps
            )
            seeds = {word: found.settings.seeds * _fraction(found, dictionary, size, word) for word in OUTCOMES}
            row[f"{dictionary}: outcome"] = ", ".join(f"{word} {count:.0f}" for word, count in seeds.items() if count)
        rows.append(row)
    return frame(rows)


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    return {
        "sparsify_steps": plot_gaps(found),
        "sparsify_lambda": plot_lambda(found),
        "sparsify_outcomes": plot_outcomes(found),
    }


def plot_gaps(found: Experiment) -> Drawing:
    """Gap to the optimum against the number of steps, one line per stable step size; both dictionaries."""
    figure, drawn = panels(1, 2, width=7.4, height=3.2, sharey=True)
    for axes, dictionary in zip(drawn, DICTIONARIES):
        for index, size in enumerate(size for size in found.settings.step_size if size < 2):
            rows = _gaps(found, dictionary, size)
            band(axes, [row["steps"] for row in rows], rows, f"η‖D‖² = {size:g}", index, floor=1e-10)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{dictionary} D", fontsize=10)
    drawn[0].set_ylabel("gap to the optimum\n(1 = the zero code)")
    finish(drawn, "ISTA steps T", columns=5, whole=False, together=True)
    return figure


def plot_lambda(found: Experiment) -> Drawing:
    """ℓ1 and ℓ0 against λ, converged and after some steps of size 1/‖D‖²; both dictionaries."""
    figure, drawn = panels(2, 2, width=7.4, height=5.2)
    size = _unit_size(found)
    few = [("converged", None), *((count, size) for count in sorted(found.settings.steps)[:4])]
    places = [(quantity, dictionary) for quantity in (L1, L0) for dictionary in DICTIONARIES]
    for axes, (quantity, dictionary) in zip(drawn, places):
        for index, (steps, at) in enumerate(few):
            rows = found.select(quantity=quantity, dictionary=dictionary, steps=steps, step_size=at)
            name = "converged" if steps == "converged" else f"T = {steps}"
            band(axes, [row["lam"] for row in rows], rows, name, index)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
    for axes, dictionary in zip(drawn, DICTIONARIES):
        axes.set_title(f"{dictionary} D", fontsize=10)
    for axes, quantity in zip(drawn[::2], (L1, L0)):
        axes.set_ylabel(quantity)
    finish(drawn, "λ", columns=5, whole=False, together=True)
    return figure


def plot_outcomes(found: Experiment) -> Drawing:
    """What many steps come to, as fractions of the seeds, for every step size; both dictionaries."""
    figure, drawn = panels(1, 2, width=7.4, height=2.9, sharey=True)
    sizes = found.settings.step_size
    for axes, dictionary in zip(drawn, DICTIONARIES):
        bottom = np.zeros(len(sizes))
        for word, colour in zip(OUTCOMES, _OUTCOME_COLOURS):
            height = np.asarray([_fraction(found, dictionary, size, word) for size in sizes])
            axes.bar(range(len(sizes)), height, bottom=bottom, color=colour, label=word, width=0.8)
            bottom += height
        axes.set_title(f"{dictionary} D", fontsize=10)
    drawn[0].set_ylabel("fraction of seeds")
    finish(drawn, "η‖D‖²", columns=5, together=True)
    for axes in drawn:
        axes.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    return figure
