"""Two revisions of the package, timed in turns in one run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from .process import WorkerError, WorkerProcess
from .result import BenchLine, BenchResult
from .run import cases_of, settings_of, thread_count
from .settings import Case, Settings
from .sources import source_of

logger = logging.getLogger(__name__)


def compare(
    first: str,
    second: str,
    task: str,
    size: str | None = None,
    *,
    batch: int | None = None,
    config: dict[str, Any] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    compiled: Sequence[str] = (),
    repeats: int = 9,
    threads: int | None = None,
    smoke: bool = False,
    **lengths: int,
) -> BenchResult:
    """Time our form of a task in two revisions: A B A B, each in a process that lives for the whole run.

    Both revisions are timed by this version's code, which uses public names of `opencrate` only.

    Args:
        first, second: revisions of the package's own git repository, or folders with its source.
        task: `image`, `mae`, `text` or `decode`; it and the other arguments are those of `run.bench`.

    Returns:
        lines in pairs, `form` being the revision; the ratios are to the first one's time.

    Raises:
        ValueError: an unknown revision or argument; no git checkout; a revision that this code cannot run.
    """
    settings = settings_of(task, size, batch, config or {}, smoke, **lengths)
    cases = cases_of(task, dtypes, modes, (), compiled)
    repeats = 2 if smoke else repeats
    with ExitStack() as stack, thread_count(threads):
        workers = _workers(stack, settings, first, second, task)
        lines = []
        for case in cases:
            logger.info("%s, %s: %s in turns", case.dtype, case.mode, " and ".join(workers))
            lines += _in_turns(workers, task, repeats, case.mode, lambda worker, case=case: _prepared(worker, case))
        unit = "tokens" if task in ("text", "decode") else "images"
        found = {**settings.as_dict(), "repeats": repeats, "revisions": [first, second]}
        return BenchResult("compare", found, lines, next(iter(workers)), unit)


def compare_recipe(
    first: str,
    second: str,
    name: str,
    overrides: Sequence[str] = (),
    *,
    repeats: int = 20,
    threads: int | None = None,
    smoke: bool = False,
) -> BenchResult:
    """Time the training steps of a recipe in two revisions, A B A B: loading, passes and update together.

    Args:
        first, second: as of :func:`compare`; each revision reads the recipe by its own code.
        name, overrides, smoke: as of `profile.recipe`.
        repeats: steps of each, after three that are left out.
        threads: of torch, during the run.

    Raises:
        ValueError: as :func:`compare`.
    """
    with ExitStack() as stack, thread_count(threads):
        workers = _workers(stack, None, first, second, "recipe")
        begin = [name, overrides, repeats, smoke]
        lines = _in_turns(workers, "recipe", repeats, "step", lambda worker: worker.train(*begin))
        found = {"recipe": name, "overrides": list(overrides), "repeats": repeats, "revisions": [first, second]}
        return BenchResult("compare", found, lines, next(iter(workers)), "samples")


def _workers(
    stack: ExitStack, settings: Settings | None, first: str, second: str, task: str
) -> dict[str, WorkerProcess]:
    """A process for each revision, by its name."""
    names = (first, second) if first != second else (f"{first} (1)", f"{second} (2)")
    sources = [stack.enter_context(source_of(name)) for name in (first, second)]
    found = {}
    for name, source in zip(names, sources):
        try:
            found[name] = stack.enter_context(WorkerProcess(settings, source))
        except WorkerError as error:
            raise _cannot(name, task, error) from error
    return found


def _cannot(name: str, task: str, error: Exception) -> ValueError:
    return ValueError(
        f"revision '{name}': cannot run `bench {task}` of this version: {error}; its opencrate lacks what this "
        "benchmark uses, so compare with a later revision or another task"
    )


def _prepared(worker: WorkerProcess, case: Case) -> dict[str, Any]:
    return {**worker.prepare(case), "dtype": case.dtype, "compiled": case.compiled}


def _in_turns(
    workers: dict[str, WorkerProcess],
    task: str,
    repeats: int,
    mode: str,
    begin: Callable[[WorkerProcess], dict[str, Any]],
) -> list[BenchLine]:
    """A line for each revision; `begin` makes a worker ready and gives what its line says."""
    lines = []
    for name, worker in workers.items():
        try:
            lines.append(BenchLine(name, mode, **begin(worker)))
        except (ValueError, WorkerError) as error:
            raise _cannot(name, task, error) from error
    for _ in range(repeats):
        for line, worker in zip(lines, workers.values()):
            line.seconds.append(worker.time())
    for line in lines:
        line.reference = lines[0].seconds
    return lines
