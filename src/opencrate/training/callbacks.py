"""What listens to a training run: the log, the progress bar, the watch for NaN, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback

from ..store import checkpoints
from .processes import Processes
from .sharding import whole


class TaskCallback(TrainerCallback):
    """What a task adds to a training. What later steps and rows depend on, a checkpoint holds.

    Attributes:
        writer: a TensorBoard `SummaryWriter`, or `None`.
        progress: the progress bar, or `None`.
    """

    writer: Any = None
    progress: ProgressBar | None = None

    def to_keep(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {}

    def take_back(self, kept: dict[str, Any]) -> None:
        """What `to_keep` gave when the checkpoint was written."""

    def metrics(self) -> dict[str, Any]:
        """For the run's `metrics.json`."""
        return {}


class RunLog(TrainerCallback):
    """Appends every log line to a file, and keeps one row per epoch.

    Attributes:
        history: rows with `epoch`, `step`, `train_loss`, `learning_rate`, `gradient_norm`, and
            `validation_loss`, `validation_accuracy` where there is a validation split.
    """

    _NAMES = {  # noqa: RUF012 (a constant)
        "loss": "train_loss",
        "learning_rate": "learning_rate",
        "grad_norm": "gradient_norm",
        "eval_loss": "validation_loss",
        "eval_accuracy": "validation_accuracy",
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """One line in the log, and the epoch's row in the history."""
        if not state.is_world_process_zero:
            return
        self.write({"step": state.global_step, **logs})
        values = {name: logs[key] for key, name in self._NAMES.items() if key in logs}
        if not values:
            return
        if not self.history or self.history[-1]["step"] != state.global_step:
            self.history.append({"epoch": state.epoch, "step": state.global_step})
        self.history[-1].update(values)

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def rewind(self, size: int, history: list[dict[str, Any]]) -> None:
        """Back to what stood at a checkpoint, so that a resumed run logs nothing twice."""
        self.history = history
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(size)


class ProgressBar(TrainerCallback):
    """Steps done, loss and time left, on a terminal.

    Attributes:
        note: what a task wants to be read beside the loss.
    """

    def __init__(self) -> None:
        self.note = ""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("training", total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.start()
        self._progress.update(self._task, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            words = f"epoch {state.epoch:.0f}  loss {float(logs['loss']):.4f}{self.note and '  '}{self.note}"
            self._progress.update(self._task, description=words)

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        self._progress.stop()


class FiniteWatch(TrainerCallback):
    """Stops a run whose loss, gradient or weights are no longer finite.

    On a CPU every step is checked before the optimizer moves, so the weights are still good. A GPU is not waited
    for: the number of the first bad step is kept there, copied back beside the computation and read at a later step,
    and at the latest when the epoch is logged; `require_finite_weights` keeps what happened in between out of every
    checkpoint.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._copied: Tensor | None = None

    def look(self, value: Tensor, args: Any, step: int) -> None:
        """Look at a scalar that is not finite as soon as the loss or the gradient is not, and at earlier ones."""
        finite = torch.isfinite(value.detach()).reshape(())
        if finite.device.type == "cpu":
            self._fail(not finite, args, step)
        else:
            self.look_later(finite, args, step)

    def look_later(self, finite: Tensor, args: Any, step: int) -> None:
        """Note the step on the device if the flag `finite` is false, and read what has come back of earlier ones."""
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=finite.device)
            self._copied = torch.zeros((), dtype=torch.int64, pin_memory=finite.device.type == "cuda")
        self._first = torch.where((self._first == 0) & ~finite, step, self._first)
        if self._copied is not None and finite.device.type != "mps":  # which copies nothing without waiting
            self._copied.copy_(self._first, non_blocking=True)
            first = int(self._copied)
            self._fail(first > 0, args, first)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the epoch is measured and logged, which waits for the accelerator anyway."""
        self._fail(self._first_bad > 0, args, self._first_bad)

    on_log = on_epoch_end

    @property
    def _first_bad(self) -> int:
        """The first bad step that the device has noted, which is waited for; 0 for none."""
        return 0 if self._first is None else int(self._first)

    def require_finite_weights(self, model: torch.nn.Module, args: Any, step: int) -> None:
        """Refuse, by `FloatingPointError`, to go on or to save with a NaN or an infinity among the weights."""
        finite = torch.stack([whole(torch.isfinite(value.detach()).all()) for value in model.parameters()]).all()
        self._fail(not finite, args, self._first_bad or step)

    @staticmethod
    def _fail(bad: bool | Tensor, args: Any, step: int) -> None:
        if not bad:
            return
        last = checkpoints.newest(Path(args.output_dir))
        raise FloatingPointError(
            f"loss, gradient or weights are not finite at step {step} (training.learning_rate={args.learning_rate}): "
            "lower it, lengthen training.warmup_steps, or clip by max_grad_norm"
            + (f"; the last good checkpoint is {last}" if last else "")
        )


class StopSignals(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, then end; a second one ends at once.

    A context manager around the training; signals can be caught in the main thread only.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, processes: Processes) -> None:
        self.received = False
        self._stopping = False
        self._processes = processes
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint, in all processes at the same step."""
        if self._processes.any(self.received):
            self._stopping = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, once the checkpoint stands."""
        if self._stopping:
            self.stop(args, state)

    @staticmethod
    def stop(args: Any, state: Any) -> None:
        """End the run by `KeyboardInterrupt`, which says where the checkpoint is and how to go on."""
        last = checkpoints.newest(Path(args.output_dir))
        raise KeyboardInterrupt(
            f"stopped at step {state.global_step}, saved in {last}; resume=True continues from there"
        )

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt("stopped twice; the last complete checkpoint stands")
        self.received = True
