"""The synthetic truth is what it says: angles, lengths, noise, sparsity, condition numbers; impossible sizes are refused."""

import math

import pytest
import torch

from opencrate.studies.experiments.synthetic import (
    bases_at_angle,
    dictionary_with_condition,
    sparse_signals,
    union_of_subspaces,
)


@pytest.mark.parametrize("angle", [0.0, 20.0, 60.0, 89.0, 90.0])
def test_all_principal_angles_are_the_given_one(angle):
    U = bases_at_angle(3, 2, 10, angle, seed=1)
    identity = torch.eye(2, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected = identity if i == j else math.cos(math.radians(angle)) * identity
            torch.testing.assert_close(U[i].mT @ U[j], expected, atol=1e-12, rtol=0)


def test_tokens_lie_in_their_subspace_and_have_length_one():
    data = union_of_subspaces(3, 2, 12, 20, seed=4)
    assert data.tokens.dtype == torch.float64 and data.tokens.shape == (20, 12)
    torch.testing.assert_close(data.tokens.norm(dim=-1), torch.ones(20).double())
    for token, k in zip(data.tokens, data.membership):
        torch.testing.assert_close(data.bases[k] @ (data.bases[k].mT @ token), token)
    assert data.membership.bincount().tolist() == [7, 7, 6]


def test_noise_leaves_the_subspace_by_the_stated_amount_and_seeds_differ():
    data = union_of_subspaces(2, 2, 200, 400, noise=0.5, seed=2)
    own = data.bases[data.membership]
    inside = (own @ (own.mT @ data.tokens.unsqueeze(-1))).squeeze(-1)
    outside = (data.tokens - inside).square().sum(-1).mean()
    assert outside == pytest.approx(0.25 / 1.25, rel=0.05)
    again = union_of_subspaces(2, 2, 200, 400, noise=0.5, seed=2)
    assert torch.equal(data.tokens, again.tokens)
    assert not torch.allclose(data.tokens, union_of_subspaces(2, 2, 200, 400, noise=0.5, seed=3).tokens)


def test_non_negative_coordinates():
    data = union_of_subspaces(2, 3, 8, 10, seed=2, nonnegative=True)
    assert ((data.bases[data.membership].mT @ data.tokens.unsqueeze(-1)) >= 0).all()


def test_sparse_signals():
    data = sparse_signals(8, 20, 50, 3, 0.0, seed=1)
    assert ((data.codes > 0).sum(-1) == 3).all() and (data.codes >= 0).all()
    torch.testing.assert_close(data.dictionary.norm(dim=0), torch.ones(20).double())
    torch.testing.assert_close(data.signals, data.codes @ data.dictionary.mT)


@pytest.mark.parametrize("condition", [1.0, 3.0, 100.0])
def test_condition_number(condition):
    singular = torch.linalg.svdvals(dictionary_with_condition(6, condition, seed=3))
    assert (singular[0] / singular[-1]).item() == pytest.approx(condition)
    assert singular[0].item() == pytest.approx(condition**0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bases_at_angle(4, 4, 16, 45.0, 0), ["ambient=16", "20 dimensions"]),
        (lambda: bases_at_angle(0, 4, 16, 45.0, 0), ["num_subspaces=0", "at least 1"]),
        (lambda: bases_at_angle(2, 2, 16, 91.0, 0), ["angle=91", "0 and 90"]),
        (lambda: union_of_subspaces(noise=-0.1), ["noise=-0.1", ">= 0"]),
        (lambda: union_of_subspaces(num_tokens=0), ["num_tokens=0"]),
        (lambda: sparse_signals(4, 4, 4, 5, 0.0, 0), ["num_active=5"]),
        (lambda: dictionary_with_condition(4, 0.5, 0), ["condition=0.5", ">= 1"]),
    ],
)
def test_impossible_settings_are_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
