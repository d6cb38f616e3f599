"""Where the time of a training step goes, with a recipe's own trainer, data and optimizer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..recipe.load import load_recipe
from ..training.allocator import keep_freed_memory
from ..training.callbacks import RunLog
from ..training.tasks import task_of
from ..training.trainer import RecipeTrainer, training_arguments
from .result import BenchLine, BenchResult
from .run import thread_count
from .timing import seconds_of, synchronize

LOADING, PASSES, UPDATE, REST, WHOLE = (
    "loading and augmenting",
    "forward and backward",
    "optimizer",
    "the rest",
    "the whole step",
)
SKIPPED = 3
"""First steps, which are left out: they build what later ones use."""


class Clock:
    """Seconds of each part, one number per optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = {}
        self._began = time.perf_counter()

    def timed(self, part: str, function: Callable[[], Any]) -> Any:
        """Call, and add the time to a part of the step."""
        kept: list[Any] = []
        seconds = seconds_of(lambda: kept.append(function()))
        self._parts[part] = self._parts.get(part, 0.0) + seconds
        return kept[0]

    def step_ends(self) -> None:
        """A step reaches from the end of one update to the end of the next."""
        synchronize()
        now = time.perf_counter()
        whole = now - self._began
        self.steps.append({**self._parts, REST: whole - sum(self._parts.values()), WHOLE: whole})
        self._parts, self._began = {}, now


class _TimedLoader:
    """A loader whose batches are waited for under a clock."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self.loader), object()
        while (batch := self.clock.timed(LOADING, lambda: next(batches, end))) is not end:
            yield batch


class _TimedTrainer(RecipeTrainer):
    """The recipe's trainer under a clock."""

    clock: Clock

    def get_train_dataloader(self) -> Any:
        return _TimedLoader(super().get_train_dataloader(), self.clock)

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        step = super().training_step
        return self.clock.timed(PASSES, lambda: step(*arguments, **options))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        step = optimizer.step

        def timed_step(*given: Any, **options: Any) -> Any:
            found = self.clock.timed(UPDATE, lambda: step(*given, **options))
            self.clock.step_ends()
            return found

        optimizer.step = timed_step  # pyright: ignore[reportAttributeAccessIssue]
        return optimizer


def recipe(
    name: str, overrides: Sequence[str] = (), *, steps: int = 40, threads: int | None = None, smoke: bool = False
) -> BenchResult:
    """Train a recipe for a few steps under a clock; nothing of it is kept.

    Args:
        name: a shipped recipe, a YAML file or a run directory.
        overrides: `key=value` words, as of `opencrate train`.
        steps: that are measured; three more come first.
        threads: of torch, during the run.
        smoke: the recipe's smoke form.

    Returns:
        one line for each part of a step, `form` being the part; the ratios are shares of the whole step.

    Raises:
        ValueError: as `load_recipe` and the building of the recipe's data and model.
    """
    count = steps + SKIPPED
    ours = [f"training.max_steps={count}", "logging.measure_inputs=0"]
    loaded = load_recipe(name, [*overrides, *ours], smoke=smoke)
    keep_freed_memory()
    with thread_count(threads), tempfile.TemporaryDirectory() as folder:
        parts = task_of(loaded.task).build(loaded, skip_bad=False)
        arguments = training_arguments(loaded, Path(folder) / "checkpoints", validate=False)
        trainer = _TimedTrainer(parts, arguments, loaded, RunLog(Path(folder) / "log.jsonl"))
        trainer.clock = Clock()
        trainer.train()
        found = trainer.clock.steps[SKIPPED:]
        dtype = "bfloat16" if loaded.training.bf16 else "float32"
        parameters = sum(one.numel() for one in parts.model.parameters())
        whole = [step[WHOLE] for step in found]
        lines = [
            BenchLine(part, "step", dtype, None, trainer.samples_per_step, parameters, [step[part] for step in found])
            for part in (LOADING, PASSES, UPDATE, REST, WHOLE)
        ]
        for line in lines:
            line.reference = whole
        settings = {"recipe": name, "overrides": list(overrides), "steps": steps, "smoke": smoke}
        return BenchResult("recipe", settings, lines, WHOLE, "samples")
