"""How far an autoencoder's decoder undoes its encoder: the part of a page, its sentences, figures and table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.figure
import pandas
from matplotlib.axes import Axes
from torch import Tensor

from ..analysis.autoencoder import AutoencoderMeasures
from ..stats.intervals import ABOVE, BELOW, UNDECIDED, Interval, bootstrap_mean, paired_difference
from ..stats.words import UNTRAINED, interval, listing, plural, span
from . import figures, tables
from .figures import COLOURS, MARKERS
from .html import HOW, PREDICTED, Figure, Part, Report, Table

TITLE = "The decoder as the encoder's inverse"
UNRELATED = math.sqrt(2)
"""‖a − b‖ / ‖b‖ of unit-length tokens at right angles."""

RATES = {
    "encoder": ("encoder_before", "encoder_half", "Z^ℓ → Z^{ℓ+½}", BELOW),
    "decoder": ("decoder_before", "decoder_after", "Y → Y − MSSA(LN(Y))", ABOVE),
}
"""Of each part: R^c before and after its attention step, the step, and the sign of the change that theory predicts."""

_MOVES = {BELOW: "falls", ABOVE: "rises", UNDECIDED: "undecided"}
_ERRORS = {
    "one layer": "layer_error",
    "one layer, directions": "layer_direction_error",
    "all layers": "network_error",
    "all layers, directions": "network_direction_error",
    "plain autoencoding": "whole_image",
}


def page(found: AutoencoderMeasures) -> Report:
    """The page of one model's measures alone."""
    part = autoencoder_part({"the model": found})
    return Report(TITLE, plural(found.num_images, "whole image"), part.sentences[:3], (part,))


def autoencoder_part(subjects: Mapping[str, AutoencoderMeasures]) -> Part:
    """Errors of undoing layers, R^c along encoder and decoder, and noise; measures by name, all on the same images."""
    found = next(iter(subjects.values()))
    how = f"{plural(found.num_images, 'whole image')}, mean and its 95 % bootstrap interval (band)"
    made = []
    for name, (plot, title, alt, predicted, detail) in _FIGURES.items():
        notes = {PREDICTED: predicted, HOW: f"{how}; {detail}"}
        made.append(Figure(f"autoencoder_{name}", title, plot(subjects, narrow=True), alt, notes))
    note = (
        f"{plural(found.num_images, 'whole image')} (nothing masked); ε = {found.eps:g}; 95 % bootstrap intervals "
        "over images. Errors are relative to ‖Z‖: 0 is a perfect inverse, 100 % what an output of zeros has; of "
        f"directions, {100 * UNRELATED:.0f} % means unrelated. One layer: mean over the layers. Plain autoencoding: of "
        "the pixels' variance."
    )
    rates = Table("R^c along encoder and decoder", rates_frame(subjects))
    return Part(TITLE, tuple(describe(subjects)), (Table("Errors", errors_frame(subjects), note), rates, *made))


def errors_frame(subjects: Mapping[str, AutoencoderMeasures]) -> pandas.DataFrame:
    """One row per model: the errors in per cent, with their intervals over images, as texts."""
    rows = []
    for name, found in subjects.items():
        row: dict[str, str | None] = {"model": name}
        for head, key in _ERRORS.items():
            row[head] = percent(_per_image(found, key))
        masked = found.values.get("masked")
        rows.append({**row, "masked patches": None if masked is None else f"{float(masked.mean()):.3g}"})
    return tables.frame(rows)


def describe(subjects: Mapping[str, AutoencoderMeasures]) -> list[str]:
    """What held in every model, then comparisons on the same images; `subjects` as in `autoencoder_part`."""
    sentences = []
    for name, found in subjects.items():
        sentences += [_masked(name, found), _rates(name, found), _noise(name, found)]
    return sentences + [_comparison(one, subjects[one], other, subjects[other]) for one, other in _pairs(subjects)]


def _pairs(subjects: Mapping[str, AutoencoderMeasures]) -> list[tuple[str, str]]:
    """The first with every other one, and each other one with its untrained copy."""
    first, *others = subjects
    own = [(name, name + UNTRAINED) for name in others if name + UNTRAINED in subjects]
    return [(first, other) for other in others] + own


