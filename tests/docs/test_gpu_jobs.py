"""The jobs for a GPU, which nobody tries before a GPU is there."""

import runpy
import sys
from pathlib import Path

import pytest

from opencrate.recipe.load import load_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
FILE = runpy.run_path(str(FOLDER / "jobs.py"), run_name="jobs")
JOBS = FILE["JOBS"]
TRAININGS = [job for jobs in JOBS.values() for job in jobs if isinstance(job, FILE["Training"])]


@pytest.mark.parametrize("job", TRAININGS, ids=lambda job: job.recipe)
def test_recipes_take_what_the_jobs_change(job):
    recipe = load_recipe(job.recipe, job.settings(Path("data"), smoke=False))
    assert recipe.training.bf16 and recipe.training.torch_compile and recipe.training.save_strategy == "steps"
    assert recipe.training.max_steps == job.steps
    assert load_recipe(job.recipe, job.settings(Path("data"), smoke=True)).training.max_steps == 3


@pytest.mark.parametrize("name", JOBS)
def test_jobs_take_eight_minutes_and_are_listed(name):
    assert sum(job.seconds + FILE["GRACE"] for job in JOBS[name]) <= 480
    assert f"jobs.py {name}" in (FOLDER / "README.md").read_text()


def test_a_job_that_takes_too_long_is_interrupted_and_says_what_it_did(tmp_path):
    waits = "import signal, time\nsignal.signal(signal.SIGINT, lambda *a: (print('saved'), exit(3)))\ntime.sleep(60)"
    assert FILE["run"]([sys.executable, "-u", "-c", waits], 2, tmp_path / "log") == 3
    assert "saved" in (tmp_path / "log").read_text()
    partial = tmp_path / "runs" / "one.partial"
    partial.mkdir(parents=True)
    (partial / "log.jsonl").write_text("{}\n")
    FILE["keep"](tmp_path / "runs" / "one", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["log.jsonl"]
