"""A process that builds a run's functions and times them when it is told to; it talks JSON, one line each way.

It is started as a script, with the source of one revision on `PYTHONPATH`. That revision may have no bench package, so
the modules beside this file become its `opencrate.bench`, whatever it has itself.
"""

import contextlib
import importlib
import json
import os
import sys
import time
import types
from pathlib import Path

PAUSE = 0.02
"""Seconds before a timed call: the other process's threads may still be spinning after theirs."""


def take_bench(folder: Path) -> None:
    """Make the modules of a folder the package `opencrate.bench`."""
    package = types.ModuleType("opencrate.bench")
    package.__path__ = [str(folder)]
    package.__package__ = package.__name__
    sys.modules["opencrate.bench"] = package


class Worker:
    """The commands: each takes and gives plain values."""

    def start(self, settings: dict, threads: int | None, source: str | None) -> dict:
        """Import the package."""
        import torch

        if threads:
            torch.set_num_threads(threads)
        import opencrate

        where = Path(opencrate.__file__).resolve().parents[1]
        if source is not None and where != Path(source).resolve():
            raise ValueError(f"opencrate was found in another folder ({where}) than in {source}")
        take_bench(Path(__file__).resolve().parent)
        self.of = importlib.import_module("opencrate.bench.settings")
        self.timing = importlib.import_module("opencrate.bench.timing")
        self.memory = importlib.import_module("opencrate.bench.memory")
        self.module = importlib.import_module("opencrate.bench.jobs")
        self.settings, self.jobs, self.made = self.of.Settings(**settings), None, []
        return {"version": opencrate.__version__}

    def prepare(self, case: dict) -> dict:
        """Build the function of a case and call it once."""
        self.jobs = self.jobs or self.module.Jobs(self.settings)
        job = self.jobs.job(self.of.Case(**case))
        self.timing.seconds_of(job.run)
        self.made = [job]
        return {"samples": job.samples, "parameters": job.parameters, "flops": job.flops}

    def time(self) -> float:
        """Seconds of one call of what was prepared last."""
        time.sleep(PAUSE)
        return self.timing.seconds_of(self.made[0].run)

    def peak(self, case: dict) -> int:
        """Bytes at the peak of a case's call, above the weights."""
        case = self.of.Case(**case)
        with contextlib.suppress(ValueError):  # a tiny one first: what libraries load when first used is no tensor
            self.module.Jobs(self.settings.tiny(), checked=False).job(case).run()
        jobs = self.module.Jobs(self.settings, checked=False)
        return self.memory.peak_above(jobs.job(case).run)


def main() -> None:
    """Answer until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            answer = {"value": getattr(worker, command)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "asked_for": isinstance(error, ValueError)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
