"""What the measures of autoencoders say, in words: every sentence is computed, also when a prediction does not hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ..analysis.autoencoder import AutoencoderMeasures
from ..stats.intervals import FALLS, RISES, UNKNOWN, Interval, bootstrap_mean, paired_difference
from .figures import UNTRAINED

UNRELATED = math.sqrt(2)
"""‖a − b‖ / ‖b‖ of unit-length tokens at right angles."""

RATES = {
    "encoder": ("encoder_before", "encoder_half", "Z^ℓ → Z^{ℓ+½}", FALLS),
    "decoder": ("decoder_before", "decoder_after", "Y → Y − MSSA(LN(Y))", RISES),
}
"""Of each part: R^c before and after its attention step, the step, and what theory predicts of it."""


def describe(subjects: Mapping[str, AutoencoderMeasures]) -> list[str]:
    """Sentences on every model, then comparisons on the same images.

    Args:
        subjects: measures by name, all on the same images in the same order.
    """
    sentences = [_reading(next(iter(subjects.values())))]
    for name, found in subjects.items():
        sentences += [_inverse(name, found), _pixels(name, found), *_rates(name, found), _noise(name, found)]
    return sentences + [_comparison(one, subjects[one], other, subjects[other]) for one, other in _pairs(subjects)]


def _pairs(subjects: Mapping[str, AutoencoderMeasures]) -> list[tuple[str, str]]:
    """The first with every other one, and each other one with its untrained copy."""
    first, *others = subjects
    own = [(name, name + UNTRAINED) for name in others if name + UNTRAINED in subjects]
    return [(first, other) for other in others] + own


def direction(interval: Interval) -> str:
    """FALLS, RISES or UNKNOWN: where the interval of one change lies."""
    if float(interval.high) < 0:
        return FALLS
    return RISES if float(interval.low) > 0 else UNKNOWN


def path_change(found: AutoencoderMeasures, part: str, suffix: str = "") -> Interval:
    """Change of R^c from the first layer of a part to its last, after the attention step, paired by image."""
    values = found.values[RATES[part][1] + suffix]
    return paired_difference(values[:, -1], values[:, 0])


def half_step_changes(found: AutoencoderMeasures, part: str, suffix: str = "") -> Interval:
    """Change of R^c by each layer's attention step, `(L)`, paired by image."""
    before, after, _, _ = RATES[part]
    return paired_difference(found.values[after + suffix], found.values[before + suffix])


def _reading(found: AutoencoderMeasures) -> str:
    return (
        f"{found.num_images} whole images (nothing masked); ε = {found.eps:g}; 95 % bootstrap intervals over images. "
        f"Errors are relative to ‖Z‖: 0 is a perfect inverse, 100 % what an output of zeros has; of directions, "
        f"{100 * UNRELATED:.0f} % means unrelated."
    )


def _inverse(name: str, found: AutoencoderMeasures) -> str:
    layer, network = (found.values[key] for key in ("layer_error", "network_error"))
    turned, whole = (found.values[key] for key in ("layer_direction_error", "network_direction_error"))
    means = layer.mean(0)
    best = int(means.argmin())
    which = f"encoder layers {found.layers[0]} to {found.layers[-1]}" if len(found.layers) > 1 else "the one layer"
    return (
        f"{name}: undoing one layer leaves an error of {percent(layer.mean(1))}, mean over {which} "
        f"(layer {found.layers[best]}, the best: {percent(layer[:, best])}), undoing all together "
        f"{percent(network[:, -1])}; of directions {percent(turned.mean(1))} and {percent(whole[:, -1])}."
    )


