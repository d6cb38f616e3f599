"""Coding rates, rate reduction, sparsity: against golden numbers, mpmath, closed forms and identities."""

import doctest
import math

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from opencrate import _logdet, objective
from opencrate.objective import coding_rate, rate_reduction, sparse_rate_reduction, sparsity, subspace_coding_rate
from tests.golden import golden_meta, load_golden, sub_dict

DOUBLE = torch.float64
U_ROUND = 2.0**-53


# --- helpers ---------------------------------------------------------------------------------------------------


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def orthogonal(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed)).Q


def bases(K: int, d: int, p: int, seed: int = 0) -> torch.Tensor:
    """K bases (K, d, p), each orthonormal, not orthogonal to each other."""
    return torch.linalg.qr(randn(K, d, p, seed=seed)).Q


def joint_bases(K: int, p: int, seed: int = 0) -> torch.Tensor:
    """K bases (K, K p, p) that together are an orthonormal basis."""
    return orthogonal(K * p, seed).view(K * p, K, p).permute(1, 0, 2)


def closed_form_gradient(Z: torch.Tensor, eps: float) -> torch.Tensor:
    """alpha Z (I + alpha Z^T Z)^-1 for one float64 matrix (N, d), through NumPy."""
    z = Z.detach().numpy()
    alpha = z.shape[1] / (z.shape[0] * eps**2)
    return torch.from_numpy(alpha * np.linalg.solve(np.eye(z.shape[1]) + alpha * z.T @ z, z.T).T)


def closed_form_subspace_gradient(Z: torch.Tensor, U: torch.Tensor, eps: float) -> torch.Tensor:
    return sum(closed_form_gradient(Z @ U_k, eps) @ U_k.T for U_k in U)


