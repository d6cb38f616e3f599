"""Features of a vision model: how often they fire, on which patches most, and for which class.

Features are drawn at random, before anything is known of them. The images are divided at random into two halves: the
first shows the patches and chooses each feature's class, the second says how well the feature tells that class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...configuration_crate import pair
from ...evaluation.inputs import read_batches
from ...evaluation.language import progress
from ...evaluation.reconstruction import grid_of
from ...stats.intervals import Interval, bootstrap_mean
from ...store.saved import SavedModel
from ..record.attention import displayable
from ..record.states import record
from .codes import code_modules, codes_kind
from .scores import detection

SCORES = {"auc": "tells its class (AUC)", "auc_control": "the same of another feature's class"}
"""Scores of a feature, with their names for readers."""
_CONTEXT = 1  # patches shown on every side of the one that fires


@dataclass(frozen=True)
class Patch:
    """A patch where a feature fires, with what lies around it.

    Attributes:
        image: its image's number, from 0, in the order of the images.
        row, column: where it is on the grid.
        value: the feature's activation.
        pixels: float32 `(C, h, w)` in [0, 1]: the patch with a patch around it on every side that the image has.
        box: left, top, width and height of the patch in `pixels`.
        title: the image's class, empty where it is not known.
    """

    image: int
    row: int
    column: int
    value: float
    pixels: np.ndarray = field(repr=False)
    box: tuple[int, int, int, int]
    title: str = ""


@dataclass(frozen=True)
class PatchFeature:
    """One feature.

    Attributes:
        layer, index: where it is: the layer from 1, the entry of the code from 0.
        firing_rate: share of all patches where it is above 0.
        mean, maximum: of its activation.
        patches: where it is largest in the first half of the images, one per image.
        selects: the class for whose images its mean activation is largest in the first half; empty without labels.
        scores: by the names of `SCORES`; NaN where a score cannot be had.
    """

    layer: int
    index: int
    firing_rate: float
    mean: float
    maximum: float
    patches: tuple[Patch, ...]
    selects: str
    scores: dict[str, float]


@dataclass(frozen=True)
class PatchFeatures:
    """Features of one model.

    Attributes:
        kind: what they are: "sparse codes" or "MLP neurons".
        widths: entries of the code, by layer.
        firing_rates: of every feature of a layer, `(m,)`, by layer.
        images, patches: how many were looked at.
        labelled: whether their classes are known.
        seed, where: how they were found.
    """

    name: str
    kind: str
    features: tuple[PatchFeature, ...]
    widths: dict[int, int]
    firing_rates: dict[int, np.ndarray] = field(repr=False)
    images: int
    patches: int
    labelled: bool
    seed: int
    where: str

    def interval(self, score: str, layer: int | None = None) -> Interval | None:
        """Mean of a score over features with its 95 % bootstrap interval; `None` without two values."""
        found = [one.scores[score] for one in self.features if layer in (None, one.layer)]
        values = [value for value in found if np.isfinite(value)]
        return bootstrap_mean(values) if len(values) > 1 else None

    @property
    def silent(self) -> int:
        """Features that do not fire on any patch."""
        return sum(one.firing_rate == 0 for one in self.features)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per feature: where it is, how often and how strongly it fires, its class and scores."""
        names = ("layer", "index", "firing_rate", "mean", "maximum", "selects")
        return [{**{name: getattr(one, name) for name in names}, **one.scores} for one in self.features]

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels and the firing rates of features that were not drawn."""
        told = ("name", "kind", "widths", "images", "patches", "labelled", "seed", "where")
        places = ("image", "row", "column", "value", "title")
        features = [
            {**row, "patches": [{name: getattr(patch, name) for name in places} for patch in one.patches]}
            for row, one in zip(self.to_rows(), self.features)
        ]
        return {**{name: getattr(self, name) for name in told}, "features": features}


def find_patch_features(
    saved: SavedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    layers: Sequence[int] | None = None,
    num_features: int = 30,
    num_inputs: int | None = None,
    num_patches: int = 8,
    labelled: bool = False,
    seed: int = 0,
    name: str | None = None,
    where: str = "",
) -> PatchFeatures:
    """Draw features of every layer at random and look at them on images.

    Args:
        saved: a vision model: a CRATE, or one of a known type (ViT, DINOv2, ...).
        batches: `pixel_values`, and with `labelled` `labels` by the model's own classes. They are read twice.
        layers: from 1; all by default.
        num_features: drawn per layer, all of a narrower one.
        num_inputs: images, all by default.
        num_patches, name, where: kept for readers.
        labelled: whether the labels mean anything.
        seed: of the draws.

    Raises:
        ValueError: layers that are not there, a code that cannot be read, or fewer than 4 images.
    """
    total = len(code_modules(saved.model))
    chosen = tuple(range(1, total + 1)) if layers is None else tuple(layers)
    kept = list(read_batches(batches, num_inputs))
    labels = torch.cat([fields["labels"] for fields in kept]).numpy() if labelled else None
    count = sum(len(fields["pixel_values"]) for fields in kept)
    if count < 4:
        raise ValueError(f"num_inputs={count}: two halves need at least 4 images; give more")
    found = _activations(saved, kept, chosen, num_features, seed)
    order = np.random.default_rng([seed, 0]).permutation(count)
    halves = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    features: list[PatchFeature] = []
    for layer in chosen:
        features += _of_layer(saved, kept, layer, found[layer], halves, labels, num_patches, seed)
    return PatchFeatures(
        name=name or saved.source,
        kind=codes_kind(saved.model),
        features=tuple(features),
        widths={layer: len(found[layer].rates) for layer in chosen},
        firing_rates={layer: found[layer].rates for layer in chosen},
        images=count,
        patches=found[chosen[0]].patches,
        labelled=labelled,
        seed=seed,
        where=where,
    )


@dataclass
class _Layer:
    """Of one layer: the features drawn `(F,)`; of every image their mean, largest value and its patch `(n, F)`."""

    drawn: np.ndarray
    means: np.ndarray
    peaks: np.ndarray
    places: np.ndarray
    rates: np.ndarray
    patches: int


def _activations(
    saved: SavedModel, batches: Sequence[Mapping[str, Tensor]], layers: Sequence[int], num_features: int, seed: int
) -> dict[int, _Layer]:
    drawn: dict[int, np.ndarray] = {}
    parts: dict[int, list[tuple[np.ndarray, ...]]] = {layer: [] for layer in layers}
    fired: dict[int, Any] = {}
    patches = 0
    rows, columns = grid_of(saved.model, batches[0]["pixel_values"])
    for states in record(saved.model, progress(batches, "reading"), layers=layers):
        patches += states.num_inputs * rows * columns
        for step in states.steps():
            if step.codes is None:
                raise ValueError(f"{saved.source}: layer {step.layer} has no code to look into")
            codes = step.codes[:, -rows * columns :].float()
            if step.layer not in drawn:
                width = codes.shape[-1]
                generator = np.random.default_rng([seed, step.layer])
                drawn[step.layer] = np.sort(generator.choice(width, min(num_features, width), replace=False))
            fired[step.layer] = fired.get(step.layer, 0) + (codes > 0).sum((0, 1)).cpu().numpy()
            peaks = codes[..., torch.from_numpy(drawn[step.layer])]
            largest, at = peaks.max(1)
            parts[step.layer].append(tuple(one.cpu().numpy() for one in (peaks.mean(1), largest, at)))
    found = {}
    for layer in layers:
        means, largest, at = (np.concatenate(part) for part in zip(*parts[layer]))
        found[layer] = _Layer(drawn[layer], means, largest, at, fired[layer] / patches, patches)
    return found


def _of_layer(
    saved: SavedModel,
    batches: Sequence[Mapping[str, Tensor]],
    layer: int,
    found: _Layer,
    halves: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray | None,
    num_patches: int,
    seed: int,
) -> list[PatchFeature]:
    classes, scores = _selectivity(found.means, halves, labels, np.random.default_rng([seed, layer, 1]))
    names = saved.label_names
    features = []
    for column, index in enumerate(found.drawn):
        peaks = found.peaks[halves[0], column]
        best = halves[0][np.argsort(-peaks, kind="stable")[:num_patches]]
        chosen = [(int(image), float(found.peaks[image, column])) for image in best if found.peaks[image, column] > 0]
        patches = (_patch(saved, batches, image, int(found.places[image, column]), value) for image, value in chosen)
        titled = [
            patch if labels is None else replace(patch, title=names[int(labels[patch.image])]) for patch in patches
        ]
        features.append(
            PatchFeature(
                layer=layer,
                index=int(index),
                firing_rate=float(found.rates[index]),
                mean=float(found.means[:, column].mean()),
                maximum=float(found.peaks[:, column].max()),
                patches=tuple(titled),
                selects="" if classes is None else names[int(classes[column])],
                scores={name: float(score[column]) for name, score in scores.items()},
            )
        )
    return features


def _selectivity(
    means: np.ndarray, halves: tuple[np.ndarray, np.ndarray], labels: np.ndarray | None, draw: np.random.Generator
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Every feature's class by the first half `(F,)`, and its scores on the second: `(F,)` each.

    The control asks for the class of another feature.
    """
    columns = means.shape[1]
    if labels is None:
        return None, {name: np.full(columns, np.nan) for name in SCORES}
    first, second = halves
    known = np.unique(labels[first])
    by_class = np.stack([means[first][labels[first] == one].mean(0) for one in known])
    classes = known[by_class.argmax(0)]
    others = np.roll(classes[draw.permutation(columns)], 1)
    silent = means[first].max(0) <= 0
    scores = {
        name: np.where(silent, np.nan, detection(means[second], labels[second, None] == asked[None]))
        for name, asked in (("auc", classes), ("auc_control", others))
    }
    return classes, {"auc": scores["auc"], "auc_control": np.where(others == classes, np.nan, scores["auc_control"])}


def _patch(saved: SavedModel, batches: Sequence[Mapping[str, Tensor]], image: int, place: int, value: float) -> Patch:
    """A patch and its surroundings, as they were before the model's normalisation."""
    start = 0
    for fields in batches:
        if image < start + len(fields["pixel_values"]):
            break
        start += len(fields["pixel_values"])
    pixels = fields["pixel_values"][image - start][None].float().cpu()
    (height, width), columns = pair(saved.model.config.patch_size), grid_of(saved.model, pixels)[1]
    row, column = divmod(place, columns)
    top, left = max(0, (row - _CONTEXT) * height), max(0, (column - _CONTEXT) * width)
    mean, std = (getattr(saved.processor, name, None) for name in ("image_mean", "image_std"))
    whole = displayable(pixels, mean, std)[0].numpy()
    around = whole[:, top : (row + 1 + _CONTEXT) * height, left : (column + 1 + _CONTEXT) * width]
    return Patch(image, row, column, value, around, (column * width - left, row * height - top, width, height))
