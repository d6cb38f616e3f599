"""Where a run is put: only what is ours is touched, and a kill at any step loses nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from opencrate.cli.main import main
from opencrate.store import runs

STEPS = ("rename", "touch", "unlink", "mkdir", "write_text")


def write_run(folder, number):
    (folder / runs.METRICS).write_text(json.dumps({"number": number}))
    (folder / runs.RECIPE).write_text("name: x\n")


def put(final, number, **how):
    with runs.new_directory(final, **how) as working:
        write_run(working, number)


def numbers_of(folder):
    """The runs that are there whole, wherever they lie."""
    return {json.loads(path.read_text())["number"] for path in folder.glob(f"*/{runs.METRICS}")}


def killed_at(step, final, **how):
    """Put run 2 in its place in a process that ends before its n-th change of the disk; whether it was killed."""
    process = os.fork()
    if process == 0:
        left = step

        def counted(change):
            def wrapped(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return change(*arguments, **options)

            return wrapped

        for name in STEPS:
            setattr(Path, name, counted(getattr(Path, name)))
        shutil.rmtree = counted(shutil.rmtree)
        put(final, 2, **how)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("way", ["resume", "overwrite"])
@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_step(tmp_path, before, way):
    """The same command goes on, or says how; neither the old run nor a complete new one is lost."""
    steps = 0
    while True:
        steps += 1
        folder = tmp_path / str(steps)
        folder.mkdir()
        final = folder / "run"
        if before:
            put(final, 1)
        if not killed_at(steps, final, overwrite=before):
            break
        assert not before or numbers_of(folder), "the old run is lost, and there is no new one"
        try:
            runs.check_place(final)
        except ValueError as error:
            assert "resume=True" in str(error) or "overwrite=True" in str(error)
        if way == "resume" and runs.recover(final):
            assert numbers_of(folder) == {2} and final.is_dir()
        else:
            put(final, 3, overwrite=True)
            assert numbers_of(folder) == {3}
        assert [path.name for path in folder.iterdir()] == ["run"], sorted(folder.iterdir())
    assert steps > 5 and numbers_of(folder) == {2}


def test_a_complete_run_is_put_in_its_place(tmp_path):
    put(tmp_path / "run", 1)
    (tmp_path / "run").rename(tmp_path / "run.partial")
    (tmp_path / "run.partial" / runs._LOCK).write_text(runs._LOCK_TEXT)
    (tmp_path / "run.partial" / runs._COMPLETE).touch()
    with pytest.raises(ValueError, match="was not put in its place; resume=True puts it there"):
        put(tmp_path / "run", 2)
    assert runs.recover(tmp_path / "run") and not runs.recover(tmp_path / "run")
    assert numbers_of(tmp_path) == {1}


def letters(folder):
    folder.mkdir(parents=True)
    (folder / "letter.txt").write_text("dear")


FOREIGN = {
    "partial": lambda root: letters(root / "run.partial"),
    "partial with a lock": lambda root: (letters(root / "run.partial"), (root / "run.partial" / ".lock").touch()),
    "partial with a recipe": lambda root: (letters(root / "run.partial"), write_run(root / "run.partial", 0)),
    "partial is a file": lambda root: (root / "run.partial").write_text("dear"),
    "partial is a link": lambda root: (letters(root / "mine"), os.symlink("mine", root / "run.partial")),
    "replaced": lambda root: letters(root / "run.replaced"),
    "replaced run": lambda root: (letters(root / "run.replaced"), write_run(root / "run.replaced", 0)),
    "replaced is a link": lambda root: os.symlink("nowhere", root / "run.replaced"),
    "a project with config.json": lambda root: (
        shutil.rmtree(root / "run"),
        letters(root / "run"),
        (root / "run" / "config.json").write_text('{"model_type": "vit"}'),
    ),
    "a letter in the run": lambda root: (root / "run" / "letter.txt").write_text("dear"),
    "a program in the run": lambda root: (root / "run" / "prepare.py").write_text("print('dear')"),
    "a letter among the checkpoints": lambda root: letters(root / "run" / runs.CHECKPOINTS / "checkpoint-2"),
    "a picture among the figures": lambda root: (
        (root / "run" / "figures").mkdir(),
        (root / "run" / "figures" / "me.jpg").write_text("dear"),
    ),
    "a folder in the run": lambda root: letters(root / "run" / "letters"),
    "the run is a link": lambda root: ((root / "run").rename(root / "mine"), os.symlink("mine", root / "run")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_stays(tmp_path, what):
    put(tmp_path / "run", 1)
    FOREIGN[what](tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    for how in ({}, {"overwrite": True}, {"resume": True}, {"overwrite": True, "resume": True}):
        with pytest.raises(ValueError):
            put(tmp_path / "run", 2, **how)
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_failed_run_leaves_no_empty_folders(tmp_path):
    with pytest.raises(RuntimeError), runs.new_directory(tmp_path / "a" / "b" / "run"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["data", "data/run", "model/run"])
def test_an_output_apart_from_every_input(tmp_path, output):
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"is an input too|lies inside an input"):
        runs.check_place(tmp_path / output, inputs=(str(tmp_path / "data"), str(tmp_path / "model"), None, "hf://a/b"))


def test_an_input_in_the_run_that_is_replaced(tmp_path):
    put(tmp_path / "run", 1)
    with pytest.raises(ValueError, match="an input lies in it"):
        runs.check_place(tmp_path / "run", overwrite=True, inputs=(str(tmp_path / "run" / runs.METRICS),))


@pytest.mark.parametrize("words", [(), ("training.seed=x",), ("training.seed==3",)])
def test_a_sweep_looks_at_every_place_first(tmp_path, words, capsys):
    letters(tmp_path / "out" / "attention-only-seed0")
    command = ("ablate", "digits-structure", "--smoke", "--arms", "attention-only", "--seeds", "0")
    assert main([*command, *words, "--output", str(tmp_path / "out")]) == 2
    assert ("pass --seeds" if words else "seed0: exists and is not a run") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["attention-only-seed0", "letter.txt"]
