"""The one place that knows private members of transformers' Trainer: each is here under a name of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Trainer

METHODS = {
    "_get_num_items_in_batch": ("batch_samples", "device"),
    "_get_grad_norm": ("model", "grad_norm"),
    "_run_epoch": ("model", "epoch"),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_get_output_dir": ("trial",),
    "_save_checkpoint": ("model", "trial"),
    "_prepare_inputs": ("inputs",),
    "_prepare_input": ("data",),
}
"""Private methods that are overridden or called, with the arguments they begin with."""


def require_methods(trainer: type[Trainer] = Trainer) -> None:
    """Fail by `ImportError` before the training, not by a step that is left out, where transformers has changed."""
    for name, expected in METHODS.items():
        method = getattr(trainer, name, None)
        if method is None:
            raise _changed(f"no `{name}`")
        found = tuple(inspect.signature(method).parameters)[1:]
        if found[: len(expected)] != expected:
            raise _changed(f"`{name}({', '.join(found)})` instead of `{name}({', '.join(expected)})`")


def _changed(what: str) -> ImportError:
    return ImportError(
        f"transformers {transformers.__version__}: its Trainer has {what}, which training relies on; install a version "
        "that opencrate's requirements allow"
    )


class OpenTrainer(Trainer):
    """`Trainer` whose private steps are methods with public names, to be overridden."""

    model: Any  # for transformers also `None` and every wrapper; here it is the task's model
    model_wrapped: Any
    optimizer: Any
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        require_methods()
        super().__init__(*arguments, **options)

    # --- to be overridden

    def count_items(self, batches: list[dict[str, Tensor]]) -> int:
        """What the loss of an optimizer step, of these batches, is a mean over."""
        raise NotImplementedError

    def completed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the host as it is to be copied to the device."""
        return batch

    def gradient_is_ready(self, norm: Any) -> None:
        """The gradient of an optimizer step is complete, its norm known, the weights not moved yet."""

    def epoch_is_needed(self) -> bool:
        """Whether another epoch has a step to do."""
        return True

    def load_weights(self, checkpoint: str, load: Callable[[], None]) -> None:
        """Put a checkpoint's weights into the model; `load` is Trainer's own way."""
        load()

    def checkpoints_folder(self) -> Path:
        """The folder of the next checkpoint."""
        return Path(str(self.args.output_dir))

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Save a checkpoint; `write` is Trainer's own way."""
        write()

    # --- to be used

    @property
    def losses_since_logged(self) -> Tensor:
        """Sum of this process's losses since the last line of the log; a scalar that training adds to in place."""
        return self._of_training("_tr_loss")

    @property
    def logged_at(self) -> int:
        """The optimizer step at which the log was last written to."""
        return self._of_training("_globalstep_last_logged")

    @logged_at.setter
    def logged_at(self, step: int) -> None:
        self._of_training("_globalstep_last_logged")
        self._globalstep_last_logged = step

    @property
    def batches_per_step(self) -> int:
        """How many batches the present optimizer step accumulates."""
        return self._of_training("current_gradient_accumulation_steps")

    def on_device(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """The batch where the model is."""
        return self._prepare_inputs(batch)

    def save_checkpoint_now(self) -> None:
        """A checkpoint of the weights as they are, beside those that the arguments request."""
        self._save_checkpoint(self.model_wrapped, None)

    def _of_training(self, name: str) -> Any:
        if not hasattr(self, name):
            raise _changed(f"no attribute `{name}` in a training")
        return getattr(self, name)

    # --- transformers' names

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> int:
        return self.count_items(batch_samples)

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return super()._prepare_inputs(self.completed(inputs))

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Tensor) and self.args.device.type == "cuda" and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)  # Trainer's own waits, also for pinned memory
        return super()._prepare_input(data)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.gradient_is_ready(norm)
        return norm

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if self.epoch_is_needed():
            super()._run_epoch(*arguments, **options)
        else:
            self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self.load_weights(resume_from_checkpoint, partial(super()._load_from_checkpoint, resume_from_checkpoint, model))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints_folder())

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.write_checkpoint(partial(super()._save_checkpoint, model, trial))
