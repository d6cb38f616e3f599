"""What the doctor measures of a model's answers (logits, reconstructions, losses on text) and of simple rivals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from ...configuration_crate import pair
from ...data.text.masking import IGNORED
from ...evaluation.inputs import Batch, evaluating, num_inputs_of, read_batches
from ...evaluation.reconstruction import MaskedPatchErrors, grid_of, masked_patch_errors, patch_noise
from ...store.kinds import LANGUAGE, kind_of_class
from .vitals import Accuracy, labels_of, logits_of

_SEED = 0
"""Of the shuffles, and of the masks where a batch brings no noise of its own."""

_BASELINE_SIZE = 32
"""Larger images are averaged down to this many pixels a side before class means are taken."""


@dataclass(frozen=True)
class TextAnswers:
    """What a language model makes of blocks of a text; losses in nats per token.

    Attributes:
        losses: of every block, `(n)` float64.
        unigram, uniform: entropy of the scored tokens' own frequencies, and log of the vocabulary.
        shuffled: mean loss with the tokens of every block in random order.
        same_token: share of places at which the most often predicted token is predicted.
        tokens: different token ids in the text, `(v)`.
    """

    losses: Tensor
    unigram: float
    uniform: float
    shuffled: float
    same_token: float
    tokens: Tensor


@dataclass(frozen=True)
class Outputs:
    """What a model answers to the inputs; `None` for what this kind of model does not have.

    Attributes:
        logits, labels: of a classifier, float32 `(n, C)`, and `(n)`, where the images have them.
        pixels: mean and deviation of what the model reads.
        order: change of the logits when an image's patches are shuffled, against their deviation over images.
        nearest_mean: accuracy of the nearest class mean of the pixels, each image left out of its own.
        errors, text: of an autoencoder on masked patches; of a language model.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    pixels: tuple[float, float] | None = None
    order: float | None = None
    nearest_mean: Accuracy | None = None
    errors: MaskedPatchErrors | None = None
    text: TextAnswers | None = None


@dataclass(frozen=True)
class Score:
    """What the held-out data give a model: `losses` `(n)` float64, and whether each image is named `right` `(n)`."""

    losses: Tensor
    right: Tensor | None = None


def measure_outputs(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Outputs:
    """Answers to a list of batches of images, with or without labels, or of text."""
    if "input_ids" in batches[0]:
        return Outputs(text=_text_answers(model, batches) if _is_language_model(model) else None)
    pixels = torch.cat([batch["pixel_values"] for batch in batches]).float().cpu()
    scale = (float(pixels.mean()), float(pixels.std()))
    if kind_of_class(type(model).__name__) == "autoencoder":
        return Outputs(pixels=scale, errors=_masked_errors(model, batches))
    logits, labels = logits_of(model, batches), labels_of(batches)
    return Outputs(
        logits=logits,
        labels=labels,
        pixels=scale,
        order=None if logits is None else _order_effect(model, batches, logits),
        nearest_mean=None if labels is None else nearest_class_mean(pixels, labels),
    )


def measure_score(model: nn.Module, batches: Iterable[Batch], num_inputs: int) -> tuple[Score | None, bool]:
    """The score on the first inputs, and whether that was all of them; `None` for a model without a loss on them."""
    kept, whole = take(batches, num_inputs)
    if "input_ids" in kept[0]:
        if not _is_language_model(model):
            return None, whole
        return Score(torch.cat([_guess(model, *one)[0] for one in _scored(model, kept, shuffle=False)])), whole
    if kind_of_class(type(model).__name__) == "autoencoder":
        return Score(_masked_errors(model, kept).model), whole
    logits, labels = logits_of(model, kept), labels_of(kept)
    if logits is None or labels is None:
        return None, whole
    return Score(cross_entropy(logits.double(), labels, reduction="none"), logits.argmax(1) == labels), whole


def take(batches: Iterable[Batch], num_inputs: int | None) -> tuple[list[dict[str, Tensor]], bool]:
    """The first inputs, in batches (of an autoencoder with their noise), and whether there were no more."""
    kept: list[dict[str, Tensor]] = []
    left = math.inf if num_inputs is None else num_inputs
    for batch in batches:
        if left <= 0:
            return kept, False
        fields = next(read_batches([batch]))
        count = num_inputs_of(fields)
        noise = {"noise": batch["noise"]} if isinstance(batch, Mapping) and "noise" in batch else {}
        kept.append({key: value[: int(min(left, count))] for key, value in (fields | noise).items()})
        left -= count
    if not kept:
        raise ValueError("batches: no images in it; pass at least one batch of pixel values or token ids")
    return kept, left >= 0


def nearest_class_mean(pixels: Tensor, labels: Tensor) -> Accuracy:
    """Accuracy of predicting the class whose mean image is nearest, each image left out of its own class's mean.

    Images `(n, C, H, W)` are averaged down to 32 pixels a side where larger.
    """
    height, width = (min(side, _BASELINE_SIZE) for side in pixels.shape[-2:])
    flat = adaptive_avg_pool2d(pixels, (height, width)).flatten(1).double()
    classes, index = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(index, len(classes)).double()
    counts = member.sum(0)
    distances = torch.cdist(flat, (member.mT @ flat) / counts[:, None])
    own = counts[index]  # without the image itself its class's mean lies own / (own - 1) times as far away
    distances = torch.where(member.bool(), distances * (own / (own - 1))[:, None].nan_to_num(math.inf), distances)
    return Accuracy(int((distances.argmin(1) == index).sum()), len(labels))


def shuffle_patches(pixels: Tensor, patch: tuple[int, int]) -> Tensor | None:
    """Images `(B, C, H, W)` with their patches in one random order; `None` where there are fewer than two."""
    (height, width), (rows, columns) = patch, (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
    if rows * columns < 2 or pixels.shape[-2:] != (rows * height, columns * width):
        return None
    cells = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height)).transpose(3, 4).flatten(2, 3)
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(_SEED))
    return cells[:, :, order].unflatten(2, (rows, columns)).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _order_effect(model: nn.Module, batches: Sequence[dict[str, Tensor]], logits: Tensor) -> float | None:
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    if patch is None:
        return None
    mixed = [shuffle_patches(batch["pixel_values"], pair(patch)) for batch in batches]
    shuffled = [pixels for pixels in mixed if pixels is not None]
    changed = logits_of(model, shuffled) if len(shuffled) == len(mixed) else None
    deviation = (logits - logits.mean(0)).norm()
    if changed is None:
        return None
    return float((changed - logits).norm() / deviation) if deviation > 0 else 0.0


