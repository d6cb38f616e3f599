"""Trains what a list names, several at once on one GPU, until the time is over.

    python benchmarks/gpu/many.py LIST.txt --data DATA --out FOLDER --seconds 500 --at-once 16 [--smoke]

A line of the list is `NAME | RECIPE key=value ...`, for `opencrate train`. Further steps after `&&` are whole commands
of opencrate, which run when the one before has ended. `{data}` is the folder of data sets, `{out}` that of the runs.
Lines start in their order. When the time is over everything is interrupted; a training saves a checkpoint, and the same
command goes on there. Small models are bound by the launching of kernels, so that several at once cost little more than
one (with NVIDIA's MPS running). The steps per second of such runs say nothing about the model.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

GRACE = 20
"""Seconds in which a training that is interrupted has to save its checkpoint."""
CLI = (sys.executable, "-W", "ignore", "-m", "opencrate")


@dataclass(frozen=True)
class Line:
    """One line of a list: a name, what is trained under it, and commands to run after."""

    name: str
    training: tuple[str, ...]
    after: tuple[tuple[str, ...], ...]

    def commands(self, out: Path, data: Path, smoke: bool) -> list[list[str]]:
        short = ["--smoke"] if smoke else []
        first = ("train", *self.training, "--output", f"{out / self.name}", "--no-report", "--resume")
        return [[*CLI, *(word.format(out=out, data=data) for word in words), *short] for words in (first, *self.after)]


def read_list(path: Path) -> list[Line]:
    """The lines of a list; empty ones and those that begin with `#` are comments."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.strip() and not text.startswith("#"):
            name, _, rest = text.partition("|")
            training, *after = (tuple(shlex.split(part)) for part in rest.split("&&"))
            lines.append(Line(name.strip(), training, tuple(after)))
    return lines


class Queue:
    """Runs lines, at most so many at once, until a moment (of `time.monotonic`)."""

    def __init__(self, out: Path, data: Path, until: float, smoke: bool) -> None:
        self.out, self.data, self.until, self.smoke = out, data, until, smoke
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def run(self, line: Line) -> bool:
        """One line; whether all of its commands ended well."""
        if (self.out / f"{line.name}.done").exists():
            return True
        began = time.monotonic()
        log = self.out / f"{line.name}.log"
        for command in line.commands(self.out, self.data, self.smoke):
            late = time.monotonic() > self.until - GRACE
            if late or (status := self._command(command, log)):
                over = late or time.monotonic() > self.until
                self._say(line, f"not finished ({'time is over' if over else status})")
                return False
        (self.out / f"{line.name}.done").touch()
        self._say(line, f"done in {time.monotonic() - began:.0f} s")
        return True

    def _command(self, command: list[str], log: Path) -> int:
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            for number, at in ((signal.SIGTERM, self.until), (signal.SIGKILL, self.until + GRACE)):
                try:
                    return process.wait(max(0.0, at - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
            return process.wait()

    def _say(self, line: Line, what: str) -> None:
        with self._lock:
            print(f"{time.monotonic() - self._started:6.0f} s  {line.name}: {what}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the data sets (README.md)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--at-once", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--smoke", action="store_true", help="the recipes' smoke forms, on any machine")
    options = parser.parse_args()
    for path in (options.list, options.data):
        if not path.exists():
            parser.error(f"{path}: no such file or folder; LIST and --data must be there before anything starts")
    options.out.mkdir(parents=True, exist_ok=True)
    queue = Queue(options.out, options.data, time.monotonic() + options.seconds, options.smoke)
    with ThreadPoolExecutor(options.at_once) as pool:
        ended = list(pool.map(queue.run, read_list(options.list)))
    print(f"{sum(ended)} of {len(ended)} lines are done")
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
