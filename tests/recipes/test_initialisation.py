"""Fine-tuning: every weight of the source is loaded, named as left out, or an error."""

import pytest
import torch
import transformers

from opencrate import CrateConfig, CrateForImageClassification, CrateModel
from opencrate.positions import resized_table
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_config, initialise
from opencrate.store.start import load_weights, resize_positions, start_model
from opencrate.training.train import train

from .folders import FOLDER_OVERRIDES, write_classes

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4, "pool": "mean"}
HEAD = ["classifier.weight", "classifier.bias"]
POSITIONS = "crate.embeddings.position_embeddings"


def saved(folder, cls=CrateForImageClassification, names=("a", "b", "c"), **changes):
    """A folder with an untrained model; its weights."""
    torch.manual_seed(7)
    config = CrateConfig(**{**SMALL, "image_size": 16, **changes}, id2label=dict(enumerate(names)))
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("position_bias"):  # 0 at first
                parameter.normal_()
    model.save_pretrained(folder)
    return model.state_dict()


def recipe_from(folder, *overrides):
    plain = ["model.size=null", "data.image_size=16", "data.resize_size=null"]
    return load_recipe("imagefolder", [*plain, f"model.init_from={folder}", *overrides])


def start(recipe, names):
    return start_model(recipe, build_config(recipe, names))


def test_everything_is_loaded_where_the_classes_are_the_same(tmp_path):
    weights = saved(tmp_path)
    model, found = start(recipe_from(tmp_path), ["a", "b", "c"])
    assert sorted(found.loaded) == sorted(weights)
    assert not (found.new or found.left_out or found.interpolated or found.settings)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.hidden_size == 24 and model.config.pool == "mean", "the source's own settings"


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "c", "b"], ["x", "y", "z"]])
def test_head_of_other_classes_starts_anew(tmp_path, classes):
    weights = saved(tmp_path)
    model, found = start(recipe_from(tmp_path), classes)
    assert found.new == HEAD and sorted(found.left_out) == sorted(HEAD)
    own = model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in found.loaded)
    assert len(found.loaded) == len(weights) - 2 and "norm.weight" in found.loaded
    fresh = initialise(model.config, 0).state_dict()
    assert all(torch.equal(own[name], fresh[name]) for name in HEAD), "from the recipe's seed"
    assert "new: classifier.weight, classifier.bias" in str(found)


def test_nameless_classes_fit_any_of_their_number(tmp_path):
    saved(tmp_path, names=("LABEL_0", "LABEL_1"))
    assert not start(recipe_from(tmp_path), ["cat", "dog"])[1].new


