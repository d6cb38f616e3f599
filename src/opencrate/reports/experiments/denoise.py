"""The denoise experiment: errors over the noise level, and what the samplers make."""

from __future__ import annotations

from textwrap import wrap

import pandas
from matplotlib.figure import Figure as Drawing

from ...stats.words import number
from ...studies.experiments.base import Experiment
from ...studies.experiments.denoise import FORMS, MEASURES, SAMPLERS
from ..figures import COLOURS, band, bars, finish, panels, rule
from ..tables import frame

_LINES = ("-", "--", ":")


def describe(found: Experiment) -> list[str]:
    """What was run, the error of every form, and how far every sampler is from the mixture."""
    s = found.settings
    least = ", ".join(f"{level:g}: {_percent(found, 'exact', level)}" for level in s.noise)
    return [
        f"{s.seeds} seeds; {s.tokens} tokens of {s.subspaces} Gaussians in subspaces of dimension {s.dim} in "
        f"{s.ambient} dimensions, at {s.angle:g} degrees; errors are squared, relative to the tokens' energy.",
        f"The least error that any denoiser can have (the posterior mean's), by noise level: {least}.",
        *(_error_sentence(found, form) for form in FORMS if form not in ("noisy", "exact")),
        *(_sample_sentence(found, form) for form in SAMPLERS),
    ]


def _error(found: Experiment, form: str, level: float) -> float:
    (row,) = found.select(what="denoising", form=form, noise=level)
    return row["mean"]


def _percent(found: Experiment, form: str, level: float) -> str:
    return number(_error(found, form, level), 3, percent=True, significant=True) + " %"


def _error_sentence(found: Experiment, form: str) -> str:
    """How many times the least error, and where it is better than doing nothing and than the best linear map."""
    levels = found.settings.noise
    times = ", ".join(f"{_error(found, form, level) / _error(found, 'exact', level):.3g}" for level in levels)
    parts = [f"{FORMS[form]}: {times} times the least error"]
    for other, words in (("noisy", "doing nothing"), ("linear", FORMS["linear"])):
        if form != other:
            parts.append(f"better than {words} at {found.facts['better'][form, other]}")
    return f"{', '.join(parts)} of {len(levels)} noise levels."


def _sample_sentence(found: Experiment, form: str) -> str:
    inside, energy, chi, distance = (found.select(form=form, measure=name)[0]["mean"] for name in MEASURES)
    return (
        f"Sampling by {FORMS[form]}: {100 * inside:.1f} % of the energy in the nearest subspace, {energy:.3g} times "
        f"the mixture's energy, counts of subspaces refused (p < 0.05) on {found.facts['refused'][form]} of "
        f"{found.settings.seeds} seeds, χ² per degree of freedom {chi:.3g}, {distance:.3g} times the distance between "
        "true draws."
    )


def table(found: Experiment) -> pandas.DataFrame:
    """One line per form: its error at every noise level."""
    return frame(
        {"denoiser": words} | {f"noise {level:g}": _percent(found, form, level) for level in found.settings.noise}
        for form, words in FORMS.items()
    )


def figures(found: Experiment) -> dict[str, Drawing]:
    """By file name without ending."""
    return {"denoise": plot_errors(found), "denoise_samples": plot_samples(found)}


def plot_errors(found: Experiment) -> Drawing:
    """Error of every form over the noise level, both logarithmic, with intervals over seeds."""
    figure, (axes,) = panels(width=7.0, height=5.2)
    for index, (form, words) in enumerate(FORMS.items()):
        rows = found.select(what="denoising", form=form)
        band(axes, [row["noise"] for row in rows], rows, words, index, _LINES[index // len(COLOURS)], floor=1e-6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    rule(axes, y=1)
    finish(
        axes,
        "noise level σ√d, relative to the tokens",
        "squared error, relative to the tokens' energy",
        columns=2,
        whole=False,
    )
    return figure


def plot_samples(found: Experiment) -> Drawing:
    """One panel per measure, one row per sampler: mean and interval over seeds; a line where true draws are."""
    size = {"width": 9.0, "height": 0.4 * len(SAMPLERS) + 1.3}
    figure, drawn = panels(1, len(MEASURES), sharex=False, sharey=True, **size)
    places = list(range(len(SAMPLERS)))[::-1]
    for axes, (measure, words) in zip(drawn, MEASURES.items()):
        rows = [found.select(form=form, measure=measure)[0] for form in SAMPLERS]
        bars(axes, places, rows, None, 0, horizontal=True)
        rule(axes, x=1)
        if max(row["mean"] for row in rows) > 5:
            axes.set_xscale("log")
        axes.set_title("\n".join(wrap(words, 22)), fontsize=8.5)
        axes.set_ylim(-0.5, len(SAMPLERS) - 0.5)
    finish(drawn, "", whole=False)
    drawn[0].set_yticks(places, [FORMS[form] for form in SAMPLERS])
    return figure
