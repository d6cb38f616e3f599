"""The runs: forms of one task timed in turns, in every mode and data type that was asked for."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .._suggest import suggest
from .flops import tokens_of
from .jobs import Job, Jobs
from .machine import default_dtypes, has_half_instructions
from .process import WorkerError, peak_memory
from .result import BenchLine, BenchResult
from .settings import BATCHES, COMPILE_MODES, DTYPES, NAMES, OURS, SIZES, SMOKE, TASKS, Case, Settings
from .timing import gemm, in_turns

logger = logging.getLogger(__name__)


def image(size: str | None = None, **options: Any) -> BenchResult:
    """Time a CRATE classifier, its published form and ViT; options as in :func:`bench`."""
    return bench("image", size, **options)


def mae(size: str | None = None, **options: Any) -> BenchResult:
    """Time a CRATE autoencoder, its published form and ViTMAE; options as in :func:`bench`."""
    return bench("mae", size, **options)


def text(size: str | None = None, **options: Any) -> BenchResult:
    """Time a CRATE language model, its published form and GPT-2; options as in :func:`bench`."""
    return bench("text", size, **options)


def decode(size: str | None = None, **options: Any) -> BenchResult:
    """Time generation: of CRATE, of GPT-2 of the same width and depth, of CRATE at GPT-2's number of parameters.

    Options as in :func:`bench`.
    """
    return bench("decode", size, **options)


def bench(
    task: str,
    size: str | None = None,
    *,
    batch: int | None = None,
    config: dict[str, Any] | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    against: Sequence[str] | None = None,
    compiled: Sequence[str] = (),
    memory: bool = False,
    repeats: int = 5,
    threads: int | None = None,
    smoke: bool = False,
    **lengths: int,
) -> BenchResult:
    """Time all forms of a task in turns, on the CUDA device if there is one, else on the CPU.

    Args:
        task: `image`, `mae`, `text` or `decode`.
        size: a named size of the CRATE configuration (default: base, gpt-base).
        batch: images or sequences at once (default: 8, 4 for text, 1 for decode).
        config: fields of the CRATE configuration that are changed.
        dtypes: `float32`, `bfloat16`; by default the second only where the device has the instructions.
        modes: of `settings.TASKS`; by default `forward` and `step`.
        against: forms beside ours, of `settings.TASKS`; by default the first two, without the published form where
            the configuration has none.
        compiled: modes of `torch.compile` in which every form is timed too.
        memory: measure each form's peak memory, each in a process of its own.
        repeats: timed calls of each form.
        threads: of torch, during the run.
        smoke: a tiny model and two repeats.
        lengths: `block` of text; `prompt` and `new` of decode, in tokens.

    Raises:
        ValueError: an unknown word or field; a prompt and new tokens beyond the context.
    """
    settings = settings_of(task, size, batch, config or {}, smoke, **lengths)
    cases = cases_of(task, dtypes, modes, _default_forms(settings) if against is None else against, compiled)
    with thread_count(threads):
        lines = time_cases(settings, cases, 2 if smoke else repeats)
        if memory:
            measure_memory(settings, lines)
        unit = "tokens" if task in ("text", "decode") else "images"
        return BenchResult(task, {**settings.as_dict(), "repeats": 2 if smoke else repeats}, lines, unit=unit)


def _default_forms(settings: Settings) -> list[str]:
    """The first two forms that there are; a published form that is left out for its absence is logged."""
    from .models import config_of
    from .published import unpublished

    forms = TASKS[settings.task]["against"][:2]
    new = unpublished(config_of(settings)) if "published" in forms else ""
    if new:
        logger.info("there is no published form of %s: left out", new)
    return [form for form in forms if form != "published" or not new]


def settings_of(
    task: str, size: str | None, batch: int | None, config: dict[str, Any], smoke: bool = False, **lengths: int
) -> Settings:
    """The settings with their defaults; a `ValueError` for an unknown task or a context that is too short."""
    if task not in TASKS:
        raise ValueError(f"task={task}: {suggest(task, TASKS)}")
    if smoke:
        config, batch = {**SMOKE[task], **config}, batch or 2
        lengths = {"block": 16, "prompt": 8, "new": 4} | lengths
    settings = Settings(task, size or SIZES[task], batch or BATCHES[task], config, **lengths)
    from .models import config_of

    made = config_of(settings)
    longest = {"text": settings.block, "decode": settings.prompt + settings.new}.get(task, 0)
    context = getattr(made, "max_position_embeddings", longest)
    if longest > context:
        names = f"block={settings.block}" if task == "text" else f"prompt={settings.prompt} and new={settings.new}"
        raise ValueError(f"{names}: the context of this size is {context} tokens; give fewer")
    return settings


def cases_of(
    task: str,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    against: Sequence[str] | None = None,
    compiled: Sequence[str] = (),
) -> list[Case]:
    """What is timed, in order: the forms of one mode and data type follow each other, and are timed in turns."""
    known = TASKS[task]
    dtypes = default_dtypes() if dtypes is None else _chosen("dtypes", dtypes, DTYPES)
    modes = known["modes"][:2] if modes is None else _chosen("modes", modes, known["modes"])
    against = known["against"][:2] if against is None else _chosen("against", against, known["against"])
    if _chosen("compiled", compiled, COMPILE_MODES) and task == "decode":
        raise ValueError("compiled: generation is timed eagerly; leave it out")
    ways = (None, *compiled)
    return [
        Case(form, mode, dtype, way)
        for dtype in dtypes
        for mode in modes
        for way in ways
        for form in (OURS, *against)
        if mode != "layers" or form in (OURS, "published", "visible")
    ]


def _chosen(name: str, words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for word in words:
        if word not in known:
            raise ValueError(f"{name}={word}: {suggest(word, known)}")
    return tuple(dict.fromkeys(words))


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """torch's threads within the block."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_cases(
    settings: Settings, cases: Sequence[Case], repeats: int, point: dict[str, int] | None = None
) -> list[BenchLine]:
    """A line for each case; those of one mode and data type in the same turns as the GEMM of that type."""
    jobs, lines = Jobs(settings), []
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.dtype, case.mode), []).append(case)
    for (dtype, mode), group in groups.items():
        slow = dtype == "bfloat16" and jobs.device.type == "cpu" and not has_half_instructions()
        logger.info(
            "%s, %s: %s%s",
            *(dtype, mode, ", ".join(dict.fromkeys(NAMES[case.form] for case in group))),
            "; this processor has no bfloat16 instructions: this may take minutes" if slow else "",
        )
        lines += _time_group(jobs, group, repeats, point or {})
    return lines


