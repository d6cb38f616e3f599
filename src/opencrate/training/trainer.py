"""transformers' Trainer, with a data order that depends on the seed alone, a log file and a progress bar."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Dataset, Sampler, default_collate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .recipe import TrainingRecipe


class EpochSampler(Sampler[int]):
    """A permutation of `length` indices keyed by (seed, epoch): the same for every model and machine."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


class ImageTrainer(Trainer):
    """`Trainer` on batches of `pixel_values` and `labels`, in `EpochSampler`'s order."""

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, train: Dataset, validation: Dataset | None
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=default_collate,
            compute_metrics=_accuracy,
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.progress = ProgressBar() if sys.stdout.isatty() else None
        if self.progress:
            self.add_callback(self.progress)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As `Trainer.train`; the progress bar goes also when it fails."""
        try:
            return super().train(*arguments, **options)
        finally:
            if self.progress:
                self.progress.stop()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return EpochSampler(len(self.train_dataset), self.args.seed)


def training_arguments(recipe: TrainingRecipe, output_dir: Path, validate: bool) -> TrainingArguments:
    """The recipe's `training` section as transformers' `TrainingArguments`."""
    return TrainingArguments(
        output_dir=str(output_dir),
        **vars(recipe),
        eval_strategy="epoch" if validate else "no",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )


class RunLog(TrainerCallback):
    """Appends every log line to a file, keeps one row per epoch, and stops a run whose loss is not finite.

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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        values = {name: logs[key] for key, name in self._NAMES.items() if key in logs}
        if not values:
            return
        if not all(math.isfinite(values.get(name, 0.0)) for name in ("train_loss", "gradient_norm")):
            raise FloatingPointError(
                f"loss or gradient is not finite at step {state.global_step} (training.learning_rate="
                f"{args.learning_rate}): lower it, lengthen training.warmup_steps, or clip by max_grad_norm"
            )
        if not self.history or self.history[-1]["step"] != state.global_step:
            self.history.append({"epoch": state.epoch, "step": state.global_step})
        self.history[-1].update(values)


class ProgressBar(TrainerCallback):
    """Steps done, loss and time left, on a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("training", total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self._progress.start()
        self._progress.update(self._task, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance it."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Show the epoch's loss."""
        if "loss" in logs:
            self._progress.update(self._task, description=f"epoch {state.epoch:.0f}  loss {float(logs['loss']):.4f}")

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        self._progress.stop()


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
