"""The guard of the compression step: R^c falls at equal length whatever is proposed, and its gradients are exact."""

import pytest
import torch

import opencrate.guard as guard
from opencrate import CrateConfig, CrateForImageClassification
from opencrate.guard import GuardedStep
from opencrate.objective import subspace_coding_rate
from opencrate.operators import gamma, squared_norm_bound

K, P, WIDTH, NUM_TOKENS, EPS = 2, 3, 8, 7, 0.5


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step_of(Z, proposed, U, kept=None):
    number = Z.shape[-2] if kept is None else kept.sum(-2, keepdim=True).unsqueeze(-1)
    return GuardedStep(Z, proposed, U, K, gamma(number, P, EPS), kept)


def rate(tokens, U):
    return subspace_coding_rate(tokens, U.unflatten(1, (K, P)).movedim(1, 0), EPS)


def at_length(tokens, Z):
    return tokens * (Z.norm(dim=(-2, -1)) / tokens.norm(dim=(-2, -1)))[:, None, None]


def a_step(size=1.0, change=0.8, seed=0, batch=4):
    """Tokens near a plane, which most changes leave, so that R^c rises."""
    plane = drawn(batch, NUM_TOKENS, 2, seed=seed) @ drawn(batch, 2, WIDTH, seed=seed + 3)
    noise, U = drawn(batch, NUM_TOKENS, WIDTH, seed=seed + 2), drawn(WIDTH, K * P, seed=seed + 1)
    return size * (plane + 0.1 * noise), size * (plane + change * noise), U


@pytest.mark.parametrize("size", [1e-3, 0.1, 1, 30, 1e4])
@pytest.mark.parametrize("change", [0.01, 1, 100])
def test_the_rate_falls_at_equal_length_whatever_is_proposed(size, change):
    for seed in range(5):
        Z, proposed, U = a_step(size, change, 10 * seed)
        taken = step_of(Z, proposed, U).taken()
        torch.testing.assert_close(taken.norm(dim=(1, 2)), Z.norm(dim=(1, 2)))
        assert (rate(taken, U) <= rate(Z, U)).all()
        falls = rate(at_length(proposed, Z), U) < rate(Z, U) * (1 - 1e-4)
        torch.testing.assert_close(taken[falls], at_length(proposed, Z)[falls])  # nothing is taken back


def test_what_is_taken_back_is_no_more_than_needed():
    """On the line from the gradient step to the proposed one, just before R^c begins to rise above that of Z."""
    Z, proposed, U = a_step(0.5, 1.5)
    rises = rate(at_length(proposed, Z), U) > rate(Z, U)
    assert rises.any()
    taken = step_of(Z, proposed, U).taken()[rises]
    before = rate(Z[rises], U)
    assert ((before - rate(taken, U)) / before <= 4 * guard.ROUNDING * torch.finfo(torch.float32).eps).all()
    joined = U.unflatten(1, (K, P))
    M = torch.zeros(len(Z), WIDTH, WIDTH, dtype=torch.float64)
    for k in range(K):
        V = Z @ joined[:, k]
        M += joined[:, k] @ torch.linalg.inv(torch.eye(P) + gamma(NUM_TOKENS, P, EPS) * V.mT @ V) @ joined[:, k].T
    start = (Z - Z @ M / squared_norm_bound(U))[rises]
    planes = torch.stack((start, proposed[rises], taken), 1).flatten(2)
    assert (torch.linalg.svdvals(planes)[:, 2] < 1e-12 * torch.linalg.svdvals(planes)[:, 0]).all()


def test_the_gradient_step_at_equal_length_never_rises():
    """The start of the line, of bases that overlap and of any length."""
    for seed in range(15):
        Z, _, U = a_step(10.0 ** (seed % 5 - 2), seed=7 * seed)
        step = step_of(Z, -Z, U)
        assert (rate(step.taken(), U) <= rate(Z, U) * (1 + 1e-12)).all()


@pytest.mark.parametrize("size", [0.1, 1, 10])
def test_gradients(size, monkeypatch):
    """Of the tokens, the proposed ones and the bases, through the search; it is finer here than the default."""
    monkeypatch.setattr(guard, "ROUNDING", 1e-6)
    Z, proposed, U = (one.requires_grad_() for one in a_step(size, batch=2))
    rises = rate(at_length(proposed, Z), U) > rate(Z, U)
    assert rises.any()
    few = {"atol": 1e-4, "rtol": 1e-4, "fast_mode": True}
    assert torch.autograd.gradcheck(lambda *given: step_of(*given).taken(), (Z, proposed, U), **few)


def test_padding_does_not_count():
    Z, proposed, U = a_step(1.0)
    alone = step_of(Z, proposed, U).taken()
    more = 5 * drawn(4, 3, WIDTH, seed=9)
    kept = torch.arange(NUM_TOKENS + 3)[None, :, None].expand(4, -1, 1) < NUM_TOKENS
    padded = step_of(torch.cat((Z, more), 1), torch.cat((proposed, -more), 1), U, kept).taken()
    torch.testing.assert_close(padded[:, :NUM_TOKENS], alone)


def test_zero_tokens_have_finite_gradients():
    Z = torch.zeros(2, NUM_TOKENS, WIDTH, requires_grad=True)
    U, proposed = drawn(WIDTH, K * P).float(), drawn(2, NUM_TOKENS, WIDTH).float().requires_grad_()
    taken = step_of(Z, proposed, U).taken()
    assert not taken.any()
    taken.sum().backward()
    assert Z.grad.isfinite().all()
    assert proposed.grad.isfinite().all()


def test_shortening_lowers_the_rate_of_any_model_and_changes_nothing():
    """Why the guard keeps the length: a fall of R^c of raw tokens alone is no evidence of anything."""
    torch.manual_seed(0)
    config = CrateConfig.from_size("digits", num_labels=10)
    model = CrateForImageClassification(config).double().eval()
    images = drawn(4, 1, 8, 8)
    expected, before = model(images).logits, model.certificate(images)
    for layer in model.crate.layers:
        layer.compress.register_forward_hook(lambda module, given, out: 0.5 * out)
    assert not (before.rate_change < 0).all()
    after = model.certificate(images)
    assert (after.rate_change < 0).all()
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-3, atol=1e-3)
