"""Features in words, a figure, a table and one page that can be searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure as Drawing

from ..analysis.features.find import SCORES, Context, Feature, Features, difference
from ..analysis.features.steer import Steering
from ..stats.intervals import ABOVE, BELOW, UNDECIDED
from ..stats.words import interval, number, plural
from .figures import bars, finish, panels, rule
from .html import Figure, Part, Report, Table, link
from .tables import frame

FILES = ("features.html", "features.json", "features.csv", "figures")
_SHADES = 9
_VERDICTS = {ABOVE: "higher", BELOW: "lower", UNDECIDED: "undecided"}
_NOTE = (
    "Mean over randomly drawn features and its 95 % bootstrap interval over features. An explanation is the mean "
    "activation by token and previous token in the first half of the text; it is judged on the second. Detection: how "
    "often a token where the feature fires strongly (above its 99 % quantile) is predicted above another one; 0.5 is "
    "chance. Features without a score (silent in the first half, or too rarely strong in the second) are left out."
)


def features_report(
    models: Sequence[Features], steered: Sequence[Steering] = (), record: Sequence[tuple[str, str]] = ()
) -> Report:
    """The page of a model's features and others' beside them, with `steered` ones and (name, text) of what was run."""
    cards = [_card(found.name, one) for found in models for one in found.features]
    alt = "Correlation and detection score by layer, mean over features with 95 % intervals"
    figure = Figure("features_scores", "Scores by layer", plot_scores(models), alt)
    return Report(
        title=f"Features of {models[0].name}",
        subtitle=f"{models[0].kind}, drawn at random, on {models[0].where}",
        summary=_in_short(models[0]),
        parts=(Part("Scores", describe(models, steered), (score_table(models), figure)),),
        record=tuple(record),
        files={
            "features.json": {"models": [found.to_dict() for found in models], "steered": [asdict(s) for s in steered]},
            "features.csv": frame({"model": found.name, **row} for found in models for row in found.to_rows()),
        },
        page=FILES[0],
        template="features.html.j2",
        values={
            "cards": cards,
            "models": [found.name for found in models],
            "layers": sorted({card["feature"].layer for card in cards}),
            "scores": SCORES,
            "steered": steered,
        },
    )


def _card(model: str, feature: Feature) -> dict[str, Any]:
    """A feature as the page shows it, and what the search looks in, in lower case."""
    words = [token for token, _ in feature.promoted] + ["".join(context.tokens) for context in feature.contexts]
    search = " ".join([f"layer {feature.layer} feature {feature.index}", model, *words]).lower()
    contexts = [shaded(context, feature.maximum) for context in feature.contexts]
    return {"feature": feature, "model": model, "contexts": contexts, "search": search}


def _in_short(found: Features) -> tuple[str | Markup, ...]:
    """Three sentences for a reader who does not know the scores."""
    drawn, firing = len(found.features), len(found.features) - found.silent
    correlation = found.interval("pearson")
    explained = "Too few of them fire to say how well they can be explained."
    if correlation is not None:
        explained = (
            "The current and the previous token predict how strongly a feature fires with a correlation of "
            f"{number(correlation.mean, 2)} on text that was held out: 0 is no better than chance, 1 is perfect."
        )
    return (
        f"A feature is one number that the model computes for every token. Of {plural(drawn, 'feature')} drawn at "
        f"random from {found.name}, {firing or 'none'} {'fires' if firing == 1 else 'fire'} on this text.",
        explained,
        Markup("Look at {}: they can be searched and sorted.").format(link("the features one by one", "Features")),
    )


def describe(models: Sequence[Features], steered: Sequence[Steering] = ()) -> tuple[str, ...]:
    """Sentences on what was found, computed from the numbers; every model but the first is compared with the first."""
    lines = [_found(found) for found in models] + [_compared(models[0], other) for other in models[1:]]
    if steered:
        kls = [one.kl for one in steered]
        lines.append(
            f"Setting a feature by hand at every token ({plural(len(steered), 'feature')}, one at a time) changes the "
            f"next-token distribution by {min(kls):.3g} to {max(kls):.3g} nats (KL divergence, mean over positions)."
        )
    return tuple(lines)


def _found(found: Features) -> str:
    text = (
        f"{found.name} ({found.kind}): {plural(len(found.features), 'feature')} drawn at random (seed {found.seed}) "
        f"from {sum(found.widths.values()):,} in {plural(len(found.widths), 'layer')}, on {found.tokens:,} tokens; "
        f"{f'{found.silent} never ' if found.silent else 'all '}{'fires' if found.silent == 1 else 'fire'}"
    )
    correlation, area, control = (found.interval(score) for score in ("pearson", "auc", "auc_control"))
    if correlation is None:
        return f"{text}. Too few of them fire to score explanations."
    text += (
        ". Explained by the current and the previous token, activations on held-out text correlate with the "
        f"prediction by {interval(correlation, 3)}"
    )
    if area is not None and control is not None:
        text += (
            f"; strong firing is detected among other tokens with an area under the curve of {interval(area, 3)} (with "
            f"another feature's explanation {interval(control, 3)})"
        )
    return f"{text}."


def _compared(first: Features, second: Features) -> str:
    gaps = {score: difference(first, second, score) for score in ("pearson", "auc")}
    parts = [
        f"{SCORES[score]} {interval(gap, 3, signed=True)}, {_VERDICTS[gap.sign]}"
        for score, gap in gaps.items()
        if gap is not None
    ]
    found = "; ".join(parts) or "too few features with a score"
    return f"{first.name} against {second.name}, difference of the means over features: {found}."


def score_table(models: Sequence[Features]) -> Table:
    """Means over features with their 95 % bootstrap intervals, one row per model and layer."""
    places = [(found, layer) for found in models for layer in (None, *(found.widths if len(found.widths) > 1 else ()))]
    return Table("Scores of explanations on held-out text", frame(_score_row(*place) for place in places), _NOTE)


def _score_row(found: Features, layer: int | None) -> dict[str, str]:
    rates = list(found.firing_rates.values()) if layer is None else [found.firing_rates[layer]]
    intervals = {words: found.interval(score, layer) for score, words in SCORES.items()}
    return {
        "": f"{found.name}, {'all layers' if layer is None else f'layer {layer}'}",
        "firing rate, median of all": f"{100 * float(np.median(np.concatenate(rates))):.1f} %",
        "scored": str(len(found.values("pearson", layer))),
        **{words: "–" if one is None else interval(one, 3) for words, one in intervals.items()},
    }


def plot_scores(models: Sequence[Features]) -> Drawing:
    """Correlation and detection by layer, mean and 95 % interval over features, one colour per model."""
    figure, drawn = panels(2, height=4.6)
    for axes, score, label in zip(drawn, ("pearson", "auc"), ("correlation on\nheld-out text", "detection (AUC)")):
        for index, found in enumerate(models):
            points = {layer: one for layer in found.widths if (one := found.interval(score, layer)) is not None}
            if points:
                x = [layer + 0.12 * (index - (len(models) - 1) / 2) for layer in points]
                bars(axes, x, list(points.values()), found.name, index, linestyle="-", linewidth=1.2, capsize=2)
        axes.set_ylabel(label, fontsize=9)
    rule(drawn[1], y=0.5, line=":")
    finish(drawn, "layer", columns=1, together=True)
    return figure


def shaded(context: Context, largest: float) -> Markup:
    """A context as HTML: each token with a shade for its activation, the peak marked; line ends shown as ↵."""
    out = []
    for place, (token, value) in enumerate(zip(context.tokens, context.values)):
        text = escape(token.replace("\n", "↵"))
        shade = min(_SHADES, math.ceil(_SHADES * value / largest)) if value > 0 and largest > 0 else 0
        if place == context.peak:
            text = Markup('<b class="s{} peak">{}</b>').format(shade, text)
        elif shade > 0:
            text = Markup('<b class="s{}">{}</b>').format(shade, text)
        out.append(text)
    return Markup("").join(out)
