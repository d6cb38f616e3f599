"""Optimizers: what decays, and Lion against its formula."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from opencrate.recipe.schema import OptimiserRecipe, Recipe, TrainingRecipe
from opencrate.store.build import build_config, initialise
from opencrate.training.muon import COEFFICIENTS, MOMENTUM, MuonAdamW, alike, near_orthogonal
from opencrate.training.optimizers import LION_BETAS, build_optimizer, muon_groups, parameter_groups

from ..recipes.folders import VIT_OVERRIDES

UNDECAYED = ("bias", "norm", "cls_token", "position_embeddings")


@pytest.mark.parametrize("overrides", [(), VIT_OVERRIDES], ids=["crate", "vit"])
def test_norms_biases_tokens_and_positions_do_not_decay(small, overrides):
    model = initialise(build_config(small(*overrides), ["a", "b", "c"]), 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(value)] for value in group["params"]] for group in parameter_groups(model, 0.3))
    assert sorted([*decayed, *plain]) == sorted(names.values())
    assert not [name for name in decayed if any(word in name for word in UNDECAYED)]
    assert all(any(word in name for word in UNDECAYED) for name in plain)
    assert any("cls_token" in name for name in plain) and any("position_embeddings" in name for name in plain)
    if not overrides:
        assert sum("dictionary" in name for name in decayed) == sum("subspaces" in name for name in decayed) == 2


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [[value.shape for value in group["params"]] for group in groups] == [[(2, 3)], [(2,)]]


def quadratic(values, targets):
    return sum(((value - target) ** 2 * target.abs()).sum() for value, target in zip(values, targets))


def recipe_of(optim="adamw_torch", **training):
    return Recipe(training=TrainingRecipe(**training), optimiser=OptimiserRecipe(optim))


def test_lion_is_the_papers_formula():
    """[arXiv 2302.06675, Alg. 2] in NumPy, with a learning rate that changes and a group that does not decay."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    targets = [torch.randn(4, 5).double(), torch.randn(4).double()]
    recipe = recipe_of("lion", learning_rate=0.02, weight_decay=0.7)
    optimizer = build_optimizer(model, recipe)
    values = [value.detach().numpy().copy() for value in (model.weight, model.bias)]
    momenta = [np.zeros_like(value) for value in values]
    first, second = LION_BETAS
    for step in range(25):
        rate = 0.02 * (1 - step / 25)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        quadratic((model.weight, model.bias), targets).backward()
        optimizer.step()
        for index, (decay, target) in enumerate(zip((0.7, 0.0), targets)):
            gradient = 2 * (values[index] - target.numpy()) * np.abs(target.numpy())
            direction = np.sign(first * momenta[index] + (1 - first) * gradient)
            values[index] = values[index] - rate * (direction + decay * values[index])
            momenta[index] = second * momenta[index] + (1 - second) * gradient
        np.testing.assert_allclose(model.weight.detach().numpy(), values[0], atol=1e-12)
        np.testing.assert_allclose(model.bias.detach().numpy(), values[1], atol=1e-12)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_adamw_takes_the_recipes_settings(optim):
    model = nn.Linear(3, 3)
    recipe = recipe_of(optim, adam_beta1=0.8, adam_beta2=0.95, learning_rate=0.1)
    optimizer = build_optimizer(model, recipe)
    assert optimizer.defaults["betas"] == (0.8, 0.95) and optimizer.defaults["lr"] == 0.1
    assert [group["weight_decay"] for group in optimizer.param_groups] == [recipe.training.weight_decay, 0.0]
    assert bool(optimizer.defaults["fused"]) == optim.endswith("fused")


def test_first_adamw_step_by_hand():
    """After one step: w (1 - lr decay) - lr sign(g), because Adam's first ratio is the sign."""
    model = nn.Linear(2, 1, bias=False).double()
    start = model.weight.detach().clone()
    optimizer = build_optimizer(model, recipe_of(learning_rate=0.1, weight_decay=0.5))
    (model.weight * torch.tensor([[3.0, -2.0]]).double()).sum().backward()
    optimizer.step()
    expected = start * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]]).double()
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(24, 24), (10, 30), (30, 10)])
def test_near_orthogonal_keeps_directions_and_levels_sizes(shape):
    """Singular vectors stay, in float64; singular values between 1 and a tenth of the largest end near 1."""
    torch.manual_seed(0)
    small = min(shape)
    left, right = torch.linalg.qr(torch.randn(shape[0], small).double())[0], torch.randn(shape[1], small).double()
    right = torch.linalg.qr(right)[0]
    result = near_orthogonal(3 * left @ torch.diag(torch.linspace(0.1, 1, small).double()) @ right.mT)
    levelled = left.mT @ result @ right
    assert (levelled - levelled.diagonal().diag()).abs().max() < 1e-12
    assert levelled.diagonal().min() > 0.65 and levelled.diagonal().max() < 1.25
    assert not near_orthogonal(torch.zeros(shape)).any()


