"""Features in words, a figure, a table and one page that can be searched."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from .._files import encoded
from .._outputs import write_whole
from ..analysis.features.find import SCORES, Context, Feature, FeatureReport, difference
from ..analysis.features.steer import Steering
from ..stats.intervals import Interval
from .figures import COLOURS, WIDTH, _style
from .html import ReportTable, formula, picture

PAGE, JSON = "features.html", "features.json"
_SHADES = 9


@dataclass(frozen=True)
class FeatureCard:
    """A feature as the page shows it."""

    feature: Feature
    model: str
    contexts: tuple[Markup, ...]

    @property
    def search(self) -> str:
        """What the search looks in, in lower case."""
        one = self.feature
        words = [token for token, _ in one.promoted] + ["".join(context.tokens) for context in one.contexts]
        return " ".join([f"layer {one.layer} feature {one.index}", self.model, *words]).lower()


def describe(reports: Sequence[FeatureReport], steered: Sequence[Steering] = ()) -> tuple[str, ...]:
    """Sentences on what was found, computed from the numbers; the first report is the model's, others are compared."""
    lines = [_found(report) for report in reports]
    lines += [_compared(reports[0], other) for other in reports[1:]]
    if steered:
        kls = [one.kl for one in steered]
        lines.append(
            f"Setting one feature by hand at every token ({len(steered)} features, one at a time) "
            f"changes the next-token distribution by {min(kls):.3g} to {max(kls):.3g} nats (KL divergence, mean over "
            "positions)."
        )
    return tuple(lines)


def _found(report: FeatureReport) -> str:
    shown = len(report.features)
    text = (
        f"{report.name} ({report.kind}): {shown} features drawn at random (seed {report.seed}) from "
        f"{sum(report.widths.values()):,} in {len(report.widths)} layers, on {report.tokens:,} tokens; "
        f"{report.silent} of them never fire"
    )
    correlation, area, control = (report.interval(score) for score in ("pearson", "auc", "auc_control"))
    if correlation is None:
        return f"{text}. Too few of them fire to score explanations."
    text += (
        f". Explained by the current and the previous token, activations on held-out text correlate with the "
        f"prediction by {_interval(correlation)}"
    )
    if area is not None and control is not None:
        text += (
            f"; strong firing is told from other tokens with an area under the curve of {_interval(area)} "
            f"(with another feature's explanation {_interval(control)})"
        )
    return f"{text}."


def _compared(first: FeatureReport, second: FeatureReport) -> str:
    parts = []
    for score in ("pearson", "auc"):
        if min(len(report.values(score)) for report in (first, second)) < 2:
            continue
        mean, low, high = difference(first, second, score)
        verdict = "higher" if low > 0 else "lower" if high < 0 else "not told apart"
        parts.append(f"{SCORES[score]} {mean:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}")
    found = "; ".join(parts) or "too few features with a score"
    return f"{first.name} against {second.name}, difference of the means over features: {found}."


def _interval(interval: Interval) -> str:
    return f"{float(interval.mean):.3f} [{float(interval.low):.3f}, {float(interval.high):.3f}]"


def score_table(reports: Sequence[FeatureReport]) -> ReportTable:
    """Means over features with their 95 % bootstrap intervals, one row per model and layer."""
    rows = []
    for report in reports:
        for layer in (None, *report.widths):
            if layer is not None and len(report.widths) == 1:
                continue
            rates = report.firing_rates.values() if layer is None else [report.firing_rates[layer]]
            median = 100 * float(np.median(np.concatenate(list(rates))))
            place = "all layers" if layer is None else f"layer {layer}"
            scored = [report.interval(score, layer) for score in SCORES]
            count = len(report.values("pearson", layer))
            cells = [_interval(one) if one is not None else "–" for one in scored]
            rows.append((f"{report.name}, {place}", f"{median:.1f} %", str(count), *cells))
    return ReportTable(
        title="Scores of explanations on held-out text",
        columns=("", "firing rate, median of all", "scored", *SCORES.values()),
        rows=tuple(rows),
        note=(
            "Mean over randomly drawn features and its 95 % bootstrap interval over features. An explanation is the "
            "mean activation by token and previous token in the first half of the text; it is judged on the second. "
            "Detection: how often a token where the feature fires strongly (above its 99 % quantile) is predicted "
            "above another one; 0.5 is chance. Features without a score (silent in the first half, or too rarely "
            "strong in the second) are left out."
        ),
    )


