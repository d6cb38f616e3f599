"""The repository's own package of weights: everything in its manifest, and nothing else, within the limits."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

import opencrate
from opencrate import evaluate, load_recipe, open_saved
from opencrate._pretrained import safetensors_dtypes

from .conftest import SOURCE

PLACE = SOURCE / "src" / "opencrate_weights"
MODELS = json.loads((PLACE / "manifest.json").read_text())["models"]
KEYS = {"task", "pipeline_tag", "class", "dataset", "data_license", "license", "recipe", "commit", "opencrate"}
KEYS |= {"parameters", "scores", "bf16_change", "files"}


def test_folders_are_those_of_the_manifest():
    folders = {path.name for path in PLACE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MODELS)


def test_limits(pack):
    sizes = {name: pack.bytes_of(entry) for name, entry in MODELS.items()}
    assert all(size <= pack.MODEL_LIMIT for size in sizes.values()), sizes
    assert sum(sizes.values()) <= pack.PACKAGE_LIMIT


@pytest.mark.parametrize("name", MODELS)
def test_files(name):
    entry, folder = MODELS[name], PLACE / name
    assert set(entry) == KEYS
    assert {path.name for path in folder.iterdir()} == set(entry["files"])
    for file, stated in entry["files"].items():
        content = (folder / file).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (stated["sha256"], stated["bytes"]), file
    assert set(safetensors_dtypes(folder / "model.safetensors").values()) <= {"BF16", "I64", "BOOL"}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_opens_and_has_a_card(name):
    entry, saved = MODELS[name], open_saved(PLACE / name)
    assert type(saved.model).__name__ == entry["class"] and saved.num_parameters == entry["parameters"]
    assert saved.tokenizer if saved.reads == "texts" else saved.processor
    card = ModelCard.load(PLACE / name / "README.md")
    assert card.data.license not in (None, "unknown") and entry["data_license"], "state both licences"


DIGITS = [name for name, entry in MODELS.items() if "Digits" in entry["dataset"]]


@pytest.mark.parametrize("name", DIGITS)
def test_the_stated_result_is_that_of_the_packed_weights(name):
    (score,) = MODELS[name]["scores"]
    assert evaluate(PLACE / name, data="digits").top1 == pytest.approx(score["value"], abs=0.003)  # an image of 360


@pytest.mark.parametrize("name", MODELS)
def test_a_model_knows_what_it_started_from(name):
    before = open_saved(PLACE / name).untrained().state_dict()
    after = open_saved(PLACE / name).model.state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    recipe = load_recipe(PLACE / name / "training.yaml")
    assert ("start.safetensors" in MODELS[name]["files"]) == recipe.model.starts_whitened


@pytest.mark.parametrize("name", MODELS)
def test_the_page_states_size_and_results(pack, name):
    entry = MODELS[name]
    (row,) = re.findall(rf"^\| `opencrate/{name}` \|.*$", (SOURCE.parent / "docs" / "weights.md").read_text(), re.M)
    assert row.endswith(f" {pack.bytes_of(entry) / 1e6:.1f} MB |")
    score = entry["scores"][0]
    shown = f"{100 * score['value']:.2f} %" if score["percent"] else f"{score['value']:.4g}"
    assert shown in row
    if score["deviation"] is not None:
        assert f"{100 * score['mean']:.2f} ± {100 * score['deviation']:.2f} % ({len(score['seeds'])})" in row


ASKED = {"text-generation": "The ", "fill-mask": "it was the [MASK] of the year."}


@pytest.mark.parametrize("name", MODELS)
def test_a_pipeline_runs_it(name):
    opencrate.register_auto_classes()
    run = pipeline(MODELS[name]["pipeline_tag"], model=str(PLACE / name))
    size = getattr(run.model.config, "image_size", 0)
    assert run(ASKED.get(run.task, Image.new("RGB", (size, size), "grey")))


def test_the_wheel_holds_the_models_and_stays_small(pack, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.stat().st_size <= pack.PACKAGE_LIMIT
    held = {name.removeprefix("opencrate_weights/") for name in zipfile.ZipFile(wheel).namelist()}
    expected = {f"{name}/{file}" for name, entry in MODELS.items() for file in entry["files"]}
    assert {"__init__.py", "manifest.json", *expected} <= held
    assert tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["dependencies"] == []
