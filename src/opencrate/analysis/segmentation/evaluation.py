"""From the numbers of many images to means and average precisions with intervals, beside their floors.

The unit of every interval is the image; of the frames of sequences, which are alike, it is the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...stats.intervals import Interval, bootstrap_mean, bootstrap_statistic, paired_difference
from .arrays import Array
from .average_precision import NAMES, ImageMatches, average_precision
from .class_table import ClassTable
from .metrics import by_sequence, choose_on_others, head_scores
from .scores import METHODS, PLACES, ImageScores

Measure = tuple[str, str]
"""A table of `TABLES` and a column of it."""
TABLES = {
    "attention": "Attention maps: mIoU",
    "attention on the grid": "Attention maps: mIoU on the grid of patches",
    "object": "One object",
    "box": "MaskCut: average precision of boxes",
    "mask": "MaskCut: average precision of masks",
}
BEST, CHOSEN = "best head", "head of other images"
MODEL, UNTRAINED, FLOOR = "model", "untrained", "floor"
"""Roles of subjects."""
_FOLDS = 10
_RESAMPLES = 1000


@dataclass(frozen=True)
class Subject:
    """Whatever makes masks: a model, the same untrained, or a floor.

    Attributes:
        name: for readers.
        role: `model`, `untrained` or `floor`.
        models: those that it stands beside: of an untrained one its own, of random maps those with as many heads; empty
            where it stands beside all.
        sigma: of the noise on its images, in pixel values of 0 to 255.
        values: of every measure that is a mean, one number per unit; NaN where it has none.
        matches: by kind and ranking, for each seed, those of every image.
    """

    name: str
    role: str
    models: tuple[str, ...]
    sigma: float
    values: Mapping[Measure, Array] = field(repr=False)
    matches: Mapping[tuple[str, str], tuple[tuple[ImageMatches, ...], ...]] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """first − second of one measure, image by image (or sequence by sequence)."""

    first: Subject
    second: Subject
    measure: Measure
    interval: Interval


@dataclass(frozen=True)
class Example:
    """An image of the page.

    Attributes:
        name: of the image.
        picture: RGB.
        labels: int32 `(H, W)`.
        instances: bool `(G, H, W)`, without crowds.
        masks: by model, MaskCut's: bool `(D, H, W)`.
        maps: by model, attention on a grid that covers the image: float `(K, rows, columns)`.
    """

    name: str
    picture: Image.Image
    labels: Array
    instances: Array
    masks: Mapping[str, Array]
    maps: Mapping[str, Array]


@dataclass(frozen=True)
class SegmentationScores:
    """What the masks of some models are worth on a data set, beside the floors.

    Attributes:
        kind, source: of the data.
        num_images: evaluated.
        units: what an interval is over: one name per unit.
        empty: names of the images without an object. In average precision every mask on them is wrong; the other
            measures leave them out.
        settings: how masks were made, for the record.
        subjects: models first, then the untrained and the floors, then the models on noisy images.
        intervals: by place of the subject and by measure.
        differences: models against each other, and against all that is beside them.
        classes: by subject's name and rule, which head fires for which class.
        examples: some images.
    """

    kind: str
    source: str
    num_images: int
    units: tuple[str, ...]
    empty: tuple[str, ...]
    settings: Mapping[str, Any]
    subjects: tuple[Subject, ...]
    intervals: Mapping[tuple[int, Measure], Interval]
    differences: tuple[Difference, ...]
    classes: Mapping[tuple[str, str], ClassTable] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()

    @property
    def unit(self) -> str:
        """What an interval is over, in words."""
        return "image" if len(self.units) == self.num_images else "sequence"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures that any subject has, table by table."""
        there = dict.fromkeys(measure for _, measure in self.intervals)
        return tuple(sorted(there, key=lambda measure: [*TABLES].index(measure[0])))

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise, ascending; 0 alone where there is none."""
        return tuple(sorted({one.sigma for one in self.subjects}))

    def of(self, role: str, sigma: float = 0.0) -> tuple[Subject, ...]:
        """The subjects of a role."""
        return tuple(one for one in self.subjects if one.role == role and one.sigma == sigma)

    def interval(self, subject: Subject, measure: Measure) -> Interval | None:
        """A subject's value; `None` where it has none."""
        place = next(index for index, one in enumerate(self.subjects) if one is subject)
        return self.intervals.get((place, measure))

    def best_floor(self, model: Subject, measure: Measure) -> Difference | None:
        """The difference to whatever is highest without training or without looking at the image.

        To take the highest of several by what was measured makes the comparison stricter, not easier.
        """
        beside = [
            one
            for one in self.differences
            if one.first is model and one.measure == measure and one.second.role != MODEL
        ]
        values = [self.interval(one.second, measure) for one in beside]
        known = [(float(value.mean), one) for value, one in zip(values, beside) if value is not None]
        known = [pair for pair in known if pair[0] == pair[0]]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per subject and measure, then per difference."""
        rows = []
        for (place, measure), found in self.intervals.items():
            one = self.subjects[place]
            rows.append(_row(one.name, "", one.role, one.sigma, measure, found))
        for one in self.differences:
            rows.append(_row(one.first.name, one.second.name, "difference", one.first.sigma, one.measure, one.interval))
        return rows

    def unit_rows(self) -> list[dict[str, Any]]:
        """One row per subject and unit, with every measure that is a mean over units; `None` where one has no number.

        Average precision is not there: it is no mean over images.
        """
        return [
            {
                "subject": one.name,
                "role": one.role,
                "noise": one.sigma,
                self.unit: unit,
                **{": ".join(measure): _known(values[place]) for measure, values in one.values.items()},
            }
            for one in self.subjects
            for place, unit in enumerate(self.units)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, but for those of single units."""
        facts = {name: getattr(self, name) for name in ("kind", "source", "num_images", "unit", "empty", "settings")}
        classes = [
            {"subject": name, "rule": rule, **row}
            for (name, rule), table in self.classes.items()
            for row in table.rows()
        ]
        return {**facts, "units": len(self.units), "rows": self.rows(), "classes": classes}


