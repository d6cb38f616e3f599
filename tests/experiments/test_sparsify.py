"""The converged solver against scikit-learn and its own certificate; descent, divergence and the experiment's sentences."""

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from opencrate.analysis.maths.lasso import duality_gap, fista, token_objective
from opencrate.operators import ista, lasso_objective
from opencrate.reports.experiments.sparsify import describe, figures, table
from opencrate.studies.experiments.sparsify import (
    SparsifySettings,
    objective_rises,
    outcome,
    quick,
    run,
    scikit_learn_objective,
)
from opencrate.studies.experiments.synthetic import sparse_signals


def problem(seed=0, atoms=12, noise=0.2):
    data = sparse_signals(6, atoms, 5, 2, noise, seed)
    return data.signals, data.dictionary


def unit(D):
    return 1 / torch.linalg.matrix_norm(D, 2).square().item()


@pytest.mark.parametrize("atoms", [6, 20])
@pytest.mark.parametrize("lam", [0.01, 0.1, 0.5])
def test_fista_equals_scikit_learn(atoms, lam):
    X, D = problem(1, atoms)
    found = fista(X, D, lam, tol=1e-10)
    assert found.converged and (found.gap <= 1e-10 * X.square().sum(-1) / 2).all()
    torch.testing.assert_close(found.objective, scikit_learn_objective(X, D, lam), rtol=1e-8, atol=1e-10)


def test_signed_fista_equals_scikit_learn():
    from sklearn.linear_model import Lasso

    X, D = problem(2)
    solver = Lasso(alpha=0.1 / 6, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(D.numpy(), X.mT.numpy())
    expected = torch.from_numpy(solver.coef_)
    found = fista(X, D, 0.1, signed=True, tol=1e-10)
    torch.testing.assert_close(found.objective, token_objective(expected, X, D, 0.1), rtol=1e-8, atol=1e-10)


@given(seed=st.integers(0, 10_000), lam=st.floats(0.01, 1))
@settings(max_examples=20, deadline=None)
def test_the_gap_bounds_the_distance_to_the_optimum(seed, lam):
    X, D = problem(seed)
    optimum = fista(X, D, lam).objective
    code = ista(X, D, unit(D), lam, 5)
    excess = token_objective(code, X, D, lam) - optimum
    assert (duality_gap(code, X, D, lam) >= excess - 1e-10).all() and (excess >= -1e-6).all()


def test_fista_says_when_it_ran_out_of_steps_and_needs_a_penalty():
    X, D = problem(0, 20)
    assert not fista(X, D, 0.01, tol=1e-14, max_steps=3).converged
    with pytest.raises(ValueError, match="lam=0: must be > 0"):
        fista(X, D, 0)


@given(seed=st.integers(0, 10_000), size=st.floats(0.05, 1.0), lam=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_ista_descends_up_to_the_guaranteed_step_size(seed, size, lam):
    X, D = problem(seed)
    assert objective_rises(X, D, lam, size * unit(D), 30) == 0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_l1_of_the_converged_code_falls_with_lambda(seed):
    X, D = problem(seed, 6)
    sizes = [fista(X, D, lam).code.sum(-1) for lam in (0.02, 0.1, 0.3, 1.0)]
    assert all((after <= before + 1e-3).all() for before, after in pairwise(sizes))


def test_outcomes():
    X, D = problem(3, 6)
    assert outcome(X, D, 0.1, 1.9 * unit(D), 5000) == "converged"
    assert outcome(X, D, 0.1, 0.01 * unit(D), 20) == "still falling"
    assert outcome(X, D, 0.1, 8 * unit(D), 2000) == "diverged"


def test_an_oscillation_is_told_from_slow_convergence():
    """One atom of length 1: a <- relu(a + eta (x - a) - eta lam) with eta = 2.5 jumps between 0 and 2.5 (x - lam)."""
    X, D = torch.ones(1, 1).double(), torch.ones(1, 1).double()
    assert outcome(X, D, 0.1, 2.5, 400) == "oscillating"


@pytest.fixture(scope="module")
def found():
    return run(quick(SparsifySettings(steps=(1, 5, 10), long_run=100)))


def test_the_experiment_finds_what_the_theorems_say(found):
    text = " ".join(describe(found))
    assert "falls with λ in all 12 comparisons" in text
    assert "A step with η <= 1/‖D‖² never raises the objective" in text
    gaps = [row for row in found.rows if row["quantity"].startswith("gap") and row["step_size"] == 1.0]
    assert gaps and all(row["smallest"] >= -1e-9 and row["largest"] < 1 for row in gaps)


def test_every_seed_has_one_outcome(found):
    for dictionary in ("complete", "overcomplete"):
        for size in found.settings.step_size:
            rows = [
                row
                for row in found.rows
                if "fraction of seeds" in row["quantity"]
                and (row["dictionary"], row["step_size"]) == (dictionary, size)
            ]
            assert len(rows) == 4 and sum(row["mean"] for row in rows) == pytest.approx(1)


def test_table_and_figures(found):
    assert table(found).shape == (len(found.settings.step_size), 5) and not table(found).isna().any(axis=None)
    assert set(figures(found)) == {"sparsify_steps", "sparsify_lambda", "sparsify_outcomes"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lam": (0.0,)}, "lam=0.0: must be a number of at least 1e-12"),
        ({"steps": (0,)}, "steps=0"),
        ({"base_lam": -1.0}, "base_lam=-1"),
        ({"active": 99}, "num_active=99"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        SparsifySettings(**changes)


def test_objective_is_the_operators_own():
    X, D = problem(0)
    A = ista(X, D, unit(D), 0.1, 3)
    assert token_objective(A, X, D, 0.1).sum().item() == pytest.approx(lasso_objective(A, X, D, 0.1).item())
