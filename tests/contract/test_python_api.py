"""What the commands do, Python does, by the names at the top of the package."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

import opencrate
from opencrate.store.inputs import Inputs, input_batches


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = opencrate.load_recipe("digits", ["training.max_steps=2", "model.config.num_hidden_layers=1"])
    return opencrate.train(recipe, tmp_path_factory.mktemp("api") / "run")


def test_open_evaluate_measure(run):
    assert opencrate.kind_of(run.directory) == "classifier"
    saved = opencrate.open_saved(run.directory)
    assert saved.kind == "classifier" and saved.recipe.name == "digits" and saved.metrics["steps"] == 2
    for source in (saved, run.directory):
        found = opencrate.evaluate(source)
        assert found.num_images == 360 and found.top1 == run.metrics["accuracy"]
    measures = opencrate.layer_measures(
        saved.model, [next(iter(input_batches(saved, Inputs(split="train"), batch_size=8)))]
    )
    assert measures.num_layers == 1
    assert opencrate.diagnose_saved(run.directory, num_inputs=16).model == str(run.directory)


def test_predict(run, tmp_path):
    Image.fromarray(torch.arange(64, dtype=torch.uint8).view(8, 8).numpy()).save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    saved, skipped = opencrate.open_saved(run.directory, ("classifier",)), []
    files = [tmp_path / "bad.png", tmp_path / "one.png"]
    (found,) = opencrate.predict(saved, files, top_k=3, skipped=skipped)
    assert found["file"] == str(files[1]) and len(found["predictions"]) == 3 and len(skipped) == 1
    with pytest.raises(ValueError, match=r"bad\.png: not a readable image"):
        opencrate.predict(saved, files)


def test_errors_name_arguments(run, tmp_path):
    with pytest.raises(ValueError, match="exists; choose another output path, or pass overwrite=True"):
        opencrate.train("digits", run.directory)
    with pytest.raises(ValueError, match="split=validation: the run held out no validation images"):
        opencrate.evaluate(run.directory, split="validation")
    with pytest.raises(ValueError, match="not a causal language model"):
        opencrate.open_saved(run.directory, ("causal",))
    with pytest.raises(ValueError, match=r"`text`: .* reads images; give `data` instead"):
        opencrate.diagnose_saved(run.directory, text="stdlib")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["opencrate.training.train", "opencrate.store.saved", "opencrate.recipe.load"])
def test_any_module_may_be_imported_first(first, tmp_path):
    """Whatever a program imports first, training and opening find our models."""
    words = (
        f"import {first}; from opencrate.store.build import build_config; from opencrate.recipe.load import load_recipe"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"{words}; print(build_config(load_recipe('digits'), list('0123456789')).model_type)",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "crate", done.stderr[-1000:]
