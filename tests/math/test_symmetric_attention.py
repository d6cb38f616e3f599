"""Attention with symmetric maps: the formula written out, and descent whatever the weights are."""

import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateTextConfig
from opencrate.objective import subspace_coding_rate
from opencrate.positions import grid_places
from opencrate.symmetric_attention import (
    SHORT,
    BlockedSymmetricAttention,
    SymmetricMSSA,
    symmetric_attention,
    symmetric_maps,
)

SMALL = {"hidden_size": 12, "num_attention_heads": 3, "head_dim": 4, "image_size": 8, "patch_size": 4}
CERTIFIED = {"compression": "symmetric", "attention_output": "tied", "subspace_constraint": "joint"}
NUM_TOKENS = 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def module_of(scale=1.0, seed=0, **changes):
    config = CrateConfig(**{**SMALL, **CERTIFIED, **changes})
    module = SymmetricMSSA(config, **config.compression_options).double()
    module.reset_own()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(scale * drawn(*parameter.shape, seed=100 * seed + number))
    return module, grid_places(config, (2, 2), torch.device("cpu"))


def test_update_written_out():
    module, places = module_of(position="relative_bias")
    Z = drawn(2, NUM_TOKENS, 12, seed=1)
    update, _ = module(Z, places=places)
    bias = module.relative(places, NUM_TOKENS, NUM_TOKENS)
    for image in range(2):
        expected = torch.zeros(NUM_TOKENS, 12, dtype=torch.float64)
        for k, U in enumerate(module.bases()):
            V = Z[image] @ U
            lengths = V.square().sum(1) + SHORT**2
            tau, a = module.log_temperature[k].exp(), module.raw_step[k].sigmoid()
            W = torch.empty(NUM_TOKENS, NUM_TOKENS, dtype=torch.float64)
            for i in range(NUM_TOKENS):
                for j in range(NUM_TOKENS):
                    cosine = V[i] @ V[j] / (lengths[i] * lengths[j]).sqrt()
                    W[i, j] = (tau * cosine + (bias[k, i, j] + bias[k, j, i]) / 2).exp()
            sums = W.sum(1)
            M = W / (sums[:, None] * sums[None, :]).sqrt()
            expected += a * (M @ V - V) @ U.T
        torch.testing.assert_close(update[image], expected)


def test_maps_are_symmetric_and_lengthen_nothing():
    for seed in range(10):
        scores = 5 * drawn(2, 7, 7, seed=seed)
        maps = symmetric_maps(scores + scores.mT)
        torch.testing.assert_close(maps, maps.mT)
        torch.testing.assert_close(
            torch.linalg.eigvalsh(maps), torch.linalg.eigvals((scores + scores.mT).softmax(-1)).real.sort().values
        )
        assert torch.linalg.matrix_norm(maps, 2).max() <= 1 + 1e-12


@pytest.mark.parametrize("position", ["none", "absolute+both"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_descends_whatever_the_weights_are(position, scale):
    """On tokens from tiny to large; the scatter of each subspace shrinks in every direction."""
    for seed in range(4):
        module, places = module_of(scale, seed, position=position)
        for size in (1e-2, 1, 30):
            Z = size * drawn(1, NUM_TOKENS, 12, seed=seed + 100)
            after = Z + module(Z, places=places)[0]
            for U in module.bases():
                lost = U.T @ (Z.mT @ Z - after.mT @ after)[0] @ U
                assert torch.linalg.eigvalsh(lost)[0] >= -1e-12 * lost.norm() - 1e-12 * size**2
            rates = [subspace_coding_rate(one, module.bases(), module.config.compression_eps) for one in (Z, after)]
            assert rates[1] < rates[0] or scale > 1  # steps of large weights may be 0 within rounding
            assert rates[1] <= rates[0] * (1 + 1e-12)
    assert module.always_descends()


def test_what_symmetry_and_orthonormal_bases_are_for():
    """Softmax maps of the same scores, and free bases, can raise R^c: one token that all look at is copied to all."""
    module, _ = module_of(position="none")
    U, eps = module.bases(), module.config.compression_eps
    joined = U.movedim(0, 1).flatten(1)
    V = torch.zeros(NUM_TOKENS, 4, dtype=torch.float64)
    V[0] = 1.0
    scores = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.float64)
    scores[:, 0] = scores[0] = 3.0
    before = subspace_coding_rate(V @ U[0].T, U, eps)
    for maps, rises in ((scores.softmax(-1), True), (symmetric_maps(scores), False)):
        after = subspace_coding_rate((0.5 * V + 0.5 * maps @ V) @ U[0].T, U, eps)
        assert bool(after > before) is rises
    free, _ = module_of(3.0, position="none", subspace_constraint="none")
    Z = drawn(1, NUM_TOKENS, 12)
    rates = [subspace_coding_rate(one, free.bases(), eps) for one in (Z, Z + free(Z)[0])]
    assert rates[1] > rates[0]
    assert not free.always_descends()
    assert not module_of(attention_output="learned")[0].always_descends()
    torch.testing.assert_close(joined.T @ joined, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 5, 300])
