"""Low-rank Gaussian mixtures: densities against scipy, EM against closed forms and planted mixtures."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from opencrate.analysis.maths.mixtures import (
    LowRankMixture,
    bic,
    cluster_shares,
    fit_gaussian,
    fit_isotropic,
    fit_mixture,
    fit_on_subspaces,
)


def planted(num=2000, d=16, K=3, p=3, noise=0.2, seed=0):
    """Tokens of a zero-mean mixture on random subspaces: tokens, bases, variances (K, p), component of each token."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bases = torch.linalg.qr(randn(K, d, p)).Q
    variances = torch.linspace(9, 2, p, dtype=torch.float64).expand(K, p)
    z = torch.randint(K, (num,), generator=generator)
    tokens = torch.einsum("ndp,np->nd", bases[z], randn(num, p) * variances[z].sqrt()) + noise * randn(num, d)
    return tokens, bases, variances, z


def some_mixture(K, d, q, seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    noise = randn(K).exp()
    return LowRankMixture(
        weights=randn(K).softmax(0),
        means=randn(K, d),
        bases=torch.linalg.qr(randn(K, d, q)).Q if q else randn(K, d, 0),
        variances=noise[:, None] + randn(K, q).exp(),
        noise=noise,
        num_parameters=0,
    )


def covariance(mixture, k):
    Q, v, s = mixture.bases[k], mixture.variances[k], mixture.noise[k]
    return Q @ torch.diag(v - s) @ Q.mT + s * torch.eye(len(Q), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(K=st.integers(1, 3), d=st.integers(1, 7), data=st.data(), seed=st.integers(0, 99))
def test_log_density_is_scipys(K, d, data, seed):
    mixture = some_mixture(K, d, data.draw(st.integers(0, d)), seed)
    X = torch.randn(5, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [
        float(mixture.weights[k]) * multivariate_normal(mixture.means[k].numpy(), covariance(mixture, k).numpy()).pdf(X)
        for k in range(K)
    ]
    found = mixture.log_prob(X).exp().numpy()
    np.testing.assert_allclose(found, np.sum(expected, axis=0), rtol=1e-9)
    torch.testing.assert_close(mixture.responsibilities(X).sum(1), torch.ones(5, dtype=torch.float64))


def test_a_zero_column_is_a_direction_that_is_not_there():
    mixture = some_mixture(1, 5, 2, 0)
    padded = LowRankMixture(
        mixture.weights,
        mixture.means,
        torch.cat([mixture.bases, torch.zeros(1, 5, 1, dtype=torch.float64)], dim=2),
        torch.cat([mixture.variances, mixture.noise[:, None]], dim=1),
        mixture.noise,
        0,
    )
    X = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(padded.log_prob(X), mixture.log_prob(X))


def test_gaussian_and_isotropic_are_scipys():
    X = planted(300)[0]
    gaussian, isotropic = fit_gaussian(X), fit_isotropic(X)
    expected = multivariate_normal(gaussian.mean.numpy(), gaussian.covariance.numpy()).logpdf(X.numpy())
    np.testing.assert_allclose(gaussian.log_prob(X).numpy(), expected, rtol=1e-9)
    expected = multivariate_normal(X.mean(0).numpy(), float(isotropic.noise) * np.eye(16)).logpdf(X.numpy())
    np.testing.assert_allclose(isotropic.log_prob(X).numpy(), expected, rtol=1e-9)
    assert (gaussian.num_parameters, isotropic.num_parameters) == (16 + 16 * 17 // 2, 17)


def test_gaussian_is_well_posed_for_fewer_tokens_than_dimensions():
    assert torch.isfinite(fit_gaussian(planted(10)[0]).log_prob(planted(10, seed=1)[0])).all()


def test_given_subspaces_recover_the_planted_mixture():
    X, bases, variances, z = planted(6000)
    mixture = fit_on_subspaces(X, bases).mixture
    counts = torch.bincount(z, minlength=3) / len(z)
    torch.testing.assert_close(mixture.weights, counts.double(), atol=0.02, rtol=0)
    torch.testing.assert_close(mixture.noise, torch.full((3,), 0.04, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(mixture.variances, variances + 0.04, rtol=0.12, atol=0)
    assert (mixture.responsibilities(X).argmax(1) == z).double().mean() > 0.97
    assert mixture.num_parameters == 16 + 2 + 3 * (3 * 4 // 2 + 1)
    assert fit_on_subspaces(X, bases, torch.zeros(16).double()).mixture.num_parameters == 2 + 3 * 7


def test_fitted_subspaces_recover_the_planted_ones():
    X, bases, _, z = planted(4000)
    start = torch.nn.functional.one_hot(z, 3).double() * 0.6 + 0.4 / 3
    for mean in (None, torch.zeros(16, dtype=torch.float64)):
        mixture = fit_mixture(X, 3, start, mean).mixture
        for k in range(3):
            assert subspace_angles(mixture.bases[k].numpy(), bases[k].numpy()).max() < math.radians(3)
        torch.testing.assert_close(mixture.noise, torch.full((3,), 0.04, dtype=torch.float64), rtol=0.05, atol=0)
    assert mixture.num_parameters == 2 + 3 * (1 + 16 * 3 - 3)


def test_from_clusters_it_beats_one_gaussian_on_held_out_tokens():
    X, held_out = planted(3000)[0].split(1500)
    mixture = fit_mixture(X, 3, cluster_shares(X, 3)).mixture
    assert mixture.log_prob(held_out).mean() > fit_gaussian(X).log_prob(held_out).mean() + 1
    assert fit_gaussian(X).log_prob(held_out).mean() > fit_isotropic(X).log_prob(held_out).mean() + 1


@settings(max_examples=15, deadline=None)
@given(K=st.integers(1, 4), rank=st.integers(1, 5), num=st.integers(8, 60), seed=st.integers(0, 999))
def test_likelihood_never_falls(K, rank, num, seed):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(num, 6, generator=generator, dtype=torch.float64) ** 3
    shares = torch.rand(num, K, generator=generator, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(K, 6, rank, generator=generator, dtype=torch.float64)).Q
    free = fit_mixture(X, rank, shares / shares.sum(1, keepdim=True), iterations=25, tolerance=0.0).history
    fixed = fit_on_subspaces(X, bases, iterations=25, tolerance=0.0).history
    for history in (free, fixed):
        assert all(math.isfinite(value) for value in history)
        assert all(after >= before - 1e-8 for before, after in itertools.pairwise(history)), history


def test_one_component_is_probabilistic_pca():
    """The maximum-likelihood solution of [Tipping & Bishop 1999, Eq. 7, 8]: eigenvalues of the covariance."""
    X = planted(500, K=2)[0]
    mixture = fit_mixture(X, 4, torch.ones(500, 1).double(), iterations=500, tolerance=1e-12).mixture
    eigenvalues = torch.linalg.eigvalsh(torch.cov(X.mT, correction=0)).flip(0)
    torch.testing.assert_close(mixture.variances[0], eigenvalues[:4], rtol=1e-4, atol=0)
    torch.testing.assert_close(mixture.noise[0], eigenvalues[4:].mean(), rtol=1e-4, atol=0)


def test_one_component_is_the_pca_of_scikit_learn():
    """Its subspace and variances, whose own divide by n - 1, and the likelihood of new tokens."""
    X, others = planted(500, K=2)[0], planted(50, K=2, seed=3)[0]
    mixture = fit_mixture(X, 4, torch.ones(500, 1).double(), iterations=500, tolerance=1e-12).mixture
    pca = PCA(4, svd_solver="full").fit(X.numpy())
    found, expected = mixture.bases[0] @ mixture.bases[0].mT, torch.from_numpy(pca.components_.T @ pca.components_)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        mixture.variances[0] * 500 / 499, torch.from_numpy(pca.explained_variance_), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        mixture.log_prob(others), torch.from_numpy(pca.score_samples(others.numpy())), rtol=5e-3, atol=1e-2
    )


def test_variance_below_the_noise_is_pooled_with_it():
    X = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X[:, 0] *= 0.1
    basis = torch.eye(5, dtype=torch.float64)[None, :, :1]
    mixture = fit_on_subspaces(X, basis).mixture
    torch.testing.assert_close(mixture.variances[0, 0], mixture.noise[0])
    torch.testing.assert_close(mixture.noise[0], X.sub(X.mean(0)).square().mean())


def test_a_subspace_of_all_dimensions_is_a_full_gaussian():
    X = planted(400, d=4, K=1, p=4)[0]
    mixture = fit_on_subspaces(X, torch.eye(4, dtype=torch.float64)[None]).mixture
    expected = multivariate_normal(X.mean(0).numpy(), torch.cov(X.mT, correction=0).numpy()).logpdf(X.numpy())
    np.testing.assert_allclose(mixture.log_prob(X).numpy(), expected, rtol=1e-8)


def test_constant_tokens_stay_finite():
    X = torch.ones(20, 4, dtype=torch.float64)
    assert torch.isfinite(fit_mixture(X, 2, torch.full((20, 2), 0.5).double()).mixture.log_prob(X)).all()
    assert torch.isfinite(fit_isotropic(X).log_prob(X)).all()


def test_bic_and_shares_by_hand():
    assert bic(torch.tensor([-1.0, -2.0, -3.0]), 4) == pytest.approx(12 + 4 * math.log(3))
    shares = cluster_shares(planted(100)[0], 3)
    assert shares.shape == (100, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(100, dtype=torch.float64))


@pytest.mark.parametrize("rank", [0, 16])
def test_bad_rank(rank):
    with pytest.raises(ValueError, match=f"rank={rank}: must be at least 1 and below the 16"):
        fit_mixture(planted(50)[0], rank, torch.full((50, 2), 0.5).double())