def plot_scores(reports: Sequence[FeatureReport]) -> Figure:
    """Correlation and detection by layer, mean and 95 % interval over features, one colour per model."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, score, label in zip(panels, ("pearson", "auc"), ("correlation on\nheld-out text", "detection (AUC)")):
        for number, report in enumerate(reports):
            points = [(layer, report.interval(score, layer)) for layer in report.widths]
            points = [(layer, found) for layer, found in points if found is not None]
            if not points:
                continue
            x = [layer + 0.12 * (number - (len(reports) - 1) / 2) for layer, _ in points]
            mean = np.asarray([float(found.mean) for _, found in points])
            spread = np.asarray([[float(f.mean - f.low), float(f.high - f.mean)] for _, f in points]).T
            axes.errorbar(
                x, mean, yerr=spread, fmt="osD^v"[number % 5] + "-", color=COLOURS[number % len(COLOURS)],
                markersize=4, linewidth=1.2, capsize=2, label=report.name,
            )  # fmt: skip
        axes.set_ylabel(label, fontsize=9)
        _style(axes, 1)
    panels[1].axhline(0.5, color="#777777", linewidth=0.8, linestyle=":")
    if panels[1].get_legend():
        panels[1].get_legend().remove()
    panels[1].set_xlabel("layer")
    layers = sorted({layer for report in reports for layer in report.widths})
    panels[1].set_xticks(layers[:: max(1, len(layers) // 12)])
    return figure


def shaded(context: Context, largest: float) -> Markup:
    """A context as HTML: each token with a shade for its activation, the peak marked; line ends shown as ↵."""
    out = []
    for number, (token, value) in enumerate(zip(context.tokens, context.values)):
        text = escape(token.replace("\n", "↵"))
        shade = min(_SHADES, int(np.ceil(_SHADES * value / largest))) if value > 0 and largest > 0 else 0
        if number == context.peak:
            text = Markup('<b class="s{} peak">{}</b>').format(shade, text)
        elif shade > 0:
            text = Markup('<b class="s{}">{}</b>').format(shade, text)
        out.append(text)
    return Markup("").join(out)


def write_features(
    folder: Path, reports: Sequence[FeatureReport], steered: Sequence[Steering] = (), record: Sequence[tuple] = ()
) -> Path:
    """Write `features.html`, which needs no other file, and `features.json`.

    Args:
        folder: exists.
        reports: the model's first, then those beside it.
        steered: features that were set by hand.
        record: (name, text) of what was run.

    Returns:
        The path of the page.
    """
    cards = [
        FeatureCard(one, report.name, tuple(shaded(context, one.maximum) for context in one.contexts))
        for report in reports
        for one in report.features
    ]
    figure = plot_scores(reports)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("opencrate.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["formula"] = formula
    page = environment.get_template("features.html.j2").render(
        title=f"Features of {reports[0].name}",
        subtitle=f"{reports[0].kind}, drawn at random, on {reports[0].where}",
        summary=describe(reports, steered),
        table=score_table(reports),
        picture="data:image/png;base64," + base64.b64encode(picture(figure, "png")).decode(),
        cards=cards,
        models=[report.name for report in reports],
        layers=sorted({one.feature.layer for one in cards}),
        scores=SCORES,
        steered=steered,
        record=record,
    )
    write_whole(folder / JSON, (json.dumps(_plain(reports, steered), indent=1, allow_nan=False) + "\n").encode())
    write_whole(folder / PAGE, encoded(page))
    return folder / PAGE


def _plain(reports: Sequence[FeatureReport], steered: Sequence[Steering]) -> dict:
    """Everything as JSON; numbers that are not there are null."""
    found = []
    for report in reports:
        values = {name: value for name, value in asdict(report).items() if name != "firing_rates"}
        for one in values["features"]:
            one["scores"] = {name: value if np.isfinite(value) else None for name, value in one["scores"].items()}
        found.append(values)
    return {"models": found, "steered": [asdict(one) for one in steered]}
