"""The sparse rate reduction in the loss: value, gradient, layers drawn by (seed, step), and exact resume."""

import pytest
import torch

from opencrate.objective import coding_rate, subspace_coding_rate
from opencrate.recipe.load import load_recipe
from opencrate.recipe.schema import RegulariserRecipe
from opencrate.store.build import build_config, initialise
from opencrate.training.regulariser import (
    OUTPUTS,
    check_regulariser,
    negative_sparse_rate_reduction,
    regularised_layers,
    regulariser_sum,
)
from opencrate.training.train import train

from ..recipes.folders import VIT_OVERRIDES
from .common import assert_same_run
from .test_resume import STEPS, killed_and_resumed

PARTS = ["subspace_rate", "rate", "l1"]


def states(dtype=torch.float64):
    torch.manual_seed(0)
    half, after, U = (torch.randn(*shape, dtype=dtype) for shape in ((2, 5, 6), (2, 5, 6), (2, 6, 3)))
    return half.requires_grad_(), (after.abs() + 0.1).requires_grad_(), U.requires_grad_()


@pytest.mark.parametrize("parts", [PARTS, *([part] for part in PARTS)], ids="+".join)
def test_value_and_gradient(parts):
    half, after, U = states()
    by_hand = {
        "subspace_rate": subspace_coding_rate(half, U, 0.5),
        "rate": -coding_rate(half, 0.5),
        "l1": 0.3 * after.abs().sum((1, 2)),
    }
    value = negative_sparse_rate_reduction(half, after, U, parts, lam=0.3, eps=0.5)
    torch.testing.assert_close(value, sum(by_hand[part] for part in parts) / 5, check_dtype=False)
    inputs = {"subspace_rate": (half, U), "rate": (half,), "l1": (after,)}
    wanted = inputs[parts[0]] if len(parts) == 1 else (half, after, U)
    assert torch.autograd.gradcheck(lambda *_: negative_sparse_rate_reduction(half, after, U, parts, 0.3, 0.5), wanted)


def test_layers_follow_from_seed_and_step_alone():
    random = [regularised_layers("random", 6, 1, step) for step in range(300)]
    assert random == [regularised_layers("random", 6, 1, step) for step in range(300)]
    assert {layer for (layer,) in random} == set(range(1, 7))
    assert random != [regularised_layers("random", 6, 2, step) for step in range(300)]
    assert regularised_layers("all", 3, 0, 9) == [1, 2, 3]
    assert regularised_layers([5, 2], 6, 0, 9) == [2, 5]


def test_sum_is_over_images_and_mean_over_layers(small):
    model = initialise(build_config(small(), ["a", "b"]), 0).train()
    chosen = RegulariserRecipe(layers="all")
    images = torch.randn(3, 3, 16, 16)
    whole = regulariser_sum(model, model(images, **OUTPUTS), chosen, 0, 0)
    parts = [regulariser_sum(model, model(part, **OUTPUTS), chosen, 0, 0) for part in images.split(1)]
    torch.testing.assert_close(whole, sum(parts))
    layers = [
        regulariser_sum(model, model(images, **OUTPUTS), RegulariserRecipe(layers=[layer]), 0, 0) for layer in (1, 2)
    ]
    torch.testing.assert_close(whole, sum(layers) / 2)
    whole.backward()
    for block in model.crate.layers:
        assert block.compress.mssa.subspaces.weight.grad.abs().max() > 0


@pytest.mark.parametrize("compression", ["tssa", "cbsa", "gradient", "symmetric"])
def test_every_compression_with_bases(small, compression, tmp_path):
    """The term, and what is logged of the layers, ask the operator for its bases, whatever it is called."""
    overrides = (f"model.config.compression={compression}", "regulariser.weight=1", "regulariser.layers=all")
    model = initialise(build_config(small(*overrides), ["a", "b"]), 0).train()
    images = torch.randn(2, 3, 16, 16)
    regulariser_sum(model, model(images, **OUTPUTS), RegulariserRecipe(layers="all"), 0, 0).backward()
    for block in model.crate.layers:
        assert block.compress.operator.subspaces.weight.grad.abs().max() > 0
    run = train(small(*overrides, "training.max_steps=1"), tmp_path / "run")
    assert all(len(row["subspace_rate"]) == 2 for row in run.metrics["white_box"]["history"])


def test_training_lowers_it(small, tmp_path):
    """What is asked for happens: the parts of the objective move, and the run is another than without it."""
    long = ("training.num_train_epochs=8", "training.warmup_steps=0")
    parts = "regulariser.parts=[subspace_rate]"
    rates = {}
    for weight in (0, 10):
        run = train(
            small(*long, f"regulariser.weight={weight}", parts, "regulariser.layers=all"), tmp_path / str(weight)
        )
        rates[weight] = sum(run.metrics["white_box"]["history"][-1]["subspace_rate"])
    assert rates[10] < 0.9 * rates[0]


def test_resumed_run_is_bit_equal(small, monkeypatch, tmp_path):
    recipe = small(*STEPS, "regulariser.weight=0.1", "training.gradient_accumulation_steps=2", "training.bf16=true")
    whole = train(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed", [3, 5], monkeypatch)
    assert_same_run(whole.directory, resumed.directory)


def test_models_that_cannot_have_it_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"regulariser.weight=0.1: .* model.type is vit; set it to 0"):
        train(small(*VIT_OVERRIDES, "regulariser.weight=0.1"), tmp_path / "run")
    recipe = small("regulariser.weight=0.1", "regulariser.layers=[1, 3]")
    with pytest.raises(ValueError, match=r"regulariser.layers=\[1, 3\]: the model has the layers 1 to 2"):
        check_regulariser(build_config(recipe, ["a", "b"]), recipe.regulariser)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weight=-1", "'regulariser.weight' must be a number of at least 0"),
        ("eps=0", "'regulariser.eps' must be a number of at least 1e-12"),
        ("parts=[]", "'regulariser.parts' must be one or more"),
        ("parts=[l1, l1]", "'regulariser.parts' must be one or more of subspace_rate, rate, l1, each once"),
        ("parts=[l0]", "'regulariser.parts' must be"),
        ("layers=[]", "'regulariser.layers' must be all, random, or a list"),
        ("layers=[0]", "'regulariser.layers' must be one of 'all', 'random', or a list"),
        ("layers=last", "'regulariser.layers' must be"),
    ],
)
def test_bad_values_name_the_key(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", [f"regulariser.{override}"])
