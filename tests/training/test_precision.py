"""`training.bf16=auto`: decided by the processor, once for a run."""

import pytest

from opencrate.store import runs
from opencrate.training import precision
from opencrate.training.train import train
from opencrate.training.trainer import training_arguments

from .common import assert_same_run
from .test_resume import STEPS, Killed, stop_before


@pytest.mark.parametrize("has", [False, True])
def test_the_processor_decides_and_the_run_says_so(has, small, tmp_path, monkeypatch):
    """The run is the one that states it, and so it is when resumed on a processor of the other kind."""
    stated = train(small(*STEPS, f"training.bf16={str(has).lower()}"), tmp_path / "stated")
    recipe = small(*STEPS, "training.bf16=auto")
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has)
    assert training_arguments(recipe, tmp_path / "none", validate=False).bf16 is has
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_before(patched, 5)
        train(recipe, tmp_path / "auto")
    assert runs.read_recipe(tmp_path / "auto.partial").training.bf16 is has
    monkeypatch.setattr(precision, "has_bfloat16", lambda: not has)
    resumed = train(recipe, tmp_path / "auto", resume=True)
    assert runs.read_recipe(resumed.directory).training.bf16 is has
    assert_same_run(stated.directory, resumed.directory)
