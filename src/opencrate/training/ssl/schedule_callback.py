"""What changes from step to step in self-supervised training, all of it a function of the step."""

from __future__ import annotations

from typing import Any

from ...recipe.schema import Recipe
from ..callbacks import TaskCallback
from .heads import drop_gradients
from .learner import Learner
from .objectives import last_parameters
from .schedules import clip_each, cosine


class Schedules(TaskCallback):
    """Hands step and epoch to the learner; weight decay, clipping by tensor, frozen prototypes, and the teacher."""

    def __init__(self, learner: Learner, recipe: Recipe) -> None:
        self._learner = learner
        self._given = recipe.ssl
        self._weight_decay = recipe.training.weight_decay

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of the step from `state.global_step`."""
        self._learner.step = state.global_step
        self._learner.epoch = state.global_step // len(kwargs["train_dataloader"])
        if self._given.weight_decay_end is None:
            return
        decay = cosine(state.global_step, state.max_steps, self._weight_decay, self._given.weight_decay_end)
        for group in kwargs["optimizer"].param_groups[:-1]:  # the last one does not decay
            group["weight_decay"] = decay

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the backward pass of all processes: every parameter has a gradient there."""
        if self._given.clip_each:
            clip_each(self._learner.parameters(), self._given.clip_each)
        if self._learner.epoch < self._given.freeze_last_layer_epochs:
            drop_gradients(last_parameters(self._learner.student_head))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.global_step` still counts the steps before this one."""
        self._learner.update_teacher(self.momentum(state))

    def momentum(self, state: Any) -> float:
        """Of the teacher's next update."""
        start, end = self._given.teacher_momentum, self._given.teacher_momentum_end
        return cosine(state.global_step, state.max_steps, start, end)