def _row(subject: str, against: str, role: str, sigma: float, measure: Measure, found: Interval) -> dict[str, Any]:
    numbers = {name: float(getattr(found, name)) for name in ("mean", "low", "high")}
    names = {"subject": subject, "minus": against, "role": role, "noise": sigma}
    return {**names, "table": measure[0], "measure": measure[1], **numbers, "count": found.count}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def subject_of(
    name: str,
    role: str,
    runs: Sequence[Sequence[ImageScores]],
    groups: Sequence[str],
    *,
    models: Sequence[str] = (),
    sigma: float = 0.0,
    one_object: bool = True,
) -> Subject:
    """A subject from the numbers of its images, averaged over runs (seeds of an untrained model)."""
    each = [_image_values(run, groups, one_object) for run in runs]
    values = {measure: _by_unit(np.mean([one[measure] for one in each], 0), groups) for measure in each[0]}
    kinds = runs[0][0].matches
    matches = {kind: tuple(tuple(one.matches[kind] for one in run) for run in runs) for kind in kinds}
    return Subject(name, role, tuple(models), sigma, values, matches)


def chosen_subject(
    name: str, options: Sequence[Sequence[ImageScores]], groups: Sequence[str], *, one_object: bool = True
) -> Subject:
    """A floor with options, such as sizes of an ellipse: each image gets the one that is best on the other images.

    For average precision, which is no mean over images, the units are dealt into ten parts, and each part gets what is
    best on the others.
    """
    each = [_image_values(run, groups, one_object) for run in options]
    values = {}
    for measure in each[0]:
        table = np.stack([one[measure] for one in each], 1)
        known = np.flatnonzero(np.isfinite(table).all(1)).tolist()
        found = np.full(len(table), np.nan)
        if len(known):
            found[known] = choose_on_others(table[known], [groups[index] for index in known])[1]
        values[measure] = _by_unit(found, groups)
    matches = {}
    for kind in options[0][0].matches:
        chosen = _chosen_matches([[one.matches[kind] for one in run] for run in options], groups)
        matches |= {kind: (chosen,)} if chosen else {}
    return Subject(name, FLOOR, (), 0.0, values, matches)


def _chosen_matches(options: list[list[ImageMatches]], groups: Sequence[str]) -> tuple[ImageMatches, ...]:
    """The matches of every image by the option of largest AP on the other parts; none where there is one unit only."""
    units = list(dict.fromkeys(groups))
    parts = np.array([units.index(group) % _FOLDS for group in groups])
    if len(units) < 2:
        return ()
    chosen: list[ImageMatches | None] = [None] * len(groups)
    for part in np.unique(parts).tolist():
        values = [average_precision([one for one, of in zip(run, parts) if of != part])[2] for run in options]
        best = options[int(np.nanargmax(values)) if np.isfinite(values).any() else 0]
        for index in np.flatnonzero(parts == part).tolist():
            chosen[index] = best[index]
    return tuple(one for one in chosen if one is not None)


