"""An exponential moving average of the weights, kept beside the model while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from .._files import shown
from .._pretrained import read_tensors
from .sharding import as_sharded, reshard, whole


def decay_at(step: int, decay: float) -> float:
    """beta_t of the update after optimizer step t = 0, 1, ...: `min(decay, (1 + t) / (10 + t))`.

    The warm-up lets a short run forget its random start, which a constant 0.999 would keep 37 % of after 1,000
    steps.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage(TrainerCallback):
    """`average <- beta_t average + (1 - beta_t) weights` after every optimizer step, from the initial weights.

    Parameters are averaged in their own dtype; buffers stay the model's.

    Attributes:
        decay: beta, at least 0 and below 1.
        values: parameter name -> average, of the parameter's shape; empty before training begins.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Start from the weights, unless a checkpoint's average has been loaded."""
        if not self.values:
            self.values = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """One update; `state.global_step` still counts the steps before this one."""
        weights = [value.detach() for value in model.parameters()]
        averages, weight = list(self.values.values()), 1 - decay_at(state.global_step, self.decay)
        torch._foreach_lerp_(averages, weights, weight)  # pyright: ignore[reportPrivateImportUsage]  # has no other name

    def save(self, path: Path, main: bool = True) -> None:
        """Write the averages as safetensors, in the `main` process; all have to call where they are sharded."""
        values = {name: whole(value).contiguous() for name, value in self.values.items()}
        if main:
            save_file(values, path, {"format": "pt"})

    def load(self, path: Path, model: nn.Module) -> None:
        """Read what `save` wrote, to the devices of the model's parameters."""
        stored = read_tensors(path)
        for name, value in model.named_parameters():
            if name not in stored or stored[name].shape != value.shape:
                raise ValueError(
                    f"{shown(path)}: damaged, or not of this model ('{name}'); start again with overwrite=True"
                )
        self.values = {name: as_sharded(stored[name], value.detach()) for name, value in model.named_parameters()}

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages into the model's parameters."""
        reshard(model)
        for name, value in model.named_parameters():
            value.copy_(self.values[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights; its own come back at the end, bit for bit."""
        reshard(model)
        own = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            reshard(model)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(own[name])