def test_blocks_give_the_attention_and_its_gradients(num_tokens, biased):
    """300 tokens take several blocks for each head, whose sums must come before the gradients of the scores."""
    X, V = (drawn(2, 3, num_tokens, 4, seed=seed).requires_grad_() for seed in range(2))
    free = drawn(3, num_tokens, num_tokens, seed=2)
    bias = (free + free.mT).requires_grad_() if biased else None
    inputs = [one for one in (X, V, bias) if one is not None]
    found, expected = BlockedSymmetricAttention.apply(X, V, bias), symmetric_attention(X, V, bias)
    torch.testing.assert_close(found, expected)
    weight = drawn(*V.shape, seed=3)
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    torch.testing.assert_close(*gradients)
    if num_tokens == 5:
        assert torch.autograd.gradcheck(BlockedSymmetricAttention.apply, (X, V, bias))
        assert torch.autograd.gradgradcheck(BlockedSymmetricAttention.apply, (X[:1, :1], V[:1, :1], None))


def test_half_types():
    X, V = drawn(2, 3, 65, 8).float(), drawn(2, 3, 65, 8, seed=1).float()
    bias = drawn(3, 65, 65, seed=2).float()
    bias = bias + bias.mT
    half = BlockedSymmetricAttention.apply(X.bfloat16(), V.bfloat16(), bias.bfloat16())
    exact = symmetric_attention(X.bfloat16().double(), V.bfloat16().double(), bias.bfloat16().double())
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).norm() / exact.norm() < 0.02


def test_gradients():
    scores = drawn(2, 4, 4)
    assert torch.autograd.gradcheck(lambda S: symmetric_maps(S + S.mT), scores.requires_grad_())
    module, places = module_of(position="absolute+both")
    assert torch.autograd.gradcheck(lambda Z: module(Z, places=places)[0], drawn(1, NUM_TOKENS, 12).requires_grad_())


def test_padding_does_not_count():
    module, _ = module_of(position="none")
    Z, mask = drawn(2, 9, 12), torch.ones(2, 9)
    mask[:, 6:] = 0
    found = module(Z, mask)[0]
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :6], module(Z[:, :6])[0])


def test_tokens_of_zero_and_whole_padding_have_gradients():
    """Where a layer before switched every code off, and where a text is empty."""
    module, places = module_of(position="absolute+both")
    Z = drawn(2, NUM_TOKENS, 12)
    Z[0, 1:3] = 0
    (gradient,) = torch.autograd.grad(module(Z.requires_grad_(), places=places)[0].sum(), Z)
    assert gradient.abs().max() < 1e5
    module, _ = module_of(position="none")
    mask = torch.tensor([[0.0] * NUM_TOKENS, [1.0] * NUM_TOKENS])
    (gradient,) = torch.autograd.grad(module(Z, mask)[0].sum(), Z)
    assert gradient.isfinite().all()


def test_maps_on_request_are_a_softmax():
    module, places = module_of(position="absolute+both")
    Z = drawn(2, NUM_TOKENS, 12)
    assert module(Z, places=places)[1] is None
    maps = module(Z, output_attentions=True, places=places)[1]
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, NUM_TOKENS, dtype=torch.float64))
    torch.testing.assert_close(module.class_maps(Z, places), maps[:, :, 0])
    with pytest.raises(ValueError, match="need the places of the tokens"):
        module(Z)


def test_configuration():
    with pytest.raises(ValueError, match=r"compression_kappa=0\.5 is not allowed; .*step size of its own"):
        CrateConfig(**SMALL, **CERTIFIED, compression_kappa=0.5)
    with pytest.raises(ValueError, match=r"start must be .*; got 1"):
        CrateConfig(**SMALL, **CERTIFIED, compression_options={"start": 1.0})
    with pytest.raises(ValueError, match="compression='symmetric' is not allowed"):
        CrateTextConfig(hidden_size=12, num_attention_heads=3, is_causal=True, **CERTIFIED)
    model = CrateForImageClassification(CrateConfig(**SMALL, **CERTIFIED, compression_options={"start": 0.2}))
    for layer in model.crate.layers:
        torch.testing.assert_close(layer.compress.symmetric.raw_step.sigmoid(), torch.full((3,), 0.2))
        assert type(layer.compress.norm).__name__ == "Identity"
