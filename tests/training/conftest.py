"""A recipe that trains in a second."""

import pytest

from opencrate.recipe.load import load_recipe

from ..recipes.folders import FOLDER_OVERRIDES, write_classes


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A recipe on 24 training images of 16x16 pixels, three steps per epoch, with any overrides."""
    folder = write_classes(tmp_path_factory.mktemp("images"), 10)

    def recipe(*overrides):
        return load_recipe("imagefolder", [*FOLDER_OVERRIDES, f"data.path={folder}", *overrides])

    return recipe


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Killing a process loses nothing that was handed to the system; only a power cut would need the flush."""
    monkeypatch.setattr("opencrate.store.checkpoints._flush", lambda path: None)
