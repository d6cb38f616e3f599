"""Which of several equal ways to compute is the fastest on this processor: measured once, then kept.

A model asks for each kind of work and class of shapes; a new class takes about 0.1 s. Choices are kept in a file
for each processor, version of torch and number of threads (in ``calibration/`` of :func:`cache_folder`), so that later
processes choose the same, and in a run's ``environment.json``, so that a resumed run does.

The environment variable ``OPENCRATE_CALIBRATE``: ``0`` measures nothing and reads nothing: rules by instruction sets
decide. The path of a JSON file takes the place of the file above.
"""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._graph import traced

VARIABLE = "OPENCRATE_CALIBRATE"
ROUNDS, BUDGET = 5, 0.08
"""Timings of each way, and the seconds after which no further round begins."""
GAIN = 0.95
"""Another way than the rule's must take less than this share of its time, so that noise alone decides nothing."""

_choices: dict[str, str] = {}


def choose(work: str, rule: str, ways: Callable[[], Mapping[str, Callable[[], Tensor]]], bound: float) -> str:
    """The name of the fastest way to do some work.

    Args:
        work: the class of shapes, in words; the number of threads is added.
        rule: the way that is taken without a measurement.
        ways: makes inputs; returns by name the functions to time. The one called ``exact`` is not timed: it gives the
            reference in float64.
        bound: relative rms error from ``exact`` above which a way is not taken.
    """
    key = f"{work}, {torch.get_num_threads()} threads"
    if key not in _choices:
        path = _path()
        if path is None:
            return rule
        _choices[key] = _known(path, key) or _measured(path, key, rule, ways, bound)
    return _choices[key]


def choices() -> dict[str, str]:
    """What has been chosen in this process so far: class of shapes -> way."""
    return dict(_choices)


def keep(chosen: Mapping[str, str]) -> None:
    """Choose so from now on, whatever was or would be measured: of a run that is resumed, or by hand."""
    _choices.update(chosen)


@contextmanager
def fixed(chosen: Mapping[str, str]) -> Iterator[None]:
    """:func:`keep` for a ``with`` block; what was chosen before holds again after it."""
    before = dict(_choices)
    _choices.update(chosen)
    try:
        yield
    finally:
        _choices.clear()
        _choices.update(before)


def plain_work(*tensors: Tensor) -> bool:
    """Whether this is eager work on plain tensors of a CPU, seen by nothing but autograd: only there is a choice made.

    Graphs, transforms (``torch.func``), forward derivatives and dispatch modes take what the rule says.
    """
    seen = traced() or torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    if seen or torch.autograd.forward_ad._current_level >= 0:
        return False
    return all(type(one) in (Tensor, torch.nn.Parameter) and one.device.type == "cpu" for one in tensors)


def has_half_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself; without, such products take many times as long."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def processor() -> str:
    """The processor's name, as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _path() -> Path | None:
    """The file of choices; ``None`` where nothing shall be measured."""
    setting = os.environ.get(VARIABLE, "1")
    if setting.lower() in ("0", "", "false", "no", "off"):
        return None
    if setting.lower() not in ("1", "true", "yes", "on"):
        return Path(setting)
    features = torch.backends.cpu.get_cpu_capability()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{processor()} {features} torch {torch.__version__}")
    return cache_folder() / "calibration" / f"{name}.json"


def cache_folder() -> Path:
    """`$OPENCRATE_CACHE`, else `$XDG_CACHE_HOME/opencrate`, else `~/.cache/opencrate`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OPENCRATE_CACHE") or Path(base) / "opencrate").expanduser()


def _read(path: Path) -> dict[str, Any]:
    """The file's entries; none where it is missing or damaged: then all is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def _known(path: Path, key: str) -> str | None:
    """What the file says of a class of shapes: one of the ways that it has times of, else nothing."""
    entry = _read(path).get(key)
    way, times = (entry.get("way"), entry.get("ms")) if isinstance(entry, dict) else (None, None)
    return way if isinstance(way, str) and isinstance(times, dict) and way in times else None


def _measured(
    path: Path, key: str, rule: str, make: Callable[[], Mapping[str, Callable[[], Tensor]]], bound: float
) -> str:
    """Time the ways and write down the choice, unless another process was faster to."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        ways = make()
        exact = ways["exact"]().double()
        errors = {name: ((ways[name]() - exact).norm() / exact.norm()).item() for name in ways if name != "exact"}
        seconds = _in_turns({name: ways[name] for name in errors})
    best = min((name for name in errors if errors[name] <= bound or name == rule), key=seconds.__getitem__)
    way = best if seconds[best] < GAIN * seconds[rule] else rule
    entry = {"way": way, "ms": {name: round(1e3 * taken, 3) for name, taken in seconds.items()}, "error": errors}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if known := _known(path, key):
            return known
        temporary = path.with_name(f"{path.name}.{os.getpid()}")  # whole or not at all, and with the core alone
        temporary.write_text(json.dumps({**_read(path), key: entry}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        pass  # a home that cannot be written to: the choice holds for this process
    return way


def _in_turns(ways: Mapping[str, Callable[[], Tensor]]) -> dict[str, float]:
    """The median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + BUDGET
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
