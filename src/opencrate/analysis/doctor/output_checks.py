"""The doctor's checks of what goes in and what comes out: pixels, logits against labels, reconstructions, text."""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from ...stats.words import percent
from . import signatures as limits
from .patient import Judged, NotChecked, Patient, check, needed
from .vitals import Accuracy, accuracy_of
from .weights import dead_rows


@check("input-scale")
def _input_scale(patient: Patient) -> Judged:
    pixels = patient.outputs and patient.outputs.pixels
    mean, deviation = needed(pixels, patient.why_no("images") if patient.kind == "images" else "the model reads text")
    fail = abs(mean) > limits.INPUT_MEAN_FAIL or not limits.INPUT_STD_LOW <= deviation <= limits.INPUT_STD_HIGH
    evidence = f"mean {mean:.3g}, deviation {deviation:.3g}"
    return Judged(evidence, {"mean": mean, "deviation": deviation}, fail=fail)


@check("output-variation")
def _output_variation(patient: Patient) -> Judged:
    logits = patient.need_logits()
    if len(logits) < 2 or logits.shape[1] < 2:
        raise NotChecked("needs two images and two classes")
    logits = logits.double()
    between = float((logits - logits.mean(0)).norm() / (logits - logits.mean(1, keepdim=True)).norm())
    entropy = float(torch.special.entr(logits.softmax(1)).sum(1).mean() / math.log(logits.shape[1]))
    evidence = f"{between:.3g} of the logits' deviation is between images; entropy {entropy:.3f}"
    values = {"between_images": between, "entropy": entropy}
    return Judged(evidence, values, warn=entropy > limits.UNDECIDED_WARN, fail=not between >= limits.VARIATION_FAIL)


@check("order")
def _order(patient: Patient) -> Judged:
    text = patient.need_outputs().text
    if text is not None:
        rise = text.shuffled - float(text.losses.mean())
        evidence = f"loss {rise:+.3f} nats per token with the tokens shuffled"
        return Judged(evidence, {"nats": rise}, fail=not rise >= limits.TOKEN_ORDER_FAIL)
    order = needed(patient.need_outputs().order, "needs a classifier of at least two patches, or a language model")
    evidence = f"the logits change by {order:.3g} of their deviation when patches are shuffled"
    return Judged(evidence, {"change": order}, fail=not order >= limits.ORDER_FAIL)


@check("class-collapse")
def _class_collapse(patient: Patient) -> Judged:
    text = patient.need_outputs().text
    if text is None:
        return _classes_found(patient)
    evidence = f"the most often predicted token is predicted at {percent(text.same_token)} of the places"
    values = {"same_token": text.same_token}
    return Judged(evidence, values, fail=text.same_token > limits.SAME_TOKEN_FAIL)


def _classes_found(patient: Patient) -> Judged:
    logits, labels = patient.need_labelled()
    predicted, size = logits.argmax(1), max(logits.shape[1], int(labels.max()) + 1)
    given, named = torch.bincount(labels, minlength=size), torch.bincount(predicted, minlength=size)
    right = torch.bincount(labels[predicted == labels], minlength=size)
    enough = (given >= limits.MIN_CLASS_IMAGES).nonzero()[:, 0].tolist()
    chance = accuracy_of(logits, labels).fraction / 2
    unlikely = {one: float(binom.cdf(int(right[one]), int(given[one]), chance)) * len(enough) for one in enough}
    missed = [one for one in enough if unlikely[one] < limits.CLASS_CHANCE]
    others = len(labels) - int(given[named.argmax()])
    constant = int((named > 0).sum()) == 1 and others >= limits.MIN_CLASS_IMAGES
    evidence = f"{int((named > 0).sum())} classes named for images of {int((given > 0).sum())}; most frequent "
    evidence += f"{percent(float(named.max() / named.sum()))} of {len(labels)} images"
    if missed:
        words = [f"{one} ({int(right[one])} of {int(given[one])})" for one in missed[:5]]
        evidence += f"; hardly found: {', '.join(words)}{' ...' if len(missed) > 5 else ''}"
    values = {"hardly_found": missed, "least_likely": min(unlikely.values(), default=1.0)}
    return Judged(evidence, values, fail=constant or bool(missed))


@check("class-order")
def _class_order(patient: Patient) -> Judged:
    logits, labels = patient.need_labelled()
    size = max(logits.shape[1], int(labels.max()) + 1)
    if len(labels) < limits.MIN_CLASS_IMAGES * size:
        raise NotChecked(f"needs at least {limits.MIN_CLASS_IMAGES * size} images of {size} classes")
    pairs = torch.bincount(labels * size + logits.argmax(1), minlength=size**2).view(size, size)
    rows, columns = linear_sum_assignment(pairs.numpy(), maximize=True)
    found = accuracy_of(logits, labels)
    best = Accuracy(int(pairs[rows, columns].sum()), len(labels))
    gain = best.fraction - found.fraction
    moved = [f"{row} is named {column}" for row, column in zip(rows, columns) if row != column and pairs[row, column]]
    evidence = f"{percent(found.fraction)}; with the best names {percent(best.fraction)}"
    if moved and gain > limits.REORDER_FAIL:
        evidence += f": {', '.join(moved[:4])}{' ...' if len(moved) > 4 else ''}"
    fail = gain > limits.REORDER_FAIL and best.interval[0] > found.interval[1]
    return Judged(evidence, {"gain": gain}, fail=fail)


