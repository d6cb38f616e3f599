"""transformers' Trainer for recipes: an order that depends on the seed alone, exact resume, whole checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.import_utils import is_torch_tf32_available

from .. import calibration
from .._files import read_json, shown
from .._outputs import write_json
from .._pretrained import read_model, read_tensors
from ..data.draws import DrawSampler
from ..data.images.device import batches_on_device
from ..evaluation.inputs import evaluating
from ..modeling_crate_base import CratePreTrainedModel
from ..recipe.schema import Recipe
from ..store import checkpoints
from . import regulariser
from .callbacks import FiniteWatch, ProgressBar, RunLog, StopSignals
from .ema import WeightAverage
from .guard_schedule import GuardSchedule
from .losses import penalty
from .optimizers import build_optimizer
from .precision import decided
from .processes import Processes, SharedBatches, batches_of_share
from .sharding import wrap_layers
from .tasks import Parts, task_of
from .tasks.base import add_up
from .trainer_members import OpenTrainer
from .whitebox_callback import WhiteBoxLog

PROGRESS = "progress.json"
_STATE = ("step", "seconds", "resumed_at", "log_size", "history", "white_box", "losses_since_logged", "logged_at")
_PROGRESS_KEYS = {*_STATE, "processes", "training_samples"}
AVERAGE = "ema.safetensors"
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's event files in a run directory."""


