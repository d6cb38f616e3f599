"""Starting `worker.py` and talking to it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from .settings import Case, Settings

OWN_SOURCE = Path(__file__).resolve().parents[2]
"""The folder that this package is imported from."""


PATIENCE = 5
"""Seconds that a worker has to end by itself."""


class WorkerError(RuntimeError):
    """A worker could not do what it was told; the message is its own."""


class WorkerProcess:
    """A worker on one source folder; as a context it ends with the block."""

    def __init__(self, settings: Settings | None, source: Path = OWN_SOURCE) -> None:
        self.settings, self.source = settings, source

    def __enter__(self) -> Self:
        path = os.pathsep.join(filter(None, [str(self.source), os.environ.get("PYTHONPATH")]))
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        # -P: the modules beside the script are not to stand in for others of their names
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )
        try:
            settings = None if self.settings is None else self.settings.as_dict()
            self.ask("start", settings=settings, threads=torch.get_num_threads(), source=str(self.source))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # by which it ends, and removes what it wrote
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def prepare(self, case: Case) -> dict[str, Any]:
        """Build and call a case's function once; its samples, parameters and FLOPs."""
        return self.ask("prepare", case=asdict(case))

    def time(self) -> float:
        """Seconds of one call of what was prepared last."""
        return self.ask("time")

    def train(self, recipe: str, overrides: Sequence[str], steps: int, smoke: bool) -> dict[str, Any]:
        """Begin to train a recipe; from then on `time` does a step. Its samples, parameters and data type."""
        return self.ask("train", recipe=recipe, overrides=list(overrides), steps=steps, smoke=smoke)

    def peak(self, case: Case) -> int:
        """Bytes at the peak of a case, above the weights."""
        return self.ask("peak", case=asdict(case))

    def ask(self, command: str, **arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            ValueError: the worker's own, about an argument.
            WorkerError: any other error of the worker, or its end.
        """
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps([command, arguments]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(
                f"the process that was to {command} ended (exit code {self._process.wait()}): {self._last()}"
            )
        answer = json.loads(line)
        if "error" in answer:
            kind, _, words = answer["error"].partition(": ")
            raise ValueError(words) if answer["asked_for"] else WorkerError(f"{kind}: {words}")
        return answer["value"]

    def _last(self) -> str:
        """The last line that the worker printed."""
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return lines[-1] if lines else "no words; perhaps it ran out of memory"


def peak_memory(settings: Settings, case: Case) -> int:
    """Bytes at the peak of a case's call above the weights, in a process of its own."""
    with WorkerProcess(settings) as worker:
        return worker.peak(case)
