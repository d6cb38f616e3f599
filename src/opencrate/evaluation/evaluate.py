"""How well a saved model does on what it is for: what `opencrate evaluate` calls."""

from __future__ import annotations

import os
from typing import Any

from ..data.options import TextData
from ..store.inputs import Split, documents_of, give_class_names, labelled_images
from ..store.saved import SavedModel, open_saved
from .classifier import Evaluation, evaluate_classifier
from .language import TextScore, score_masked, score_text


def evaluate(source: SavedModel | str | os.PathLike, **options: Any) -> Evaluation | TextScore:
    """Evaluate a saved classifier on labelled images (`evaluate_images`), a language model on text (`evaluate_text`).

    Args:
        source: the model, opened or to be opened.
        options: of those two.

    Raises:
        ValueError: another kind of model, or as those two.
    """
    saved = source if isinstance(source, SavedModel) else open_saved(source, ("classifier", "causal", "masked"))
    return (evaluate_images if saved.kind == "classifier" else evaluate_text)(saved, **options)


def evaluate_images(
    saved: SavedModel,
    data: str | None = None,
    *,
    split: Split = "test",
    class_names: str | None = None,
    skip_bad: bool = False,
    batch_size: int = 256,
) -> Evaluation:
    """Accuracy and loss of a classifier.

    Args:
        data, split, skip_bad: as `labelled_images`; by default what the run held out.
        class_names: give the model's classes names first, as `give_class_names`.

    Raises:
        ValueError: as `labelled_images`, `give_class_names` and `evaluate_classifier`.
    """
    if class_names is not None:
        give_class_names(saved, class_names, data)
    images = labelled_images(saved, data, split, skip_bad)
    return evaluate_classifier(saved.model, saved.batches(images, batch_size))


def evaluate_text(
    saved: SavedModel,
    text: TextData | str | None = None,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> TextScore:
    """Loss of a causal or masked language model.

    Args:
        text: to score; by default what the run held out.
        context: tokens read at a time; the model's own by default.
        stride: new tokens per window of a causal model; half the context by default.
        batch_size: windows at a time.

    Raises:
        ValueError: a stride for a masked model, or as `documents_of`, `score_text` and `score_masked`.
    """
    documents = documents_of(saved.path, TextData(text) if isinstance(text, str) else text)
    if saved.kind != "masked":
        return score_text(saved, documents, context=context, stride=stride, batch_size=batch_size)
    if stride is not None:
        raise ValueError(f"stride={stride}: of causal models; a masked one reads blocks without overlap")
    return score_masked(saved, documents, block_size=context, batch_size=batch_size)