@check("above-chance")
def _above_chance(patient: Patient) -> Judged:
    logits, labels = patient.need_labelled()
    chance = float(torch.bincount(labels).max() / len(labels))
    found, pixels = accuracy_of(logits, labels), patient.need_outputs().nearest_mean
    assert pixels is not None  # there are labels
    low, high = found.interval
    evidence = (
        f"accuracy {percent(found.fraction)} ({percent(low)} to {percent(high)}); most frequent class "
        f"{percent(chance)}, nearest class mean {percent(pixels.fraction)}"
    )
    values = {"accuracy": found.fraction, "chance": chance, "nearest_class_mean": pixels.fraction}
    at_chance, below = low <= chance, high < pixels.interval[0]
    narrow = high < (1 + chance) / 2
    return Judged(evidence, values, warn=at_chance, fail=below or (at_chance and narrow))


@check("generalisation-gap")
def _generalisation_gap(patient: Patient) -> Judged:
    logits, labels = patient.need_labelled()
    train = needed(patient.training_accuracy, patient.why_no("training images"))
    held_out = accuracy_of(logits, labels)
    gap = train.fraction - held_out.fraction
    apart = train.interval[0] > held_out.interval[1]
    evidence = (
        f"{percent(train.fraction)} of {train.num_images} training images, {percent(held_out.fraction)} of "
        f"{held_out.num_images} held-out ones: {100 * gap:+.1f} points"
    )
    return Judged(evidence, {"gap": gap}, warn=apart and gap > limits.GAP_WARN, fail=apart and gap > limits.GAP_FAIL)


@check("reconstruction")
def _reconstruction(patient: Patient) -> Judged:
    outputs = needed(patient.outputs, patient.why_no("images"))
    errors = needed(outputs.errors, "the model is not a masked autoencoder")
    model, colour, nearest = (float(one.mean()) for one in (errors.model, errors.mean_colour, errors.nearest_visible))
    evidence = f"error {model:.4g} on masked patches; nearest visible patch {nearest:.4g}, flat colour {colour:.4g}"
    values = {"model": model, "nearest_visible": nearest, "mean_colour": colour}
    return Judged(evidence, values, fail=not model < min(colour, nearest))


@check("perplexity")
def _perplexity(patient: Patient) -> Judged:
    text = patient.need_text()
    loss = float(text.losses.mean())
    evidence = f"loss {loss:.3f} nats per token (perplexity {math.exp(min(loss, 700)):.4g}); unigram {text.unigram:.3f}"
    evidence += f", all tokens alike {text.uniform:.3f}"
    values = {"loss": loss, "unigram": text.unigram, "uniform": text.uniform}
    return Judged(evidence, values, fail=not loss < min(text.unigram, text.uniform))


@check("dead-tokens")
def _dead_tokens(patient: Patient) -> Judged:
    text = patient.need_text()
    tokens, positions = dead_rows(patient.model, text.tokens)
    evidence = f"{tokens} of {len(text.tokens)} tokens of the text, {positions} positions"
    return Judged(evidence, {"tokens": tokens, "positions": positions}, fail=bool(tokens or positions))


@check("stored-score")
def _stored_score(patient: Patient) -> Judged:
    written = needed(patient.stored, patient.why_no("stored score"))
    score = needed(patient.score, patient.why_no(patient.kind))
    losses, count = score.losses, len(score.losses)
    loss, stored = float(losses.mean()), written["loss"]
    spread = 0.0 if patient.whole or count < 2 else limits.STANDARD_ERRORS * float(losses.std()) / count**0.5
    fail = not abs(loss - stored) <= limits.STORED_LOSS * abs(stored) + spread
    evidence = f"loss {loss:.4g}, stored {stored:.4g}"
    if score.right is not None and "accuracy" in written:
        found, before = float(score.right.double().mean()), written["accuracy"]
        spread = 0.0 if patient.whole else limits.STANDARD_ERRORS * math.sqrt(before * (1 - before) / count)
        fail = fail or abs(found - before) > limits.STORED_ACCURACY + spread
        evidence += f"; accuracy {percent(found)}, stored {percent(before)}"
    evidence += f" ({'all' if patient.whole else 'the first'} {count})"
    return Judged(evidence, {"loss": loss, "stored_loss": stored}, fail=fail)