def grad_of(function, *tensors: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return list(torch.autograd.grad(function(*leaves).sum(), leaves))


def reference(Z: torch.Tensor, eps: float) -> tuple[mpmath.mpf, torch.Tensor, float]:
    """R, its gradient and x = sqrt(alpha) sigma_max of one matrix, from its exact entries with 100 digits."""
    with mpmath.workdps(100):
        N, d = Z.shape
        z = mpmath.matrix(Z.detach().double().tolist())
        alpha = mpmath.mpf(d) / (N * mpmath.mpf(eps) ** 2)
        M = alpha * (z.T * z if d <= N else z * z.T)
        M += mpmath.eye(M.rows)
        inverse = M**-1
        gradient = alpha * (z * inverse if d <= N else inverse * z)
        x = float(mpmath.sqrt(alpha)) * torch.linalg.matrix_norm(Z.detach().double(), 2).item()
        rows = [[float(v) for v in row] for row in gradient.tolist()]
        return mpmath.log(mpmath.det(M)) / 2, torch.tensor(rows, dtype=DOUBLE), x


def close(actual: torch.Tensor, expected, tol: float) -> None:
    """max |difference| <= tol * max(1, max |expected|)."""
    expected = torch.as_tensor(expected, dtype=DOUBLE)
    assert actual.shape == expected.shape
    difference = (actual.detach().double() - expected).abs().max().item()
    assert difference <= tol * max(1.0, expected.abs().max().item()), difference


# --- golden numbers --------------------------------------------------------------------------------------------

GOLDEN_EPS = (0.1, 0.5, 1.0)


def golden_cases() -> list[tuple[str, torch.Tensor, dict]]:
    tokens = sub_dict(load_golden("crate_measures", "definitions"), "tokens.")
    values = golden_meta("crate_measures")["files"]["definitions.safetensors"]["float64_values"]
    return [(name, Z.T, values[name]) for name, Z in tokens.items()]


@pytest.mark.parametrize("dtype, tol", [(DOUBLE, 1e-9), (torch.float32, 1e-6)])
def test_golden_values(dtype, tol):
    U_of = sub_dict(load_golden("crate_measures", "definitions"), "bases.")
    compared = 0
    for _, Z, expected in golden_cases():
        Z = Z.to(dtype)
        assert (Z != 0).sum().item() == expected["l0_count"]
        assert sparsity(Z).item() == pytest.approx(expected["l0_fraction_nonzero"], rel=1e-6)
        assert sparsity(Z, "l1").item() == pytest.approx(expected["l1"], rel=tol)
        for eps in GOLDEN_EPS:
            key = f"eps{eps}"
            rate = expected["R"][key]
            assert coding_rate(Z, eps).item() == pytest.approx(rate, rel=tol)
            for name, U in U_of.items():
                U = U.to(dtype)
                compressed = expected["Rc"][name][key]
                assert subspace_coding_rate(Z, U, eps).item() == pytest.approx(compressed, rel=tol)
                per_subspace = subspace_coding_rate(Z, U, eps, per_subspace=True)
                assert per_subspace.tolist() == pytest.approx(expected["Rc_per_subspace"][name][key], rel=tol)
                delta = expected["delta_R"][name][key]
                assert rate_reduction(Z, U, eps).item() == pytest.approx(delta, abs=tol * rate)
                value = sparse_rate_reduction(Z, U, lam=0.1, eps=eps).item()
                assert value == pytest.approx(delta - 0.1 * expected["l0_count"], abs=tol * rate)
                value = sparse_rate_reduction(Z, U, lam=0.1, eps=eps, norm="l1").item()
                assert value == pytest.approx(delta - 0.1 * expected["l1"], abs=tol * (rate + expected["l1"]))
                compared += 1
    assert compared >= 6


def test_golden_gradients():
    golden = load_golden("crate_measures", "definitions")
    U_of = sub_dict(golden, "bases.")
    compared = 0
    for name, Z, _ in golden_cases():
        Z = Z.double()
        for eps in GOLDEN_EPS:
            pairs = [(f"grad_R.{name}.eps{eps}", coding_rate, (), closed_form_gradient(Z, eps))]
            for u, U in U_of.items():
                exact = closed_form_subspace_gradient(Z, U.double(), eps)
                pairs.append((f"grad_Rc.{name}.{u}.eps{eps}", subspace_coding_rate, (U.double(),), exact))
            for key, function, args, exact in pairs:
                (gradient,) = grad_of(lambda z, f=function, a=args, e=eps: f(z, *a, eps=e), Z)
                close(gradient, exact, 1e-9)
                if f"definition.{key}" in golden:
                    close(gradient, golden[f"definition.{key}"].T, 1e-7)
                    compared += 1
    assert compared >= 6


# --- accuracy: every regime against exact arithmetic -------------------------------------------------------------

SCALES = (1e-20, 1e-9, 1e-4, 1.0, 3e3, 1e8, 1e20)
EPSILONS = (1e-6, 1e-3, 0.5, 10.0)


def tokens_of(kind: str, N: int, d: int, seed: int) -> torch.Tensor:
    """Integer-valued where rank matters, so that scaling by a power of two keeps the rank exactly."""
    Z = randn(N, d, seed=seed)
    small = (8 * Z).round()
    return {
        "full": lambda: Z,
        "zero": lambda: torch.zeros_like(Z),
        "all_duplicates": lambda: Z[:1].expand(N, d).float().double(),
        "two_distinct": lambda: Z[torch.arange(N) % 2 if N > 1 else [0]].float().double(),
        "rank_two": lambda: small[:, :2] @ (8 * randn(min(2, d), d, seed=seed + 1)).round(),
        "a_zero_token": lambda: Z * (torch.arange(N) > 0)[:, None],
        "graded": lambda: Z * torch.logspace(0, -9, N, dtype=DOUBLE)[:, None],
    }[kind]()


KINDS = ("full", "zero", "all_duplicates", "two_distinct", "rank_two", "a_zero_token", "graded")


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_against_exact_arithmetic(kind, dtype):
    gradient_tol = {DOUBLE: 1e-9, torch.float32: 1e-6, torch.bfloat16: 2.0**-8}[dtype]
    tight = loose = 0
    for case, (N, d) in enumerate([(7, 4), (3, 6), (4, 4), (1, 3), (3, 1)]):
        base = tokens_of(kind, N, d, seed=case)
        for scale in SCALES:
            Z = (base * 2.0 ** round(math.log2(scale))).to(dtype)
            for eps in EPSILONS:
                exact, exact_gradient, x = reference(Z, eps)
                leaf = Z.clone().requires_grad_()
                value = coding_rate(leaf, eps)
                (gradient,) = torch.autograd.grad(value, leaf)
                assert value.dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
                assert value.isfinite() and gradient.isfinite().all()
                without_gradient = coding_rate(Z, eps).item()  # shorter types: products in float32 where they suffice
                error = float(max(abs(mpmath.mpf(v) - exact) for v in (value.item(), without_gradient)))
                tol = (1e-9 if dtype == DOUBLE else 1e-6) * max(1.0, float(exact))
                bound = min(N, d) * math.log1p(4 * max(N, d) * U_ROUND * x)
                if x * x <= 1e6:
                    assert error <= tol, (N, d, scale, eps, error)
                    # Relative to the gradient itself, however small or large.
                    size = exact_gradient.abs().max().item()
                    difference = (gradient.double() - exact_gradient).abs().max().item()
                    assert difference <= gradient_tol * size, (N, d, scale, eps, difference)
                    tight += 1
                else:
                    limit = bound if dtype == DOUBLE else bound + tol
                    assert error <= limit + 4 * U_ROUND * float(exact), (N, d, scale, eps, error)
                    loose += 1
    assert tight >= 40 and (loose >= 20 or kind == "zero")


def test_bound_of_the_docstring_holds_on_a_larger_ill_conditioned_matrix():
    """Singular values spread down to 1 or to 1e-16 of the largest: what is lost there stays within the bound."""
    N, d, eps = 24, 12, 1.0
    left, right = torch.linalg.qr(randn(N, d)).Q, orthogonal(d, 1)
    for top in (1e4, 1e8, 1e12, 1e16):
        sigma = torch.logspace(0, math.log10(top), d, dtype=DOUBLE)
        Z = left * sigma @ right.T
        exact, _, x = reference(Z, eps)
        error = abs(coding_rate(Z, eps).item() - float(exact))
        assert error <= d * math.log1p(4 * N * U_ROUND * x) + 4 * U_ROUND * float(exact)
        assert x >= 0.5 * top


def test_duplicated_tokens_add_nothing_at_any_scale():
    z = randn(1, 16).float()
    for scale in (2.0**-60, 1.0, 2.0**60):
        Z = (z * scale).expand(48, 16)
        exact = 0.5 * math.log1p(16 / (48 * 1e-12) * 48 * (z * scale).double().square().sum().item())
        assert coding_rate(Z, 1e-6).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e-5])
