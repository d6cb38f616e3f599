"""The two steps of a layer against the formulas, autograd, scikit-learn and golden gradients (float64)."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.linear_model import Lasso
from torch import Tensor

from opencrate import operators as ops
from opencrate.blocks import Compression
from opencrate.compression import MSSA
from opencrate.configuration_crate import CrateConfig
from opencrate.objective import subspace_coding_rate
from opencrate.sparsification import ISTA
from tests.golden import load_golden, sub_dict

DOUBLE = torch.float64


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def orthonormal_bases(K: int, d: int, p: int, seed: int = 0) -> Tensor:
    """K mutually incoherent bases (K, d, p), K p <= d."""
    return torch.linalg.qr(randn(d, K * p, seed=seed)).Q.unflatten(1, (K, p)).movedim(1, 0)


def close(a: Tensor, b: Tensor, tol: float) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= tol * max(1.0, b.abs().max().item())


# --- the gradient of R^c and its Neumann form ---------------------------------------------------------------------


@pytest.mark.parametrize("shape, K, p", [((9, 8), 2, 4), ((2, 5, 8), 3, 3), ((2, 2, 4, 8), 1, 8), ((1, 6), 2, 3)])
@pytest.mark.parametrize("eps", [0.1, 0.5, 1.0])
def test_coding_rate_gradient_is_autograd_of_the_objective(shape, K, p, eps):
    Z, U = randn(*shape).requires_grad_(), randn(K, shape[-1], p, seed=1)
    subspace_coding_rate(Z, U, eps).sum().backward()
    close(ops.coding_rate_gradient(Z.detach(), U, eps), Z.grad, 1e-9)


def test_coding_rate_gradient_equals_the_golden_one():
    golden = load_golden("crate_measures", "definitions")
    gradients = sub_dict(golden, "definition.grad_Rc.")
    for name, expected in gradients.items():
        tokens, bases, eps = name.split(".", 2)
        Z, U = golden[f"tokens.{tokens}"].double().T, golden[f"bases.{bases}"].double()
        # stored in float32, hence 1e-7
        close(ops.coding_rate_gradient(Z, U, float(eps.removeprefix("eps"))), expected.double().T, 1e-7)
    assert len(gradients) >= 4


def test_neumann_form_is_of_first_order():
    Z, U = randn(7, 8), randn(2, 8, 4, seed=1)
    errors = []
    for eps in (512.0, 512.0 * 2**0.5, 1024.0):  # gamma halves each time
        exact = ops.coding_rate_gradient(Z, U, eps)
        errors.append(((ops.neumann_coding_rate_gradient(Z, U, eps) - exact).norm() / exact.norm()).item())
    assert errors[0] < 1e-4
    # relative to a gradient that is itself O(gamma), the error is O(gamma^2): halving gamma divides it by 4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01) and errors[1] / errors[2] == pytest.approx(4, rel=0.01)


def test_neumann_form_diverges_outside_its_region():
    Z, U = 10 * randn(7, 8), randn(2, 8, 4, seed=1)
    exact, first_order = ops.coding_rate_gradient(Z, U, 0.1), ops.neumann_coding_rate_gradient(Z, U, 0.1)
    assert first_order.norm() > 100 * exact.norm()


def test_gamma():
    assert ops.gamma(num_tokens=8, dim=4, eps=0.5) == 2.0
    with pytest.raises(ValueError, match=r"eps must be > 0, got 0"):
        ops.gamma(8, 4, 0)


# --- MSSA ------------------------------------------------------------------------------------------------------


def small_config(**changes) -> CrateConfig:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
    return CrateConfig(**{**sizes, "attn_implementation": "eager", **changes})


def filled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    for i, parameter in enumerate(module.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed + i) / 2
    return module


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "changes", [{}, {"head_dim": 3}, {"attention_output_bias": False}, {"attention_output": "tied", "head_dim": 5}]
)
def test_mssa_function_equals_the_module(changes, attention, scale):
    module = filled(MSSA(small_config(attn_implementation=attention, attention_scale=scale, **changes)))
    tokens = randn(2, 5, 8, seed=9)
    output = getattr(module, "output", None)
    W, b = (output.weight, output.bias) if output is not None else (None, None)
    update, maps = module(tokens, output_attentions=True)
    close(update, ops.mssa(tokens, module.bases(), W, b, scale=scale), 1e-12)
    close(maps, ops.attention_maps(ops.project(tokens, module.bases()), scale), 1e-12)


def test_mssa_without_output_map_concatenates_the_heads():
    module = filled(MSSA(small_config(attention_output="none")))
    tokens = randn(2, 5, 8, seed=9)
    heads = ops.subspace_attention(ops.project(tokens, module.bases()))
    close(module(tokens)[0], torch.cat((heads[:, 0], heads[:, 1]), dim=-1), 1e-12)


def test_mssa_written_out_head_by_head():
    Z, U, W, b = randn(6, 8), randn(2, 8, 3, seed=1), randn(8, 6, seed=2), randn(8, seed=3)
    heads = []
    for U_k in U:
        V = Z @ U_k
        scores = (V @ V.T / 3**0.5).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ V)
    close(ops.mssa(Z, U, W, b), torch.cat(heads, 1) @ W.T + b, 1e-12)
    close(ops.mssa(Z, U), heads[0] @ U[0].T + heads[1] @ U[1].T, 1e-12)
    close(ops.mssa(Z, U, factor=0.25), ops.mssa(Z, U) / 4, 1e-15)


def test_project_and_maps_shapes():
    Z, U = randn(3, 2, 6, 8), randn(4, 8, 3, seed=1)
    V = ops.project(Z, U)
    assert V.shape == (3, 2, 4, 6, 3)
    close(V[1, 0, 2], Z[1, 0] @ U[2], 1e-15)
    maps = ops.attention_maps(V)
    assert maps.shape == (3, 2, 4, 6, 6)
    close(maps.sum(-1), torch.ones(3, 2, 4, 6, dtype=DOUBLE), 1e-14)
    assert (maps >= 0).all()


@pytest.mark.parametrize("dtype, tol", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_maps_have_float32_statistics(dtype, tol):
    V = randn(1, 300, 4, dtype=dtype)
    maps = ops.attention_maps(V)
    assert maps.dtype == dtype
    close(maps.double(), ops.attention_maps(V.double()), tol)


def test_boolean_and_additive_masks_agree_and_are_respected():
    V, keep = randn(2, 3, 5, 4), torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    keep |= torch.eye(5, dtype=torch.bool)
    additive = torch.zeros(keep.shape, dtype=DOUBLE).masked_fill(~keep, -torch.inf)
    masked = ops.attention_maps(V, mask=keep)
    assert torch.equal(masked, ops.attention_maps(V, mask=additive))
    assert (masked[~keep.expand_as(masked)] == 0).all() and not keep.all()
    close(masked.sum(-1), torch.ones(2, 3, 5, dtype=DOUBLE), 1e-14)
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert torch.equal(ops.attention_maps(V, mask=everything), ops.attention_maps(V))


def test_the_papers_step_and_its_tied_factor():
    """(1 - kappa gamma) Z + kappa gamma MSSA, a tied MSSA itself being multiplied by gamma."""
    kappa, eps = 0.7, 2.0
    changes = {"attention_output": "tied", "compression_kappa": kappa, "compression_eps": eps}
    module = filled(Compression(small_config(**changes)))
    tokens = randn(2, 5, 8, seed=9)
    g = 4 / (5 * eps**2)
    heads = ops.mssa(module.norm(tokens), module.mssa.bases())
    close(module(tokens), (1 - kappa * g) * tokens + kappa * g * (g * heads), 1e-12)
    learned = filled(Compression(small_config(compression_kappa=kappa, compression_eps=eps)))
    close(learned(tokens), (1 - kappa * g) * tokens + kappa * g * learned.mssa(learned.norm(tokens))[0], 1e-12)
    published = filled(Compression(small_config()))
    close(published(tokens), tokens + published.mssa(published.norm(tokens))[0], 1e-12)


def test_the_papers_step_is_the_neumann_step_with_a_softmax():
    """[2306.01129, Eq. 69-76]: Z - kappa grad, V V^T replaced by its row softmax, sum_k Z U_k U_k^T = Z."""
    kappa, eps, N, d, K = 0.5, 3.0, 6, 8, 2
    U, Z = orthonormal_bases(K, d, d // K), randn(N, d, seed=3)
    g = ops.gamma(N, d // K, eps)
    changes = {"attention_output": "tied", "compression_kappa": kappa, "compression_eps": eps, "attention_scale": 1.0}
    module = Compression(small_config(**changes))
    module.mssa.subspaces.weight.data = U.mT.flatten(0, 1).contiguous()
    module.norm = torch.nn.Identity()
    gradient = torch.zeros(N, d, dtype=DOUBLE)
    for U_k in U:
        V = Z @ U_k
        gradient += g * (V - g * torch.softmax(V @ V.T, dim=1) @ V) @ U_k.T
    close(module(Z[None])[0], Z - kappa * gradient, 1e-12)
    # and the linear part alone is what the exact gradient becomes for small gamma
    g = ops.gamma(N, d // K, 1e3)
    close(ops.coding_rate_gradient(Z, U, 1e3) / g, Z, 1e-4)


def test_mssa_gradcheck():
    Z, U = randn(2, 4, 6).requires_grad_(), randn(2, 6, 3, seed=1).requires_grad_()
    W, b = randn(6, 6, seed=2).requires_grad_(), randn(6, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(ops.mssa, (Z, U, W, b))
    assert torch.autograd.gradcheck(ops.mssa, (Z, U))
    assert torch.autograd.gradcheck(lambda z, u: ops.coding_rate_gradient(z, u, 0.5), (Z, U))


# --- ISTA ------------------------------------------------------------------------------------------------------


def test_shrink():
    A = torch.tensor([-2.0, -0.5, -0.1, 0.0, 0.1, 0.5, 2.0], dtype=DOUBLE)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 1.7], dtype=DOUBLE)
    close(ops.shrink(A, 0.3), expected, 1e-15)
    close(ops.shrink(A, 0.3, signed=True), expected - expected.flip(0), 1e-15)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype, tol", [(DOUBLE, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("num_tokens", [3, 16, 40])
def test_both_forms_of_the_complete_step_agree(num_tokens, dtype, tol, signed):
    X, D = randn(num_tokens, 16, dtype=dtype), randn(16, 16, seed=1, dtype=dtype) / 4
    general = ops.ista(X, D, 0.1, 0.1, num_steps=1, A0=X, signed=signed)
    close(ops.ista_complete(X, D, 0.1, 0.1, signed), general, tol)
    one_matrix = ops.shrink(X @ ops.complete_ista_matrix(D, 0.1), 0.1 * 0.1, signed)
    close(one_matrix, general, tol)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 8), (2, 40, 8)])
def test_the_module_equals_the_function(shape, signed):
    module = filled(ISTA(small_config(ista_threshold="soft" if signed else "relu")))
    tokens = randn(*shape, seed=9)
    expected = ops.ista(tokens, module.dictionary, 0.1, 0.1, num_steps=1, A0=tokens, signed=signed)
    close(module(tokens)[0], expected, 1e-12)
    with torch.no_grad():
        close(module(tokens)[0], expected, 1e-12)


def numpy_step(A: np.ndarray, X: np.ndarray, D: np.ndarray, eta: float, lam: float) -> np.ndarray:
    """The update in the paper's orientation: columns are tokens."""
    return np.maximum(A + eta * D.T @ (X - D @ A) - eta * lam, 0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ista_equals_the_formula_in_numpy(steps):
    X, D, start = randn(7, 6), randn(6, 15, seed=1) / 3, randn(7, 15, seed=2).relu()
    for A0 in (None, start):
        A = np.zeros((15, 7)) if A0 is None else A0.T.numpy()
        for _ in range(steps):
            A = numpy_step(A, X.T.numpy(), D.numpy(), 0.2, 0.1)
        close(ops.ista(X, D, 0.2, 0.1, num_steps=steps, A0=A0), torch.from_numpy(A.T), 1e-12)


def test_the_crate_step_in_the_papers_words():
    """Z + eta D^T (Z - D Z) - eta lambda, then ReLU [2306.01129, Eq. 17]."""
    X, D = randn(9, 6), randn(6, 6, seed=1)
    expected = numpy_step(X.T.numpy(), X.T.numpy(), D.numpy(), 0.1, 0.1)
    close(ops.ista_complete(X, D, 0.1, 0.1), torch.from_numpy(expected.T), 1e-12)


def test_signed_ista_is_ista_on_a_doubled_dictionary():
    """Signed codes A are A+ - A- with non-negative parts over [D, -D]; their objectives meet at the optimum."""
    X, D = randn(3, 6), randn(6, 10, seed=1) / 3
    eta = 0.5 / torch.linalg.matrix_norm(D, 2).item() ** 2
    signed = ops.ista(X, D, eta, 0.2, num_steps=5000, signed=True)
    parts = ops.ista(X, torch.cat((D, -D), 1), eta, 0.2, num_steps=5000)
    close(parts[:, :10] - parts[:, 10:], signed, 1e-6)
    assert (signed < 0).any() and (signed > 0).any()


def test_ista_needs_a_step():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        ops.ista(randn(2, 3), randn(3, 3), 0.1, 0.1, num_steps=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), atoms=st.integers(2, 20), signed=st.booleans(), lam=st.floats(0, 2))
def test_ista_lowers_the_lasso_objective(seed, atoms, signed, lam):
    X, D = randn(4, 6, seed=seed), randn(6, atoms, seed=seed + 1)
    eta = 1 / torch.linalg.matrix_norm(D, 2).item() ** 2
    A = randn(4, atoms, seed=seed + 2)
    A = A if signed else A.relu()
    before = ops.lasso_objective(A, X, D, lam)
    for _ in range(5):
        A = ops.ista(X, D, eta, lam, num_steps=1, A0=A, signed=signed)
        after = ops.lasso_objective(A, X, D, lam)
        assert after <= before + 1e-12 * before
        before = after