def _time_group(jobs: Jobs, group: Sequence[Case], repeats: int, point: dict[str, int]) -> list[BenchLine]:
    made, failures = _warm(jobs, group)
    settings = jobs.settings
    rows = settings.batch * (1 if settings.task == "decode" else tokens_of(settings, jobs.config))
    product, count = gemm(rows, jobs.config.hidden_size, getattr(torch, group[0].dtype), jobs.device)
    names = {f"{case.form} {case.compiled}": job.run for case, job in made.items()}
    times = in_turns({"gemm": product, **names}, repeats)
    rate = count / statistics.median(times["gemm"])
    lines = []
    for case in group:
        line = BenchLine(case.form, case.mode, case.dtype, case.compiled, point=point)
        lines.append(line)
        if case in failures:
            line.failure = failures[case]
            continue
        job = made[case]
        line.seconds = times[f"{case.form} {case.compiled}"]
        line.reference = times[f"{group[0].form} {group[0].compiled}"]
        line.samples, line.parameters, line.flops = job.samples, job.parameters, job.flops
        line.gemm_flops_per_second = None if job.flops is None else rate
    return lines


def _warm(jobs: Jobs, group: Sequence[Case]) -> tuple[dict[Case, Job], dict[Case, str]]:
    """The functions, called once; of compiled ones also why they could not be."""
    made, failures = {}, {}
    for case in group:
        try:
            job = jobs.job(case)
            job.run()
        except Exception as error:
            if case.compiled is None:
                raise
            failures[case] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            logger.warning("%s does not compile (%s): %s", NAMES[case.form], case.compiled, failures[case])
        else:
            made[case] = job
    return made, failures


def measure_memory(settings: Settings, lines: Sequence[BenchLine]) -> None:
    """Fill in the peak memory of every eager line, each in a process of its own."""
    for line in lines:
        if line.compiled is not None:
            continue
        logger.info("memory of %s, %s, %s", NAMES[line.form], line.dtype, line.mode)
        try:
            line.memory = peak_memory(settings, Case(line.form, line.mode, line.dtype))
        except WorkerError as error:
            line.failure = str(error)
