"""What differs between the trainings of different models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ...data.images.tensors import in_batches
from ...evaluation.inputs import evaluating, place
from ...recipe.schema import Recipe
from ...store.start import Initialisation
from ..callbacks import RunLog, TaskCallback
from ..whitebox_callback import MeasuredInputs

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """Everything that a recipe describes, built and checked before anything is written.

    Attributes:
        model: before its first step, on the CPU.
        initialisation: where its weights come from; `None`: from the recipe's seed alone.
        processor: saved beside the model (an image processor or a tokenizer).
        train: a dataset that is asked with `Draw`s.
        validation, test: datasets that are asked with indices (of sentences several by name); `None` for none.
        measured: on which the layers of a CRATE are measured; `None` for none.
        data: what goes into the run's metrics about the data.
        trained: what the optimizer moves, where that is more than the model, which is a part of it.
    """

    model: PreTrainedModel
    initialisation: Initialisation | None
    processor: Any
    train: Any
    validation: Any
    test: Any
    measured: MeasuredInputs | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trained: nn.Module | None = None


class Task(ABC):
    """How a recipe becomes a model and data, a batch a loss, and a split its metrics. Has no state.

    Attributes:
        whole_batches: whether the last images of an epoch that do not fill a global batch are left out.
    """

    whole_batches = False

    @abstractmethod
    def build(self, recipe: Recipe, skip_bad: bool) -> Parts:
        """Everything that the recipe describes.

        Raises:
            ValueError: bad data, or a model that does not fit the data.
        """

    def count(self, batch: Batch) -> int:
        """How many images, tokens or examples a batch holds: what a loss is a mean over."""
        return len(next(iter(batch.values())))

    def check_batch(self, recipe: Recipe, images: int) -> None:
        """Refuse, by `ValueError`, global batches of so many images of which the loss cannot be taken."""
        return None

    def completed(self, batch: Batch) -> Batch:
        """The batch with what a step reads off it, taken on the host: read on an accelerator it would be waited for."""
        return batch

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        """The training loss in nats (or squared error), summed over what is counted, and the model's outputs.

        The model is in training mode, perhaps wrapped for several processes; `recorded` are `output_*` options for it.
        """

    @abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """What a validation split's metrics are made of: "count", and each metric summed over what is counted."""

    @abstractmethod
    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        """The metrics of the test split, which is evaluated once, after training."""

    @abstractmethod
    def outcome(self, metrics: dict[str, Any]) -> str:
        """What a finished run's metrics say of the test split, in words for the terminal."""

    def callbacks(self, parts: Any, recipe: Recipe, log: RunLog) -> list[TaskCallback]:
        """What else listens to the training."""
        return []

    def leave(self, parts: Any, directory: Path) -> None:
        """Write what a run keeps beside its model, with the last weights."""
        return None

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of a split from the sums over its batches."""
        return {name: value / sums["count"] for name, value in sums.items() if name != "count"}

    def sums_of(self, model: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
        """`sums` over all batches, in evaluation mode."""
        with evaluating(model):
            completed = (self.completed(batch) for batch in batches)
            placed = ({name: place(value, model) for name, value in batch.items()} for batch in completed)
            return add_up(self.sums(model, batch) for batch in placed)


def held_out_batches(split: Any, recipe: Recipe) -> DataLoader:
    """A split's batches in order, of the recipe's evaluation batch size."""
    return in_batches(split, recipe.training.per_device_eval_batch_size, recipe.training.dataloader_num_workers)


def add_up(all_sums: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sums of several batches."""
    total: dict[str, float] = {}
    for sums in all_sums:
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value
    return total
