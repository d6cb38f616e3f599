"""Properties of the coding rates on generated inputs: every dtype path, shape and scale that hypothesis finds."""

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from opencrate.objective import coding_rate, rate_reduction, sparse_rate_reduction, sparsity, subspace_coding_rate

DOUBLE = torch.float64
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)

sizes = st.integers(1, 12)
seeds = st.integers(0, 10**6)
epsilons = st.floats(0.01, 10)
scales = st.floats(-3, 3).map(lambda power: 10**power)
dtypes = st.sampled_from([torch.float32, DOUBLE])


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def orthogonal(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def tolerance(dtype: torch.dtype, *values: torch.Tensor) -> float:
    """What the docstring promises at these scales, of rates this large; float32 input also rounds what it is given."""
    return {DOUBLE: 1e-9, torch.float32: 3e-5}[dtype] * max(1.0, *(float(v.abs().max()) for v in values))


def near(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> None:
    assert first.shape == second.shape
    assert float((first.double() - second.double()).abs().max()) <= tolerance(dtype, first, second)


@PROPERTY
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 4), seeds, scales, epsilons, dtypes)
def test_a_rotation_of_tokens_and_bases_together_changes_nothing(N, d, K, p, seed, scale, eps, dtype):
    Z, U, Q = scale * randn(N, d, seed=seed), randn(K, d, p, seed=seed + 1), orthogonal(d, seed + 2)
    turned, bases = (Z @ Q).to(dtype), (Q.T @ U).to(dtype)
    near(coding_rate(turned, eps), coding_rate(Z.to(dtype), eps), dtype)
    near(subspace_coding_rate(turned, bases, eps), subspace_coding_rate(Z.to(dtype), U.to(dtype), eps), dtype)
    near(rate_reduction(turned, bases, eps), rate_reduction(Z.to(dtype), U.to(dtype), eps), dtype)


@PROPERTY
@given(sizes, sizes, st.integers(1, 4), seeds, scales, epsilons, dtypes)
def test_a_rotation_inside_a_subspace_changes_nothing(N, d, p, seed, scale, eps, dtype):
    """Only span and lengths of a basis count: U_k and U_k Q have the same rate."""
    Z, U = (scale * randn(N, d, seed=seed)).to(dtype), randn(2, d, p, seed=seed + 1)
    near(
        subspace_coding_rate(Z, U.to(dtype), eps),
        subspace_coding_rate(Z, (U @ orthogonal(p, seed)).to(dtype), eps),
        dtype,
    )


@PROPERTY
@given(sizes, sizes, st.integers(1, 4), seeds, scales, epsilons, dtypes)
def test_the_order_of_tokens_and_of_subspaces_does_not_matter(N, d, K, seed, scale, eps, dtype):
    Z, U = (scale * randn(N, d, seed=seed)).to(dtype), randn(K, d, 3, seed=seed + 1).to(dtype)
    tokens = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    subspaces = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    near(coding_rate(Z[tokens], eps), coding_rate(Z, eps), dtype)
    each = subspace_coding_rate(Z, U, eps, per_subspace=True)
    near(subspace_coding_rate(Z[tokens], U[subspaces], eps, per_subspace=True), each[subspaces], dtype)
    near(sparse_rate_reduction(Z[tokens], U, 0.1, eps), sparse_rate_reduction(Z, U, 0.1, eps), dtype)
    for measure in ("l0", "l1", "gini", "hoyer"):
        near(sparsity(Z[tokens], measure), sparsity(Z, measure), dtype)


@PROPERTY
@given(sizes, sizes, st.integers(1, 4), seeds, scales, epsilons, dtypes)
def test_rates_are_not_negative_and_bounded_by_the_trace(N, d, K, seed, scale, eps, dtype):
    """0 <= 1/2 logdet(I + A) <= 1/2 tr A, for every subspace on its own."""
    Z, U = (scale * randn(N, d, seed=seed)).to(dtype), randn(K, d, 2, seed=seed + 1).to(dtype)
    each = subspace_coding_rate(Z, U, eps, per_subspace=True).double()
    trace = 2 / (N * eps**2) * torch.einsum("nd,kdp->knp", Z.double(), U.double()).square().sum((1, 2))
    slack = tolerance(dtype, each)
    assert (each >= 0).all() and (each <= trace / 2 + slack).all()
    assert (
        0
        <= coding_rate(Z, eps)
        <= d / (2 * N * eps**2) * Z.double().square().sum() + tolerance(dtype, coding_rate(Z, eps))
    )