def _masked(name: str, found: AutoencoderMeasures) -> str:
    only = "" if found.loss_on == "all" else " (the loss was on masked patches only)"
    if "masked" not in found.values:
        return f"{name} masks nothing{only}."
    verbs = {BELOW: "below", ABOVE: "above", UNDECIDED: "not significantly different from"}
    parts = []
    for key, what in (("masked_mean_colour", "mean colour"), ("masked_nearest", "the nearest visible patch")):
        gap = paired_difference(found.values["masked"], found.values[key])
        parts.append(f"{verbs[gap.sign]} that of {what} ({float(found.values[key].mean()):.3g})")
    return (
        f"{name}: the error on masked patches, {float(found.values['masked'].mean()):.3g}, is {listing(parts)}{only}."
    )


def rates_frame(subjects: Mapping[str, AutoencoderMeasures]) -> pandas.DataFrame:
    """How R^c moves along encoder and decoder, first layer to last, and by each attention step, paired by image."""
    rows = []
    for name, found in subjects.items():
        for part, (before, after, step, predicted) in RATES.items():
            for suffix, kind in (("", "raw"), ("_unit", "of length 1")):
                first, last = found.values[before + suffix], found.values[after + suffix]
                change = paired_difference(last[:, -1], last[:, 0])
                held = "as predicted" if change.sign == predicted else f"predicted: {_MOVES[predicted]}"
                row = {"model": name, "R^c along the": part, "tokens": kind, "it": f"{_MOVES[change.sign]}, {held}"}
                row |= {"change (nats)": interval(change, 1, signed=True), "step": step}
                rows.append({**row, "the step": _counts(paired_difference(last, first))})
    return tables.frame(rows)


def _rates(name: str, found: AutoencoderMeasures) -> str:
    moves = rates_frame({name: found})["it"]
    held = sum(move.endswith("as predicted") for move in moves)
    return (
        f"{name}: R^c should fall along the encoder and rise along the decoder; of {len(moves)} such moves, on raw "
        f"tokens and on tokens of length 1, {held or 'none'} held."
    )


def _counts(change: Interval) -> str:
    """'raises it in 3 of 4 layers and lowers it in 1', by the intervals."""
    verbs = {BELOW: "lowers it", ABOVE: "raises it", UNDECIDED: "is undecided"}
    found = [f"{verb} in {change.signs.count(sign)}" for sign, verb in verbs.items() if sign in change.signs]
    return listing([f"{found[0]} of {plural(len(change.signs), 'layer')}", *found[1:]])


def _noise(name: str, found: AutoencoderMeasures) -> str:
    left, put = (found.values[f"noise_{key}"].mean(0).tolist() for key in ("left", "put"))
    closer = [level for level, distance, start in zip(found.noise_levels, left, put) if distance < start]
    where = f"at noise of relative length {span(closer, 2)}" if closer else "never"
    return f"{name}: tokens with noise end closer to those without noise than they started: {where}."


def _comparison(first: str, found: AutoencoderMeasures, other: str, against: AutoencoderMeasures) -> str:
    verbs = {BELOW: "better than", ABOVE: "worse than", UNDECIDED: "not significantly different from"}
    parts = []
    for key, what in (("layer_direction_error", "one layer"), ("network_direction_error", "all layers together")):
        gap = paired_difference(_per_image(found, key), _per_image(against, key))
        low, high = (100 * float(value) for value in (gap.low, gap.high))
        parts.append(f"{what}: {verbs[gap.sign]} {other} ({low:+.2g} to {high:+.2g} points)")
    return f"{first} undoes directions, {'; '.join(parts)}."


def _per_image(found: AutoencoderMeasures, key: str) -> Tensor:
    """Per image: the mean over layers of a layer's error, the last depth of a network's, or the value itself."""
    values = found.values[key]
    return values if values.ndim == 1 else values[:, -1] if key.startswith("network") else values.mean(1)


def percent(values: Tensor) -> str:
    """'1.2 % (1.1 to 1.3)', the mean over images and its interval."""
    return interval(bootstrap_mean(values), 3, percent=True, significant=True)