def _image_values(run: Sequence[ImageScores], groups: Sequence[str], one_object: bool) -> dict[Measure, Array]:
    """Of every measure that is a mean, one number per image; NaN where an image has none."""
    found: dict[Measure, Array] = {}
    for rule, place in run[0].heads:
        table = "attention" if place == PLACES[0] else "attention on the grid"
        ious = [one.heads[rule, place][1] for one in run]
        best, chosen = np.full((2, len(run)), np.nan)
        if any(map(len, ious)):
            scores = head_scores(ious, groups)
            best[scores.images], chosen[scores.images] = scores.oracle, scores.chosen
        found[table, f"{rule}, {BEST}"], found[table, f"{rule}, {CHOSEN}"] = best, chosen
    for method in METHODS:
        found["object", f"CorLoc, {method}"] = np.array([one.corloc[method] for one in run])
    for method in METHODS if one_object else ():
        found["object", f"J, {method}"] = np.array([one.jaccard[method] for one in run])
    return found


def _by_unit(values: Array, groups: Sequence[str]) -> Array:
    """The mean of every unit's images that have a number, in the order of appearance; NaN where none has."""
    known = np.isfinite(values)
    _, share = by_sequence(known, groups)
    _, total = by_sequence(np.where(known, values, 0), groups)
    return np.divide(total, share, out=np.full(len(share), np.nan), where=share > 0)


def summarise(
    subjects: Sequence[Subject], groups: Sequence[str]
) -> tuple[dict[tuple[int, Measure], Interval], tuple[Difference, ...]]:
    """95 % intervals of every subject and measure, and of the differences, by bootstrap over units."""
    intervals: dict[tuple[int, Measure], Interval] = {}
    differences: list[Difference] = []
    pairs = list(_pairs(subjects))
    for measure in dict.fromkeys(measure for one in subjects for measure in one.values):
        for place, one in enumerate(subjects):
            values = one.values.get(measure, np.array([]))
            values = values[np.isfinite(values)]
            if len(values):
                intervals[place, measure] = bootstrap_mean(torch.from_numpy(values))
        for first, second in pairs:
            found = _paired(subjects[first].values.get(measure), subjects[second].values.get(measure))
            if found is not None:
                differences.append(Difference(subjects[first], subjects[second], measure, found))
    for kind in dict.fromkeys(kind for one in subjects for kind in one.matches):
        _add_precisions(kind, subjects, pairs, groups, intervals, differences)
    return intervals, tuple(differences)


def _pairs(subjects: Sequence[Subject]) -> Iterator[tuple[int, int]]:
    """Places of what is compared: models on the same images, and models with what is beside them."""
    for first, second in combinations(range(len(subjects)), 2):
        one, other = subjects[first], subjects[second]
        if one.role != MODEL or one.sigma != other.sigma:
            continue
        if not other.models or one.name in other.models:
            yield first, second


def _paired(first: Array | None, second: Array | None) -> Interval | None:
    """The difference where both have numbers; `None` where there is no such unit."""
    if first is None or second is None:
        return None
    both = np.isfinite(first) & np.isfinite(second)
    return paired_difference(torch.from_numpy(first[both]), torch.from_numpy(second[both])) if both.any() else None


def _add_precisions(
    kind: tuple[str, str],
    subjects: Sequence[Subject],
    pairs: Sequence[tuple[int, int]],
    groups: Sequence[str],
    intervals: dict[tuple[int, Measure], Interval],
    differences: list[Difference],
) -> None:
    """AP50, AP75 and AP of all subjects and pairs, from the same draws of units."""
    there = [place for place, one in enumerate(subjects) if kind in one.matches]
    among = [(there.index(first), there.index(second)) for first, second in pairs if {first, second} <= {*there}]
    units = list(dict.fromkeys(groups))
    members = [[index for index, group in enumerate(groups) if group == unit] for unit in units]

    def statistic(draws: Tensor) -> Tensor:
        images = [index for unit in draws.sort().values.tolist() for index in members[unit]]
        each = np.array([_precision(subjects[place].matches[kind], images) for place in there])
        return torch.from_numpy(np.concatenate([each, *(each[None, a] - each[None, b] for a, b in among)]))

    found = bootstrap_statistic(statistic, len(units), resamples=_RESAMPLES)
    for column, name in enumerate(NAMES):
        measure = (kind[0], f"{name}, {kind[1]}")
        for row, place in enumerate(there):
            intervals[place, measure] = found[row, column]
        for row, (first, second) in enumerate(among, len(there)):
            pair = subjects[there[first]], subjects[there[second]]
            differences.append(Difference(*pair, measure, found[row, column]))


def _precision(runs: Sequence[Sequence[ImageMatches]], images: Sequence[int]) -> Array:
    """AP50, AP75 and AP of some images, with repeats: the mean over runs."""
    return np.mean([average_precision([run[index] for index in images]) for run in runs], 0)