def _pixels(name: str, found: AutoencoderMeasures) -> str:
    only = "" if found.loss_on == "all" else " (its loss was on masked patches only)"
    text = f"{name}: plain autoencoding leaves {percent(found.values['whole_image'])} of the pixels' variance{only}"
    if "masked" not in found.values:
        return f"{text}; the model masks nothing."
    below = []
    for key, words in (("masked_mean_colour", "mean colour"), ("masked_nearest", "the nearest visible patch")):
        gap = paired_difference(found.values["masked"], found.values[key])
        word = {FALLS: "below", RISES: "above", UNKNOWN: "not told apart from"}[direction(gap)]
        below.append(f"{word} that of {words} ({float(found.values[key].mean()):.3g})")
    error = float(found.values["masked"].mean())
    return f"{text}; its masked-patch error, {error:.3g}, is {' and '.join(below)}."


def _rates(name: str, found: AutoencoderMeasures) -> list[str]:
    sentences = []
    for part, (_, after, step, predicted) in RATES.items():
        parts = []
        for suffix, tokens in (("", "raw tokens"), ("_unit", "tokens of length 1")):
            values, change = found.values[after + suffix], path_change(found, part, suffix)
            word = direction(change)
            held = "as predicted" if word == predicted else f"predicted: {predicted}"
            word = "cannot be told to fall or rise" if word == UNKNOWN else word
            first, last = float(values[:, 0].mean()), float(values[:, -1].mean())
            parts.append(
                f"on {tokens} it {word} from {first:.1f} to {last:.1f} nats "
                f"(change {float(change.low):+.1f} to {float(change.high):+.1f}; {held}), and the step {step} "
                f"{_counts(half_step_changes(found, part, suffix))}"
            )
        sentences.append(f"{name}: R^c along the {part}: {'; '.join(parts)}.")
    return sentences


def _counts(change: Interval) -> str:
    """'raises it in 3 of 4 layers and lowers it in 1', by the intervals."""
    words = [direction(change[index]) for index in range(len(change.mean))]
    verbs = {FALLS: "lowers it", RISES: "raises it", UNKNOWN: "cannot be told"}
    found = [f"{verbs[word]} in {words.count(word)}" for word in (FALLS, RISES, UNKNOWN) if word in words]
    return f"{' and '.join(found)} of {len(words)} layers"


def _noise(name: str, found: AutoencoderMeasures) -> str:
    errors, left, put = (found.values[f"noise_{key}"].mean(0).tolist() for key in ("error", "left", "put"))
    path = ", ".join(f"{level:g}: {100 * error:.3g} %" for level, error in zip(found.noise_levels, errors))
    closer = [f"{level:g}" for level, distance, start in zip(found.noise_levels, left, put) if distance < start]
    verdict = f"closer than they started at {', '.join(closer)}" if closer else "never closer than they started"
    return (
        f"{name}: error of a layer and its inverse on tokens with noise, of directions, by the noise's length relative "
        f"to the tokens': {path}; against the tokens without noise they end {verdict}."
    )


def _comparison(first: str, found: AutoencoderMeasures, other: str, against: AutoencoderMeasures) -> str:
    parts = []
    for key, words in (("layer_direction_error", "one layer"), ("network_direction_error", "all layers together")):
        mine, theirs = (_summary_value(one, key) for one in (found, against))
        gap = paired_difference(mine, theirs)
        word = {FALLS: "better than", RISES: "worse than", UNKNOWN: "not told apart from"}[direction(gap)]
        low, high = (100 * float(value) for value in (gap.low, gap.high))
        parts.append(f"{words}: {word} {other} ({low:+.2g} to {high:+.2g} points)")
    return f"{first} undoes directions, {'; '.join(parts)}."


def _summary_value(found: AutoencoderMeasures, key: str) -> Tensor:
    """Per image: the mean over layers of a layer's error, the last depth of a network's."""
    values = found.values[key]
    return values[:, -1] if key.startswith("network") else values.mean(1)


def percent(values: Tensor) -> str:
    """'1.2 % (1.1 to 1.3)', the mean over images and its interval."""
    found = bootstrap_mean(values)
    mean, low, high = (100 * float(part) for part in (found.mean, found.low, found.high))
    return f"{mean:.3g} % ({low:.3g} to {high:.3g})"
