"""Fine-tuning keeps what the weights were trained with; what a recipe or a user asks for instead is done and said."""

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from opencrate import CrateConfig, CrateForImageClassification, CrateMAEConfig, CrateMAEForPreTraining
from opencrate.data.options import ImageData
from opencrate.recipe.load import load_recipe, recipe_yaml
from opencrate.recipe.source_settings import source_settings
from opencrate.store.build import build_config, build_processor
from opencrate.store.start import start_model

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 4}
VIT = ViTConfig(**SMALL, intermediate_size=48, image_size=16)
OWN = {
    "plain": ImageData(image_size=16, image_mean=[0.2, 0.4, 0.7], image_std=[0.1, 0.2, 0.3]),
    "cropped": ImageData(image_size=16, resize_size=20, interpolation="bicubic"),
    "grey": ImageData(image_size=[8, 16], num_channels=1, image_mean=[0.5], image_std=[0.25], interpolation="nearest"),
}
OTHERS = {
    "vit": {"size": {"height": 16, "width": 16}, "resample": 3},
    "unscaled": {"size": {"height": 16, "width": 16}, "do_rescale": False, "image_mean": 120.0, "image_std": 60.0},
    "unnormalised": {"size": {"height": 16, "width": 16}, "do_normalize": False},
    "other range": {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
}


def write_source(folder, kind):
    """A folder with a model and its image processor."""
    if kind in OTHERS:
        ViTForImageClassification(VIT).save_pretrained(folder)
        ViTImageProcessorPil(**OTHERS[kind]).save_pretrained(folder)
        return folder
    data = OWN["plain" if kind == "autoencoder" else kind]
    fields = {**SMALL, "image_size": data.image_size, "num_channels": data.num_channels, "pool": "mean"}
    if kind == "autoencoder":
        CrateMAEForPreTraining(CrateMAEConfig(**fields, decoder_num_hidden_layers=1)).save_pretrained(folder)
    else:
        CrateForImageClassification(CrateConfig(**fields)).save_pretrained(folder)
    build_processor(data).save_pretrained(folder)
    return folder


def recipe_that_states(tmp_path, folder, data=None, model=None):
    """A recipe file that starts from a folder and states no more than it is given."""
    path = tmp_path / "mine.yaml"
    kind = json.loads((folder / "config.json").read_text())["model_type"].replace("_mae", "")
    content = {
        "model": {"init_from": str(folder), "type": kind, **(model or {})},
        "data": {"path": "images", **(data or {})},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("kind", [*OWN, *OTHERS, "autoencoder"])
def test_images_become_the_same_tensors(kind, tmp_path):
    source = write_source(tmp_path / "source", kind)
    recipe = load_recipe(recipe_that_states(tmp_path, source))
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if recipe.data.num_channels == 1 else "RGB")
    both = AutoImageProcessor.from_pretrained(source), build_processor(recipe.data)
    expected, found = (torch.as_tensor(one(images=[image], return_tensors="pt")["pixel_values"]) for one in both)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-6)
    model, started = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert not started.settings and getattr(model.config, "pool", "cls") == ("cls" if kind in OTHERS else "mean")
    assert load_recipe(_written(recipe, tmp_path)) == recipe, "a run goes on without looking at the source again"


def _written(recipe, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "recipe.yaml").write_text(recipe_yaml(recipe))
    return path


ASKED = {
    "data.image_mean": ([0.2, 0.4, 0.7], [0.5, 0.5, 0.5]),
    "data.image_std": ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]),
    "data.image_size": (16, 24),
    "data.resize_size": (None, 20),
    "data.interpolation": ("bilinear", "lanczos"),
}


@pytest.mark.parametrize("by", ["recipe", "command line"])
@pytest.mark.parametrize("key", ASKED)
def test_what_is_asked_for_is_done_and_said(key, by, tmp_path, caplog):
    source = write_source(tmp_path / "source", "plain")
    before, now = ASKED[key]
    name = key.removeprefix("data.")
    path = recipe_that_states(tmp_path, source, {name: now} if by == "recipe" else None)
    recipe = load_recipe(path, [f"{key}={json.dumps(now)}"] if by == "command line" else ())
    assert getattr(recipe.data, name) == now
    with caplog.at_level(logging.INFO, logger="opencrate"):
        _, started = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert started.settings[key] == [before, now] and len(started.settings) == 1
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"{key} {before} -> {now}" in line


def test_a_named_size_changes_its_own_fields_alone(tmp_path):
    """Pooling, λ and the like are not the size's: the source's stay."""
    source = tmp_path / "source"
    config = CrateConfig.from_size("digits", pool="mean", ista_lambda=0.3, image_size=8, num_channels=3)
    CrateForImageClassification(config).save_pretrained(source)
    recipe = load_recipe(recipe_that_states(tmp_path, source, model={"size": "digits"}))
    found = build_config(recipe, ["a", "b"])
    assert (found.pool, found.ista_lambda, found.hidden_size) == ("mean", 0.3, config.hidden_size)


def test_a_crop_goes_with_its_image_size(tmp_path):
    source = write_source(tmp_path / "source", "cropped")
    path = recipe_that_states(tmp_path, source)
    sizes = [load_recipe(path, words).data for words in ((), ["data.image_size=16"], ["data.image_size=32"])]
    assert [(one.image_size, one.resize_size) for one in sizes] == [(16, 20), (16, 20), (32, None)]


def test_a_resize_that_no_recipe_can_state_is_said(tmp_path):
    source = write_source(tmp_path / "source", "cropped")
    path = source / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"height": 20, "width": 24}}))
    recipe = load_recipe(recipe_that_states(tmp_path, source))
    _, started = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert started.settings == {"data.resize_size": [[20, 24], 20]}


def test_a_source_without_a_processor_is_said(tmp_path, caplog):
    source = write_source(tmp_path / "source", "plain")
    (source / "preprocessor_config.json").unlink()
    recipe = load_recipe(recipe_that_states(tmp_path, source))
    assert recipe.data.image_size == 16, "which the configuration tells"
    start_model(recipe, build_config(recipe, ["a", "b"]))
    assert "holds no image processor; mean, deviation and sizes are the recipe's" in caplog.text


@pytest.mark.parametrize("content", ["{", "3", "null", "[" * 100_000])
def test_damaged_files_are_named(content, tmp_path):
    source = write_source(tmp_path / "source", "plain")
    (source / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: .*(damaged|must hold a JSON mapping)"):
        source_settings(source, "image-classification")
