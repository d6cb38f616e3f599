"""Masks as entries of a COCO results file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...data.segmentation.run_lengths import encode
from .arrays import Array
from .boxes import mask_box


def coco_results(image_id: int, masks: Array, scores: Sequence[float], category_id: int = 1) -> list[dict[str, Any]]:
    """The masks of an image as entries of a COCO results file, in their order; empty masks are left out.

    Args:
        image_id: as in the ground truth.
        masks: (M, height, width), bool, at the image's size.
        scores: M numbers.
        category_id: 1, as all are of one kind.

    Raises:
        ValueError: as many scores as masks are needed.
    """
    if len(masks) != len(scores):
        raise ValueError(f"scores: {len(scores)} for {len(masks)} masks; give one for each mask")
    entries = []
    for mask, score in zip(masks, scores):
        box = mask_box(mask)
        if box is None:
            continue
        left, top, right, bottom = box
        entry = {"image_id": int(image_id), "category_id": int(category_id), "segmentation": encode(mask)}
        entries.append({**entry, "bbox": [left, top, right - left, bottom - top], "score": float(score)})
    return entries


def by_image(entries: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """COCO results or annotations by image id, ids ascending, the entries of an image in their order."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(int(entry["image_id"]), []).append(entry)
    return dict(sorted(found.items()))
