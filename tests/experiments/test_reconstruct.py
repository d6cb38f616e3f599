"""The bound of docs/theory.md holds, is exact where it should be, and the inverse errors take any layers."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from opencrate.analysis.maths.inverse import inverse_errors
from opencrate.operators import subspace_attention
from opencrate.reports.experiments.reconstruct import describe, figures, table
from opencrate.studies.experiments.inverse_bound import MatchedLayer, attention_lipschitz, layer_bound, network_bounds
from opencrate.studies.experiments.reconstruct import CASES, ReconstructSettings, matched_layers, quick, run
from opencrate.studies.experiments.synthetic import dictionary_with_condition, random_orthonormal

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def layer_of(seed, condition=1.0, orthonormal=True, **changes) -> MatchedLayer:
    """K = 2 subspaces of dimension 2 in d = 6."""
    U = random_orthonormal(6, 4, seed).unflatten(1, (2, 2)).movedim(1, 0)
    U = U if orthonormal else randn(2, 6, 2, seed=seed) / 2
    values = {"eta": 1.0, "lam": 0.02, "signed": True, "factor": 0.3, "scale": 2**-0.5}
    return MatchedLayer(U, dictionary_with_condition(6, condition, seed), **(values | changes))


@given(seed=st.integers(0, 10_000), radius=st.floats(0.05, 2.5), scale=st.floats(0.1, 1.5))
@settings(max_examples=40, deadline=None)
def test_attention_is_lipschitz_with_the_stated_constant(seed, radius, scale):
    V = randn(8, 3, seed=seed)
    V = radius * V / V.norm(dim=-1).max()
    W = V + 0.1 * radius * randn(8, 3, seed=seed + 1)
    W = W * torch.clamp(radius / W.norm(dim=-1, keepdim=True), max=1.0)
    moved = (subspace_attention(V, scale) - subspace_attention(W, scale)).norm()
    assert moved <= attention_lipschitz(radius, 8, scale) * (V - W).norm() * (1 + 1e-12)


def test_the_jacobian_of_attention_stays_below_the_constant():
    for seed in range(4):
        V = randn(6, 2, seed=seed)
        V = V / V.norm(dim=-1).max()
        jacobian = torch.autograd.functional.jacobian(lambda X: subspace_attention(X, 1.0), V).reshape(12, 12)
        assert torch.linalg.matrix_norm(jacobian, 2) <= attention_lipschitz(1.0, 6, 1.0)


def test_without_attention_scores_the_constant_is_that_of_averaging():
    assert attention_lipschitz(1.0, 8, 0.0) == 1.0
    assert attention_lipschitz(1e6, 8, 1.0) == pytest.approx(math.sqrt(8) + 1e12 * (1 + math.sqrt(8)))


@given(
    seed=st.integers(0, 10_000),
    condition=st.sampled_from([1.0, 1.0, 1.5, 4.0]),
    eta=st.floats(0.05, 1.0),
    lam=st.floats(0, 0.3),
    signed=st.booleans(),
    orthonormal=st.booleans(),
    factor=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_bound_of_a_layer_holds(seed, condition, eta, lam, signed, orthonormal, factor):
    layer = layer_of(seed, condition, orthonormal, eta=eta, lam=lam, signed=signed, factor=factor)
    Z = torch.nn.functional.normalize(randn(10, 6, seed=seed), dim=-1)
    error = (layer.decode(layer.encode(Z)) - Z).norm()
    assert error <= layer_bound(layer, Z) * (1 + 1e-9) + 1e-9


@given(seed=st.integers(0, 1000), signed=st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_bound_of_a_network_holds(seed, signed):
    layers = [layer_of(seed + number, signed=signed) for number in range(4)]
    Z = torch.nn.functional.normalize(randn(10, 6, seed=seed), dim=-1)
    errors = inverse_errors([one.encode for one in layers], [one.decode for one in layers], Z)
    per_layer, network = network_bounds(layers, Z)
    assert (errors.per_layer <= torch.tensor(per_layer) + 1e-9).all()
    assert (errors.network <= torch.tensor(network) + 1e-9).all()


def test_without_threshold_and_attention_the_inverse_is_exact_and_the_bound_zero():
    layer = layer_of(3, lam=0.0, factor=0.0)
    Z = randn(10, 6)
    torch.testing.assert_close(layer.decode(layer.encode(Z)), Z)
    assert layer_bound(layer, Z) < 1e-12


def test_only_the_threshold_bounds_by_its_bias():
    """Orthonormal D, eta = 1, no attention: the error is exactly ||shrink(S) - S||, at most lam sqrt(d N)."""
    layer = layer_of(3, lam=0.1, factor=0.0)
    Z = randn(10, 6)
    error = (layer.decode(layer.encode(Z)) - Z).norm().item()
    assert error == pytest.approx(layer_bound(layer, Z)) and error <= 0.1 * math.sqrt(60)


def test_inverse_errors_take_any_layers():
    Z = randn(4, 3)
    found = inverse_errors([lambda X: 2 * X, lambda X: X + 1], [lambda X: X / 2, lambda X: X - 1], Z)
    assert found.per_layer.max() < 1e-15 and found.network.shape == (2,) and found.network.max() < 1e-14
    lost = inverse_errors([torch.zeros_like], [lambda X: X], Z)
    assert lost.network.item() == 1
    assert inverse_errors([lambda X: X], [lambda X: 3 * X], Z, directions=True).network.item() < 1e-15
    assert inverse_errors([torch.neg] * 3, [torch.neg] * 3, Z, depths=[3]).network.shape == (1,)
    with pytest.raises(ValueError, match="0 for 1 encoders"):
        inverse_errors([torch.neg], [], Z)


def test_aligned_codes_stay_non_negative():
    options = ReconstructSettings(layers=3, tokens=32)
    base = {"noise": 0.0, "angle": 90.0, "condition": 1.0, "lam": 0.0, "step_size": 1.0}
    Z, layers = matched_layers(options, "aligned", 0, base)
    for layer in layers:
        assert (layer.compress(Z) @ layer.dictionary).min() > -1e-9
        Z = layer.encode(Z)


@pytest.fixture(scope="module")
def found():
    return run(quick(ReconstructSettings(tokens=32, layers=2)))


def test_the_experiment_keeps_its_bound(found):
    assert any("The bound holds at all" in line for line in describe(found))
    assert len(table(found)) == len(CASES) and not table(found).isna().any(axis=None)
    assert set(figures(found)) == {"reconstruct", "reconstruct_sweeps"}
    by_depth = [row for row in found.rows if row["sweep"] == "depth" and row["what"] == "error"]
    assert {row["case"] for row in by_depth} == set(CASES)
    worst = {row["case"]: row["mean"] for row in by_depth if row["of"] == "first ℓ layers" and row["value"] == 2}
    assert worst["relu"] > worst["soft"] and worst["relu"] > worst["aligned"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, "layers=0"),
        ({"condition": (0.5,)}, "condition=0.5: must be a number of at least 1"),
        ({"lam": (-0.1,)}, "lam=-0.1"),
        ({"step_size": (0.0,)}, "step_size=0.0: must be a number of at least 1e-12"),
        ({"angle": (100.0,)}, "angle=100"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        ReconstructSettings(**changes)