def test_encoder_without_a_head(tmp_path):
    weights = saved(tmp_path, CrateModel)
    model, found = start(recipe_from(tmp_path), ["a", "b"])
    assert sorted(found.new) == sorted([*HEAD, "norm.weight", "norm.bias"]) and found.left_out == []
    assert all(torch.equal(model.crate.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize("size", [24, [8, 16]])
def test_positions_are_interpolated_to_another_grid(tmp_path, size):
    weights = saved(tmp_path)
    model, found = start(recipe_from(tmp_path, f"data.image_size={size}"), ["a", "b", "c"])
    assert found.interpolated == [POSITIONS]
    after = model.config.grid_size
    assert found.grid == [[4, 4], list(after)]
    source = CrateForImageClassification.from_pretrained(tmp_path)
    expected = source.crate.embeddings.positions(after)
    assert torch.equal(model.state_dict()[POSITIONS], expected), "as the model's own interpolation at run time"
    assert torch.equal(model.state_dict()[POSITIONS][:, 0], weights[POSITIONS][:, 0]), "the class token's is kept"
    assert f"from 4x4 to {after[0]}x{after[1]} patches" in str(found)


@pytest.mark.parametrize("position", ["relative_bias", "absolute+relative_bias"])
def test_tables_of_offsets_are_interpolated_to_another_grid(tmp_path, position):
    weights = saved(tmp_path, position=position)
    model, found = start(recipe_from(tmp_path, "data.image_size=[8, 24]"), ["a", "b", "c"])
    bias = "crate.layers.0.compress.mssa.relative.position_bias"
    absolute = [POSITIONS] if "absolute" in position else []
    assert sorted(found.interpolated) == sorted([*absolute, bias, bias.replace("0", "1")])
    assert f"{bias.replace('position', 'cls_position')}" in found.loaded
    assert weights[bias].shape == (4, 7, 7)
    assert torch.equal(model.state_dict()[bias], resized_table(weights[bias], (2, 6)))
    images = torch.randn(2, 3, 8, 24)
    source = CrateForImageClassification.from_pretrained(tmp_path).eval()  # which interpolates at run time
    torch.testing.assert_close(model.eval()(images).logits, source(images).logits, rtol=1e-4, atol=1e-4)


def test_positions_of_as_many_patches_in_another_shape_are_interpolated(tmp_path):
    weights = saved(tmp_path)
    model, found = start(recipe_from(tmp_path, "data.image_size=[8, 32]"), ["a", "b", "c"])
    assert found.interpolated == [POSITIONS]
    assert not torch.equal(model.state_dict()[POSITIONS], weights[POSITIONS])


def test_constant_positions_stay_constant():
    table = torch.full((1, 1 + 12, 5), 3.0)
    assert torch.allclose(resize_positions(table, (3, 4), (6, 2)), torch.full((1, 13, 5), 3.0))


def test_vit_is_started_from_a_vit(tmp_path):
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    source = transformers.ViTForImageClassification(
        transformers.ViTConfig(**small, image_size=16, patch_size=4, num_labels=5)
    )
    source.save_pretrained(tmp_path)
    recipe = recipe_from(tmp_path, "model.type=vit", "data.image_size=32")
    model, found = start(recipe, ["a", "b"])
    assert found.new == HEAD and found.interpolated == ["vit.embeddings.position_embeddings"]
    assert model.config.intermediate_size == 48
    name = found.loaded[5]
    assert torch.equal(model.state_dict()[name], source.state_dict()[name])


@pytest.mark.parametrize(("source", "pooled"), [("BertForMaskedLM", False), ("BertForSequenceClassification", True)])
def test_bert_is_started_from_a_bert_with_or_without_a_pooler(source, pooled, tmp_path):
    """Masked words need no pooler; the one of a classifier is loaded."""
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(**small, vocab_size=40, num_labels=3)
    getattr(transformers, source)(config).save_pretrained(tmp_path)
    recipe = load_recipe("glue", [f"model.init_from={tmp_path}", "model.type=bert", "model.size=null"])
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**small, vocab_size=40, num_labels=2))
    found = load_weights(model, recipe.model)
    new = {name for name in found.new if not name.startswith("classifier.")}
    assert new == (set() if pooled else {"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
    assert "bert.encoder.layer.1.output.dense.weight" in found.loaded


def test_settings_that_change_are_said(tmp_path):
    saved(tmp_path)
    _, found = start(recipe_from(tmp_path, "model.config.pool=cls"), ["a", "b", "c"])
    assert found.settings == {"pool": ["mean", "cls"]} and "settings changed: pool mean -> cls" in str(found)


def test_named_parts_start_anew(tmp_path):
    saved(tmp_path, patch_size=2, image_size=8)
    recipe = recipe_from(tmp_path, "model.config.patch_size=4", "model.init_fresh=[patch_embeddings]")
    _, found = start(recipe, ["a", "b", "c"])
    assert found.new and all(".patch_embeddings." in name for name in found.new)
    assert sorted(found.new) == sorted(found.left_out) and not found.interpolated
    with pytest.raises(ValueError, match=r"'patch_embed_dings'.*did you mean 'patch_embeddings'"):
        start(recipe_from(tmp_path, "model.init_fresh=[patch_embed_dings]"), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.config.patch_size=2"], ["patch_embeddings.projection.weight has shape (24, 48)", "init_fresh"]),
        (["model.config.hidden_size=48"], ["has shape", "model.size"]),
        (["model.config.num_hidden_layers=3"], ["crate.layers.2", "is missing"]),
        (["model.config.num_hidden_layers=1"], ["the model has no crate.layers.1"]),
        (["model.size=laptop"], ["has shape"]),
        (["model.type=vit"], ["holds a crate model, but model.type is vit", "model.type=crate"]),
        (["model.init_from=nowhere"], ["nowhere: no such folder"]),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, overrides, words):
    saved(tmp_path)
    with pytest.raises(ValueError) as caught:
        start(recipe_from(tmp_path, *overrides), ["a", "b", "c"])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_nothing_is_copied_when_something_does_not_fit(tmp_path):
    saved(tmp_path)
    recipe = recipe_from(tmp_path, "model.config.num_hidden_layers=3")
    model = initialise(build_config(recipe, ["a", "b"]), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="is missing"):
        load_weights(model, recipe.model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_damaged_source_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("crate.layers.1.sparsify.ista.dictionary")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"dictionary; 1 in all.*same model"):
        start(recipe_from(tmp_path), ["a", "b", "c"])


def test_training_from_a_run_records_it_and_starts_from_its_weights(tmp_path):
    images = write_classes(tmp_path / "images", 6)
    first = train(load_recipe("imagefolder", [*FOLDER_OVERRIDES, f"data.path={images}"]), tmp_path / "first")
    still = ("training.learning_rate=0", "training.weight_decay=0", "training.max_steps=1")
    recipe = recipe_from(first.directory, f"data.path={images}", *still, "training.per_device_train_batch_size=8")
    second = train(recipe, tmp_path / "second")
    record = second.metrics["initialisation"]
    assert record["source"] == str(first.directory) and record["new"] == []
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-6)
    assert "initialisation" not in first.metrics
