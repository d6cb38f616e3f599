"""Images with true masks, whatever file layout they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
VOID = -1
"""The label of pixels of which nothing is known."""
FILE_VOID = 255
"""The same in PNG files."""


@dataclass(frozen=True)
class MaskedImage:
    """An image of height H and width W, and what is in it.

    Attributes:
        name: for readers, unique in its data set.
        picture: RGB.
        labels: int32 `(H, W)`, the number of each pixel's class; 0 is the background, `VOID` unknown.
        instances: bool `(G, H, W)`, G >= 0; crowds included.
        crowd: bool `(G)`: groups that a detection is neither right nor wrong to find.
        instance_boxes: float64 `(G, 4)`, left, top, right and bottom in pixels, right and bottom the first outside.
        boxes: the same `(B, 4)` of all objects: those of the instances that are no crowds, or others that the data set
            has beside its masks.
    """

    name: str
    picture: Image.Image
    labels: Array
    instances: Array
    crowd: Array
    instance_boxes: Array
    boxes: Array

    def __post_init__(self) -> None:
        size = self.picture.height, self.picture.width
        for what, found in (("labels", self.labels.shape), ("instances", self.instances.shape[1:])):
            if found != size:
                raise ValueError(
                    f"{self.name}: its mask has {found[0]}x{found[1]} pixels ({what}), but the image "
                    f"{size[0]}x{size[1]}; give masks of the images' own size"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.picture.height, self.picture.width

    @property
    def empty(self) -> bool:
        """Whether it holds no object that counts."""
        return not len(self.boxes) and not (self.labels > 0).any()

    @property
    def foreground(self) -> Array:
        """What belongs to any object, bool `(H, W)`."""
        return self.labels > 0

    @property
    def void(self) -> Array:
        """Where nothing is known, bool `(H, W)`."""
        return self.labels == VOID


@dataclass(frozen=True)
class MaskedImages:
    """A data set with true masks; an image is read when it is asked for.

    Attributes:
        kind: `coco`, `davis`, `voc` or `folder`.
        source: its path, and the part of it, for readers.
        entries: what `read` takes, one for each image, in the order of the evaluation.
        read: reads one.
        groups: the unit of each image: images of one unit, such as the frames of a sequence, are alike.
        class_names: by number; empty where labels are no classes that several images share.
        one_object: whether all that is not background is one object, as in DAVIS.
    """

    kind: str
    source: str
    entries: Sequence[Any] = field(repr=False)
    read: Callable[[Any], MaskedImage] = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    class_names: Mapping[int, str] = field(default_factory=dict, repr=False)
    one_object: bool = False

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> MaskedImage:
        return self.read(self.entries[index])

    def __iter__(self) -> Iterator[MaskedImage]:
        return (self.read(entry) for entry in self.entries)

    @property
    def sequences(self) -> bool:
        """Whether several images are one unit of an interval."""
        return len(set(self.groups)) < len(self.groups)

    def first(self, count: int | None) -> MaskedImages:
        """At most `count` images: the first ones, or of sequences the first of each, then the second of each.

        Raises:
            ValueError: below 1.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"limit={count}: must be at least 1; leave it out for all images")
        chosen = sorted(_in_turn(self.groups)[:count])
        picked = {name: tuple(getattr(self, name)[index] for index in chosen) for name in ("entries", "groups")}
        return replace(self, **picked)


def _in_turn(groups: Sequence[str]) -> list[int]:
    """All places, first those of each group's first, then of each group's second."""
    seen: dict[str, int] = {}
    rounds = []
    for group in groups:
        rounds.append(seen.get(group, 0))
        seen[group] = rounds[-1] + 1
    return sorted(range(len(groups)), key=lambda index: (rounds[index], index))


def boxes_of(masks: Array) -> Array:
    """The boxes around masks `(G, H, W)`, those of empty ones left out: float64 `(G, 4)`."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            found.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def of_labels(values: Array) -> tuple[Array, Array]:
    """The numbers in a mask's file, and the mask of each number but 0 and 255: int32 `(H, W)`, bool `(G, H, W)`."""
    labels = np.where(values == FILE_VOID, VOID, values.astype(np.int32))
    numbers = np.setdiff1d(labels, [VOID, 0])
    return labels, labels[None] == numbers[:, None, None]
