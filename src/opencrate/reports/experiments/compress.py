"""The compress experiment: which forms of the compression step lower R^c."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas
from matplotlib.figure import Figure as Drawing

from ...analysis.maths.steps import FORMS
from ...analysis.theory.check import ASCENDS, CANNOT_TELL, DESCENDS
from ...operators import gamma
from ...studies.experiments.base import Experiment, Row
from ...studies.experiments.compress import MEASURES, SWEEPS, TESTED
from ..figures import band, finish, panels, rule
from ..tables import frame


def describe(found: Experiment) -> list[str]:
    """What was run, what the first step of each form does, and what many steps come to."""
    s = found.settings
    sentences = [
        f"{s.seeds} seeds; K = {s.subspaces} subspaces of dimension {s.dim} in {s.ambient} dimensions, {s.tokens} "
        f"tokens of length 1, ε = {s.eps:g} (γ = {gamma(s.tokens, s.dim, s.eps):.3g})."
    ]
    for form in TESTED:
        rows = [row for row in found.select(form=form, tokens=MEASURES[0]) if row["sweep"] in SWEEPS]
        sentences.append(f"{FORMS[form].words[0].upper()}{FORMS[form].words[1:]}: {_count(rows)}.")
    sentences += [_repeated(found, measure) for measure in MEASURES]
    beyond = [row for row in found.select(sweep="step_size", form="exact", tokens=MEASURES[0]) if row["value"] > 2]
    if beyond:
        rising = [f"{row['value']:g}" for row in beyond if row["verdict"] != DESCENDS]
        told = (
            f"it no longer descends at κL = {', '.join(rising)}" if rising else "it still descends at every one tried"
        )
        sentences.append(f"The exact gradient step is only guaranteed to descend for κ < 2/L; beyond, {told}.")
    return sentences


def _repeated(found: Experiment, measure: str) -> str:
    """What many steps come to, form by form."""
    parts = []
    for form in TESTED:
        (start,) = found.select(sweep="repeated", value=0.0, form=form, tokens=measure)
        (end,) = found.select(sweep="all steps", form=form, tokens=measure)
        change = f"{end['verdict']} ({end['mean']:+.3g} nats)" if math.isfinite(end["mean"]) else "leaves all bounds"
        parts.append(f"{FORMS[form].formula}: {change}")
    how = "as they are" if measure == MEASURES[0] else "scaled to length 1 to measure, so that only directions count"
    return (
        f"After {found.settings.steps} steps (κL = {found.settings.base_step_size:g}) from {start['mean']:.3g} nats, "
        f"tokens {how}: {'; '.join(parts)}."
    )


def _count(rows: Sequence[Row]) -> str:
    """'descends at 15 of 19 points, ascends at 4 (+0.1 to +2.3 nats)'."""
    words = [row["verdict"] for row in rows]
    text = f"descends at {words.count(DESCENDS)} of {len(rows)} points"
    text += f", ascends at {words.count(ASCENDS)}" if ASCENDS in words else ""
    text += f", {CANNOT_TELL} at {words.count(CANNOT_TELL)}" if CANNOT_TELL in words else ""
    changes = [row["mean"] for row in rows]
    return f"{text} (mean changes {min(changes):+.3g} to {max(changes):+.3g} nats)"


def table(found: Experiment) -> pandas.DataFrame:
    """One line per form: the change at every value of each sweep, tokens as they are."""
    heads = {"step_size": "κL = " + " / ".join(f"{value:g}" for value in found.settings.step_size)}
    return frame(
        {"form": FORMS[form].words}
        | {
            heads.get(sweep, sweep): " ".join(
                f"{row['mean']:+.2f}" for row in found.select(sweep=sweep, form=form, tokens=MEASURES[0])
            )
            for sweep in ("step_size", "noise", "angle")
        }
        for form in TESTED
    )


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    return {"compress": plot_steps(found), "compress_sweeps": plot_sweeps(found)}


def plot_steps(found: Experiment) -> Drawing:
    """R^c along repeated steps of each form, tokens as they are (left) and scaled to length 1 (right)."""
    figure, drawn = panels(1, 2, width=7.4, height=3.4)
    for axes, measure, title in zip(drawn, MEASURES, ("tokens as they are", "tokens scaled to length 1")):
        _lines(axes, found, sweep="repeated", tokens=measure)
        start = found.select(sweep="repeated", value=0.0, tokens=measure)[0]["mean"]
        axes.set_ylim(-0.1 * start, (3 if measure == MEASURES[0] else 1.4) * start)
        axes.set_title(title, fontsize=10)
    finish(drawn, "steps", r"$R^c$ (nats)", columns=3, together=True)
    return figure


def plot_sweeps(found: Experiment) -> Drawing:
    """Change of R^c by the first step against the step size, the noise and the angle between the subspaces."""
    figure, drawn = panels(1, 3, width=7.4, height=3.2, sharex=False, sharey=True)
    labels = {"step_size": "step size κL", "noise": "noise (relative length)", "angle": "angle (degrees)"}
    for axes, (sweep, label) in zip(drawn, labels.items()):
        _lines(axes, found, sweep=sweep, tokens=MEASURES[0])
        rule(axes, y=0)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_xlabel(label)
    drawn[0].set_ylabel(r"change of $R^c$ by one step (nats)")
    finish(drawn, "", columns=3, whole=False, together=True)
    return figure


def _lines(axes, found: Experiment, **wanted: str) -> None:
    """One line per form; the paper's is dashed because it often lies on the softmax form."""
    for index, form in enumerate(TESTED):
        rows = found.select(form=form, **wanted)
        line = "--" if form == "paper" else "-"
        band(axes, [row["value"] for row in rows], rows, FORMS[form].words, index, line, marker=len(rows) < 15)
