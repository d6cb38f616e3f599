"""Where the time of a training step goes, with a recipe's own trainer, data and optimizer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

    def __init__(self, gate: Callable[[], object] | None = None) -> None:
        self.steps: list[dict[str, float]] = []
        self._gate, self._between = gate, True
        self._parts: dict[str, float] = {}
        self._began = time.perf_counter()

    def batch_is_asked_for(self) -> None:
        """Before the first batch of a step the gate is called, where there is one: it may wait."""
        if self._gate is not None and self._between:
            self._gate()
            self._began = time.perf_counter()
        self._between = False

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
        self._parts, self._began, self._between = {}, now, True


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

        def following() -> Any:
            return next(batches, end)

        while True:
            self.clock.batch_is_asked_for()
            if (batch := self.clock.timed(LOADING, following)) is end:
                return
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


@contextmanager
def timed_trainer(
    name: str, overrides: Sequence[str], steps: int, smoke: bool, clock: Clock
) -> Iterator[_TimedTrainer]:
    """The trainer of a recipe, cut to so many steps, under a clock; what it writes goes away with the block."""
    ours = [f"training.max_steps={steps}", "logging.measure_inputs=0"]
    loaded = load_recipe(name, [*overrides, *ours], smoke=smoke)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        parts = task_of(loaded.task).build(loaded, skip_bad=False)
        arguments = training_arguments(loaded, Path(folder) / "checkpoints", validate=False)
        trainer = _TimedTrainer(parts, arguments, loaded, RunLog(Path(folder) / "log.jsonl"))
        trainer.clock = clock
        yield trainer


def facts_of(trainer: _TimedTrainer) -> dict[str, Any]:
    """What a line says of the recipe: data type, samples of a step, parameters."""
    dtype = "bfloat16" if trainer.args.bf16 else "float32"
    parameters = sum(one.numel() for one in trainer.model.parameters())
    return {"dtype": dtype, "samples": trainer.samples_per_step, "parameters": parameters}


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
    clock = Clock()
    with thread_count(threads):
        with timed_trainer(name, overrides, steps + SKIPPED, smoke, clock) as trainer:
            trainer.train()
            facts = facts_of(trainer)
        found = clock.steps[SKIPPED:]
        whole = [step[WHOLE] for step in found]
        lines = [
            BenchLine(part, "step", seconds=[step[part] for step in found], reference=whole, **facts)
            for part in (LOADING, PASSES, UPDATE, REST, WHOLE)
        ]
        settings = {"recipe": name, "overrides": list(overrides), "steps": steps, "smoke": smoke}
        return BenchResult("recipe", settings, lines, WHOLE, "samples")
