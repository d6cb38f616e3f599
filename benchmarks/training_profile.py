"""Where the time of a training run goes: loading and augmenting, forward and backward, optimizer.

    python benchmarks/training_profile.py cifar10 data.path=DATA [--steps 40]

The recipe's own trainer runs for so many steps (the first three are left out) with clocks around its parts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from opencrate.recipe.load import load_recipe
from opencrate.training.allocator import keep_freed_memory
from opencrate.training.callbacks import RunLog
from opencrate.training.tasks import task_of
from opencrate.training.trainer import RecipeTrainer, training_arguments

SKIPPED = 3


class Clock:
    """Seconds of each part, one number per step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, part: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return function()
        finally:
            self.seconds.setdefault(part, []).append(time.perf_counter() - start)


class TimedLoader:
    """A loader whose batches are waited for under a clock."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            try:
                batch = self.clock.timed("loading and augmenting", lambda: next(batches))
            except StopIteration:
                return
            yield batch


class TimedTrainer(RecipeTrainer):
    """The recipe's trainer under a clock."""

    clock = Clock()

    def get_train_dataloader(self) -> TimedLoader:
        return TimedLoader(super().get_train_dataloader(), self.clock)

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        step = super().training_step
        return self.clock.timed("forward and backward", lambda: step(*arguments, **options))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        step = optimizer.step
        optimizer.step = lambda *given, **options: self.clock.timed("optimizer", lambda: step(*given, **options))
        return optimizer


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    overrides = [*arguments.overrides, f"training.max_steps={arguments.steps}", "logging.measure_inputs=0"]
    recipe = load_recipe(arguments.recipe, overrides)
    keep_freed_memory()
    parts = task_of(recipe.task).build(recipe, skip_bad=False)
    with tempfile.TemporaryDirectory() as folder:
        settings = training_arguments(recipe.training, Path(folder) / "checkpoints", validate=False)
        trainer = TimedTrainer(parts, settings, recipe, RunLog(Path(folder) / "log.jsonl"))
        trainer.train()
    report(trainer.clock, arguments.steps, trainer.samples_per_step)


def report(clock: Clock, steps: int, samples: int) -> None:
    """Medians per step and their share."""
    parts = {name: statistics.median(found[SKIPPED:steps]) for name, found in clock.seconds.items()}
    whole = sum(parts.values())
    print(f"{steps} steps of {samples} samples, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, seconds in parts.items():
        print(f"{name:24} {1e3 * seconds:9.2f} ms  {100 * seconds / whole:5.1f} %")
    print(f"{'together':24} {1e3 * whole:9.2f} ms  {samples / whole:.0f} samples/s")


if __name__ == "__main__":
    main()
