"""Positions inside the attention against plain loops, and attention with a bias against one formula in float64."""

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateTextConfig
from opencrate.attention import BlockedAttention, with_bias
from opencrate.operators import subspace_attention
from opencrate.positions import GridBias, Places, TextBias, grid_places, rotate, text_places, toeplitz

GRID = {"hidden_size": 16, "num_attention_heads": 2, "image_size": [8, 12], "patch_size": 4, "num_channels": 1}
TEXT = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 7, "vocab_size": 9}


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(module):
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
    return module


@pytest.mark.parametrize("queries, keys", [(1, 1), (1, 5), (4, 4), (3, 6), (6, 3)])
def test_toeplitz(queries, keys):
    row = drawn(2, queries + keys - 1)
    found = toeplitz(row, queries)
    assert found.shape == (2, queries, keys)
    for i in range(queries):
        for j in range(keys):
            assert torch.equal(found[:, i, j], row[:, queries - 1 - i + j])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("first, queries", [(0, 7), (4, 1), (3, 4), (torch.tensor(2), 3)])
def test_bias_of_a_text_is_a_number_per_distance(causal, first, queries):
    module = filled(TextBias(CrateTextConfig(is_causal=causal, **TEXT)).double())
    keys = int(first) + queries
    bias = module(Places(first=first), queries, keys)
    for i in range(queries):
        for j in range(keys):
            distance = int(first) + i - j
            if distance >= 0 or not causal:
                assert torch.equal(bias[:, i, j], module.position_bias[:, distance + (0 if causal else 6)])


def test_bias_of_a_grid_is_a_number_per_offset():
    config = CrateConfig(**GRID, position="relative_bias")
    module = filled(GridBias(config))
    bias = module(grid_places(config, (2, 3), torch.device("cpu")), 7, 7)
    places = [(row, column) for row in range(2) for column in range(3)]
    for i, (row, column) in enumerate(places, 1):
        for j, (other_row, other_column) in enumerate(places, 1):
            expected = module.position_bias[:, row - other_row + 1, column - other_column + 2]
            assert torch.equal(bias[:, i, j], expected)
    assert torch.equal(bias[:, 3, 0], module.cls_position_bias[:, 0])
    assert torch.equal(bias[:, 0, 3], module.cls_position_bias[:, 1])
    assert torch.equal(bias[:, 0, 0], module.cls_position_bias[:, 2])
    kept = torch.tensor([[4, 0, 2], [1, 5, 3]])
    some = module(grid_places(config, (2, 3), torch.device("cpu"), kept), 4, 4)
    for image, own in enumerate(kept):
        rows = torch.cat((torch.zeros(1, dtype=torch.long), own + 1))
        assert torch.equal(some[image], bias[:, rows][:, :, rows])


def test_bias_of_another_grid_is_interpolated():
    config = CrateConfig(**GRID, position="relative_bias")
    module = GridBias(config)
    with torch.no_grad():  # linear in both offsets: interpolation keeps it so
        slope = torch.arange(-1, 2)[:, None] + 10 * torch.arange(-2, 3)
        module.position_bias.copy_(slope.float().expand(2, -1, -1))
        module.cls_position_bias.zero_()
    bias = module(grid_places(config, (2, 5), torch.device("cpu")), 11, 11)
    assert bias.shape == (2, 11, 11)
    assert bias[0, 1 + 2, 1 + 2].item() == pytest.approx(0, abs=1e-5)
    assert bias[0, 1 + 4, 1 + 0].item() == pytest.approx(20, rel=1e-4)
    assert bias[0, 1 + 5, 1 + 0].item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("kind", ["text", "grid"])
def test_rotations_see_differences_only(kind):
    """The same tokens elsewhere: scores and turned-back values do not change."""
    if kind == "text":
        config = CrateTextConfig(**{**TEXT, "max_position_embeddings": 99}, position="rope", is_causal=True)
        here, there = (text_places(config, 5, first, torch.device("cpu")) for first in (0, 31))
    else:
        config = CrateConfig(**{**GRID, "image_size": [32, 32]}, position="rope")
        kept = torch.tensor([[0, 1, 8, 10]])
        here, there = (grid_places(config, (8, 8), torch.device("cpu"), kept + by) for by in (0, 27))
    V = drawn(1, 2, 5, 8)
    outputs = []
    for places in (here, there):
        rows = slice(1 if kind == "grid" else 0, None)  # the class token has no place
        cos, sin = (one[..., rows, :] for one in places.rotation)
        turned = rotate(V[..., rows, :], (cos, sin))
        outputs.append(rotate(subspace_attention(turned), (cos, sin), back=True))
        assert torch.allclose(rotate(turned, (cos, sin), back=True), V[..., rows, :])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 150, 4), (2, 3, 5, 7, 2), (1, 1, 700, 4)])
def test_blocked_attention_with_a_bias(causal, shape):
    V, bias = drawn(*shape).requires_grad_(), drawn(shape[-3], shape[-2], shape[-2], seed=1).requires_grad_()
    mask = torch.ones(shape[-2], shape[-2], dtype=torch.bool).tril() if causal else None
    found, expected = BlockedAttention.apply(V, bias, 0.5, causal), subspace_attention(V, 0.5, with_bias(mask, bias))
    torch.testing.assert_close(found, expected)
    gradient = drawn(*shape, seed=2)
    for ours, theirs in zip(*(torch.autograd.grad(out, (V, bias), gradient) for out in (found, expected))):
        torch.testing.assert_close(ours, theirs)


def test_second_derivatives_with_a_bias():
    V, bias = drawn(1, 2, 4, 3).requires_grad_(), drawn(2, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *x: BlockedAttention.apply(*x, 0.5, True), (V, bias))


def test_order_can_only_be_told_by_a_place():
    """Without positions, patches in another order give the same logits."""
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = images.flip(-1).unfold(-1, 4, 4).flip(-1).flatten(-2)  # the columns of patches change places
    for position, same in (("none", True), ("absolute", False), ("relative_bias", False), ("rope", False)):
        torch.manual_seed(0)
        model = CrateForImageClassification(
            CrateConfig(**{**GRID, "image_size": 8}, position=position, pool="mean", num_labels=3)
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            difference = (model(images).logits - model(turned).logits).abs().max().item()
        assert (difference < 1e-5) is same, (position, difference)