def test_small_rates_keep_their_digits(scale):
    Z = randn(7, 4) * scale
    exact, _, _ = reference(Z, 0.5)
    assert coding_rate(Z, 0.5).item() == pytest.approx(float(exact), rel=1e-6, abs=0)


def test_factorises_the_smaller_gram_matrix(monkeypatch):
    shapes = []
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda A: shapes.append(A.shape[1:]) or factorise(A))
    coding_rate(randn(2, 9, 4), 0.5)
    coding_rate(randn(2, 4, 9), 0.5)
    assert shapes == [(4, 4), (4, 4)]


def test_both_ways_agree_where_they_meet():
    for shape in ((3, 20, 8), (3, 8, 20)):
        V = randn(*shape).requires_grad_()
        by_cholesky = _logdet._of_matrices(V, 2.0, limit=1e6)
        by_singular_values = _logdet._of_matrices(V, 2.0, limit=0.0)
        close(by_cholesky, by_singular_values.detach(), 1e-13)
        first, second = (torch.autograd.grad(r.sum(), V)[0] for r in (by_cholesky, by_singular_values))
        close(first, second, 1e-12)


def test_singular_value_way_has_finite_gradients_at_repeated_and_zero_singular_values():
    Z = torch.cat([torch.eye(4, dtype=DOUBLE), torch.zeros(3, 4, dtype=DOUBLE)]) * 1e4
    Z[3] = 0
    (gradient,) = grad_of(lambda z: coding_rate(z, 0.5), Z)
    close(gradient, closed_form_gradient(Z, 0.5), 1e-12)


def test_mixed_batch_equals_its_members():
    """Easy, hard, zero, NaN and infinite matrices in one batch: each as if alone, gradients too."""
    Z = randn(2, 3, 6, 4)
    Z[0, 0] *= 1e20
    Z[0, 2] = 0
    Z[1, 0, 2, 3] = math.nan
    Z[1, 1] = Z[1, 1, :1] * 1e12
    Z[1, 2, 0, 0] = math.inf
    for dtype in (DOUBLE, torch.float32):
        batch = Z.to(dtype)
        values = coding_rate(batch, 0.5)
        (gradient,) = grad_of(lambda z: coding_rate(z, 0.5), batch)
        for i in range(2):
            for j in range(3):
                alone = coding_rate(batch[i, j], 0.5)
                (alone_gradient,) = grad_of(lambda z: coding_rate(z, 0.5), batch[i, j])
                torch.testing.assert_close(values[i, j], alone, rtol=1e-12, atol=0, equal_nan=True)
                torch.testing.assert_close(gradient[i, j], alone_gradient, rtol=1e-9, atol=0, equal_nan=True)
        assert values.isnan().tolist() == [[False, False, False], [True, False, True]]
        assert gradient[1, ::2].isnan().all() and gradient[0].isfinite().all() and gradient[1, 1].isfinite().all()