def _masked_errors(model: Any, batches: Sequence[dict[str, Tensor]]) -> MaskedPatchErrors:
    """Errors on the masked patches of all batches, under the noise that comes with them, else of one seed."""
    found = []
    for batch in batches:
        pixels, noise = batch["pixel_values"], batch.get("noise")
        if noise is None:
            noise = patch_noise(len(pixels), math.prod(grid_of(model, pixels)), _SEED)
        found.append(masked_patch_errors(model, pixels, noise))
    parts = zip(*((one.model, one.mean_colour, one.nearest_visible, one.mask) for one in found))
    return MaskedPatchErrors(*(torch.cat(part) for part in parts))


def _is_language_model(model: nn.Module) -> bool:
    return kind_of_class(type(model).__name__) in LANGUAGE


def _text_answers(model: Any, batches: Sequence[dict[str, Tensor]]) -> TextAnswers:
    size = int(model.config.vocab_size)
    losses, counts, predicted = [], torch.zeros(size), torch.zeros(size)
    for ids, targets, mask in _scored(model, batches, shuffle=False):
        loss, guesses = _guess(model, ids, targets, mask)
        losses.append(loss)
        counts += torch.bincount(targets[targets != IGNORED], minlength=size)
        predicted += torch.bincount(guesses, minlength=size)
    shuffled = [_guess(model, *one)[0] for one in _scored(model, batches, shuffle=True)]
    share = counts[counts > 0].double() / counts.sum()
    return TextAnswers(
        losses=torch.cat(losses),
        unigram=float(-(share * share.log()).sum()),
        uniform=math.log(size),
        shuffled=float(torch.cat(shuffled).mean()),
        same_token=float(predicted.max() / predicted.sum()),
        tokens=torch.cat([batch["input_ids"].flatten() for batch in batches]).unique(),
    )


def _scored(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], shuffle: bool
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Ids, the token wanted at every place (-100 for none), both `(B, N)`, and the mask where there is one."""
    causal = kind_of_class(type(model).__name__) == "causal"
    generator = torch.Generator().manual_seed(_SEED)
    for batch in batches:
        ids, labels = batch["input_ids"], batch.get("labels", batch["input_ids"])
        mask = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
        if shuffle:
            order = torch.randperm(ids.shape[1], generator=generator)
            ids, labels, mask = ids[:, order], labels[:, order], {key: value[:, order] for key, value in mask.items()}
        if causal:
            ids, labels, mask = ids[:, :-1], labels[:, 1:], {key: value[:, :-1] for key, value in mask.items()}
        yield ids, labels, mask


def _guess(model: nn.Module, ids: Tensor, targets: Tensor, mask: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss of every block that has something to score, float64 `(n)`, and the tokens predicted there."""
    device = next(model.parameters()).device
    with evaluating(model):
        inputs = {key: value.to(device) for key, value in mask.items()}
        logits = model(input_ids=ids.to(device), **inputs).logits.float().cpu()
    wanted = targets != IGNORED
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    losses[wanted] = cross_entropy(logits[wanted], targets[wanted], reduction="none").double()
    counts = wanted.sum(1)
    return (losses.sum(1) / counts.clamp_min(1))[counts > 0], logits[wanted].argmax(1)
