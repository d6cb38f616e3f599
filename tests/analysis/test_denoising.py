"""The posterior mean against quadrature, the score against autograd, and everything else by its definition."""

import itertools
import math

import pytest
import torch

from opencrate.analysis.maths.denoising import (
    linear_denoiser,
    mssa_denoiser,
    noise_schedule,
    one_token_attention,
    posterior_mean,
    sample,
    sample_quality,
    score,
    sliced_wasserstein,
)
from opencrate.analysis.maths.mixtures import LowRankMixture
from opencrate.operators import mssa, project
from opencrate.studies.experiments.synthetic import generator, mixture_of_subspaces

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


def small_mixture(noise=(0.3, 0.1)) -> LowRankMixture:
    """Two lines in the plane with different weights, means, spreads and noise."""
    angles = torch.tensor([0.3, 1.5], dtype=DOUBLE)
    return LowRankMixture(
        weights=torch.tensor([0.3, 0.7], dtype=DOUBLE),
        means=torch.tensor([[0.5, -0.2], [0.0, 0.4]], dtype=DOUBLE),
        bases=torch.stack((angles.cos(), angles.sin()), dim=1)[..., None],
        variances=torch.tensor([[1.2], [0.8]], dtype=DOUBLE),
        noise=torch.tensor(noise, dtype=DOUBLE),
        num_parameters=0,
    )


