"""Training without the compression guard at first: it costs time, and the weights need it at the end only."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from ..blocks import compressions


class GuardSchedule(TrainerCallback):
    """Leaves the guard out of the first steps; evaluation always has it.

    Args:
        model: with `config.compression_guard`.
        share: of all steps, those without.

    Raises:
        ValueError: the model has no guard.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self.steps = [step for step in compressions(model) if step.guarded]
        if not self.steps:
            raise ValueError(
                f"optimiser.guard_from={share}: the model has no guard to wait for; set "
                "model.config.compression_guard=length, or remove it"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """By the step that is about to be taken, so that a resumed run goes on as it would have."""
        for step in self.steps:
            step.guard_waits = state.global_step < self.share * state.max_steps

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A model that is trained on by other means has its guard."""
        for step in self.steps:
            step.guard_waits = False