def trained_like(N: int, d: int, decay: float, massive: float, seed: int) -> torch.Tensor:
    """Three matrices of float32 tokens: power-law spectrum, a shared mean, one token `massive` times as long."""
    Z = randn(3, N, d, seed=seed) * torch.arange(1, d + 1, dtype=DOUBLE) ** -decay @ orthogonal(d, seed + 1)
    Z = 8 * Z + randn(d, seed=seed + 2)
    Z[:, 0] *= massive
    return Z.float()


def test_float32_tokens_of_any_spectrum_keep_the_promise():
    for case, (N, d) in enumerate([(97, 32), (40, 150)]):
        for decay in (0.0, 0.5, 1.0, 2.0):
            for massive in (1.0, 1e2, 1e4):
                for eps in (0.05, 0.5, 5.0):
                    Z = trained_like(N, d, decay, massive, seed=case)
                    close(coding_rate(Z, eps) / coding_rate(Z.double(), eps).clamp_min(1), torch.ones(3), 1e-6 + 2**-23)


# --- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N, d", [(5, 3), (3, 5)])
def test_gradcheck_and_gradgradcheck(N, d):
    Z = randn(2, N, d).requires_grad_()
    U = bases(2, d, 2).requires_grad_()
    functions = [
        (lambda z: coding_rate(z, 0.5), (Z,)),
        (lambda z, u: subspace_coding_rate(z, u, 0.5, per_subspace=True), (Z, U)),
        (lambda z, u: rate_reduction(z, u, 0.5), (Z, U)),
        (lambda z, u: sparse_rate_reduction(z, u, 0.1, 0.5, norm="l1"), (Z, U)),
    ]
    for function, inputs in functions:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    for measure in ("l1", "gini", "hoyer"):
        assert torch.autograd.gradcheck(lambda z, m=measure: sparsity(z, m), (Z,))


def test_gradcheck_by_singular_values():
    Z = (1e4 * randn(2, 5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.5), (Z,), eps=1e-2)


def test_gradients_do_not_depend_on_the_slices(monkeypatch):
    Z = randn(5, 3, 7, 4).float()
    U = bases(3, 4, 2).float()
    whole = grad_of(lambda z, u: subspace_coding_rate(z, u, 0.5), Z, U)
    value = subspace_coding_rate(Z, U, 0.5)
    monkeypatch.setattr(_logdet, "_SLICE", 1)
    torch.testing.assert_close(subspace_coding_rate(Z, U, 0.5), value, rtol=1e-6, atol=0)
    for sliced, expected in zip(grad_of(lambda z, u: subspace_coding_rate(z, u, 0.5), Z, U), whole):
        torch.testing.assert_close(sliced, expected, rtol=1e-5, atol=1e-7)


def test_slices_are_read_together(monkeypatch):
    """One reading of flags however many slices; those that need it go by the singular values, as alone."""
    Z = randn(6, 7, 4)
    Z[3] *= 1e8
    Z[4, 0, 0] = math.nan
    expected = coding_rate(Z, 0.5)
    read = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self, tolist=torch.Tensor.tolist: read.append(1) or tolist(self))
    monkeypatch.setattr(_logdet, "_SLICE", 1)
    monkeypatch.setattr(_logdet, "_READ_AT_ONCE", ())  # as on an accelerator
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("waits for an accelerator"))
        found = coding_rate(Z, 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, equal_nan=True)
    assert len(read) == 1


def test_l0_term_has_no_gradient():
    Z, U = randn(6, 4), bases(2, 4, 2)
    (with_term,) = grad_of(lambda z: sparse_rate_reduction(z, U, 0.3, 0.5), Z)
    (without,) = grad_of(lambda z: rate_reduction(z, U, 0.5), Z)
    assert torch.equal(with_term, without)


