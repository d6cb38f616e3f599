"""The peak of a process's memory, above what it held before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5)
_CALLS = 2
"""Of the function: what an optimizer or a library keeps after the first counts from the second on."""


def peak_above(run: Callable[[], object]) -> int:
    """Bytes at the peak of calls of a function, above what the process held before the first one.

    On a CUDA device the allocator's peak. On a CPU resident memory, so the function should be all that this process
    does. Linux's own count is used where there is one: `resource.getrusage` of a new process begins with the peak of
    the process that started it.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        measure: Callable[[], int] = torch.cuda.max_memory_allocated
    else:
        with suppress(OSError):  # not allowed in some containers: then the peak is that since the process began
            _CLEAR.write_text(_RESET_PEAK)
        before, measure = _resident("VmRSS"), lambda: _resident("VmHWM")
    for _ in range(_CALLS):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max(0, measure() - before)


def _resident(name: str) -> int:
    """Bytes of a line of the process's status; where there is no such file, the peak that `getrusage` knows."""
    if _STATUS.exists():
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
