"""The graph of tokens and its cut: against brute force, in special cases, and without an N x N matrix."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import linalg

from opencrate.analysis.segmentation import ncut
from opencrate.analysis.segmentation.affinity import FLOOR, affinity, graph_bytes
from opencrate.analysis.segmentation.ncut import normalised_cut

from .scenes import two_objects


def brute_force(features, tau):
    """A by its definition."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length == 0, 1, length)
    return np.where(unit @ unit.T > tau, 1.0, FLOOR)


def tokens(count=60, dim=7, seed=0, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((count, dim)) + shift).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["few pairs", "most pairs"])
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.6])
def test_graph_is_its_definition(tau, shift, monkeypatch):
    monkeypatch.setattr("opencrate.analysis.segmentation.affinity._BLOCK", 7 * 60)  # blocks of 7 rows
    features = tokens(shift=shift)
    features[5] = 0
    graph, expected = affinity(features, tau), brute_force(features, tau)
    x = np.random.default_rng(1).standard_normal(60)
    assert np.allclose(graph.dense(), expected, atol=1e-14)
    assert np.allclose(graph.times(x), expected @ x) and np.allclose(graph.degrees(), expected.sum(1))
    assert graph.inverted == ((expected > 0.5).mean() > 0.5)


def test_painted_tokens_are_those_without_features():
    features = tokens(shift=0.5)
    painted = np.arange(60) % 3 == 0
    zeroed = np.where(painted[:, None], 0, features)
    assert np.allclose(affinity(features, 0.2).without(painted).dense(), brute_force(zeroed, 0.2), atol=1e-14)


def test_tensors_and_half_types():
    features = torch.from_numpy(tokens())
    expected = affinity(features.numpy(), 0.2).dense()
    assert np.array_equal(affinity(features.requires_grad_(), 0.2).dense(), expected)
    half = features.detach().bfloat16()
    assert np.array_equal(affinity(half, 0.2).dense(), affinity(half.float(), 0.2).dense())


@pytest.mark.parametrize("count", [20, 97, 196])
@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_cut_is_that_of_a_dense_solver(count, tau):
    """Also where Lanczos is used, from 97 tokens on."""
    features = tokens(count, 12, shift=0.3)
    dense = brute_force(features, tau)
    degrees = np.diag(dense.sum(1))
    values, vectors = linalg.eigh(degrees - dense, degrees)
    cut = normalised_cut(affinity(features, tau))
    assert cut.eigenvalue == pytest.approx(values[1], abs=1e-12) and cut.residual < 1e-12
    assert cut.score == 1 - cut.eigenvalue
    assert cut.vector @ degrees @ cut.vector == pytest.approx(1)
    sign = np.sign(vectors[:, 1] @ cut.vector)
    assert np.abs(sign * vectors[:, 1] - cut.vector).max() < 1e-9 / (values[2] - values[1])
    assert cut.vector[np.abs(cut.vector).argmax()] > 0


def test_three_equal_pieces_have_a_plane_of_solutions():
    """λ₂ = λ₃: the cut lies in their space and is the same at every call."""
    labels = np.repeat([0, 1, 2], 50)
    features = np.eye(3, dtype=np.float32)[labels]
    first, second = (normalised_cut(affinity(features, 0.5)) for _ in range(2))
    assert np.array_equal(first.vector, second.vector) and first.residual < 1e-12
    dense = brute_force(features, 0.5)
    values = linalg.eigh(dense, np.diag(dense.sum(1)), eigvals_only=True)[::-1]
    assert values[1] == pytest.approx(values[2]) and first.score == pytest.approx(values[1])
    assert max(np.ptp(first.vector[labels == piece]) for piece in range(3)) < 1e-10  # constant on every piece


def test_equal_tokens_have_no_parts():
    assert normalised_cut(affinity(np.ones((120, 4)), 0.2)).eigenvalue == pytest.approx(1)


def test_a_solver_that_gives_up(monkeypatch):
    """A small graph goes to the dense solver; a large one is an error that says what to do."""
    features = tokens(150, 12, shift=0.3)
    expected = normalised_cut(affinity(features, 0.2))
    monkeypatch.setattr(ncut, "_lanczos", lambda operator: None)
    found = normalised_cut(affinity(features, 0.2))
    assert np.abs(found.vector - expected.vector).max() < 1e-9
    monkeypatch.setattr(ncut, "_DENSE_MOST", 100)
    with pytest.raises(ArithmeticError, match=r"150 tokens was not found .* another tau"):
        normalised_cut(affinity(features, 0.2))


def test_an_inaccurate_solution_is_not_taken(monkeypatch):
    monkeypatch.setattr(ncut, "_lanczos", lambda operator: operator.trivial[::-1].copy())
    cut = normalised_cut(affinity(two_objects()[0], 0.2))
    assert cut.residual < 1e-12


def test_no_square_matrix_is_stored():
    """4,096 tokens: an N x N matrix has 134 MB in float64 and 67 MB in float32."""
    rows, columns = np.divmod(np.arange(4096), 64)
    angles = 2 * np.pi * (rows // 8 * 8 + columns // 8) / 64
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    tracemalloc.start()
    try:
        cut = normalised_cut(affinity(features, 0.995))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cut.residual < 1e-9 and peak < 45e6
    assert graph_bytes(3600) < 40e6


@pytest.mark.parametrize(
    "features, tau, message",
    [
        (np.ones(5), 0.2, r"features: shape \(5,\); need \(N, d\)"),
        (np.ones((1, 5)), 0.2, "N >= 2 tokens"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), 0.2, "1 of 2 tokens hold NaN or infinite values, the first is token 1"),
        (np.ones((3, 5)), 1.0, r"tau=1.0: must be at least 0 and below 1"),
        (np.ones((3, 5)), -0.1, "it is a cosine"),
    ],
)
def test_refusals(features, tau, message):
    with pytest.raises(ValueError, match=message):
        affinity(features, tau)
