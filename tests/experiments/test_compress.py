"""Which forms lower R^c: the theorems on the exact gradient, and what the experiment says about the others."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from opencrate import subspace_coding_rate
from opencrate.analysis.maths.steps import gradient_lipschitz
from opencrate.operators import coding_rate_gradient
from opencrate.reports.experiments.compress import describe, figures, table
from opencrate.studies.experiments.compress import CompressSettings, one_step, quick, run, trajectory
from opencrate.studies.experiments.synthetic import union_of_subspaces


@given(
    seed=st.integers(0, 10_000),
    angle=st.sampled_from([0.0, 30.0, 70.0, 90.0]),
    noise=st.floats(0, 2),
    eps=st.floats(0.05, 3),
    size=st.floats(0.01, 1.99),
)
@settings(max_examples=40, deadline=None)
def test_the_exact_gradient_descends_by_at_least_the_theorem(seed, angle, noise, eps, size):
    """R^c(Z - kappa G) <= R^c(Z) - kappa (1 - kappa L / 2) ||G||^2 for every kappa < 2/L."""
    data = union_of_subspaces(3, 2, 9, 12, noise, angle, seed)
    Z, U = data.tokens, data.bases
    G, kappa = coding_rate_gradient(Z, U, eps), size / gradient_lipschitz(U, 12, eps)
    before = subspace_coding_rate(Z, U, eps)
    after = subspace_coding_rate(one_step(Z, U, "exact", eps, size), U, eps)
    assert after <= before - kappa * (1 - size / 2) * G.square().sum() + 1e-9 * before
    assert after < before


@given(seed=st.integers(0, 10_000), eps=st.floats(0.1, 2))
@settings(max_examples=20, deadline=None)
def test_the_gradient_is_lipschitz_with_the_stated_constant(seed, eps):
    generator = torch.Generator().manual_seed(seed)
    U, Y, Z = (torch.randn(*shape, generator=generator).double() for shape in ((2, 6, 3), (5, 6), (5, 6)))
    distance = (coding_rate_gradient(Y, U, eps) - coding_rate_gradient(Z, U, eps)).norm()
    assert distance <= gradient_lipschitz(U, 5, eps) * (Y - Z).norm() * (1 + 1e-12)


def test_small_tokens_make_the_first_order_forms_descend():
    """Where gamma ||V||^2 is small, the Neumann step is the gradient step, and the tied +MSSA must ascend."""
    data = union_of_subspaces(2, 3, 8, 10, 0.1, 90.0, 0)
    Z, U, eps = 0.01 * data.tokens, data.bases, 0.5
    before = subspace_coding_rate(Z, U, eps)
    assert subspace_coding_rate(one_step(Z, U, "neumann", eps, 0.5), U, eps) < before
    assert subspace_coding_rate(one_step(Z, U, "plus", eps, 0.5), U, eps) > before


def test_trajectory_starts_at_the_state_and_its_steps_are_one_step():
    data = union_of_subspaces(2, 3, 9, 10, 0.1, 60.0, 0)
    plain, unit = trajectory(data.tokens, data.bases, "paper", 0.5, 0.5, 2)
    assert plain.shape == unit.shape == (3,)
    once = one_step(data.tokens, data.bases, "paper", 0.5, 0.5)
    assert plain[1] == subspace_coding_rate(once, data.bases, 0.5) and plain[0] == pytest.approx(unit[0].item())


@pytest.fixture(scope="module")
def found():
    return run(quick(CompressSettings(tokens=32)))


def test_the_experiment_finds_what_the_theorem_says(found):
    safe = [
        row
        for row in found.rows
        if row["form"] == "exact" and row["tokens"] == "as it is" and row["sweep"] in ("noise", "angle")
    ]
    assert len(safe) == 4 and all(row["verdict"] == "descends" and row["largest"] < 0 for row in safe)
    falling = [row for row in found.rows if row["sweep"] == "repeated" and row["form"] == "exact"]
    means = [row["mean"] for row in falling if row["tokens"] == "as it is"]
    assert len(means) == 9 and means == sorted(means, reverse=True)


def test_rows_summary_and_figures(found):
    assert {frozenset(row) for row in found.rows} == {frozenset(found.rows[0])}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in found.rows if row["mean"] == row["mean"])
    assert any("Exact gradient step: descends at 6 of 6 points" in line for line in describe(found))
    assert set(figures(found)) == {"compress", "compress_sweeps"}
    assert table(found).shape == (6, 4) and not table(found).isna().any(axis=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "seeds=1: must be a whole number of at least 2"),
        ({"eps": 0.0}, "eps=0.0: must be a number of at least 1e-12"),
        ({"step_size": (0.5, -1.0)}, "step_size=-1.0: must be a number of at least 1e-12"),
        ({"noise": (-1.0,)}, "noise=-1.0"),
        ({"angle": (120.0,)}, "angle=120"),
        ({"ambient": 30}, "ambient=30"),
        ({"eps": float("nan")}, "eps=nan: must be a number"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        CompressSettings(**changes)