# --- identities ------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 10**6)
epsilons = st.floats(0.01, 10)
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@PROPERTY
@given(shapes, seeds, epsilons)
def test_identities(shape, seed, eps):
    N, K, p = shape
    d = K * p
    Z, U, Q = randn(N, d, seed=seed), bases(K, d, p, seed + 1), orthogonal(d, seed + 2)
    rate, compressed = coding_rate(Z, eps), subspace_coding_rate(Z, U, eps)
    assert rate >= 0 and compressed >= 0
    # Rotation of tokens and bases together, and the order of tokens.
    close(coding_rate(Z @ Q, eps), rate, 1e-9)
    close(subspace_coding_rate(Z @ Q, Q.T @ U, eps), compressed, 1e-9)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    close(subspace_coding_rate(Z[order], U, eps), compressed, 1e-9)
    # A finer distortion costs more.
    assert coding_rate(Z, eps * 0.9) > rate
    assert subspace_coding_rate(Z, U, eps * 0.9) > compressed
    # The two determinants, from the definition.
    alpha = d / (N * eps**2)
    close(rate, 0.5 * torch.linalg.slogdet(torch.eye(N, dtype=DOUBLE) + alpha * Z @ Z.T).logabsdet, 1e-9)
    close(rate, 0.5 * torch.linalg.slogdet(torch.eye(d, dtype=DOUBLE) + alpha * Z.T @ Z).logabsdet, 1e-9)
    # R^c as a sum over subspaces, and from tokens that are already projected.
    close(subspace_coding_rate(Z, U, eps, per_subspace=True).sum(-1), compressed, 1e-12)
    close(coding_rate(Z @ U, eps).sum(-1), compressed, 1e-12)
    close(rate_reduction(Z, U, eps), rate - compressed, 1e-12)


@PROPERTY
@given(shapes, seeds, epsilons)
def test_orthogonal_subspaces(shape, seed, eps):
    """With jointly orthonormal bases the rates of the parts at equal coefficient add up to the rate of the whole."""
    N, K, p = shape
    U = joint_bases(K, p, seed)
    # Token n lies in subspace n mod K.
    Z = torch.stack([U[n % K] @ randn(p, seed=seed + n) for n in range(N)])
    gamma = p / (N * eps**2)
    parts = [coding_rate(Z[k::K], math.sqrt(K * p / (gamma * len(Z[k::K])))) for k in range(min(K, N))]
    close(subspace_coding_rate(Z, U, eps), torch.stack(parts).sum(), 1e-9)
    # R has coefficient d/(N eps^2): at sqrt(K) eps it is R^c's, and then the whole is the sum of its parts.
    close(coding_rate(Z, math.sqrt(K) * eps), subspace_coding_rate(Z, U, eps), 1e-9)


def test_rank_one_tokens_per_subspace_are_the_cheapest_and_isotropic_ones_the_dearest():
    """Unit tokens in their subspaces: sum_k 1/2 log(1 + gamma N_k) <= R^c <= sum_k p/2 log(1 + gamma N_k / p)."""
    K, p, each, eps = 3, 4, 8, 0.5
    U = joint_bases(K, p)
    gamma = p / (K * each * eps**2)
    low, high = K * 0.5 * math.log1p(gamma * each), K * p / 2 * math.log1p(gamma * each / p)

    def rate(codes: torch.Tensor) -> float:
        Z = torch.cat([c @ U_k.T for c, U_k in zip(codes, U)])
        return subspace_coding_rate(Z, U, eps).item()

    rank_one = torch.eye(p, dtype=DOUBLE)[:1].expand(K, each, p)
    isotropic = torch.eye(p, dtype=DOUBLE).repeat(each // p, 1).expand(K, each, p)
    assert rate(rank_one) == pytest.approx(low, rel=1e-12)
    assert rate(isotropic) == pytest.approx(high, rel=1e-12)
    for seed in range(5):
        assert low < rate(torch.nn.functional.normalize(randn(K, each, p, seed=seed), dim=-1)) < high


def test_one_full_subspace_gives_no_rate_reduction():
    Z, U = randn(9, 6), orthogonal(6)[None]
    assert rate_reduction(Z, U, 0.5).item() == pytest.approx(0, abs=1e-12)


# --- shapes, dtypes, memory layouts ----------------------------------------------------------------------------


def test_shapes_batches_and_empty_batches():
    Z, U = randn(2, 3, 5, 4), bases(3, 4, 2)
    assert coding_rate(Z[0, 0], 0.5).shape == ()
    assert subspace_coding_rate(Z, U, 0.5).shape == (2, 3)
    assert subspace_coding_rate(Z, U, 0.5, per_subspace=True).shape == (2, 3, 3)
    one_by_one = torch.stack([torch.stack([rate_reduction(z, U, 0.5) for z in row]) for row in Z])
    close(rate_reduction(Z, U, 0.5), one_by_one, 1e-13)
    close(coding_rate(Z.transpose(0, 1), 0.5), coding_rate(Z, 0.5).T, 1e-13)
    for empty in (Z[:0], Z[:, :0]):
        assert coding_rate(empty, 0.5).shape == empty.shape[:2]
        assert subspace_coding_rate(empty, U, 0.5, per_subspace=True).shape == (*empty.shape[:2], 3)
        assert sparse_rate_reduction(empty, U, 0.1, 0.5).shape == empty.shape[:2]
        assert sparsity(empty, "gini").shape == empty.shape[:2]
        assert grad_of(lambda z: coding_rate(z, 0.5), empty)[0].shape == empty.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, DOUBLE])
