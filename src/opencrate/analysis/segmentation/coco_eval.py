"""Class-agnostic AP by the community's own evaluator, to stand beside `average_precision` in a published table."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import Array

KINDS = {"mask": "segm", "box": "bbox"}


def official_average_precision(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str = "mask"
) -> Array:
    """AP50, AP75 and AP, float64 `(3)`, of COCO results, all categories as one, by faster-coco-eval or pycocotools.

    Args:
        truth: a COCO instances file as read: `images`, `annotations` with masks, `categories`.
        results: entries of a COCO results file; those of an image in the order that equal scores shall have.
        kind: `mask` or `box`.

    Raises:
        ValueError: another kind.
        ImportError: neither package is installed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if not results:
        return np.zeros(3)
    module, dataset, evaluator = _packages()
    with contextlib.redirect_stdout(io.StringIO()):
        known = getattr(module, dataset)()
        known.dataset = copy.deepcopy(dict(truth))  # COCOeval adds to it
        known.createIndex()
        found = known.loadRes(copy.deepcopy(list(results)))
        evaluation = evaluator(known, found, KINDS[kind])
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array([evaluation.stats[1], evaluation.stats[2], evaluation.stats[0]], dtype=np.float64)


def _packages() -> tuple[Any, str, Any]:
    """The module, the name of its data set class, and its evaluator: of the first package that is installed."""
    for module, evaluator_module, evaluator in (
        ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster"),
        ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
    ):
        with contextlib.suppress(ImportError):
            return (
                importlib.import_module(module),
                "COCO",
                getattr(importlib.import_module(evaluator_module), evaluator),
            )
    raise ImportError(
        "COCO's evaluator is not installed: install opencrate[segmentation], or use average_precision, which needs none"
    )
