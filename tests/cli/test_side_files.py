"""A damaged file beside the others: named where it is needed, and no hindrance where it is not."""

import itertools
import shutil

import pytest

from ..analysis.language_models import STORY, causal, saved
from ..recipes.folders import write_classes
from .hostile import DAMAGES, INTERNAL

COMMANDS = {
    "predict": ("predict", "X", "data"),
    "evaluate": ("evaluate", "X"),
    "evaluate --data": ("evaluate", "X", "--data", "data"),
    "analyze": ("analyze", "X", "--num-images", "4", "--output", "out", "--measures", "basic"),
    "probe": ("probe", "X", "--method", "knn"),
    "doctor": ("doctor", "X", "--num-images", "4"),
    "generate": ("generate", "X", "The", "--max-new-tokens", "1"),
    "evaluate --text": ("evaluate", "X", "--text", "story.txt"),
}
IMAGES = {
    "config.json": {"predict", "evaluate", "evaluate --data", "analyze", "probe", "doctor"},
    "preprocessor_config.json": {"predict", "evaluate", "evaluate --data", "analyze", "probe", "doctor"},
    "recipe.yaml": {"evaluate", "analyze", "probe", "doctor"},
    "metrics.json": {"evaluate", "analyze", "probe"},
    "environment.json": set(),
    "log.jsonl": {"doctor"},
    "progress.json": set(),
}
"""Which commands need a side file of a run; the others of its kind must go on without it."""
TEXT = {
    "config.json": {"generate", "evaluate --text"},
    "tokenizer.json": {"generate", "evaluate --text"},
    "tokenizer_config.json": {"generate", "evaluate --text"},
    "generation_config.json": {"generate"},
}
OF_IMAGES = ("predict", "evaluate", "evaluate --data")
OF_IMAGES_SLOW = (*OF_IMAGES, "analyze", "probe", "doctor")
OF_TEXT = ("generate", "evaluate --text")
MAY_BE_MISSING_TOO = ("folder", "pipe")
"""Damages after which a file counts as one that is not there; a run without one is a plain folder, or has defaults."""


def product(commands_of_images):
    for files, commands in ((IMAGES, commands_of_images), (TEXT, OF_TEXT)):
        for (file, needed), damage, command in itertools.product(files.items(), DAMAGES, commands):
            yield file, damage, command, command in needed, files is TEXT


FULL = list(product(OF_IMAGES_SLOW))
FEW = [one for number, one in enumerate(product(OF_IMAGES)) if number % 9 == 0]


@pytest.fixture
def world(digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text(STORY)
    write_classes(tmp_path / "data", 1, mode="L")
    return tmp_path


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return saved(causal("crate"), tmp_path_factory.mktemp("language") / "l")


def check(opencrate, source, file, damage, command, needed):
    shutil.copytree(source, "X")
    path = source.__class__("X") / file
    if not path.exists():
        path.write_text("{}")
    DAMAGES[damage](path)
    result = opencrate(*COMMANDS[command])
    lines = result.err.splitlines()
    assert not any(word in result.err for word in INTERNAL), result.err
    assert all(line.startswith("opencrate: ") and line.isprintable() for line in lines), result.err
    if result.code == 2 and command == "evaluate --data" and "not among" in lines[-1]:
        return  # the images are of other classes: the file was not needed
    may = damage in MAY_BE_MISSING_TOO
    good = {0, 1} if command == "doctor" else {0}
    assert result.code in (good | {2} if may else {2} if needed else good), result
    if result.code == 2:
        assert result.out == "" and lines[-1].startswith("opencrate: error: "), result
        assert may or file in lines[-1] or (file == "config.json" and "X" in lines[-1]), lines[-1]


@pytest.mark.parametrize(("file", "damage", "command", "needed", "text"), FEW)
def test_few(opencrate, world, digits_run, language, file, damage, command, needed, text):
    check(opencrate, language if text else digits_run, file, damage, command, needed)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "damage", "command", "needed", "text"), FULL)
def test_all(opencrate, world, digits_run, language, file, damage, command, needed, text):
    check(opencrate, language if text else digits_run, file, damage, command, needed)
