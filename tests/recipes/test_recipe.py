"""The recipe files and their schema."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from opencrate.recipe.load import load_recipe, recipe_yaml
from opencrate.recipe.schema import RENAMED, LoggingRecipe, OptimiserRecipe, RegulariserRecipe
from opencrate.store.build import build_config, build_processor


def test_resolved_recipe_loads_back_equal(tmp_path):
    recipe = load_recipe("cifar10-alpha", ["training.seed=7", "model.init_from=somewhere", "model.init_fresh=[norm]"])
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ([], (224, 256)),
        (["data.image_size=32"], (32, 37)),
        (["data.image_size=[448, 224]"], ([448, 224], 512)),
        (["data.image_size=32", "data.resize_size=40"], (32, 40)),
        (["data.image_size=32", "data.resize_size=null"], (32, None)),
    ],
)
def test_the_centre_crop_keeps_its_share_at_another_size(words, sizes):
    data = load_recipe("imagefolder", words).data
    assert (data.image_size, data.resize_size) == sizes


def test_overrides_are_typed_yaml():
    recipe = load_recipe(
        "digits",
        [
            "training.learning_rate=1e-4",
            "training.bf16=true",
            "data.image_size=[8, 16]",
            "data.resize_size=null",
            "model.config.pool=cls",
            "model.config.layer_norm_eps=1e-6",
            "training.save_strategy=no",
        ],
    )
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.bf16 is True
    assert recipe.data.image_size == [8, 16]
    assert recipe.model.config == {"pool": "cls", "layer_norm_eps": 1e-6}
    assert recipe.training.save_strategy == "no"
    assert recipe.model.size == "digits"


def test_defaults_fill_a_short_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  learning_rate: 1e-3\n")
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.training.learning_rate == 1e-3
    assert recipe.model.type == "crate"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.sed=1", ["'training.sed'", "did you mean 'training.seed'"]),
        ("trainig.seed=1", ["'trainig'", "did you mean 'training'"]),
        ("data.image_siz=8", ["'data.image_siz'", "did you mean 'data.image_size'"]),
        ("training.zzz=1", ["'training.zzz'", "known:", "seed"]),
        ("seed=1", ["'seed'", "did you mean 'training.seed'"]),
        ("model.pool=mean", ["'model.pool'", "known: config, init_fresh, init_from, size, type"]),
        ("training.seed=x", ["'training.seed'", "must be a whole number", "'x'"]),
        ("training.seed=1.5", ["'training.seed'", "must be a whole number", "1.5"]),
        ("training.seed=-1", ["'training.seed'", "at least 0", "-1"]),
        ("training.bf16=perhaps", ["'training.bf16'", "must be true or false, or 'auto'"]),
        ("training.torch_compile_mode=fast", ["'training.torch_compile_mode'", "reduce-overhead", "'fast'"]),
        (
            "training.torch_compile_mode=reduce-overhead",
            ["'training.torch_compile_mode'", "null where training.torch_compile is false", "'reduce-overhead'"],
        ),
        ("data.keep_on=gpu", ["'data.keep_on'", "device", "'gpu'"]),
        ("optimiser.optim=adam", ["'optimiser.optim'", "adamw_torch", "'adam'"]),
        ("training.num_train_epochs=0", ["'training.num_train_epochs'", "at least 1e-12"]),
        ("training.per_device_train_batch_size=0", ["at least 1"]),
        ("data.test_fraction=1", ["'data.test_fraction'", "below 1"]),
        ("data.image_size=0", ["'data.image_size'", "at least 1"]),
        ("data.image_size=[8]", ["'data.image_size'", "[height, width]"]),
        ("data.num_channels=3", ["'data.image_mean'", "one value per channel"]),
        ("data.image_std=[0]", ["'data.image_std'", "at least 1e-12"]),
        ("augmentation.flip=1.5", ["'augmentation.flip'", "at least 0 and at most 1"]),
        ("augmentation.erasing=-0.1", ["'augmentation.erasing'", "at least 0 and at most 1"]),
        ("augmentation.crop=random", ["'augmentation.crop'", "padded", "'random'"]),
        ("augmentation.crop_padding=-1", ["'augmentation.crop_padding'", "at least 0"]),
        ("augmentation.crop_scale=[0, 1]", ["'augmentation.crop_scale'", "at least 1e-12 and at most 1"]),
        ("augmentation.crop_scale=[0.5, 1.5]", ["'augmentation.crop_scale'", "at least 1e-12 and at most 1"]),
        ("augmentation.crop_scale=[0.5]", ["'augmentation.crop_scale'", "[least, most]"]),
        ("augmentation.crop_ratio=[2, 1]", ["'augmentation.crop_ratio'", "least <= most"]),
        ("augmentation.randaugment_ops=-1", ["'augmentation.randaugment_ops'", "at least 0"]),
        ("augmentation.randaugment_magnitude=31", ["'augmentation.randaugment_magnitude'", "at most 30", "31"]),
        ("augmentation.mixup=-1", ["'augmentation.mixup'", "at least 0"]),
        ("augmentation.cutmix=-1", ["'augmentation.cutmix'", "at least 0"]),
        ("augmentation.cutmx=1", ["'augmentation.cutmx'", "did you mean 'augmentation.cutmix'"]),
        ("optimiser.ema_decay=1", ["'optimiser.ema_decay'", "below 1"]),
        ("training.adam_beta2=1", ["'training.adam_beta2'", "below 1"]),
        ("optimiser.optim=lyon", ["'optimiser.optim'", "lion", "'lyon'"]),
        ("training.save_total_limit=0", ["'training.save_total_limit'", "at least 1"]),
        ("model.init_fresh=head", ["'model.init_fresh'", "list"]),
        ("base=digits", ["'base'"]),
        ("smoke.training.seed=1", ["'smoke'"]),
        ("data.path.x=1", ["'data.path' has no keys below it"]),
        ("training=3", ["training.<key>=value"]),
        ("task.x=3", ["task=value"]),
        ("task=segmentation", ["'task'", "image-classification"]),
        ("model.config=3", ["'model.config'", "a mapping"]),
        ("training.seed=[", ["not readable YAML"]),
        ("seed", ["key=value"]),
    ],
)
def test_bad_override_is_one_clear_error(override, words):
    with pytest.raises(ValueError) as caught:
        load_recipe("digits", [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert override in message or "digits.yaml" in message


def test_configuration_as_a_mapping_replaces_the_recipes_and_keeps_what_comes_after():
    mapping = "model.config={hidden_size: 36, num_attention_heads: 2}"
    expected = {"hidden_size": 36, "num_attention_heads": 4, "pool": "mean"}
    assert load_recipe("shakespeare-alpha", [mapping]).model.config == {"hidden_size": 36, "num_attention_heads": 2}
    later = [mapping, "model.config.pool=mean", "model.config.num_attention_heads=4"]
    assert load_recipe("digits", later).model.config == expected
    assert load_recipe("digits", [*later, "model.config={}"]).model.config == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  sed: 1\n", ["bad.yaml", "'training.sed'", "did you mean 'training.seed'"]),
        ("modell:\n  type: crate\n", ["bad.yaml", "'modell'", "did you mean 'model'"]),
        ("training: 3\n", ["bad.yaml", "'training' must be a mapping", "got 3"]),
        ("training:\n  seed: many\n", ["bad.yaml", "'training.seed' must be a whole number"]),
        ("- 1\n", ["bad.yaml", "a recipe is a mapping"]),
        ("training: {seed: 1\n", ["bad.yaml, line", "not a readable YAML"]),
        ("training:\n  seed: 1\n  seed: 2\n", ["bad.yaml, line 3", "'seed' stands twice"]),
    ],
)
def test_bad_file_is_one_clear_error(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.type=crat"], ["model.type 'crat'", "did you mean 'crate'"]),
        (["model.size=digit"], ["'digit'", "did you mean 'digits'"]),
        (["model.config.hiden_size=3"], ["model.config.hiden_size", "did you mean 'hidden_size'"]),
        (["model.config.num_labels=3"], ["model.config.num_labels"]),
        (["model.config.hidden_size=wide"], ["model.config.hidden_size", "a whole number of at least 1"]),
        (["model.config.num_channels=3"], ["model.config.num_channels=3", "data.num_channels=1"]),
        (["model.config.image_size=16"], ["model.config.image_size=16", "data.image_size=8"]),
        (["data.image_size=9"], ["image_size=9", "patch_size 2"]),
        (["data.image_size=1"], ["image_size=1", "patch_size 2"]),
        (["model.type=vit"], ["model.size='digits'", "vit"]),
    ],
)
def test_bad_model_is_one_clear_error(overrides, words):
    recipe = load_recipe("digits", overrides)
    with pytest.raises(ValueError) as caught:
        build_config(recipe, ["a", "b"])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("size", [9, 1, [8, 9]])
def test_baseline_needs_tiling_patches_too(size):
    recipe = load_recipe("digits-vit", [f"data.image_size={size}"])
    with pytest.raises(ValueError, match=r"not a multiple of patch_size=2"):
        build_config(recipe, ["a", "b"])


def test_crop_larger_than_resize_is_refused():
    recipe = load_recipe("imagefolder", ["data.resize_size=200"])
    with pytest.raises(ValueError, match=r"data.resize_size=200 is below data.image_size=224"):
        build_processor(recipe.data)


def test_training_fields_are_transformers_own():
    from transformers import TrainingArguments

    from opencrate.recipe.schema import TrainingRecipe

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(TrainingRecipe)} <= theirs


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_keys_name_the_new_ones(old, new, tmp_path):
    with pytest.raises(ValueError, match=f"unknown key '{old}'; did you mean '{new}'"):
        load_recipe("digits", [f"{old}=1"])
    section, name = old.split(".")
    (tmp_path / "mine.yaml").write_text(f"base: digits\n{section}: {{{name}: 1}}\n")
    with pytest.raises(ValueError, match=f"unknown key '{old}'; did you mean '{new}'"):
        load_recipe(tmp_path / "mine.yaml")


def test_runs_of_earlier_versions_load(tmp_path):
    """Their recipe.yaml has the old keys, which mean what they meant."""
    old = {"optim": "sgd", "min_learning_rate": 0.1, "ema_decay": 0.9, "measure_every_epochs": 3, "tensorboard": True}
    old |= {"srr_weight": 0.5, "srr_parts": ["l1"], "srr_layers": [1], "srr_lambda": 0.2, "srr_eps": 0.3}
    content = {"training": {**old, "measure_images": 7, "seed": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(tmp_path)
    assert recipe == load_recipe(tmp_path / "recipe.yaml") and recipe.training.seed == 4
    assert recipe.optimiser == OptimiserRecipe("sgd", 0.1, 0.9)
    assert recipe.regulariser == RegulariserRecipe(0.5, ["l1"], [1], 0.2, 0.3)
    assert recipe.logging == LoggingRecipe(7, 3, True)
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path) == recipe


def test_schema_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['opencrate']\n"  # as the command does
        "import opencrate.cli.main, opencrate.recipe.load\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_run_may_contain_not_a_number_nowhere(tmp_path):
    for text in (".nan", "nan"):
        with pytest.raises(ValueError, match=r"'training.learning_rate' must be"):
            load_recipe("digits", [f"training.learning_rate={text}"])