def test_a_step_beyond_the_stable_size_does_not_descend():
    X, D = randn(4, 6), randn(6, 6, seed=1)
    eta = 2.5 / torch.linalg.matrix_norm(D, 2).item() ** 2
    objectives = [ops.lasso_objective(ops.ista(X, D, eta, 0.0, t, signed=True), X, D, 0.0) for t in (1, 50)]
    assert objectives[1] > 1e3 * objectives[0]


@pytest.mark.parametrize("signed", [False, True])
def test_ista_converges_to_scikit_learns_lasso(signed):
    X, D, lam = randn(3, 12), randn(12, 20, seed=1) / 4, 0.15
    eta = 1 / torch.linalg.matrix_norm(D, 2).item() ** 2
    A = ops.ista(X, D, eta, lam, num_steps=20_000, signed=signed)
    solver = Lasso(alpha=lam / 12, positive=not signed, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = torch.from_numpy(np.stack([solver.fit(D.numpy(), x.numpy()).coef_ for x in X]))
    close(A, expected, 1e-7)
    assert 0 < (A != 0).double().mean() < 1
    at_solution = ops.lasso_objective(expected, X, D, lam)
    assert ops.lasso_objective(A, X, D, lam) == pytest.approx(at_solution.item(), rel=1e-10)


def test_lasso_objective_by_hand():
    X, D = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    A = torch.tensor([[0.5, -1.0, 1.0]])  # A D^T = (1.5, 0)
    assert ops.lasso_objective(A, X, D, lam=0.1).item() == pytest.approx((0.25 + 4) / 2 + 0.1 * 2.5)


def test_ista_gradcheck():
    X, D = randn(2, 5, 4).requires_grad_(), (randn(4, 4, seed=1) / 2).requires_grad_()
    for signed in (False, True):
        assert torch.autograd.gradcheck(lambda x, d, s=signed: ops.ista_complete(x, d, 0.1, 0.1, s), (X, D))
        assert torch.autograd.gradcheck(lambda x, d, s=signed: ops.ista(x, d, 0.1, 0.1, 2, signed=s), (X, D))


def test_the_matrix_of_a_complete_step_has_exact_gradients():
    """With one product for that of D^T D: once, twice, in batches, forward, and under autocast."""
    D = (randn(5, 5, seed=1) / 2).requires_grad_()
    assert torch.autograd.gradcheck(ops.Gram.apply, D) and torch.autograd.gradgradcheck(ops.Gram.apply, D)
    matrix = lambda d: ops.complete_ista_matrix(d, 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(matrix, D, check_batched_grad=True, check_forward_ad=True)
    D = D.detach().float().requires_grad_()
    weight = randn(5, 5, seed=2, dtype=torch.float32)
    exact = torch.autograd.grad((matrix(D) * weight).sum(), D)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.autograd.grad((matrix(D) * weight).sum(), D)[0]
    assert half.dtype == torch.float32 and (half - exact).abs().max() < 0.02 * exact.abs().max()


# --- orthogonality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3), (2, 8, 4), (5, 5), (4, 1)])
def test_orthonormalize(shape):
    M = randn(*shape)
    Q = ops.orthonormalize(M)
    close(Q.mT @ Q, torch.eye(shape[-1], dtype=DOUBLE).expand(*shape[:-2], -1, -1), 1e-13)
    close(Q @ (Q.mT @ M), M, 1e-13)  # the span is kept
    close(ops.orthonormalize(Q), Q, 1e-13)
    close(ops.orthonormalize(-Q), -Q, 1e-13)


def test_orthonormalize_edges():
    assert torch.autograd.gradcheck(ops.orthonormalize, (randn(5, 3).requires_grad_(),))
    deficient = torch.ones(4, 2, dtype=DOUBLE)
    for M in (deficient, torch.zeros(4, 2, dtype=DOUBLE)):
        Q = ops.orthonormalize(M)
        close(Q.mT @ Q, torch.eye(2, dtype=DOUBLE), 1e-13)
    half = ops.orthonormalize(randn(6, 3, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    close(half.double().mT @ half.double(), torch.eye(3, dtype=DOUBLE), 1e-2)
    with pytest.raises(ValueError, match="cannot orthonormalise 3 columns in 2 dimensions"):
        ops.orthonormalize(randn(2, 3))


def test_orthogonality_penalty_is_zero_only_for_orthonormal_columns():
    U = orthonormal_bases(2, 8, 4)
    joint = U.movedim(0, 1).flatten(1)
    assert ops.orthogonality_penalty(U) < 1e-25 and ops.orthogonality_penalty(joint) < 1e-25
    each = torch.stack((U[0], U[0]))  # orthonormal one by one, not jointly
    assert ops.orthogonality_penalty(each) < 1e-25
    assert ops.orthogonality_penalty(each.movedim(0, 1).flatten(1)) == pytest.approx(8.0)
    assert ops.orthogonality_penalty(2 * U[0]) == pytest.approx(4 * 9.0)
    M = randn(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(ops.orthogonality_penalty, (M,))