def test_result_dtypes_and_half_inputs(dtype):
    Z, U = randn(3, 9, 6).to(dtype), bases(2, 6, 3).to(dtype)
    results = [
        (f(*args), f(*(a.double() if isinstance(a, torch.Tensor) else a for a in args)))
        for f, args in [
            (coding_rate, (Z, 0.5)),
            (subspace_coding_rate, (Z, U, 0.5)),
            (rate_reduction, (Z, U, 0.5)),
            (sparse_rate_reduction, (Z, U, 0.1, 0.5)),
            *((sparsity, (Z, m)) for m in ("l0", "l1", "gini", "hoyer")),
        ]
    ]
    for result, exact in results:
        assert result.dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
        close(result, exact, 1e-6)
    gradient = grad_of(lambda z: coding_rate(z, 0.5), Z)[0]
    assert gradient.dtype == dtype and gradient.isfinite().all()


def test_autocast_changes_nothing():
    Z, U = randn(4, 9, 6).float(), bases(2, 6, 3).float()
    expected = rate_reduction(Z, U, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rate_reduction(Z, U, 0.5), expected)


def test_inputs_stay_as_they_were():
    for dtype in (torch.float32, DOUBLE):
        Z, U = randn(4, 9, 6).to(dtype), bases(2, 6, 3).to(dtype)
        before = Z.clone(), U.clone()
        sparse_rate_reduction(Z, U, 0.1, 0.5)
        assert all(sparsity(Z, m).isfinite().all() for m in ("l0", "l1", "gini", "hoyer"))
        assert torch.equal(Z, before[0]) and torch.equal(U, before[1])


# --- sparsity --------------------------------------------------------------------------------------------------


def test_sparsity_by_hand():
    Z = torch.tensor([[0.0, -1.0], [2.0, 5.0]])
    assert sparsity(Z).item() == 0.75
    assert sparsity(Z, tol=1.0).item() == 0.5
    assert sparsity(Z, "l1").item() == 8
    # (sqrt 4 - 8 / sqrt 30) / (sqrt 4 - 1)
    assert sparsity(Z, "hoyer").item() == pytest.approx(2 - 8 / math.sqrt(30))
    # Mean absolute difference over twice the mean: (1 + 2 + 5 + 1 + 4 + 3) * 2 / 16 / (2 * 2)
    assert sparsity(Z, "gini").item() == pytest.approx(0.5)


def test_l0_objective_counts_entries_above_the_tolerance():
    Z, U = torch.tensor([[0.0, -1.0], [2.0, 5.0]]), torch.eye(2)[None]
    delta = rate_reduction(Z, U, 0.5).item()
    for tol, count in ((0.0, 3), (1.0, 2), (5.0, 0)):
        assert sparse_rate_reduction(Z, U, 0.5, 0.5, tol=tol).item() == pytest.approx(delta - 0.5 * count)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_gini_and_hoyer_are_scale_free_with_the_defined_extremes(scale):
    n = 12
    one = torch.zeros(3, 4)
    one[1, 2] = -scale
    flat = torch.full((3, 4), scale)
    assert sparsity(one, "gini").item() == pytest.approx(1 - 1 / n)
    assert sparsity(one, "hoyer").item() == pytest.approx(1)
    assert sparsity(flat, "gini").item() == pytest.approx(0, abs=1e-6)
    assert sparsity(flat, "hoyer").item() == pytest.approx(0, abs=1e-6)
    Z = randn(3, 4).float()
    for measure in ("gini", "hoyer"):
        close(sparsity(Z * scale, measure), sparsity(Z, measure), 1e-6)
        assert grad_of(lambda z, m=measure: sparsity(z, m), Z * scale)[0].isfinite().all()


