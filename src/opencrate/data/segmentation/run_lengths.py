"""Masks as COCO's run lengths down the columns, in the text form that pycocotools and its successors read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PIXELS = 1 << 28
"""Pixels of a mask that is read: a bound for files that somebody else made."""


def encode(mask: Array) -> dict[str, Any]:
    """A mask `(height, width)` as `{"size": [height, width], "counts": text}`."""
    inside = np.asarray(mask).astype(bool)
    if inside.ndim != 2 or not inside.size:
        raise ValueError(f"mask: shape {inside.shape}; need (rows, columns), both at least 1")
    flat = np.concatenate([[False], inside.ravel(order="F"), [not inside[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": [int(side) for side in inside.shape], "counts": _to_text(np.diff(ends, prepend=0).tolist())}


def decode(segmentation: Mapping[str, Any]) -> Array:
    """The mask of a COCO run-length segmentation, with counts as text or as a list: bool `(height, width)`.

    Raises:
        ValueError: run lengths that do not fill the mask, or a mask of more than 2²⁸ pixels.
    """
    height, width = (int(side) for side in segmentation["size"])
    if height < 1 or width < 1 or height * width > PIXELS:
        raise ValueError(f"segmentation: size {height} x {width}; masks have 1 to {PIXELS} pixels")
    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs = np.array(_from_text(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(
            f"segmentation: run lengths of {runs.sum()} pixels for a mask of {height} x {width}; the file is damaged"
        )
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _to_text(counts: list[int]) -> str:
    """Run lengths as text, 5 bits a character, low ones first; from the fourth on less the one two before."""
    text = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)
            text.append(chr(48 + (bits | 32 if more else bits)))
    return "".join(text)


def _from_text(text: str) -> list[int]:
    """The run lengths of `_to_text`."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"segmentation: {character!r} is no part of run lengths; the file is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