class RecipeTrainer(OpenTrainer):
    """`Trainer` on a task's batches, in `DrawSampler`'s order.

    Every checkpoint holds what the rest of the run depends on, so a run that is killed and resumed gives, on the
    same machine, the same weights and history, bit for bit, as one that was not.

    Attributes:
        average: the moving average of the weights; `None` where `optimiser.ema_decay` is 0.
        resumed_at: steps at which this run was taken up again.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the count of the whole step

    def __init__(self, parts: Parts, args: TrainingArguments, recipe: Recipe, log: RunLog) -> None:
        recipe = decided(recipe)
        if isinstance(parts.model, CratePreTrainedModel) or parts.trained is not None:  # all get a gradient every step
            args.ddp_find_unused_parameters = False
        super().__init__(
            model=parts.model if parts.trained is None else parts.trained,
            args=args,
            train_dataset=parts.train,
            eval_dataset=parts.validation,
            data_collator=default_collate,
        )
        if self.is_fsdp_enabled and parts.trained is not None:
            raise ValueError(f"task {recipe.task} cannot be trained with sharded weights (FSDP); start without it")
        if self.is_fsdp_enabled:
            wrap_layers(parts.model, self.accelerator.state.fsdp_plugin)
        self.recipe = recipe
        self.task = task_of(recipe.task)
        self.processes = Processes()
        size, rank, count = args.per_device_train_batch_size, self.processes.rank, self.processes.count
        self.samples_per_step = size * args.gradient_accumulation_steps * count
        whole = self.task.whole_batches
        if whole and len(parts.train) < self.samples_per_step:
            raise ValueError(
                f"{len(parts.train)} training images are fewer than a global batch of {self.samples_per_step} "
                f"(training.per_device_train_batch_size={size}); lower it, or add images"
            )
        self.task.check_batch(recipe, self.samples_per_step)
        draws = DrawSampler(len(parts.train), args.seed, self.samples_per_step, recipe.augmentation, whole)
        self.batches = SharedBatches(draws, size, rank, count)
        self.average = WeightAverage(recipe.optimiser.ema_decay) if recipe.optimiser.ema_decay else None
        self.run_log = log
        self.white_box = None
        if parts.measured is not None and not self.is_fsdp_enabled:  # one process alone cannot run a sharded model
            self.white_box = WhiteBoxLog(parts.model, parts.measured, recipe, log, self.average)
        self.resumed_at: list[int] = []
        self._watch = FiniteWatch()
        self._signals = StopSignals(self.processes)
        self._loader: DataLoader | None = None
        self._staging: Path | None = None
        self._checkpoint: Path | None = None
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._progress_bar = ProgressBar() if sys.stdout.isatty() and self.processes.main else None
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.task_callbacks = self.task.callbacks(parts, recipe, log)
        for callback in self.task_callbacks:
            callback.progress = self._progress_bar
        ours = (self._signals, _Flow(self), self.average, self.run_log, self._watch, *self.task_callbacks)
        waits = recipe.optimiser.guard_from
        guard = GuardSchedule(parts.model, waits) if waits else None
        for callback in (*ours, guard, self._progress_bar, self.white_box):
            if callback is not None:
                self.add_callback(callback)

    def _start_tensorboard(self) -> None:
        """Write event files into the run directory; a resumed run takes back what lies after its checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if self._checkpoint is None else checkpoints.step_of(self._checkpoint) + 1
        writer = SummaryWriter(str(self.run_log.path.parent / TENSORBOARD), purge_step=purge)
        self.add_callback(TensorBoardCallback(writer))
        for measuring in (self.white_box, *self.task_callbacks):
            if measuring is not None:
                measuring.writer = writer

    def train(self, resume_from_checkpoint: str | Path | None = None, **options: Any) -> Any:
        """As `Trainer.train`, from a checkpoint's path if one is given; raises what `train.train` says.

        A `ValueError` also where the checkpoint is of another number of processes or of other data.
        """
        self._checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        self._started = time.perf_counter()
        if self.recipe.logging.tensorboard and self.processes.main:
            self._start_tensorboard()
        try:
            with self._signals:
                result = super().train(None if self._checkpoint is None else str(self._checkpoint), **options)
                if self.processes.any(self._signals.received):  # too late for the last step to see it
                    self.save_checkpoint_now()
                    self._signals.stop(self.args, self.state)
        finally:
            self._end_workers()
            if self._progress_bar:
                self._progress_bar.stop()
        self._watch.require_finite_weights(self.model, self.args, self.state.global_step)
        return result

    @property
    def seconds(self) -> float:
        """Wall-clock of the training that stands: of this process, and up to the checkpoint it started from."""
        return self._seconds_before + time.perf_counter() - self._started

    # --- one step

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of every batch; a plain loader, because accelerate's reads one batch ahead.

        Images that are kept on the device come in whole batches, made by this process in no need of loading.
        """
        workers = self.args.dataloader_num_workers
        made = batches_on_device(self.train_dataset, self.recipe.data.keep_on, self.args.device)
        if made is not None:
            self._loader = DataLoader(
                made, batch_sampler=self.batches, collate_fn=_as_it_is, generator=torch.Generator()
            )
            return self._loader
        self._loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=default_collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # seeds nothing that is used, and leaves the model's random numbers alone
        )
        return self._loader

    def _end_workers(self) -> None:
        """End the loader's processes now: left to the garbage collector each is waited for 5 seconds."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model if model is None else model, self.recipe)
        return self.optimizer

    def completed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """With what the task reads off a batch while it is on the host."""
        return self.task.completed(batch)

    def count_items(self, batches: list[dict[str, Tensor]]) -> int:
        """What the loss of the optimizer step is a mean over, in all its batches and processes."""
        return int(sum(self.processes.gather(sum(self.task.count(batch) for batch in batches))))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This batch's part of the step's loss, with penalties."""
        chosen, seed = self.recipe.regulariser, self.recipe.training.seed
        loss, outputs = self.task.loss_sum(model, inputs, self.recipe, regulariser.OUTPUTS if chosen.weight else {})
        if chosen.weight:  # summed over the images of this batch, as the cross-entropy is
            total = regulariser.regulariser_sum(self.model, outputs, chosen, seed, self.state.global_step)
            loss = loss + chosen.weight * total
        loss = loss * (self.processes.count / num_items_in_batch)  # several processes average their gradients
        loss = loss + penalty(self.model) / self.batches_per_step
        return (loss, outputs) if return_outputs else loss

    def gradient_is_ready(self, norm: Any) -> None:
        """Stop before the weights move where loss or gradient are not finite."""
        self._watch.look(norm + self.losses_since_logged, self.args, self.state.global_step + 1)

    def epoch_is_needed(self) -> bool:
        """Not where training is resumed from the last step of all."""
        return self.state.global_step < self.state.max_steps

    def evaluate(self, *arguments: Any, metric_key_prefix: str = "eval", **options: Any) -> dict[str, float]:
        """The task's metrics on the validation split, with the averaged weights where there are any."""
        size, workers = self.args.per_device_eval_batch_size, self.args.dataloader_num_workers
        rows = batches_of_share(len(self.eval_dataset), size, self.processes.rank, self.processes.count)
        batches: Any = DataLoader(self.eval_dataset, batch_sampler=rows, num_workers=workers)
        averaged = self.average.applied(self.model) if self.average else nullcontext()
        with averaged, evaluating(self.model), self.compute_loss_context_manager():
            own = add_up(self.task.sums(self.model, self.on_device(batch)) for batch in batches)
        sums = {name: sum(self.processes.gather(own[name])) for name in own}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.task.metrics(sums).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints

    def load_weights(self, checkpoint: str, load: Callable[[], None]) -> None:
        """The weights, by `from_pretrained`: Trainer's own way skips those of renamed parts (ViT's)."""
        if self.is_fsdp_enabled:
            return load()
        if not isinstance(self.model, PreTrainedModel):  # it was saved by its state dict
            try:
                self.model.load_state_dict(read_tensors(Path(checkpoint) / SAFE_WEIGHTS_NAME), strict=True)
            except RuntimeError as error:
                raise ValueError(f"{checkpoint}: is not of this model; start again with overwrite=True") from error
            return None
        stored, info = read_model(type(self.model), checkpoint)
        if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
            raise ValueError(f"{checkpoint}: is not of this model; start again with overwrite=True")
        self.model.load_state_dict(stored.state_dict(), strict=True)

    def checkpoints_folder(self) -> Path:
        """Out of sight while a checkpoint is written."""
        return super().checkpoints_folder() if self._staging is None else self._staging

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Write all of a checkpoint out of sight, then show it; the older ones stay until then."""
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        self._watch.require_finite_weights(self.model, self.args, step)
        if (folder / f"checkpoint-{step}").exists():  # it holds the same: a run never goes back
            return
        self._staging = folder / checkpoints.STAGING
        try:
            with checkpoints.disk_errors(folder):
                write()
                self._save_progress(self._staging / f"checkpoint-{step}")
                if self.processes.main:
                    checkpoints.publish(folder, step, self.args.save_total_limit)
            self.processes.wait()
        except BaseException:
            if self.processes.main:
                shutil.rmtree(self._staging, ignore_errors=True)
            raise
        finally:
            self._staging = None

    def _save_progress(self, checkpoint: Path) -> None:
        """What transformers' Trainer leaves out of its checkpoints; read back by `_restore`."""
        losses = self.processes.gather(self.losses_since_logged.item())  # and waits for every process's random state
        if self.average:
            self.average.save(checkpoint / AVERAGE, self.processes.main)
        if not self.processes.main:
            return
        (checkpoint / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody reads
        progress = {
            "step": self.state.global_step,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
            "log_size": self.run_log.size,
            "history": self.run_log.history,
            "white_box": [] if self.white_box is None else self.white_box.rows,
            "task": {type(one).__name__: one.to_keep() for one in self.task_callbacks},
            "losses_since_logged": losses,
            "logged_at": self.logged_at,
            "calibration": calibration.choices(),
            **self._identity(),
        }
        write_json(checkpoint / PROGRESS, progress)

    def _identity(self) -> dict[str, int]:
        return {"processes": self.processes.count, "training_samples": len(self.train_dataset)}

    def _restore(self) -> None:
        """At the beginning of training: the state that `_save_progress` wrote."""
        if self._checkpoint is None:
            return
        advice = f"remove {shown(self._checkpoint)} to resume from the one before"
        progress = read_json(self._checkpoint / PROGRESS, advice=advice)
        if lacking := _PROGRESS_KEYS - progress.keys():
            raise ValueError(f"{self._checkpoint / PROGRESS}: damaged ('{min(lacking)}' is missing); {advice}")
        for name, value in self._identity().items():
            if progress[name] != value:
                raise ValueError(
                    f"{self._checkpoint}: was written with {name}={progress[name]}, now it is {value}; resume with "
                    "the same, or start again with overwrite=True"
                )
        calibration.keep(progress.get("calibration", {}))
        self.losses_since_logged.fill_(progress["losses_since_logged"][self.processes.rank])
        self.logged_at = progress["logged_at"]
        self._seconds_before = progress["seconds"]
        self.resumed_at = [*progress["resumed_at"], progress["step"]]
        if self.processes.main:
            self.run_log.rewind(progress["log_size"], progress["history"])
            if self.white_box:
                self.white_box.rows = progress["white_box"]
        for callback in self.task_callbacks:
            callback.take_back(progress["task"][type(callback).__name__])
        if self.average:
            self.average.load(self._checkpoint / AVERAGE, self.model)


def _as_it_is(batch: Any) -> Any:
    """A batch that was made whole."""
    return batch


class _Flow(TrainerCallback):
    """The order of things: restore before the first step, the epoch for the sampler, saving after the epoch's log.

    transformers saves at an epoch's last step before it logs and evaluates that epoch; a run resumed from there
    would lack both, so the checkpoint waits for them. There is one of the last step for every `save_strategy`: the
    evaluation that follows can take long, and what interrupts it must not cost the training.
    """

    def __init__(self, trainer: RecipeTrainer) -> None:
        self._trainer = trainer
        self._save_later = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._restore()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.batches.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save and (state.epoch == int(state.epoch) or control.should_training_stop):
            control.should_save, self._save_later = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._save_later or state.global_step >= state.max_steps:
            control.should_save, self._save_later = True, False


def training_arguments(recipe: Recipe, output_dir: Path, validate: bool) -> TrainingArguments:
    """The recipe's `training` section as transformers' `TrainingArguments`; joins the processes of a `torchrun`.

    TF32 is off unless the recipe says otherwise. transformers switches it on with `torch_compile`, also under bfloat16,
    where all that it changes is the losses and rates that are float32 so that they are exact.

    Raises:
        ValueError: TF32 where there is no GPU that has it.
    """
    if recipe.training.tf32 and not is_torch_tf32_available():
        raise ValueError("training.tf32=true: needs a CUDA GPU of the Ampere generation or later; leave it out")
    has_end = "min_lr" in recipe.training.lr_scheduler_type
    given = dataclasses.asdict(decided(recipe).training)
    return TrainingArguments(
        output_dir=str(output_dir),
        **{**given, "tf32": bool(given["tf32"])},
        lr_scheduler_kwargs={"min_lr": recipe.optimiser.min_learning_rate} if has_end else {},
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