def plot_inverse(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> matplotlib.figure.Figure:
    """Error of each layer with its inverse, and of the layers up to ℓ; `narrow`: panels below one another."""
    figure, panels = _panels(4, narrow)
    kinds = (("", "relative to ‖Z‖", 1.0), ("_direction", "of directions", UNRELATED))
    places = [(*kind, *what) for kind in kinds for what in (("layer", "layer ℓ alone"), ("network", "layers up to ℓ"))]
    for axes, (kind, words, line, what, title) in zip(panels, places):
        for index, (label, found) in enumerate(subjects.items()):
            _band(axes, found.layers, found.values[f"{what}{kind}_error"], index, label)
        figures.rule(axes, y=line, line=":")
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(f"error {words}", fontsize=9)
    _finish(panels, "encoder layer ℓ", "dotted: an output of zeros, unrelated directions", narrow)
    return figure


def plot_rates(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> matplotlib.figure.Figure:
    """R^c along the encoder and then the decoder, every layer under its own U; arguments as `plot_inverse`."""
    figure, panels = _panels(2, narrow)
    for axes, suffix, words in zip(panels, ("", "_unit"), ("raw tokens", "tokens of length 1")):
        for index, (label, found) in enumerate(subjects.items()):
            start = 0
            for before, after, _, _ in RATES.values():
                first, last = (found.values[key + suffix].mean(0).tolist() for key in (before, after))
                _steps(axes, start, first, last, index, None if start else label)
                start += len(first)
            figures.rule(axes, x=len(found.values["encoder_before"][0]) + 0.5)
        axes.set_title(words, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("$R^c$ under own U (nats)", fontsize=9)
    _finish(panels, "layer: encoder | decoder", "open: before the attention step, filled: after it", narrow)
    return figure


def plot_noise(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> matplotlib.figure.Figure:
    """A layer and its inverse on tokens with noise: error against the noisy tokens, and against the clean ones."""
    figure, panels = _panels(2, narrow)
    names = {"noise_error": "against the noisy tokens", "noise_left": "against the tokens without noise"}
    for axes, (key, words) in zip(panels, names.items()):
        for index, (label, found) in enumerate(subjects.items()):
            _band(axes, found.noise_levels, found.values[key], index, label)
        axes.set_title(words, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("error of directions,\nmean over layers", fontsize=9)
    first = next(iter(subjects.values()))
    style = {"color": "#555555", "linewidth": 0.8, "linestyle": ":"}
    panels[1].plot(first.noise_levels, first.values["noise_put"].mean(0).tolist(), **style)
    note = "dotted: the noisy tokens; below it, noise was removed"
    _finish(panels, "length of the noise relative to the tokens'", note, narrow, whole=False)
    return figure


_FIGURES = {
    "inverse": (
        plot_inverse,
        "How far decoder layers undo encoder layers",
        "Relative error of each encoder layer followed by its decoder layer, and of several together",
        "Decoder layer L + 1 − ℓ is the reverse of encoder layer ℓ: the error is near 0.",
        "the layers at the states that enter them, without the norms after each part.",
    ),
    "rates": (
        plot_rates,
        "R^c over encoder and decoder layers",
        "Coding rate against each layer's own subspaces, before and after attention, encoder then decoder",
        "R^c falls along the encoder and rises along the decoder, and so does each attention step.",
        "every layer under its own U, so levels of different layers do not compare.",
    ),
    "noise": (
        plot_noise,
        "Where tokens leave the model's assumptions",
        "Error of directions of a layer and its inverse over the length of the noise on its tokens",
        "Tokens near the subspaces come back; the encoder layer takes noise out, and it stays out.",
        "Gaussian noise on the input of each layer, mean over layers.",
    ),
}
"""Of each figure of a page: how it is drawn, its title, what there is to see, what theory predicts, how it was made."""


def _panels(count: int, narrow: bool) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """Panels in two columns, or in one as wide as a page's figures."""
    if narrow:
        return figures.panels(count, height=0.7 + 2.4 * count, sharex=False)
    return figures.panels(count // 2, 2, width=7.4, height=0.7 + 1.4 * count, sharex=False)


def _finish(panels: list[Axes], xlabel: str, note: str, narrow: bool, whole: bool = True) -> None:
    figures.finish(panels, xlabel, columns=1 if narrow else 2, whole=whole, together=True, note=note)


def _band(axes: Axes, x: Sequence[float], values: Tensor, index: int, label: str) -> None:
    """Mean over images with its interval as a band."""
    figures.band(axes, x, bootstrap_mean(values), label, index, "--" if UNTRAINED in label else "-")


def _steps(
    axes: Axes, start: int, first: Sequence[float], last: Sequence[float], index: int, label: str | None
) -> None:
    """One attention step per layer: an open point, and a filled one joined to the next layer's."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    x = [start + number + 0.12 * (index % len(MARKERS)) for number in range(1, len(first) + 1)]
    style = {"color": colour, "marker": marker, "markersize": 4}
    axes.plot(x, last, linewidth=1.2, label=label, **style)
    axes.plot(x, first, markerfacecolor="white", linestyle="none", **style)
    axes.vlines(x, first, last, color=colour, linewidth=0.8)
