"""Train a recipe and write a run directory.

  opencrate train digits
  opencrate train digits training.seed=3 model.config.pool=cls
  opencrate train imagefolder data.path=photos training.num_train_epochs=50 --output runs/photos
  opencrate train imagefolder data.path=photos --output runs/photos --resume

--resume continues an unfinished run. A finished one continues as the longer run that the overrides describe
(training.num_train_epochs or training.max_steps) if that is exact: a constant learning rate, and a checkpoint kept by
training.save_strategy. If not, the schedule has ended: `opencrate finetune RUN RUN` starts a new one from the weights.

RECIPE is a shipped recipe's name (`opencrate recipes`), a YAML file, or an earlier run's directory. Any key of it is
changed by a bare `key=value`; `--print-config` shows the result. The run directory holds the model, its image
processor, the resolved recipe, metrics, the environment, the log, and report.html. Several processes:
`torchrun --nproc_per_node N -m opencrate train ...`.
"""

from __future__ import annotations

import argparse
from typing import Any

from .common import Parser, prepare_libraries, print_result, say

HELP = "train a recipe"


def add_arguments(parser: Parser) -> None:
    """The options of `opencrate train`."""
    parser.usage = "opencrate train RECIPE [key=value ...] [options]"
    parser.add_argument("recipe", metavar="RECIPE", help="shipped recipe, YAML file or run directory")
    add_run_arguments(parser)


def add_run_arguments(parser: Parser) -> None:
    """The options of every command that trains a recipe."""
    parser.takes_overrides = True
    parser.add_argument("--output", metavar="DIR", help="run directory (default: runs/<recipe>-seed<seed>)")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in that place")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of an unfinished run")
    parser.add_argument("--smoke", action="store_true", help="the recipe's smoke form: seconds on a laptop")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable images, named and counted")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--no-report", action="store_true", help="leave out report.html")


def run(arguments: argparse.Namespace) -> int:
    """Train, report, and say where to look."""
    return train_recipe(arguments, arguments.overrides)


def train_recipe(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Train what the arguments name, with these overrides, and print the outcome."""
    from ..recipe.load import load_recipe, recipe_yaml

    recipe = load_recipe(arguments.recipe, overrides, smoke=arguments.smoke)
    prepare_libraries(arguments.debug)
    from ..store.build import check_model
    from ..training.train import train

    if arguments.print_config:
        check_model(recipe)
        print_result(arguments, recipe, lambda: print(recipe_yaml(recipe), end=""))
        return 0

    trained = train(recipe, arguments.output, arguments.overwrite, arguments.resume, arguments.skip_bad)
    if trained is None:  # one of several processes; the first one speaks
        return 0
    if arguments.format == "text":  # before the report, which takes its time
        _print_outcome(recipe, trained)
    written = not arguments.no_report and _write_report(recipe, trained, arguments.typed)
    report = trained.directory / "report.html" if written else None
    document = {"recipe": recipe.name, "run": trained.directory, "report": report, "metrics": trained.metrics}
    print_result(arguments, document, lambda: report and say(f"report: {report}"))
    return 0


def _write_report(recipe: Any, trained: Any, command: str) -> bool:
    """Of a classifier, a masked autoencoder, or a language model with held-out text."""
    from ..reports.runs import report_models, report_runs
    from ..store.inputs import LANGUAGE_TASKS
    from ..store.saved import open_saved

    nothing_held_out = recipe.task in LANGUAGE_TASKS and "loss" not in trained.metrics
    if recipe.task == "sentence-classification" or nothing_held_out:
        return False
    write = report_runs if recipe.task == "image-classification" else report_models
    write([open_saved(trained.directory)], trained.directory / "report.html", command=command)
    return True


def _print_outcome(recipe: Any, trained: Any) -> None:
    from ..training.tasks import task_of

    metrics = trained.metrics
    say(
        f"{recipe.name}, seed {metrics['seed']}: {task_of(recipe.task).outcome(metrics)}, "
        f"{metrics['parameters']:,} parameters, {metrics['seconds'] / 60:.1f} minutes of training"
    )
    say(f"run:    {trained.directory}")
