"""Shipped sweeps: complete, each arm changes what it says, and all are matched in parameters and operations.

Those of objectives: one encoder, batch, steps and images, and one start where the network is the same.
"""

import pytest
import torch

from opencrate import CrateConfig
from opencrate.recipe.load import load_recipe, shipped_recipes, shipped_sweeps, stated_parameters
from opencrate.store.build import build_config, initialise, own_fields
from opencrate.studies.sweep import arm_recipe, choose, load_sweep, longer, run_sweep
from opencrate.studies.sweep_measures import forward_operations

STRUCTURE = ["cifar10-structure", "digits-structure"]
OBJECTIVES = ["digits-ssl-objectives", "ssl-objectives"]
CHANGED = {
    "lambda0": {"ista_lambda"},
    "mlp": {"sparsification", "mlp_ratio"},
    "attention": {"compression", "head_dim"},
    "both": {"compression", "sparsification", "mlp_ratio", "head_dim"},
    "vit-like": {"compression", "sparsification", "hidden_size", "head_dim"},
    "attention-only": {"sparsification", "num_hidden_layers"},
    "srr": set(),
}
"""Fields of the configuration in which an arm differs from `crate`."""


def configs(sweep):
    names = [str(number) for number in range(10)]
    return {arm: build_config(arm_recipe(sweep, arm, 0), names) for arm in sweep.arms}


def test_sweeps_are_no_recipes():
    assert shipped_sweeps().keys() == {*STRUCTURE, *OBJECTIVES}
    assert not shipped_sweeps().keys() & shipped_recipes().keys()


@pytest.mark.parametrize("name", STRUCTURE)
def test_arms_change_what_they_say(name):
    sweep = load_sweep(name)
    assert sweep.name == name and set(sweep.arms) == {"crate", *CHANGED} and sweep.reference == "crate"
    found, reference = configs(sweep), arm_recipe(sweep, "crate", 3)
    derived = {"_out_features", "_out_indices", "stage_names"}
    for arm, changed in CHANGED.items():
        if (name, arm) == ("cifar10-structure", "vit-like"):  # 4 times its width would leave the 2 %
            changed = {*changed, "mlp_ratio"}
        own, theirs = (found[key].__dict__ for key in (arm, "crate"))
        assert {key for key in own if own[key] != theirs.get(key)} - derived == changed, arm
        recipe = arm_recipe(sweep, arm, 3)
        assert recipe.data == reference.data and recipe.augmentation == reference.augmentation
        assert recipe.training == reference.training and recipe.optimiser == reference.optimiser
        different = {
            key for key, value in vars(recipe.regulariser).items() if value != vars(reference.regulariser)[key]
        }
        assert different == ({"weight"} if arm == "srr" else set()), arm
        assert recipe.training.seed == 3


@pytest.mark.parametrize("name", STRUCTURE)
def test_arms_are_matched(name):
    """Parameters within 2 %; operations of a forward within 14 %, the rest is `--match compute`'s."""
    sweep = load_sweep(name)
    parameters = {arm: stated_parameters(recipe) for arm, recipe in sweep.arms.items()}
    operations = {arm: forward_operations(config) for arm, config in configs(sweep).items()}
    for arm in sweep.arms:
        assert abs(parameters[arm] / parameters["crate"] - 1) < 0.02, arm
        assert abs(operations[arm] / operations["crate"] - 1) < 0.14, arm


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_train_one_encoder(name):
    """The autoencoder's positions are fixed, and it has a decoder; all else of the encoders is the same."""
    sweep = load_sweep(name)
    recipes = {arm: arm_recipe(sweep, arm, 1) for arm in sweep.arms}
    assert (sweep.untrained, sweep.reference) == ("cross-entropy", "untrained") and sweep.names[0] == "untrained"
    assert list(recipes)[:6] == ["cross-entropy", "mae", "dino", "simdino", "lejepa", "simclr"]
    labels = {"image-classification": list("0123456789"), "self-supervised": []}
    configs = {arm: build_config(one, labels.get(one.task)) for arm, one in recipes.items()}
    first = recipes["cross-entropy"]
    start = initialise(configs["cross-entropy"], 1).base_model.state_dict()
    for arm, recipe in recipes.items():
        for field in own_fields(CrateConfig):
            assert getattr(configs[arm], field) == getattr(configs["cross-entropy"], field), (arm, field)
        assert recipe.data == first.data and recipe.model.whiten_patches == first.model.whiten_patches
        for field in ("seed", "max_steps", "per_device_train_batch_size", "bf16", "lr_scheduler_type", "warmup_steps"):
            assert getattr(recipe.training, field) == getattr(first.training, field), (arm, field)
        assert recipe.optimiser == first.optimiser
        if arm != "mae":
            own = initialise(configs[arm], 1, recipe.task).base_model.state_dict()
            assert own.keys() == start.keys() and all(torch.equal(own[key], start[key]) for key in own), arm
        assert recipe.ssl.objective == arm or arm in ("cross-entropy", "mae")


