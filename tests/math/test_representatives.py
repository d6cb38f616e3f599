"""CBSA against its formula, written out, and its pooling."""

import pytest
import torch

from opencrate import CrateConfig
from opencrate.positions import grid_places
from opencrate.representatives import CBSA, contract_and_broadcast

SMALL = {"hidden_size": 12, "num_attention_heads": 3, "head_dim": 4, "image_size": [16, 24], "patch_size": 4}


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module_of(**options):
    config = CrateConfig(**SMALL, compression="cbsa", compression_options=options)
    module = CBSA(config, **config.compression_options).double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
    return config, module


def written_out(V, R0, contraction, broadcast, scale):
    out = torch.zeros_like(V)
    for image in range(len(V)):
        for head in range(V.shape[1]):
            tokens, start = V[image, head], R0[image, head]
            A = torch.softmax(scale * start @ tokens.T, dim=1)
            R = start + contraction[head] * A @ tokens
            out[image, head] = broadcast[head] * A.T @ torch.softmax(scale * R @ R.T, dim=1) @ R
    return out


@pytest.mark.parametrize("pool", ["patches", "published"])
def test_formula_on_the_grid(pool):
    config, module = module_of(num_representatives=4, pool=pool)
    tokens = drawn(2, 25, 12, seed=9)
    V, _ = module.project(tokens)
    patches = V[:, :, 1:] if pool == "patches" else V[:, :, :-1]
    grid = patches.unflatten(2, (4, 6))
    R0 = torch.stack([grid[:, :, r : r + 2, c : c + 3].mean((2, 3)) for r in (0, 2) for c in (0, 3)], dim=2)
    steps = module.contraction_step[:, 0, 0], module.broadcast_step[:, 0, 0]
    heads = written_out(V, R0, *steps, 0.5).transpose(1, 2).flatten(2)
    found, maps = module(tokens, places=grid_places(config, (4, 6), torch.device("cpu")))
    assert maps is None
    torch.testing.assert_close(found, module.output(heads))


def test_segments_where_there_is_no_grid():
    _, module = module_of(num_representatives=4)
    tokens = drawn(2, 8, 12)
    V, _ = module.project(tokens)
    R0 = V.unflatten(2, (4, 2)).mean(3)
    heads = contract_and_broadcast(V, R0, module.contraction_step, module.broadcast_step, 0.5)
    torch.testing.assert_close(module(tokens)[0], module.output(heads.transpose(1, 2).flatten(2)))


def test_padding_does_not_count():
    _, module = module_of(num_representatives=4)
    tokens = drawn(2, 12, 12)
    mask = torch.ones(2, 12)
    mask[:, 9:] = 0
    changed = tokens.clone()
    changed[:, 9:] = 100.0
    torch.testing.assert_close(module(tokens, mask)[0][:, :9], module(changed, mask)[0][:, :9])


def test_options():
    with pytest.raises(ValueError, match=r"num_representatives=5 is not allowed; it must be a square number: 4 or 9"):
        module_of(num_representatives=5)
    with pytest.raises(ValueError, match="pool must be one of 'patches', 'published'; got 'all'"):
        module_of(pool="all")
    config, module = module_of(num_representatives=64)  # more than patches: each is its own
    assert module(drawn(1, 25, 12), places=grid_places(config, (4, 6), torch.device("cpu")))[0].isfinite().all()