@PROPERTY
@given(sizes, sizes, st.integers(1, 4), seeds, scales, epsilons, st.floats(1.01, 3), dtypes)
def test_a_coarser_distortion_costs_less(N, d, K, seed, scale, eps, factor, dtype):
    Z, U = (scale * randn(N, d, seed=seed)).to(dtype), randn(K, d, 2, seed=seed + 1).to(dtype)
    for rate in (lambda e: coding_rate(Z, e), lambda e: subspace_coding_rate(Z, U, e)):
        fine, coarse = rate(eps), rate(factor * eps)
        assert coarse <= fine + tolerance(dtype, fine)
        if dtype == DOUBLE and fine > 1e-6:
            assert coarse < fine


@PROPERTY
@given(sizes, sizes, seeds, scales, epsilons)
def test_more_tokens_of_the_same_kind_change_nothing(N, d, seed, scale, eps):
    """N is divided out: every token twice has the rate of every token once."""
    Z = scale * randn(N, d, seed=seed)
    near(coding_rate(torch.cat([Z, Z]), eps), coding_rate(Z, eps), DOUBLE)


@PROPERTY
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 4), seeds, scales, epsilons, dtypes)
def test_orthogonal_subspaces_add_up(counts, p, seed, scale, eps, dtype):
    """Tokens in mutually orthogonal subspaces: R^c is each group's own rate, R at sqrt(K) eps the same sum."""
    K, N = len(counts), sum(counts)
    U = orthogonal(K * p, seed).view(K * p, K, p).permute(1, 0, 2)
    groups = [scale * randn(n, p, seed=seed + k) @ U[k].T for k, n in enumerate(counts)]
    Z = torch.cat(groups).to(dtype)
    own = [coding_rate((group @ U[k]).to(dtype), eps * math.sqrt(N / len(group))) for k, group in enumerate(groups)]
    near(subspace_coding_rate(Z, U.to(dtype), eps, per_subspace=True), torch.stack(own), dtype)
    near(coding_rate(Z, math.sqrt(K) * eps), torch.stack(own).sum(), dtype)
    # Against one subspace that holds everything there is no reduction.
    assert abs(rate_reduction(Z, orthogonal(K * p, seed)[None].to(dtype), eps)) <= tolerance(dtype, coding_rate(Z, eps))


@PROPERTY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), seeds, epsilons)
def test_gradient_of_subspace_rate_by_finite_differences(N, d, K, p, seed, eps):
    """Along a random direction in tokens and bases together, by central differences."""
    Z, U = randn(N, d, seed=seed).requires_grad_(), randn(K, d, p, seed=seed + 1).requires_grad_()
    towards = randn(N, d, seed=seed + 2), randn(K, d, p, seed=seed + 3)
    gradients = torch.autograd.grad(subspace_coding_rate(Z, U, eps), (Z, U))
    slope = sum((g * t).sum() for g, t in zip(gradients, towards))
    Z, U = Z.detach(), U.detach()
    h = 1e-5 * min(1.0, eps)  # the rate bends on the scale of eps
    ends = [subspace_coding_rate(Z + s * h * towards[0], U + s * h * towards[1], eps) for s in (-1, 1)]
    scale = max(1.0, float(slope.abs()), 1 / eps)
    assert float((slope - (ends[1] - ends[0]) / (2 * h)).abs()) <= 1e-4 * scale


@PROPERTY
@given(st.integers(1, 5), sizes, sizes, st.integers(1, 4), seeds, epsilons, dtypes)
def test_a_batch_is_a_loop(B, N, d, K, seed, eps, dtype):
    """Also with members that go other ways: huge, zero, rank one, not finite."""
    Z, U = randn(B, N, d, seed=seed), randn(K, d, 2, seed=seed + 1).to(dtype)
    kinds = torch.randint(5, (B,), generator=torch.Generator().manual_seed(seed)).tolist()
    for index, kind in enumerate(kinds):
        if kind == 1:
            Z[index] *= 1e12
        elif kind == 2:
            Z[index] = 0
        elif kind == 3:
            Z[index] = Z[index, :1]
        elif kind == 4:
            Z[index, 0, 0] = math.nan
    Z = Z.to(dtype)
    functions = (
        lambda z: coding_rate(z, eps),
        lambda z: subspace_coding_rate(z, U, eps, per_subspace=True),
        lambda z: rate_reduction(z, U, eps),
        lambda z: sparse_rate_reduction(z, U, 0.1, eps, norm="l1"),
        *((lambda z, m=measure: sparsity(z, m)) for measure in ("l0", "l1", "gini", "hoyer")),
    )
    for function in functions:
        alone = torch.stack([function(z) for z in Z])
        rtol = 1e-10 if dtype == DOUBLE else 2e-6
        size = float(alone.nan_to_num().abs().max())
        torch.testing.assert_close(function(Z), alone, rtol=rtol, atol=rtol * max(1.0, size), equal_nan=True)
