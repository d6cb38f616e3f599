"""Two revisions of the package, timed in turns in one run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
    names = (first, second) if first != second else (f"{first} (1)", f"{second} (2)")
    with ExitStack() as stack, thread_count(threads):
        sources = [stack.enter_context(source_of(name)) for name in (first, second)]
        workers = [_started(stack, settings, source, name) for source, name in zip(sources, names)]
        lines = []
        for case in cases:
            logger.info("%s, %s: %s and %s in turns", case.dtype, case.mode, *names)
            lines += _in_turns(case, dict(zip(names, workers)), repeats)
        unit = "tokens" if task in ("text", "decode") else "images"
        found = {**settings.as_dict(), "repeats": repeats, "revisions": [first, second]}
        return BenchResult("compare", found, lines, names[0], unit)


def _started(stack: ExitStack, settings: Settings, source: Any, name: str) -> WorkerProcess:
    try:
        return stack.enter_context(WorkerProcess(settings, source))
    except WorkerError as error:
        raise _cannot(name, settings.task, error) from error


def _cannot(name: str, task: str, error: Exception) -> ValueError:
    return ValueError(
        f"revision '{name}': cannot run `bench {task}` of this version: {error}; its opencrate lacks what this "
        "benchmark uses, so compare with a later revision or another task"
    )


def _in_turns(case: Case, workers: dict[str, WorkerProcess], repeats: int) -> list[BenchLine]:
    lines = []
    for name, worker in workers.items():
        try:
            job = worker.prepare(case)
        except (ValueError, WorkerError) as error:
            raise _cannot(name, worker.settings.task, error) from error
        lines.append(BenchLine(name, case.mode, case.dtype, case.compiled, **job))
    for _ in range(repeats):
        for line, worker in zip(lines, workers.values()):
            line.seconds.append(worker.time())
    for line in lines:
        line.reference = lines[0].seconds
    return lines
