"""GLUE's metrics, by scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics
from torch import Tensor

from ..data.text.glue import glue_task

# The classes of scipy's results are made when it is imported, which a type checker cannot see.
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "matthews_correlation": metrics.matthews_corrcoef,
    "pearson": lambda labels, found: stats.pearsonr(labels, found).statistic,  # pyright: ignore[reportAttributeAccessIssue]
    "spearman": lambda labels, found: stats.spearmanr(labels, found).statistic,  # pyright: ignore[reportAttributeAccessIssue]
}


def glue_metrics(task: str, logits: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> dict[str, float]:
    """The metrics of a task, the one that is reported first.

    `f1` is that of class 1 (equivalent); correlations are NaN where all predictions are equal.

    Args:
        task: a name of `GLUE_TASKS`.
        logits: `(n, classes)`, or scores `(n, 1)` or `(n,)` where labels are scores.
        labels: class numbers or scores `(n,)`.

    Raises:
        ValueError: an unknown task, or shapes that do not fit it.
    """
    definition = glue_task(task)
    logits, labels = np.asarray(logits), np.asarray(labels)
    found = logits.reshape(len(logits), -1) if definition.is_regression else logits
    expected = len(definition.classes) or 1
    if found.ndim != 2 or found.shape[1] != expected or labels.shape != (len(found),):
        raise ValueError(
            f"{task}: logits of shape {logits.shape} and labels of shape {labels.shape}; need (n, {expected}) and (n,)"
        )
    predicted = found[:, 0] if definition.is_regression else found.argmax(1)
    constant = definition.is_regression and np.ptp(predicted) == 0
    return {name: float("nan") if constant else float(_METRICS[name](labels, predicted)) for name in definition.metrics}
