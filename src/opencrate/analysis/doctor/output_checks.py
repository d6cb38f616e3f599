"""The doctor's checks of what goes in and what comes out: pixels, logits against labels, reconstructions, text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from ...stats.words import percent
from .checks import CheckFunction, Finding, Patient, judge, skip
from .signatures import (
    CLASS_CHANCE,
    GAP_FAIL,
    GAP_WARN,
    INPUT_MEAN_FAIL,
    INPUT_STD_HIGH,
    INPUT_STD_LOW,
    MIN_CLASS_IMAGES,
    ORDER_FAIL,
    REORDER_FAIL,
    SAME_TOKEN_FAIL,
    STANDARD_ERRORS,
    STORED_ACCURACY,
    STORED_LOSS,
    TOKEN_ORDER_FAIL,
    UNDECIDED_WARN,
    VARIATION_FAIL,
)
from .vitals import Accuracy, accuracy_of
from .weights import dead_rows

_NO_HEAD = "the model has no classification head"


def _labelled(check: str) -> Callable[[Callable[[Patient, Tensor, Tensor], Finding]], CheckFunction]:
    """A check of predictions against labels, which says what is missing where one of them is."""

    def decorate(run: Callable[[Patient, Tensor, Tensor], Finding]) -> CheckFunction:
        def checked(patient: Patient) -> Finding:
            if patient.outputs is None:
                return skip(check, patient.why_no(patient.kind))
            if patient.outputs.logits is None:
                return skip(check, _NO_HEAD)
            if patient.outputs.labels is None:
                return skip(check, patient.missing.get("labels", "the images have no labels"))
            if len(patient.outputs.labels.unique()) < 2:
                return skip(check, "the images are all of one class")
            return run(patient, patient.outputs.logits, patient.outputs.labels)

        return checked

    return decorate


def _input_scale(patient: Patient) -> Finding:
    if patient.outputs is None or patient.outputs.pixels is None:
        return skip("input-scale", patient.why_no("images") if patient.kind == "images" else "the model reads text")
    mean, deviation = patient.outputs.pixels
    fail = abs(mean) > INPUT_MEAN_FAIL or not INPUT_STD_LOW <= deviation <= INPUT_STD_HIGH
    evidence = f"mean {mean:.3g}, deviation {deviation:.3g}"
    return judge("input-scale", evidence, {"mean": mean, "deviation": deviation}, fail=fail)


def _output_variation(patient: Patient) -> Finding:
    check = "output-variation"
    if patient.outputs is None:
        return skip(check, patient.why_no(patient.kind))
    logits = patient.outputs.logits
    if logits is None:
        return skip(check, _NO_HEAD)
    if len(logits) < 2 or logits.shape[1] < 2:
        return skip(check, "needs two images and two classes")
    logits = logits.double()
    between = float((logits - logits.mean(0)).norm() / (logits - logits.mean(1, keepdim=True)).norm())
    entropy = float(torch.special.entr(logits.softmax(1)).sum(1).mean() / math.log(logits.shape[1]))
    evidence = f"{between:.3g} of the logits' deviation is between images; entropy {entropy:.3f}"
    values = {"between_images": between, "entropy": entropy}
    return judge(check, evidence, values, warn=entropy > UNDECIDED_WARN, fail=not between >= VARIATION_FAIL)


def _order(patient: Patient) -> Finding:
    if patient.outputs is None:
        return skip("order", patient.why_no(patient.kind))
    if patient.outputs.text is not None:
        text = patient.outputs.text
        rise = text.shuffled - float(text.losses.mean())
        evidence = f"loss {rise:+.3f} nats per token with the tokens shuffled"
        return judge("order", evidence, {"nats": rise}, fail=not rise >= TOKEN_ORDER_FAIL)
    if patient.outputs.order is None:
        return skip("order", "needs a classifier of at least two patches, or a language model")
    evidence = f"the logits change by {patient.outputs.order:.3g} of their deviation when patches are shuffled"
    fail = not patient.outputs.order >= ORDER_FAIL
    return judge("order", evidence, {"change": patient.outputs.order}, fail=fail)


def _class_collapse(patient: Patient) -> Finding:
    text = patient.outputs.text if patient.outputs else None
    if text is None:
        return _classes_found(patient)
    evidence = f"the token that is foretold most often is foretold at {percent(text.same_token)} of the places"
    values = {"same_token": text.same_token}
    return judge("class-collapse", evidence, values, fail=text.same_token > SAME_TOKEN_FAIL)


@_labelled("class-collapse")
def _classes_found(patient: Patient, logits: Tensor, labels: Tensor) -> Finding:
    predicted, size = logits.argmax(1), max(logits.shape[1], int(labels.max()) + 1)
    given, named = torch.bincount(labels, minlength=size), torch.bincount(predicted, minlength=size)
    right = torch.bincount(labels[predicted == labels], minlength=size)
    enough = (given >= MIN_CLASS_IMAGES).nonzero()[:, 0].tolist()
    chance = accuracy_of(logits, labels).fraction / 2
    unlikely = {one: float(binom.cdf(int(right[one]), int(given[one]), chance)) * len(enough) for one in enough}
    missed = [one for one in enough if unlikely[one] < CLASS_CHANCE]
    others = len(labels) - int(given[named.argmax()])
    constant = int((named > 0).sum()) == 1 and others >= MIN_CLASS_IMAGES
    evidence = f"{int((named > 0).sum())} classes named for images of {int((given > 0).sum())}; most frequent "
    evidence += f"{percent(float(named.max() / named.sum()))} of {len(labels)} images"
    if missed:
        words = [f"{one} ({int(right[one])} of {int(given[one])})" for one in missed[:5]]
        evidence += f"; hardly found: {', '.join(words)}{' ...' if len(missed) > 5 else ''}"
    values = {"hardly_found": missed, "least_likely": min(unlikely.values(), default=1.0)}
    return judge("class-collapse", evidence, values, fail=constant or bool(missed))


@_labelled("class-order")
def _class_order(patient: Patient, logits: Tensor, labels: Tensor) -> Finding:
    size = max(logits.shape[1], int(labels.max()) + 1)
    if len(labels) < MIN_CLASS_IMAGES * size:
        return skip("class-order", f"needs at least {MIN_CLASS_IMAGES * size} images of {size} classes")
    pairs = torch.bincount(labels * size + logits.argmax(1), minlength=size**2).view(size, size)
    rows, columns = linear_sum_assignment(pairs.numpy(), maximize=True)
    found = accuracy_of(logits, labels)
    best = Accuracy(int(pairs[rows, columns].sum()), len(labels))
    gain = best.fraction - found.fraction
    moved = [f"{row} is named {column}" for row, column in zip(rows, columns) if row != column and pairs[row, column]]
    evidence = f"{percent(found.fraction)}; with the best names {percent(best.fraction)}"
    if moved and gain > REORDER_FAIL:
        evidence += f": {', '.join(moved[:4])}{' ...' if len(moved) > 4 else ''}"
    fail = gain > REORDER_FAIL and best.interval[0] > found.interval[1]
    return judge("class-order", evidence, {"gain": gain}, fail=fail)


@_labelled("above-chance")
def _above_chance(patient: Patient, logits: Tensor, labels: Tensor) -> Finding:
    chance = float(torch.bincount(labels).max() / len(labels))
    found, pixels = accuracy_of(logits, labels), patient.outputs.nearest_mean
    low, high = found.interval
    evidence = (
        f"accuracy {percent(found.fraction)} ({percent(low)} to {percent(high)}); most frequent class "
        f"{percent(chance)}, nearest class mean {percent(pixels.fraction)}"
    )
    values = {"accuracy": found.fraction, "chance": chance, "nearest_class_mean": pixels.fraction}
    at_chance, below = low <= chance, high < pixels.interval[0]
    narrow = high < (1 + chance) / 2
    return judge("above-chance", evidence, values, warn=at_chance, fail=below or (at_chance and narrow))


@_labelled("generalisation-gap")
def _generalisation_gap(patient: Patient, logits: Tensor, labels: Tensor) -> Finding:
    check = "generalisation-gap"
    if patient.training_accuracy is None:
        return skip(check, patient.why_no("training images"))
    train, held_out = patient.training_accuracy, accuracy_of(logits, labels)
    gap = train.fraction - held_out.fraction
    apart = train.interval[0] > held_out.interval[1]
    evidence = (
        f"{percent(train.fraction)} of {train.num_images} training images, {percent(held_out.fraction)} of "
        f"{held_out.num_images} held-out ones: {100 * gap:+.1f} points"
    )
    return judge(check, evidence, {"gap": gap}, warn=apart and gap > GAP_WARN, fail=apart and gap > GAP_FAIL)


def _reconstruction(patient: Patient) -> Finding:
    if patient.outputs is None or patient.outputs.errors is None:
        reason = patient.why_no("images") if patient.outputs is None else "the model is no masked autoencoder"
        return skip("reconstruction", reason)
    errors = patient.outputs.errors
    model, colour, nearest = (float(one.mean()) for one in (errors.model, errors.mean_colour, errors.nearest_visible))
    evidence = f"error {model:.4g} on masked patches; nearest visible patch {nearest:.4g}, flat colour {colour:.4g}"
    values = {"model": model, "nearest_visible": nearest, "mean_colour": colour}
    return judge("reconstruction", evidence, values, fail=not model < min(colour, nearest))


def _perplexity(patient: Patient) -> Finding:
    text = patient.outputs.text if patient.outputs else None
    if text is None:
        reason = patient.why_no(patient.kind) if patient.outputs is None else "the model has no language modelling head"
        return skip("perplexity", reason)
    loss = float(text.losses.mean())
    evidence = f"loss {loss:.3f} nats per token (perplexity {math.exp(min(loss, 700)):.4g}); unigram {text.unigram:.3f}"
    evidence += f", all tokens alike {text.uniform:.3f}"
    values = {"loss": loss, "unigram": text.unigram, "uniform": text.uniform}
    return judge("perplexity", evidence, values, fail=not loss < min(text.unigram, text.uniform))


def _dead_tokens(patient: Patient) -> Finding:
    text = patient.outputs.text if patient.outputs else None
    if text is None:
        reason = patient.why_no(patient.kind) if patient.outputs is None else "the model has no language modelling head"
        return skip("dead-tokens", reason)
    tokens, positions = dead_rows(patient.model, text.tokens)
    evidence = f"{tokens} of {len(text.tokens)} tokens of the text, {positions} positions"
    return judge("dead-tokens", evidence, {"tokens": tokens, "positions": positions}, fail=bool(tokens or positions))


def _stored_score(patient: Patient) -> Finding:
    check = "stored-score"
    if patient.stored is None:
        return skip(check, patient.why_no("stored score"))
    if patient.score is None:
        return skip(check, patient.why_no(patient.kind))
    losses, count = patient.score.losses, len(patient.score.losses)
    loss, stored = float(losses.mean()), patient.stored["loss"]
    spread = 0.0 if patient.whole or count < 2 else STANDARD_ERRORS * float(losses.std()) / count**0.5
    fail = not abs(loss - stored) <= STORED_LOSS * abs(stored) + spread
    evidence = f"loss {loss:.4g}, stored {stored:.4g}"
    if patient.score.right is not None and "accuracy" in patient.stored:
        found, before = float(patient.score.right.double().mean()), patient.stored["accuracy"]
        spread = 0.0 if patient.whole else STANDARD_ERRORS * math.sqrt(before * (1 - before) / count)
        fail = fail or abs(found - before) > STORED_ACCURACY + spread
        evidence += f"; accuracy {percent(found)}, stored {percent(before)}"
    evidence += f" ({'all' if patient.whole else 'the first'} {count})"
    return judge(check, evidence, {"loss": loss, "stored_loss": stored}, fail=fail)


OUTPUT_CHECKS: dict[str, CheckFunction] = {
    "input-scale": _input_scale,
    "output-variation": _output_variation,
    "order": _order,
    "class-collapse": _class_collapse,
    "class-order": _class_order,
    "above-chance": _above_chance,
    "reconstruction": _reconstruction,
    "perplexity": _perplexity,
    "dead-tokens": _dead_tokens,
    "stored-score": _stored_score,
    "generalisation-gap": _generalisation_gap,
}
"""The checks of `CHECKS` that read inputs and outputs, by their ids."""
