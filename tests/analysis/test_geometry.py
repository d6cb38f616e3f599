"""The geometry of U and D on matrices whose answer is known."""

import math

import pytest
import torch

from opencrate.analysis.maths.geometry import dictionary_geometry, orthonormal_bases, subspace_geometry
from opencrate.analysis.maths.inverse import relative_error
from opencrate.analysis.maths.spectra import effective_rank, gram_eigenvalues


def columns(*indices, d=6):
    """Unit vectors of R^d as a basis."""
    return torch.eye(d)[:, list(indices)]


def test_orthogonal_subspaces():
    found = subspace_geometry(torch.stack([columns(0, 1), columns(2, 3), columns(4, 5)]))
    assert found.ranks.tolist() == [2, 2, 2] and found.joint_rank == 6 and found.width == 6
    assert found.coherence == 0 and found.orthonormality.tolist() == [0, 0, 0] and found.scale.tolist() == [1, 1, 1]
    assert found.pairs(found.overlaps).abs().max() < 1e-12
    assert found.pairs(found.smallest_angles).tolist() == pytest.approx([90, 90, 90])
    torch.testing.assert_close(found.block_norms, math.sqrt(2) * torch.eye(3, dtype=torch.float64))


def test_a_shared_direction_and_a_known_angle():
    angle = math.radians(30)
    third = torch.stack([columns(0)[:, 0], math.cos(angle) * columns(1)[:, 0] + math.sin(angle) * columns(4)[:, 0]], 1)
    found = subspace_geometry(torch.stack([columns(0, 1), third]))
    assert float(found.smallest_angles[0, 1]) == pytest.approx(0, abs=1e-3)
    assert float(found.mean_angles[1, 0]) == pytest.approx(15, abs=1e-3)
    assert float(found.overlaps[0, 1]) == pytest.approx((1 + math.cos(angle) ** 2) / 2)
    assert found.joint_rank == 3 and found.coherence == pytest.approx(1)


def test_equal_subspaces_overlap_whatever_their_basis():
    U = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    mixed = U @ torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    found = subspace_geometry(torch.stack([U, mixed]))
    assert float(found.overlaps[0, 1]) == pytest.approx(1, abs=1e-4) and found.joint_rank == 3
    assert (found.orthonormality > 0.1).all()


def test_rank_deficient_and_zero_subspaces():
    flat = torch.cat([columns(0), columns(0), columns(0)], dim=1)
    found = subspace_geometry(torch.stack([flat, torch.zeros(6, 3), columns(1, 2, 3)]))
    assert found.ranks.tolist() == [1, 0, 3]
    assert found.effective_ranks.tolist() == pytest.approx([1, 0, 3], abs=1e-5)
    assert math.isnan(found.overlaps[0, 1]) and float(found.overlaps[0, 2]) == pytest.approx(0, abs=1e-12)
    bases = orthonormal_bases(torch.stack([flat, torch.zeros(6, 3)]))
    assert bases.square().sum((1, 2)).tolist() == pytest.approx([1, 0])


def test_one_subspace_has_no_pairs():
    found = subspace_geometry(columns(0, 1)[None])
    assert len(found.pairs(found.overlaps)) == 0 and math.isnan(found.coherence)


def test_orthonormal_dictionary():
    found = dictionary_geometry(torch.linalg.qr(torch.randn(7, 7)).Q, 0.1)
    assert found.gram_error < 1e-6 and found.coherence < 1e-6 and not found.overcomplete
    assert found.condition == pytest.approx(1, abs=1e-5) and found.step == pytest.approx(0.1, abs=1e-6)


def test_scale_is_told_from_shape():
    found = dictionary_geometry(3 * torch.eye(4), 0.5)
    assert found.gram_error == pytest.approx(8) and found.scaled_gram_error == 0 and found.step == pytest.approx(4.5)


def test_tight_frame_and_singular_dictionary():
    frame = torch.cat([2 * torch.eye(3), 2 * torch.eye(3)], dim=1)
    found = dictionary_geometry(frame, 0.1)
    assert found.overcomplete and found.gram_error < 1e-12 and found.coherence == pytest.approx(1)
    assert found.squared_norm == pytest.approx(8)
    singular = dictionary_geometry(torch.diag(torch.tensor([1.0, 0.0])), 0.1)
    assert singular.condition == math.inf and singular.coherence == 0
    assert dictionary_geometry(torch.zeros(2, 2), 0.1).scaled_gram_error == math.inf


def test_effective_rank_and_gram_eigenvalues():
    assert effective_rank(torch.tensor([[1.0, 1, 1], [1, -1e-20, 0], [0, 0, 0]])).tolist() == pytest.approx([3, 1, 0])
    for tokens in (torch.randn(2, 5, 9), torch.randn(2, 9, 5)):
        found, expected = gram_eigenvalues(tokens).flip(-1), torch.linalg.svdvals(tokens.double()).square()
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_relative_error_is_finite_at_zero():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert float(relative_error(zero, zero)) == 0 and float(relative_error(2 * one, one)) == pytest.approx(1)
    assert float(relative_error(one + 1, one, directions=True)) == pytest.approx(0, abs=1e-6)
