"""TSSA against the published token statistics transformer, vision and language."""

import pytest
import torch
from torch import nn

from opencrate import CrateConfig, CrateTextConfig
from opencrate.token_statistics import TSSA, token_memberships, token_statistics_attention

from ..golden import load_golden, sub_dict


def module_of(config, weights, names, **options):
    module = TSSA(config, **options)
    own = {"subspaces.weight": "qkv.weight", "projection_bias": "qkv.bias", "temperature": "temp"}
    own |= {"output.weight": "to_out.0.weight", "output.bias": "to_out.0.bias", "position_bias": "denom_bias"}
    state = {name: weights[names.get(theirs, theirs)] for name, theirs in own.items() if name in module.state_dict()}
    module.load_state_dict(state)
    return module


@pytest.fixture(scope="module")
def vision():
    golden = load_golden("tost", "tssa_vision_module")
    config = CrateConfig(hidden_size=24, num_attention_heads=3, image_size=8, patch_size=4, compression="tssa")
    return golden, module_of(config, sub_dict(golden, "state_dict."), {}, projection_bias=True)


def test_vision_module(vision):
    golden, module = vision
    tokens = golden["input"].clone().requires_grad_()
    update, maps = module(tokens)
    assert maps is None
    torch.testing.assert_close(update, golden["output"], rtol=1e-5, atol=1e-5)
    update.square().sum().backward()
    torch.testing.assert_close(tokens.grad, golden["grad_input_of_sum_sq_output"], rtol=1e-5, atol=1e-5)
    V, _ = module.project(golden["input"], module.projection_bias)
    torch.testing.assert_close(token_memberships(V, module.temperature), golden["membership"], rtol=1e-5, atol=1e-6)


def test_language_module():
    golden = load_golden("tost", "language")
    config = CrateTextConfig(
        hidden_size=48, num_attention_heads=4, vocab_size=97, max_position_embeddings=32, is_causal=True
    )
    names = {"qkv.weight": "c_attn.weight", "qkv.bias": "c_attn.bias"}
    names |= {"to_out.0.weight": "c_proj.weight", "to_out.0.bias": "c_proj.bias"}
    weights = sub_dict(golden, "state_dict.transformer.h.0.attn.")
    module = module_of(config, weights, names, projection_bias=True, position_bias=True)
    tokens = golden["layer0.norm1"]
    count = len(tokens)
    V, _ = module.project(tokens, module.projection_bias)
    Pi = token_memberships(V, module.temperature, True, module.position_bias[:, : V.shape[-2]])
    torch.testing.assert_close(Pi, golden["layer0.membership"][:count], rtol=1e-5, atol=1e-6)
    heads = token_statistics_attention(V, Pi, True).transpose(1, 2).flatten(2)
    expected = golden["layer0.tssa_before_output_projection"][:count]
    torch.testing.assert_close(heads, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module(tokens)[0], golden["layer0.tssa_out"][:count], rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing(vision):
    _, module = vision
    tokens = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9)
    mask[:, 6:] = 0
    torch.testing.assert_close(module(tokens, mask)[0][:, :6], module(tokens[:, :6])[0])


def test_position_bias_needs_a_text():
    with pytest.raises(ValueError, match="position_bias=True is for texts"):
        TSSA(CrateConfig(hidden_size=24, num_attention_heads=3, image_size=8, patch_size=4), position_bias=True)
    assert isinstance(TSSA(CrateTextConfig(hidden_size=24, num_attention_heads=3), position_bias=True), nn.Module)
