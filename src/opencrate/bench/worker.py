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
from typing import Any

PAUSE = 0.02
"""Seconds before a timed call: the other process's threads may still be spinning after theirs."""


def take_bench(folder: Path) -> None:
    """Make the modules of a folder the package `opencrate.bench`."""
    package = types.ModuleType("opencrate.bench")
    package.__path__ = [str(folder)]
    package.__package__ = package.__name__
    sys.modules["opencrate.bench"] = package


class Worker:
    """The commands: each takes and gives plain values.

    Args:
        answer: sends an answer.
        asked: waits for the next command, and gives its words; raises `EOFError` where there will be none.
    """

    def __init__(self, answer, asked) -> None:
        self.answer, self.asked = answer, asked

    def start(self, settings: dict | None, threads: int | None, source: str | None) -> dict:
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
        self.settings: Any = settings and self.of.Settings(**settings)
        self.jobs, self.made = None, []
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

    def train(self, recipe: str, overrides: list, steps: int, smoke: bool) -> None:
        """Train a recipe, and wait before every step until it is asked for; then `time` is answered by its seconds.

        The first steps are not waited for, and the answer to this command comes after them.
        """
        profile = importlib.import_module("opencrate.bench.profile")

        def gate() -> None:
            done = len(clock.steps) - profile.SKIPPED
            if done < 0:
                return
            self.answer(clock.steps[-1][profile.WHOLE] if done else profile.facts_of(trainer))
            self.asked()
            time.sleep(PAUSE)

        clock = profile.Clock(gate)
        with profile.timed_trainer(recipe, overrides, steps + profile.SKIPPED + 1, smoke, clock) as trainer:
            trainer.train()


def main() -> None:
    """Answer until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    def asked() -> list:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    worker = Worker(lambda value: send({"value": value}), asked)
    while True:
        try:
            command, arguments = asked()
            send({"value": getattr(worker, command)(**arguments)})
        except EOFError:
            return
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}", "asked_for": isinstance(error, ValueError)})


if __name__ == "__main__":
    main()
