"""Training tasks: one class for each `task` that a recipe can name."""

from __future__ import annotations

from .autoencoding import MaskedAutoencoding
from .base import Parts, Task
from .classification import ImageClassification
from .language import CausalLanguageModelling, MaskedLanguageModelling
from .self_supervision import SelfSupervision
from .sentences import SentenceClassification

TASKS: dict[str, type[Task]] = {
    "image-classification": ImageClassification,
    "masked-autoencoding": MaskedAutoencoding,
    "self-supervised": SelfSupervision,
    "causal-lm": CausalLanguageModelling,
    "masked-lm": MaskedLanguageModelling,
    "sentence-classification": SentenceClassification,
}
"""A recipe's `task` -> its class."""


def task_of(name: str) -> Task:
    """The task that a recipe names; the recipe has been checked."""
    return TASKS[name]()


__all__ = ["TASKS", "Parts", "Task", "task_of"]
