"""Small trained runs, and a package opencrate_weights with models packed from them, in front of any installed one."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from opencrate import load_recipe, train

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "weights"
MODULE = "opencrate_weights"

if not (SOURCE / "pack.py").is_file():
    pytest.skip("no weights/ here: not a copy of the repository", allow_module_level=True)


def load_pack():
    """weights/pack.py as a module."""
    spec = importlib.util.spec_from_file_location("opencrate_pack", SOURCE / "pack.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pack():
    return load_pack()


def new_package(folder):
    """The package's module without models; its folder."""
    place = folder / MODULE
    shutil.copytree(SOURCE / "src" / MODULE, place, ignore=lambda _, names: {n for n in names if n == "__pycache__"})
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (place / "manifest.json").write_text('{"format": 1, "models": {}}')
    return place


def in_front(patch, folder):
    """Make Python find the package in `folder`, whatever was imported before."""
    patch.syspath_prepend(str(folder))
    patch.delitem(sys.modules, MODULE, raising=False)


@pytest.fixture(scope="session")
def digits_runs(tmp_path_factory):
    """Two seeds of a shallow CRATE on digits."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ["training.num_train_epochs=2", "model.config.num_hidden_layers=2"]
    for seed in (0, 1):
        train(load_recipe("digits", [*settings, f"training.seed={seed}"]), folder / f"digits-{seed}")
    return [folder / "digits-0", folder / "digits-1"]


@pytest.fixture(scope="session")
def whitened_run(tmp_path_factory):
    """One whose patch embedding starts by whitening, of seed 3."""
    settings = ["training.max_steps=1", "training.seed=3", "model.config.num_hidden_layers=1"]
    settings += ["model.whiten_patches=true", "model.config.patch_embedding=conv"]
    folder = tmp_path_factory.mktemp("whitened") / "run"
    train(load_recipe("digits", settings), folder)
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """A tiny causal model of characters; its text lies at an absolute path."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "book.txt").write_text("to be or not to be, that is the question. " * 200)
    settings = [f"text.path={folder / 'book.txt'}", "text.tokenizer=characters", "text.block_size=16"]
    settings += ["text.test_fraction=0.2", "text.validation_fraction=0.2", "training.max_steps=3"]
    settings += ["model.config.num_hidden_layers=2", "model.config.hidden_size=24", "model.config.head_dim=6"]
    train(load_recipe("shakespeare-alpha", settings), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def packed(tmp_path_factory, pack, digits_runs, text_run, whitened_run):
    """A folder with the package, holding `digits`, `letters` and `whitened`."""
    folder = tmp_path_factory.mktemp("site")
    place = new_package(folder)
    assert "packed opencrate/digits" in pack.pack(digits_runs, "digits", place, license="mit")
    pack.pack([text_run], "letters", place, dataset="a line of Hamlet", data_license="public domain")
    pack.pack([whitened_run], "whitened", place)
    return folder


@pytest.fixture
def package(packed, tmp_path, monkeypatch):
    """A copy of that package, found before any other."""
    folder = tmp_path / "site"
    shutil.copytree(packed, folder)
    in_front(monkeypatch, folder)
    monkeypatch.chdir(tmp_path)
    return folder / MODULE


@pytest.fixture
def no_package(monkeypatch):
    """Nothing is installed."""
    monkeypatch.setitem(sys.modules, MODULE, None)
