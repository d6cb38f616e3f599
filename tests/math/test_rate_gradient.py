"""Compression by the exact gradient: against autograd of R^c, prefixes, and descent whatever the weights are."""

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateTextConfig
from opencrate.objective import subspace_coding_rate
from opencrate.operators import coding_rate_gradient, squared_norm_bound
from opencrate.rate_gradient import CHUNK, RateGradient, causally_whitened, whitened

SMALL = {"hidden_size": 12, "num_attention_heads": 3, "head_dim": 5, "image_size": 8, "patch_size": 4}


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module_of(scale=0.3, seed=0, **changes):
    config = CrateConfig(**{**SMALL, "compression": "gradient", "attention_output": "tied", **changes})
    module = RateGradient(config, **config.compression_options).double()
    with torch.no_grad():
        module.subspaces.weight.copy_(scale * drawn(15, 12, seed=seed))
    return module


@pytest.mark.parametrize("constraint", ["none", "each"])
def test_update_is_the_gradient_of_the_rate(constraint):
    module, Z = module_of(subspace_constraint=constraint), drawn(2, 9, 12, seed=1).requires_grad_()
    U, eps = module.bases().detach(), module.config.compression_eps
    rate = subspace_coding_rate(Z, U, eps)
    (expected,) = torch.autograd.grad(rate.sum(), Z)
    kappa = module.step_size() / module.gamma_of(9)
    torch.testing.assert_close(module(Z)[0], -kappa * expected)
    torch.testing.assert_close(coding_rate_gradient(Z, U, eps), expected)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_causal_rows_are_those_of_the_prefixes(length):
    V = drawn(2, 3, length, 4)
    found = causally_whitened(V, 0.7)
    for i in {0, length // 2, CHUNK - 1, CHUNK, length - 1} & set(range(length)):
        torch.testing.assert_close(found[..., i, :], whitened(V[..., : i + 1, :], 0.7)[..., -1, :])


def test_gradients():
    V = drawn(1, 2, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda V: whitened(V, 0.7), V)
    assert torch.autograd.gradgradcheck(lambda V: whitened(V, 0.7), V)
    assert torch.autograd.gradcheck(lambda V: causally_whitened(V, 0.7), V)
    assert torch.autograd.gradcheck(squared_norm_bound, drawn(4, 3).requires_grad_())


def test_bound_of_the_norm():
    for seed in range(20):
        for shape in ((4, 9), (9, 4), (30, 30)):
            M = drawn(*shape, seed=seed)
            norm = torch.linalg.matrix_norm(M, 2).square()
            assert norm <= squared_norm_bound(M) * (1 + 1e-12) <= 1e9
            assert squared_norm_bound(M) <= norm * min(shape) ** (1 / 16) * (1 + 1e-12)
    single = drawn(6, 1) @ drawn(1, 5, seed=1)  # one singular value: the bound is the norm
    torch.testing.assert_close(squared_norm_bound(single), torch.linalg.matrix_norm(single, 2).square())
    assert 0 < squared_norm_bound(torch.zeros(3, 3)) < 1e-6


@pytest.mark.parametrize("max_step", [1.0, 1.9])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_descends_whatever_the_weights_are(max_step, scale):
    """With r close to its largest value, on tokens from tiny to large; at least as far as the proof says."""
    for seed in range(10):
        module = module_of(scale, seed, compression_options={"max_step": max_step, "start": 0.999})
        for size in (1e-2, 1, 30):
            Z = size * drawn(1, 9, 12, seed=seed + 100)
            U, eps = module.bases().detach(), module.config.compression_eps
            before, after = (subspace_coding_rate(one, U, eps).item() for one in (Z, Z + module(Z)[0]))
            kappa = (module.step_size() / module.gamma_of(9)).item()
            lipschitz = module.gamma_of(9) * torch.linalg.matrix_norm(U.movedim(0, 1).flatten(1), 2).square().item()
            promised = kappa * (1 - kappa * lipschitz / 2) * coding_rate_gradient(Z, U, eps).square().sum().item()
            assert promised > 0
            assert before - after >= promised * (1 - 1e-6) - 1e-12 * before


def test_a_step_beyond_the_bound_can_ascend():
    """What the bound is for: along the largest direction of U, small tokens rise by a step of 2.1/L, not by 1.9/L."""
    module = module_of(1.0)
    U, eps = module.bases().detach(), module.config.compression_eps
    joined = U.movedim(0, 1).flatten(1)
    L = module.gamma_of(9) * torch.linalg.matrix_norm(joined, 2).square()
    Z = 1e-4 * drawn(1, 9, 1) * torch.linalg.svd(joined).U[:, 0]
    before = subspace_coding_rate(Z, U, eps)
    for step, rises in ((1.9, False), (2.1, True)):
        moved = Z - step / L * coding_rate_gradient(Z, U, eps)
        assert bool(subspace_coding_rate(moved, U, eps) > before) is rises


def test_padding_does_not_count():
    module, Z = module_of(), drawn(2, 9, 12)
    mask = torch.ones(2, 9)
    mask[:, 6:] = 0
    torch.testing.assert_close(module(Z, mask)[0][:, :6], module(Z[:, :6])[0])


def test_texts_and_configuration():
    config = CrateTextConfig(hidden_size=12, num_attention_heads=3, max_position_embeddings=9, compression="gradient")
    config.is_causal = True
    module, Z = RateGradient(config).double(), drawn(2, 9, 12)
    torch.testing.assert_close(module(Z)[0][:, :4], module(Z[:, :4])[0])
    with pytest.raises(ValueError, match=r"compression_kappa=0\.5 is not allowed; .*step size of its own"):
        CrateConfig(**SMALL, compression="gradient", compression_kappa=0.5)
    with pytest.raises(ValueError, match=r"max_step must be .*; got 2"):
        CrateConfig(**SMALL, compression="gradient", compression_options={"max_step": 2.0})
    with pytest.raises(ValueError, match=r"position='rope' is not allowed; it must be 'absolute' or 'none'"):
        CrateConfig(**SMALL, compression="gradient", position="rope")
    model = CrateForImageClassification(CrateConfig(**SMALL, compression="gradient"))
    assert {type(one).__name__ for one in model.modules()} >= {"RateGradient", "Identity"}