@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_smoke_forms_stay_small(name):
    """The sweep's steps do not make them long, and overrides do what they say."""
    sweep = load_sweep(name)
    for arm in sweep.arms:
        training = arm_recipe(sweep, arm, 0, smoke=True).training
        assert (training.max_steps, training.per_device_train_batch_size) == (2, 8), arm
    assert arm_recipe(sweep, arm, 0, ["training.max_steps=3"], smoke=True).training.max_steps == 3


def test_an_error_names_the_arm():
    """Which reads nothing of what another arm reads."""
    with pytest.raises(ValueError, match=r"arm 'cross-entropy': .*'views\.local_size=3'.* image-classification reads"):
        run_sweep(load_sweep("digits-ssl-objectives"), "nowhere", ["views.local_size=3"], smoke=True)


def test_longer_training_for_equal_compute():
    digits = load_recipe("digits")
    assert longer(digits, 1.25).training.num_train_epochs == 50
    assert longer(load_recipe("digits", ["training.max_steps=100"]), 1.25).training.max_steps == 125


def test_operations_by_hand():
    """Two operations per multiplication, in products of matrices and the convolution alone."""
    config = build_config(
        load_recipe("digits-attention-only", ["model.config.num_hidden_layers=1"]), list("0123456789")
    )
    N, d = 17, 96
    layer = 2 * N * d * d * 2 + 2 * 2 * N * N * d
    assert forward_operations(config) == layer + 2 * 16 * 4 * d + 2 * d * 10


def test_choose():
    sweep = load_sweep("digits-structure")
    assert list(choose(sweep, ["mlp"], [4]).arms) == ["crate", "mlp"] and choose(sweep, ["mlp"], [4]).seeds == (4,)
    with pytest.raises(ValueError, match=r"arms=mpl: sweep digits-structure has no arm 'mpl'; did you mean 'mlp'\?"):
        choose(sweep, ["mpl"])
    with pytest.raises(ValueError, match="seeds must be a list of different numbers"):
        choose(sweep, None, [1, 1])
    chosen = choose(load_sweep("ssl-objectives"), ["dino"])
    assert chosen.names == ["untrained", "cross-entropy", "dino"], "whose run the untrained network is taken from"
    assert choose(chosen, ["untrained"]).names == ["untrained", "cross-entropy"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nme: x", "unknown key 'nme'; did you mean 'name'"),
        ("name: x\ndescription: y\nreference: a\nseeds: [0]", "'arms' is missing"),
        (
            "name: x\ndescription: y\nreference: b\nseeds: [0]\narms: {a: digits}",
            "'reference' must be one of the arms a",
        ),
        (
            "name: x\ndescription: y\nreference: a\nseeds: [0, -1]\narms: {a: digits}",
            "'seeds' must be a list of different numbers",
        ),
        (
            "name: x\ndescription: y\nreference: untrained\nseeds: [0]\narms: {a: digits}",
            "'reference' must be one of the arms a; got untrained",
        ),
        (
            "name: x\ndescription: y\nreference: untrained\nuntrained: b\nseeds: [0]\narms: {a: digits}",
            "'untrained' must be one of the arms a; got b",
        ),
        (
            "name: x\ndescription: y\nreference: untrained\nseeds: [0]\narms: {untrained: digits}",
            "'untrained' is the arm of networks before their first step; rename",
        ),
        ("seeds: []", "'seeds' must be a non-empty list"),
        ("arms: [digits]", "'arms' must be a non-empty mapping"),
    ],
)
def test_bad_sweep_files(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sweep(path)


def test_unknown_sweep():
    with pytest.raises(ValueError, match=r"no sweep 'digits-struct': .* did you mean 'digits-structure'"):
        load_sweep("digits-struct")


def test_a_sweep_resumes_where_the_processor_decided_the_precision(tmp_path):
    """`bf16: auto` stands in the recipe, what it became in the run: the finished run is that of the sweep all the same."""
    sweep = choose(load_sweep("digits-structure"), ["crate"], [0])
    words = ["training.bf16=auto", "logging.measure_inputs=0"]
    first = run_sweep(sweep, tmp_path, words, smoke=True, num_images=4)
    assert run_sweep(sweep, tmp_path, words, smoke=True, num_images=4) == first
    with pytest.raises(ValueError, match=r"training\.learning_rate was"):
        run_sweep(sweep, tmp_path, [*words, "training.learning_rate=1"], smoke=True)