def test_posterior_mean_against_quadrature():
    """∫ z p(z) N(x; z, σ²) dz / ∫ p(z) N(x; z, σ²) dz on a fine grid of z."""
    mixture, sigma = small_mixture(), 0.6
    axis = torch.linspace(-8, 8, 801, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    prior = mixture.log_prob(grid)
    for x in (torch.tensor([0.4, 1.1], dtype=DOUBLE), torch.tensor([-1.5, 0.2], dtype=DOUBLE)):
        weights = (prior - (grid - x).square().sum(1) / (2 * sigma**2)).softmax(0)
        torch.testing.assert_close(posterior_mean(mixture, x[None], sigma)[0], weights @ grid, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [(0.3, 0.1), (0.0, 0.0)])
def test_score_is_the_gradient_of_the_log_density(noise):
    mixture, X = small_mixture(noise), randn(7, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.noised(0.5).log_prob(X).sum(), X)
    torch.testing.assert_close(score(mixture, X.detach(), 0.5), gradient)


def test_far_away_and_at_little_noise_nothing_underflows():
    X = 50 * randn(5, 32)
    found = posterior_mean(mixture_of_subspaces(), X, 1e-3)
    nearest = project(X, mixture_of_subspaces().bases).square().sum(-1).argmax(0)
    U = mixture_of_subspaces().bases[nearest]
    torch.testing.assert_close(found, (U @ (U.mT @ X[..., None]))[..., 0], rtol=1e-3, atol=1e-3)


def test_equal_spreads_give_attention_over_the_subspaces_with_a_shrunk_scale():
    """v/(v + σ²) Σ_k softmax(‖U_kᵀx‖² v / (2σ²(v + σ²))) U_kU_kᵀx, and its limit for σ → 0, N Eq. 38."""
    mixture, X, sigma, v = mixture_of_subspaces(), randn(9, 32) / 4, 0.2, 0.25
    energy = project(X, mixture.bases).square().sum(-1)
    shares = (energy * v / (2 * sigma**2 * (v + sigma**2))).softmax(0)
    each = torch.einsum("knp,kdp->knd", project(X, mixture.bases), mixture.bases)
    expected = v / (v + sigma**2) * (shares[..., None] * each).sum(0)
    torch.testing.assert_close(posterior_mean(mixture, X, sigma), expected)
    gaps = []
    for sigma in (0.1, 0.01, 0.001):
        noisy = mixture.sample(50, generator(0))[0] + sigma * randn(50, 32)
        gap = one_token_attention(noisy, mixture.bases, sigma) - posterior_mean(mixture, noisy, sigma)
        gaps.append(float(gap.norm() / noisy.norm()))
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-4


def test_the_posterior_mean_is_best_and_the_linear_map_best_among_linear():
    mixture, sigma = small_mixture(), 0.7
    Z, _ = mixture.sample(20_000, generator(1))
    X = Z + sigma * randn(*Z.shape, seed=2)

    def error(guess):
        return float((guess - Z).square().sum(1).mean())

    linear = linear_denoiser(mixture, X, sigma)
    columns = torch.cat((X, torch.ones(len(X), 1, dtype=DOUBLE)), dim=1)
    fitted = columns @ torch.linalg.lstsq(columns, Z).solution
    assert error(linear) == pytest.approx(error(fitted), rel=2e-3)
    assert error(posterior_mean(mixture, X, sigma)) < 0.99 * error(linear) < error(X)


def test_samples_have_the_mixtures_moments():
    mixture = small_mixture()
    Z, component = mixture.sample(40_000, generator(0))
    torch.testing.assert_close(Z.mean(0), mixture.weights @ mixture.means, rtol=0, atol=0.02)
    torch.testing.assert_close(Z.mT.cov(), mixture.covariance(), rtol=0.02, atol=0.02)
    assert float((component == 1).double().mean()) == pytest.approx(0.7, abs=0.01)
    inside = mixture_of_subspaces().sample(20, generator(0))
    U = mixture_of_subspaces().bases[inside[1]]
    torch.testing.assert_close((U @ (U.mT @ inside[0][..., None]))[..., 0], inside[0])


def test_mssa_with_key_lengths_is_the_posterior_mean_under_the_tokens_themselves():
    X, U, sigma = randn(6, 8), mixture_of_subspaces(2, 2, 8).bases, 0.7
    expected = torch.zeros_like(X)
    for basis in U:
        V = X @ basis
        distances = torch.cdist(V, V).square()
        expected += (-distances / (2 * sigma**2)).softmax(1) @ V @ basis.mT
    torch.testing.assert_close(mssa_denoiser(X, U, sigma, key_lengths=True), expected)
    torch.testing.assert_close(mssa_denoiser(X, U, sigma), mssa(X, U, scale=1 / sigma**2))
    assert not torch.allclose(mssa_denoiser(X, U, sigma), expected, atol=1e-2)


def test_where_keys_are_of_one_length_mssa_needs_no_correction():
    U = mixture_of_subspaces(1, 3, 8).bases
    X = torch.nn.functional.normalize(randn(6, 3), dim=-1) @ U[0].mT
    torch.testing.assert_close(mssa_denoiser(X, U, 0.5), mssa_denoiser(X, U, 0.5, key_lengths=True))


# --- Sampling -----------------------------------------------------------------------------------------------------


def test_one_gaussian_is_sampled_by_its_exact_flow():
    """x(σ) scales along every axis with (v + σ²)^½; Heun's error falls with the square of the number of steps."""
    mixture = mixture_of_subspaces(1, 3, 6)
    X = 3 * randn(20, 6)
    gaps = []
    for steps in (21, 41, 81):
        sigmas = noise_schedule(3.0, 0.001, steps)
        exact = X @ mixture.bases[0] * (1 / 3 / (1 / 3 + 9)) ** 0.5 @ mixture.bases[0].mT
        made = sample(lambda X, sigma: posterior_mean(mixture, X, sigma), X, sigmas)
        gaps.append(float((made - exact).norm() / exact.norm()))
    assert gaps[2] < 2e-3
    assert all(3.5 < coarse / fine < 4.5 for coarse, fine in itertools.pairwise(gaps)), gaps


def test_exact_samples_are_of_the_mixture():
    mixture, sigmas = mixture_of_subspaces(), noise_schedule(2.0, 0.01, 20)
    made = sample(lambda X, sigma: posterior_mean(mixture, X, sigma), 2 * randn(1000, 32), sigmas)
    found = sample_quality(made, mixture, generator(0))
    assert found.in_subspace > 0.999 and found.p_value > 0.01
    assert found.energy == pytest.approx(1, abs=0.1) and found.distance < 1.5


def test_quality_tells_wrong_samples():
    mixture = mixture_of_subspaces()
    right, component = mixture.sample(1000, generator(1))
    found = sample_quality(right, mixture, generator(0))
    assert found.in_subspace == pytest.approx(1) and found.p_value > 0.01 and 0.5 < found.distance < 1.6
    assert found.chi_square == pytest.approx(
        sum((int((component == k).sum()) - 250) ** 2 / 250 for k in range(4)) / 3, rel=1e-9
    )
    noise = sample_quality(randn(1000, 32) / 32**0.5, mixture, generator(0))
    assert noise.in_subspace < 0.5 and noise.energy == pytest.approx(1, abs=0.05) and noise.distance > 1.2
    one_only = sample_quality(right[component == 0].repeat(5, 1)[:1000], mixture, generator(0))
    assert one_only.p_value < 1e-10 and one_only.distance > 3
    assert sample_quality(2 * right, mixture, generator(0)).energy == pytest.approx(4 * found.energy)


def test_sliced_wasserstein_by_hand():
    X = torch.tensor([[0.0], [1.0], [2.0]], dtype=DOUBLE)
    assert sliced_wasserstein(X, X.flip(0) + 3, generator(0)) == pytest.approx(3)
    assert sliced_wasserstein(X, X * 2, generator(0)) == pytest.approx(math.sqrt(5 / 3))
    with pytest.raises(ValueError, match="compare equally many"):
        sliced_wasserstein(X, X[:2], generator(0))


def test_schedule():
    sigmas = noise_schedule(8.0, 1.0, 4)
    assert sigmas == pytest.approx((8, 4, 2, 1, 0)) and sigmas[-1] == 0
    for bad in ((1.0, 1.0, 4), (1.0, 0.0, 4), (1.0, 0.1, 1)):
        with pytest.raises(ValueError, match="need largest > smallest > 0"):
            noise_schedule(*bad)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_sigma_is_positive(sigma):
    mixture, X = mixture_of_subspaces(), randn(3, 32)
    for denoise in (posterior_mean, linear_denoiser):
        with pytest.raises(ValueError, match="must be a finite number > 0"):
            denoise(mixture, X, sigma)
    for denoise in (one_token_attention, mssa_denoiser):
        with pytest.raises(ValueError, match="must be a finite number > 0"):
            denoise(X, mixture.bases, sigma)