@pytest.mark.parametrize("measure", ["l0", "l1", "gini", "hoyer"])
def test_sparsity_of_zero_single_and_nan_input(measure):
    zero = torch.zeros(2, 3, 4)
    assert sparsity(zero, measure).tolist() == [0, 0]
    one = torch.full((1, 1), 3.0)
    assert sparsity(one, measure).item() == {"l0": 1, "l1": 3, "gini": 0, "hoyer": 0}[measure]
    if measure != "l0":
        assert grad_of(lambda z: sparsity(z, measure), zero)[0].isfinite().all()
        assert grad_of(lambda z: sparsity(z, measure), one)[0].isfinite().all()
    zero[1, 0, 0] = math.nan
    assert sparsity(zero, measure).isnan().tolist() == [False, True]


# --- errors and documentation ----------------------------------------------------------------------------------

Z_OK, U_OK = torch.ones(5, 4), torch.ones(2, 4, 2)


@pytest.mark.parametrize(
    "call, words",
    [
        *((lambda e=e: coding_rate(Z_OK, e), ["eps", repr(e)]) for e in (0, -0.5, math.inf, math.nan, "a", None)),
        (lambda: coding_rate(torch.ones(4), 0.5), ["Z", "(4,)", "(..., N, d)"]),
        (lambda: coding_rate(torch.ones(2, 0, 4), 0.5), ["Z", "(2, 0, 4)"]),
        (lambda: coding_rate(torch.ones(3, 0), 0.5), ["Z", "(3, 0)"]),
        (lambda: coding_rate(torch.ones(5, 4, dtype=torch.int64), 0.5), ["Z", "int64"]),
        (lambda: coding_rate([[1.0]], 0.5), ["Z", "list"]),
        (lambda: subspace_coding_rate(Z_OK, torch.ones(2, 3, 2), 0.5), ["U", "(2, 3, 2)", "d = 4"]),
        (lambda: subspace_coding_rate(Z_OK, torch.ones(4, 2), 0.5), ["U", "(4, 2)", "(K, d, p)"]),
        (lambda: rate_reduction(Z_OK, torch.ones(2, 4, 0), 0.5), ["U", "(2, 4, 0)"]),
        (lambda: rate_reduction(Z_OK, U_OK.bool(), 0.5), ["U", "bool"]),
        (lambda: rate_reduction(Z_OK, U_OK, -1), ["eps", "-1"]),
        (lambda: sparse_rate_reduction(Z_OK, U_OK, -0.1, 0.5), ["lam", "-0.1"]),
        (lambda: sparse_rate_reduction(Z_OK, U_OK, math.nan, 0.5), ["lam", "nan"]),
        (lambda: sparse_rate_reduction(Z_OK, U_OK, 0.1, 0.5, norm="l2"), ["norm", "'l2'", "l0, l1"]),
        (lambda: sparse_rate_reduction(Z_OK, U_OK, 0.1, 0.5, "l1", tol=0.1), ["tol", "0.1", "'l1'"]),
        (lambda: sparsity(Z_OK, "l3"), ["measure", "'l3'", "l0, l1, gini, hoyer"]),
        (lambda: sparsity(Z_OK, tol=-1.0), ["tol", "-1.0"]),
        (lambda: sparsity(Z_OK, "gini", tol=0.5), ["tol", "0.5", "'gini'"]),
    ],
)
def test_errors_name_the_field_and_the_value(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(words[0]) and all(word in message for word in words), message


def test_arguments_without_default():
    for call in (lambda: coding_rate(Z_OK), lambda: sparse_rate_reduction(Z_OK, U_OK, eps=0.5)):
        with pytest.raises(TypeError, match="missing 1 required"):
            call()


def test_doctest():
    result = doctest.testmod(objective, extraglobs={"torch": torch})
    assert result.attempted >= 1 and result.failed == 0
