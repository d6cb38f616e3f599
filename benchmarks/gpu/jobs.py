"""The jobs for a GPU that README.md lists, each one command of at most 8 minutes that keeps what it found.

    python benchmarks/gpu/jobs.py NAME [--data FOLDER] [--out benchmarks/gpu/results] [--resume] [--smoke]

Training stops, with a checkpoint, when its time is over; `--resume` goes on from there. Runs lie in OUT/runs, and
their metrics, logs, recipes and environments are copied to OUT/NAME. `--smoke` is a job of seconds, also on a CPU.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BENCH = HERE.parent / "gpu.py"
KEPT = ("metrics.json", "log.jsonl", "recipe.yaml", "environment.json")
GRACE = 40
"""Seconds that a training is given to finish its step and write a checkpoint."""
FAST = ("training.bf16=true", "training.torch_compile=true", "data.keep_on=device")
FAST_TEXT = FAST[:2]
SAVED = ("training.save_strategy=steps", "training.save_steps=500", "training.save_total_limit=1")


@dataclass(frozen=True)
class Training:
    """One `opencrate train`: a recipe, what is changed in it, where its data lies, and its seconds and steps."""

    recipe: str
    overrides: tuple[str, ...]
    seconds: int
    steps: int
    data_key: str = "data.path"
    data: str = ""  # below the folder that --data names
    smoke: tuple[str, ...] = ()

    def settings(self, data: Path, smoke: bool) -> list[str]:
        """What is changed in the recipe; in the smoke form without compiling, which alone would take longer."""
        given = [f"{self.data_key}={data / self.data}", *self.overrides, *SAVED, f"training.max_steps={self.steps}"]
        short = ["training.max_steps=3", "training.torch_compile=false", *self.smoke]
        return [*given, *short] if smoke else given

    def command(self, folder: Path, data: Path, resume: bool, smoke: bool) -> list[str]:
        overrides = self.settings(data, smoke)
        options = ["--resume"] if resume else ["--overwrite"] if smoke else []
        return [sys.executable, "-m", "opencrate", "train", self.recipe, *overrides, "--output", str(folder), *options]


@dataclass(frozen=True)
class Bench:
    """One run of benchmarks/gpu.py."""

    options: tuple[str, ...]
    seconds: int

    def command(self, file: Path, smoke: bool) -> list[str]:
        budget = ["--smoke", "--budget", "40"] if smoke else ["--budget", str(self.seconds)]
        return [sys.executable, str(BENCH), *self.options, *budget, "--out", str(file)]


SMALL_IMAGES = (
    "training.per_device_train_batch_size=8",
    "logging.measure_inputs=4",
    "model.config.num_hidden_layers=1",
)
SMALL_TEXT = (*SMALL_IMAGES[:2], "model.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}")
WIDE = "model.config={hidden_size: 384, num_hidden_layers: 12, num_attention_heads: 6, ista_step_size: 0.5}"
WIDER = "model.config={hidden_size: 512, num_hidden_layers: 12, num_attention_heads: 8, ista_step_size: 0.1}"
JOBS: dict[str, tuple[Training | Bench, ...]] = {
    "bench": (Bench((), 285),),
    "cifar10": (
        Training(
            "cifar10",
            (*FAST, "logging.measure_every_epochs=5"),
            seconds=360,
            steps=10_000,
            data="cifar10",
            smoke=SMALL_IMAGES,
        ),
    ),
    "tiny-imagenet-20": (
        Training(
            "laptop-images",
            (
                *FAST,
                "data.image_size=64",
                "model.config.patch_size=8",
                "training.per_device_train_batch_size=128",
                "logging.measure_every_epochs=10",
            ),
            seconds=360,
            steps=6_000,
            data="tiny-imagenet-20",
            smoke=SMALL_IMAGES,
        ),
    ),
    "text": (
        Training(
            "shakespeare",
            (*FAST_TEXT, WIDE, "training.learning_rate=4e-3"),
            seconds=180,
            steps=2_000,
            data_key="text.path",
            data="text/tinyshakespeare/input.txt",
            smoke=SMALL_TEXT,
        ),
        Training(
            "wikitext2",
            (*FAST_TEXT, WIDER, "training.learning_rate=4e-3", "text.block_size=256"),
            seconds=180,
            steps=3_000,
            data_key="text.path",
            data="text/wikitext-2",
            smoke=(*SMALL_TEXT, "text.max_documents=200", "text.vocab_size=300"),
        ),
    ),
    "depth-24": (Bench(("--layers", "24", "--only", "machine", "eager", "compiled"), 200),),
    "depth-36": (Bench(("--layers", "36", "--batch", "128", "--only", "machine", "eager", "compiled"), 200),),
}


def run(command: list[str], seconds: int, log: Path) -> int:
    """Run a command with its output in a file too; interrupt it when its time is over; its exit status."""
    print(" ".join(command), flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        for number, wait in ((signal.SIGINT, seconds), (signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            try:
                return process.wait(wait)
            except subprocess.TimeoutExpired:
                print(f"{wait} s are over: {number.name}", flush=True)
                process.send_signal(number)
        return process.wait()


def keep(folder: Path, to: Path) -> None:
    """Copy what a run says of itself, finished or not."""
    there = folder if folder.exists() else folder.with_name(folder.name + ".partial")
    to.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (there / name).is_file():
            shutil.copy(there / name, to / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=JOBS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the data sets (README.md)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--resume", action="store_true", help="go on with trainings that ran out of time")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    name = f"{options.name}-smoke" if options.smoke else options.name
    options.out.mkdir(parents=True, exist_ok=True)
    status = 0
    for job in JOBS[options.name]:
        if isinstance(job, Bench):
            command = job.command(options.out / f"{name}.json", options.smoke)
            status |= run(command, job.seconds + GRACE, options.out / f"{name}.log")
            continue
        folder = options.out / "runs" / f"{name}-{job.recipe}"
        folder.parent.mkdir(exist_ok=True)
        command = job.command(folder, options.data, options.resume, options.smoke)
        status |= run(command, job.seconds, options.out / f"{name}.log")
        keep(folder, options.out / name / job.recipe)
    print(f"{options.out / name}*: exit status {status}")
    return status


if __name__ == "__main__":
    sys.exit(main())