@pytest.mark.parametrize("overrides", [(), VIT_OVERRIDES], ids=["crate", "vit"])
def test_muon_takes_the_matrices_of_the_layers(small, overrides):
    model = initialise(build_config(small(*overrides), ["a", "b", "c"]), 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = muon_groups(model, 0.3)
    orthogonal, others = groups[0]["params"], [value for group in groups[1:] for value in group["params"]]
    assert sorted(names[id(value)] for value in (*orthogonal, *others)) == sorted(names.values())
    assert all(value.ndim == 2 and re.search(r"\.[01]\.", names[id(value)]) for value in orthogonal)
    assert len(orthogonal) == 2 * (3 if not overrides else 6)  # layers times matrices
    assert [group.get("orthogonal", False) for group in groups] == [True, False, False]


def test_muon_is_its_formula_and_leaves_the_rest_to_adamw():
    """Against NumPy's SVD-free formula for a layer's matrix, and torch's AdamW for the others, over 12 steps."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 4)]), "head": nn.Linear(4, 3)}).double()
    twin = nn.Linear(4, 3).double()
    twin.load_state_dict(layers["head"].state_dict())
    recipe = recipe_of("muon", learning_rate=0.02, weight_decay=0.7)
    optimizer = build_optimizer(layers, recipe)
    reference = torch.optim.AdamW(parameter_groups(twin, 0.7), lr=0.02, betas=(0.9, 0.999))
    matrix = layers["layers"][0].weight.detach().clone()
    momentum = torch.zeros_like(matrix)
    for _ in range(12):
        inputs, target = torch.randn(5, 6).double(), torch.randn(4, 6).double()
        optimizer.zero_grad()
        reference.zero_grad()
        ((layers["layers"][0].weight - target) ** 2).sum().backward()
        for head in (layers["head"], twin):
            head(inputs[:, :4]).square().sum().backward()
        optimizer.step()
        reference.step()
        gradient = 2 * (matrix - target)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        direction = near_orthogonal(MOMENTUM * momentum + (1 - MOMENTUM) * gradient)
        matrix = (1 - 0.02 * 0.7) * matrix - 0.02 * 0.2 * 6**0.5 * direction
        torch.testing.assert_close(layers["layers"][0].weight.detach(), matrix, rtol=0, atol=1e-12)
        torch.testing.assert_close(layers["head"].weight, twin.weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(layers["head"].bias, twin.bias, rtol=0, atol=1e-12)


def one_by_one(matrix):
    """Newton-Schulz of one matrix, as published."""
    a, b, c = COEFFICIENTS
    result = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    result = result / result.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = result @ result.mT
        result = a * result + (b * gram + c * gram @ gram) @ result
    return result if matrix.shape[0] <= matrix.shape[1] else result.mT


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_matrices_together_are_as_one_by_one(shape):
    stack = torch.randn(5, *shape, dtype=torch.float64) * torch.logspace(-6, 6, 5).double()[:, None, None]
    stack[2] = 0
    expected = torch.stack([one_by_one(matrix) for matrix in stack])
    torch.testing.assert_close(near_orthogonal(stack), expected, rtol=0, atol=1e-12)
    half = near_orthogonal(stack.float(), torch.bfloat16)
    assert half.dtype == torch.float32 and (half - expected).norm() < 0.03 * expected.norm()


def test_matrices_that_are_stacked(monkeypatch):
    """Of one shape and dtype, in bounded stacks; large ones by themselves on a CPU, and whatever is sharded."""
    small = [nn.Parameter(torch.zeros(4, 6)) for _ in range(5)]
    other, double, large = torch.zeros(6, 4), torch.zeros(4, 6, dtype=torch.float64), torch.zeros(2, 1 << 15)
    strange = torch.zeros(4, 6).as_subclass(type("Sharded", (torch.Tensor,), {}))
    elsewhere = [torch.zeros(2, 1 << 15, device="meta") for _ in range(2)]
    monkeypatch.setattr("opencrate.training.muon._STACK", 4 * 24)
    groups = alike([*small, other, double, large, large.clone(), strange, *elsewhere])
    assert [len(group) for group in groups] == [4, 1, 1, 1, 1, 1, 1, 1, 1]
    monkeypatch.setattr("opencrate.training.muon._STACK", 1 << 24)
    assert [len(group) for group in alike([*small, *elsewhere])] == [5, 2]


def test_a_muon_checkpoint_of_earlier_versions_goes_on():
    """Their state: momentum; step (on the CPU), exp_avg, exp_avg_sq; and no more in the groups."""
    torch.manual_seed(0)
    matrix, vector = (nn.Parameter(torch.randn(shape)) for shape in ((3, 5), (5,)))
    groups = [{"params": [matrix], "orthogonal": True}, {"params": [vector]}]
    optimizer = MuonAdamW(groups, lr=0.1)
    for value in (matrix, vector):
        value.grad = torch.randn_like(value)
    optimizer.step()
    state = optimizer.state_dict()
    assert [set(one) for one in state["state"].values()] == [{"momentum"}, {"step", "exp_avg", "exp_avg_sq"}]
    assert set(state["param_groups"][0]) == {"params", "lr", "betas", "eps", "weight_decay", "orthogonal"}
    assert state["state"][1]["step"].dtype == torch.float32


def test_fused_adamw_is_the_plain_one():
    """Ten steps, to rounding."""
    start, gradients = torch.randn(40, 30), torch.randn(10, 40, 30)
    ends = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        model = nn.Linear(30, 40, bias=False)
        model.weight.data.copy_(start)
        optimizer = build_optimizer(model, recipe_of(optim, learning_rate=0.01))
        for gradient in gradients:
            model.weight.grad = gradient.clone()
            optimizer.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_is_that_of_torch(shape):
    """Three steps: to bfloat16's rounding, in which torch's Newton-Schulz steps are taken."""
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=generator), torch.randn(3, *shape, generator=generator)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = (
        MuonAdamW([{"params": [mine], "orthogonal": True, "weight_decay": 0.1}], lr=0.02),
        torch.optim.Muon([theirs], lr=0.02, **options),
    )
    for gradient in gradients:
        for parameter, optimizer in zip((mine, theirs), optimizers):
            parameter.grad = gradient.clone()
            optimizer.step()
    step = float((theirs - start).detach().norm())
    assert float((mine - theirs).detach().norm()) < 0.02 * step, "the steps taken are the same"
