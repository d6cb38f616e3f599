"""A run means the same in every working directory, and after it was moved."""

import json
import shutil
import stat

import pytest

from opencrate.cli.main import main
from opencrate.recipe.load import load_recipe
from opencrate.recipe.locations import located
from opencrate.store import runs
from opencrate.training.train import train

from ..recipes.folders import FOLDER_OVERRIDES, write_classes
from .test_resume import Killed, stop_before


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two working directories; the images lie in the first, which is the current one."""
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    write_classes(here / "images", 10)
    monkeypatch.chdir(here)
    return here, there


def recipe(*overrides):
    return load_recipe("imagefolder", [*FOLDER_OVERRIDES, "data.path=images", *overrides])


@pytest.fixture
def moved(places, monkeypatch):
    """A run that was moved to the other directory, which is the current one; its metrics."""
    here, there = places
    metrics = train(recipe(), "run").metrics
    monkeypatch.chdir(there)
    shutil.move(here / "run", there / "moved")
    return metrics


def test_a_run_is_evaluated_from_another_directory_and_after_a_move(moved, capsys):
    for words in (["evaluate", "moved"], ["evaluate", "moved", "--data", "../here/images"]):
        assert main([*words, "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["top1"], found["num_images"]) == (moved["test"]["top1"], moved["test"]["num_images"])


@pytest.mark.slow
@pytest.mark.parametrize("words", [["probe", "moved"], ["analyze", "moved"], ["audit", "moved"]])
def test_a_run_is_read_by_every_command_after_a_move(words, moved):
    assert main(words) == 0


def test_the_runs_own_data_is_known_by_any_name(places, monkeypatch):
    from opencrate.store.inputs import labelled_images
    from opencrate.store.saved import open_saved

    here, there = places
    saved = open_saved(train(recipe(), "run").directory)
    monkeypatch.chdir(there)
    names = (None, "../here/images/../images", str(here / "images"))
    assert [labelled_images(saved, name).num_rows for name in names] == [6, 6, 6]
    assert labelled_images(saved, names[2], "train").num_rows == 24


def test_a_run_is_resumed_from_another_directory(places, monkeypatch):
    here, there = places
    words = ("training.save_strategy=steps", "training.save_steps=1")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 2)
        train(recipe(*words), "run")
    monkeypatch.chdir(there)
    again = load_recipe(here / "run.partial")
    assert train(again, here / "run", resume=True).metrics["resumed_at"] == [2]
    with pytest.raises(ValueError, match="nothing to resume"):
        train(recipe(*words, f"data.path={here / 'images'}"), "../here/run", resume=True)


def test_places_are_absolute_and_words_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = located(load_recipe("imagefolder", ["data.path=some/../images", "model.init_from=base"]))
    assert image.data.path == f"{tmp_path}/some/../images" and image.model.init_from == f"{tmp_path}/base"
    assert located(image) == image and image.text == load_recipe("imagefolder").text
    text = located(load_recipe("text-demo"))
    assert (text.text.path, text.text.tokenizer) == ("stdlib", "characters")
    text = located(load_recipe("text-demo", ["text.tokenizer=run", "text.path=hf://owner/name"]))
    assert (text.text.path, text.text.tokenizer) == ("hf://owner/name", f"{tmp_path}/run")
    glue = located(load_recipe("glue", ["glue.tokenizer=run"]))
    assert (glue.glue.path, glue.glue.tokenizer) == (f"{tmp_path}/glue/SST-2", f"{tmp_path}/run")
    assert located(load_recipe("digits")) == load_recipe("digits")


def test_all_files_of_a_run_have_ordinary_permissions(places):
    directory = train(recipe("training.save_strategy=epoch", "optimiser.ema_decay=0.9"), "run").directory
    ordinary = directory.parent / "ordinary"
    ordinary.touch()
    modes = {path.relative_to(directory): stat.filemode(path.stat().st_mode) for path in directory.rglob("*.*")}
    files = {path: mode for path, mode in modes.items() if mode[0] == "-"}
    assert set(files.values()) == {stat.filemode(ordinary.stat().st_mode)}, files
    assert runs.METRICS in {str(path) for path in files} and any("checkpoint-" in str(path) for path in files)
