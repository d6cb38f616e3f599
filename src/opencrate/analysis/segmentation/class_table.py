"""Which head fires for which class: the mean IoU of every head's mask with every class's region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...stats.intervals import Interval, bootstrap_mean
from .arrays import Array
from .metrics import by_sequence


@dataclass(frozen=True)
class ClassTable:
    """The C classes that any image holds.

    Attributes:
        classes: numbers `(C)`, ascending.
        names: of the classes.
        counts: units (images, or sequences) with each class.
        intervals: of each class, over its units, tensors `(K)`.
    """

    classes: tuple[int, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    intervals: tuple[Interval, ...]

    @property
    def means(self) -> Array:
        """Mean IoU, float64 `(C, K)`."""
        return np.stack([one.mean.numpy() for one in self.intervals])

    @property
    def best(self) -> list[int]:
        """The head of largest mean for each class, from 0: chosen on the same images, so compare it with a floor."""
        return self.means.argmax(1).tolist()

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per class and head, heads from 1."""
        return [
            {
                "class": name,
                "head": head,
                "mean": float(found.mean[head - 1]),
                "low": float(found.low[head - 1]),
                "high": float(found.high[head - 1]),
                "count": count,
            }
            for name, count, found in zip(self.names, self.counts, self.intervals)
            for head in range(1, len(found.mean) + 1)
        ]


def class_table(
    ious: Sequence[tuple[Array, Array]], groups: Sequence[str], class_names: Mapping[int, str]
) -> ClassTable | None:
    """The table of images whose classes `(C)` and IoU `(C, K)` are given, as `head_ious` gives them.

    Args:
        ious: one pair for each image.
        groups: the unit of each image.
        class_names: by number.

    Returns:
        `None` where no image holds a class.
    """
    found: dict[int, tuple[list[Array], list[str]]] = {}
    for (classes, values), group in zip(ious, groups):
        for number, row in zip(classes.tolist(), values):
            rows, units = found.setdefault(number, ([], []))
            rows.append(row)
            units.append(group)
    if not found:
        return None
    numbers = sorted(found)
    means = [by_sequence(np.stack(found[number][0]), found[number][1])[1] for number in numbers]
    return ClassTable(
        tuple(numbers),
        tuple(class_names.get(number, str(number)) for number in numbers),
        tuple(map(len, means)),
        tuple(bootstrap_mean(torch.from_numpy(one)) for one in means),
    )
