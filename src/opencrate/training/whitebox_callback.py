"""The objective while it is trained: rates and sparsity of every layer at the end of the epochs.

Nothing here changes a run: the images or texts are fixed by the recipe, the model is measured in evaluation mode
without gradients, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from ..analysis.layers.result import layer_measures
from ..data.images.labelled import cells_of
from ..data.images.sources import ImageSplits
from ..data.images.tensors import ImageTransform
from ..data.text.load import TextSplits
from ..evaluation.inputs import num_inputs_of, read_batches
from ..recipe.schema import Recipe
from .callbacks import RunLog
from .ema import WeightAverage
from .precision import without_tf32

EPS = 0.5
"""ε of the coding rates."""

_RATES = ("subspace_rate_before", "subspace_rate", "rate", "rate_reduction")
MEASURES = (*_RATES, "nonzero_fraction", "l1_per_token", "dead_atoms")
"""Keys of `analysis.rates` that are logged."""


@dataclass(frozen=True)
class MeasuredInputs:
    """What a run is measured on, the same at every epoch.

    Attributes:
        fields: float32 `pixel_values (n, C, H, W)`, not augmented, or int64 `input_ids` and `attention_mask (n, N)`,
            nothing of it masked.
        split: "validation", or "training" where the recipe holds out none.
    """

    fields: Mapping[str, Tensor]
    split: str

    def __len__(self) -> int:
        return num_inputs_of(self.fields)

    @property
    def kind(self) -> str:
        """ "images" or "texts"."""
        return "images" if "pixel_values" in self.fields else "texts"


def measured_images(splits: ImageSplits, transform: ImageTransform, count: int) -> MeasuredInputs:
    """`count` images (or all, if there are fewer) at equal distances through the validation or the training split."""
    split, name, rows = _spread(splits, count)
    return MeasuredInputs({"pixel_values": transform(cells_of(split, rows))}, name)


def measured_texts(splits: TextSplits, count: int) -> MeasuredInputs:
    """As `measured_images`, of blocks of text."""
    split, name, rows = _spread(splits, count)
    ids, mask = split.blocks.take(rows)
    return MeasuredInputs({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}, name)


def _spread(splits: Any, count: int) -> tuple[Any, str, list[int]]:
    """The split to measure on, its name, and `count` rows of it at equal distances."""
    split, name = (splits.train, "training") if splits.validation is None else (splits.validation, "validation")
    count = min(count, len(split))
    return split, name, [index * len(split) // count for index in range(count)]


class WhiteBoxLog(TrainerCallback):
    """Measures the layers before the first step and at the end of epochs, in the first process only.

    A CRATE autoencoder's encoder is measured on whole images; an average is measured in place of the weights, since it
    is what the run leaves.

    Attributes:
        rows: one dict per measurement: `epoch`, `step`, and for each of `MEASURES` its mean over the inputs, a list
            with one value per layer.
        writer: a TensorBoard `SummaryWriter`, or `None`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: MeasuredInputs,
        recipe: Recipe,
        log: RunLog,
        average: WeightAverage | None = None,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None
        self._model = model
        self._inputs = inputs
        self._every = recipe.logging.measure_every_epochs
        self._batch_size = recipe.training.per_device_eval_batch_size
        self._log = log
        self._average = average

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The untrained model."""
        if state.global_step == 0:
            self._measure(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every `every_epochs` epochs, and at the end of the run."""
        epoch = round(state.epoch)
        if epoch % self._every == 0 or state.global_step >= state.max_steps:
            self._measure(state)

    def to_dict(self) -> dict[str, Any]:
        """What was measured, on what, for `metrics.json`."""
        inputs = self._inputs
        found = {"images": len(inputs), "inputs": inputs.kind, "split": inputs.split}
        return {**found, "eps": EPS, "history": self.rows}

    def _measure(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        with without_tf32(), self._average.applied(self._model) if self._average else nullcontext():
            values = measured_layers(self._model, self._inputs.fields, self._batch_size)
        row = {"epoch": state.epoch or 0, "step": state.global_step, **values}
        self.rows.append(row)
        self._log.write({"step": state.global_step, "epoch": row["epoch"], "white_box": values})
        if self.writer is None:
            return
        for key, layers in values.items():
            for layer, value in enumerate(layers, start=1):
                self.writer.add_scalar(f"white_box/{key}/layer_{layer}", value, state.global_step)


def measured_layers(model: PreTrainedModel, fields: Mapping[str, Tensor], batch_size: int) -> dict[str, list[float]]:
    """Each of `MEASURES` as its mean over the inputs, one value per layer; no dead atoms where there are no codes."""
    has_codes = "sparse_codes" in model.config.operator("sparsification").states
    keys = [key for key in MEASURES if has_codes or key != "dead_atoms"]
    try:
        found = layer_measures(model, list(read_batches([fields], batch_size=batch_size)), EPS, measures=keys)
    except ValueError as error:  # a state holds NaN or infinity: the training diverged
        raise FloatingPointError(str(error)) from error
    return {key: (found.totals[key] if key in found.totals else found.mean(key)).tolist() for key in keys}
