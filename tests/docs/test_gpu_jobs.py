"""The jobs for a GPU, which nobody tries before a GPU is there."""

import runpy
import sys
from pathlib import Path

import pytest

from opencrate.recipe.load import load_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
FILE = runpy.run_path(str(FOLDER / "jobs.py"), run_name="jobs")
JOBS = FILE["JOBS"]
MANY = runpy.run_path(str(FOLDER / "many.py"), run_name="many")
LISTS = sorted((FOLDER / "lists").glob("*.txt"))
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


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_lists_name_recipes_and_keys_that_there_are(path):
    lines = MANY["read_list"](path)
    assert len({line.name for line in lines}) == len(lines) > 0 and path.name in (FOLDER / "README.md").read_text()
    for line in lines:
        train, *after = (command[len(MANY["CLI"]) :] for command in line.commands(Path("out"), Path("data"), False))
        assert train[0] == "train" and train[-4:] == ["--output", f"out/{line.name}", "--no-report", "--resume"]
        load_recipe(train[1], train[2:-4])
        assert all(words[0] in ("train", "finetune") and "{" not in " ".join(words) for words in after)


def test_many_at_once_until_the_time_is_over(monkeypatch, tmp_path, capsys):
    """One line ends, one fails, one is interrupted, and what is done is not done again."""
    program = tmp_path / "program.py"
    program.write_text("import sys, time\nprint(*sys.argv[1:], flush=True)\n{'good': lambda: 0, 'bad': lambda: sys.exit(3),"
                       " 'long': lambda: time.sleep(60)}[sys.argv[2]]()\n")  # fmt: skip
    monkeypatch.setitem(MANY["main"].__globals__, "CLI", (sys.executable, str(program)))
    monkeypatch.setitem(MANY["main"].__globals__, "GRACE", 0)
    (tmp_path / "list.txt").write_text(
        "# three\n\none | good a={data} && finetune good {out}/one\ntwo | bad\nthree | long\n"
    )
    words = [
        "many.py",
        str(tmp_path / "list.txt"),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--seconds",
        "4",
    ]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", words)
        assert MANY["main"]() == 1
        said = capsys.readouterr().out
        assert (
            "two: not finished (3)" in said and "three: not finished (time is over)" in said and "1 of 3 lines" in said
        )
    log = (tmp_path / "out" / "one.log").read_text()
    assert log.splitlines()[1] == f"finetune good {tmp_path}/out/one" and f"good a={tmp_path} --output" in log
    assert log.count("finetune") == 1


def test_a_line_whose_turn_comes_too_late_does_not_start(monkeypatch, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("one | digits\n")
    words = [str(tmp_path / "list.txt"), "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", ["many.py", *words])
    assert MANY["main"]() == 1
    assert "one: not finished (time is over)" in capsys.readouterr().out
    assert not (tmp_path / "out" / "one.log").exists()


@pytest.mark.parametrize("missing", ["list.txt", "data"])
def test_what_is_missing_is_said_before_anything_starts(missing, monkeypatch, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("one | digits\n")
    (tmp_path / "data").mkdir()
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    words = [str(tmp_path / "list.txt"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["many.py", *words])
    with pytest.raises(SystemExit):
        MANY["main"]()
    assert f"{tmp_path / missing}: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
