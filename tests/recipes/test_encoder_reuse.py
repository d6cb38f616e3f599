"""A classifier made of an autoencoder's encoder: the same tokens, and every tensor loaded, new or left out by name."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from opencrate import (
    CrateBackbone,
    CrateConfig,
    CrateForImageClassification,
    CrateImageProcessor,
    CrateMAEConfig,
    CrateMAEForPreTraining,
    CrateMAEModel,
    CrateModel,
)
from opencrate.configuration_crate import AUTOENCODER_FIELDS
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_config, initialise
from opencrate.store.saved import open_saved
from opencrate.store.start import start_model
from opencrate.training.train import train

from .folders import FOLDER_OVERRIDES, write_classes

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
POSITIONS = "embeddings.position_embeddings"


@torch.no_grad()
def scrambled(model):
    """The model with norms and biases that are not what a fresh one has."""
    torch.manual_seed(3)
    for value in model.parameters():
        if value.ndim == 1:
            value.add_(0.3 * torch.randn_like(value))
    return model.eval()


@pytest.fixture(scope="module")
def crate_mae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crate") / "mae"
    torch.manual_seed(0)
    model = scrambled(CrateMAEForPreTraining(CrateMAEConfig(**SMALL, pool="mean", decoder_num_hidden_layers=1)))
    model.save_pretrained(folder)
    CrateImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def vit_mae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit") / "mae"
    config = ViTMAEConfig(**SMALL, **DECODER, intermediate_size=48, decoder_intermediate_size=32)
    model = scrambled(initialise(config, 0, "masked-autoencoding"))
    model.save_pretrained(folder)
    CrateImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    return folder, model


def pixels(size=16):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole_latent(model, images):
    """What the encoder makes of images without masks, patches in order."""
    ratio = model.config.mask_ratio
    try:
        model.config.mask_ratio = 0.0
        count = (images.shape[-1] // 4) ** 2
        noise = torch.arange(count, dtype=torch.float32).expand(len(images), -1)
        return model.base_model(images, noise=noise).last_hidden_state
    finally:
        model.config.mask_ratio = ratio


def test_from_pretrained_takes_the_encoder(crate_mae, tmp_path):
    folder, mae = crate_mae
    model, info = CrateForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    encoder = {name for name in mae.state_dict() if name.startswith("crate.")}
    assert set(info["unexpected_keys"]) == {*(mae.state_dict().keys() - encoder), "crate.embeddings.mask_token"}
    assert model.config.model_type == "crate" and model.config.pool == "mean" and model.config.num_labels == 3
    with torch.no_grad():
        latent = model.norm(model.crate(pixels()).last_hidden_state)
    torch.testing.assert_close(latent, whole_latent(mae, pixels()), rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict()), "under the classifier's names"
    again = CrateForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(again.state_dict().values(), model.state_dict().values()))


def test_encoder_alone_and_backbone(crate_mae):
    folder, _ = crate_mae
    tokens = [cls.from_pretrained(folder)(pixels(), output_hidden_states=True) for cls in (CrateModel, CrateBackbone)]
    assert torch.equal(tokens[0].hidden_states[-1], tokens[1].hidden_states[-1])


def test_an_autoencoders_encoder_saved_alone(crate_mae, tmp_path):
    _, mae = crate_mae
    mae.crate.save_pretrained(tmp_path)
    model = CrateForImageClassification.from_pretrained(tmp_path, num_labels=3)
    with torch.no_grad():
        latent = model.norm(model.crate(pixels()).last_hidden_state)
    torch.testing.assert_close(latent, whole_latent(mae, pixels()), rtol=0, atol=1e-6)


def test_fields_of_the_decoder_are_all_known():
    fields = [{name for name in cls.__dataclass_fields__} for cls in (CrateMAEConfig, CrateConfig)]
    assert fields[0] - fields[1] == AUTOENCODER_FIELDS


def recipe_from(folder, *overrides):
    plain = ["model.size=null", "data.image_size=16", "data.resize_size=null"]
    return load_recipe("imagefolder", [*plain, f"model.init_from={folder}", *overrides])


def test_training_starts_from_the_encoder(crate_mae):
    folder, mae = crate_mae
    recipe = recipe_from(folder)
    model, found = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert found.new == ["classifier.weight", "classifier.bias"] and not found.interpolated
    decoder = {name for name in mae.state_dict() if not name.startswith("crate.")}
    assert set(found.left_out) == {"crate.embeddings.mask_token", *decoder}
    assert {"norm.weight", "norm.bias"} <= set(found.loaded)
    assert len(found.loaded) + len(found.left_out) == len(mae.state_dict())
    model.eval()
    with torch.no_grad():
        latent = model.norm(model.crate(pixels()).last_hidden_state)
    torch.testing.assert_close(latent, whole_latent(mae, pixels()), rtol=0, atol=1e-6)
    assert not found.settings and model.config.ista_lambda == 0.5


def test_positions_are_interpolated_to_another_grid(crate_mae):
    folder, mae = crate_mae
    recipe = recipe_from(folder, "data.image_size=24")
    model, found = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert found.interpolated == [f"crate.{POSITIONS}"] and found.grid == [[4, 4], [6, 6]]
    model.eval()
    with torch.no_grad():
        latent = model.norm(model.crate(pixels(24)).last_hidden_state)
    torch.testing.assert_close(latent, whole_latent(mae, pixels(24)), rtol=0, atol=1e-6)


def test_a_vit_starts_from_a_vit_mae(vit_mae):
    folder, mae = vit_mae
    recipe = recipe_from(folder, "model.type=vit")
    model, found = start_model(recipe, build_config(recipe, ["a", "b"]))
    assert found.new == ["classifier.weight", "classifier.bias"]
    assert set(found.left_out) == {name for name in mae.state_dict() if name.startswith("decoder.")}
    model.eval()
    with torch.no_grad():
        latent = model.vit(pixels()).last_hidden_state
    torch.testing.assert_close(latent, whole_latent(mae, pixels()), rtol=0, atol=1e-6)
    assert model.vit.embeddings.position_embeddings.requires_grad


def test_an_autoencoder_goes_on_from_another_at_another_size(crate_mae, vit_mae):
    for (folder, mae), kind in ((crate_mae, "crate_mae"), (vit_mae, "vit_mae")):
        words = ["task=masked-autoencoding", f"model.type={kind}", "data.image_size=24"]
        recipe = recipe_from(folder, *words)
        model, found = start_model(recipe, build_config(recipe))
        assert not found.new and not found.left_out
        assert sorted(found.loaded + found.interpolated) == sorted(mae.state_dict()) and len(found.interpolated) == 2
        assert torch.equal(model.state_dict()[found.loaded[3]], mae.state_dict()[found.loaded[3]])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.type=vit"], ["holds a crate_mae model, but model.type is vit", "set model.type=crate "]),
        (["model.config.num_hidden_layers=3"], ["crate.layers.2", "is missing"]),
        (["model.config.num_hidden_layers=1"], ["the model has no crate.layers.1"]),
        (["model.config.patch_size=2"], ["has shape"]),
        (["task=masked-autoencoding", "model.type=vit_mae"], ["holds a crate_mae model", "model.type=crate_mae"]),
    ],
)
def test_what_does_not_fit_is_one_clear_error(crate_mae, overrides, words):
    recipe = recipe_from(crate_mae[0], *overrides)
    labels = ["a", "b"] if recipe.task == "image-classification" else None
    with pytest.raises(ValueError) as caught:
        start_model(recipe, build_config(recipe, labels))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_classifier_given_as_autoencoder(tmp_path):
    CrateForImageClassification(CrateConfig(**SMALL)).save_pretrained(tmp_path)
    recipe = recipe_from(tmp_path, "task=masked-autoencoding", "model.type=crate_mae")
    with pytest.raises(ValueError, match=r"holds a crate model, but model.type is crate_mae; start from another model"):
        build_config(recipe)


def test_an_encoder_given_as_autoencoder(crate_mae, tmp_path):
    """Without its decoder it is not read as a whole model."""
    CrateMAEModel.from_pretrained(crate_mae[0]).save_pretrained(tmp_path)
    CrateImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds CrateMAEModel, a model without a head"):
        open_saved(tmp_path, ("classifier", "autoencoder"))


def test_an_autoencoder_given_as_classifier(crate_mae, vit_mae):
    for (folder, _), kind in ((crate_mae, "CrateMAEForPreTraining"), (vit_mae, "ViTMAEForPreTraining")):
        with pytest.raises(
            ValueError, match=f"holds {kind}, a masked autoencoder with its decoder, not an image classifier"
        ):
            open_saved(folder, ("classifier",))
        assert open_saved(folder, ("classifier", "autoencoder")).kind == "autoencoder"


def test_untrained_reference_is_not_the_saved_model(vit_mae):
    saved = open_saved(vit_mae[0], ("classifier", "autoencoder"))
    fresh = saved.untrained()
    assert isinstance(fresh, ViTMAEForPreTraining) and fresh.vit.embeddings.cls_token.abs().max() > 0
    assert not torch.equal(fresh.vit.layernorm.weight, saved.model.vit.layernorm.weight)


def test_a_fine_tuned_run_records_where_it_comes_from(crate_mae, tmp_path, caplog):
    images = write_classes(tmp_path / "images", 6)
    words = [*FOLDER_OVERRIDES, "model.config={}", "training.max_steps=1", f"model.init_from={crate_mae[0]}"]
    with caplog.at_level(logging.INFO, logger="opencrate"):
        run = train(load_recipe("imagefolder", [*words, f"data.path={images}"]), tmp_path / "run")
    record = json.loads((run.directory / "metrics.json").read_text())["initialisation"]
    assert record["new"] == ["classifier.weight", "classifier.bias"] and record["source"] == str(crate_mae[0])
    assert "crate.embeddings.mask_token" in record["left_out"]
    assert "new: classifier.weight, classifier.bias" in caplog.text
