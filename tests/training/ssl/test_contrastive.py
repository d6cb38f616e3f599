"""SimCLR and VICReg against their definitions, written out."""

import math

import pytest
import torch

from opencrate.training.ssl import simclr_loss, vicreg_loss

from .common import unit, views


def test_simclr_row_by_row():
    z, N = views(3, 5), 5
    rows = unit(z[:2].flatten(0, 1))
    losses, right = [], 0
    for i in range(2 * N):
        similarity = {j: (rows[i] @ rows[j]).item() / 0.3 for j in range(2 * N) if j != i}
        pair = (i + N) % (2 * N)
        losses.append(math.log(sum(map(math.exp, similarity.values()))) - similarity[pair])
        right += max(similarity, key=similarity.get) == pair
    loss, parts = simclr_loss(z, 2, 0.3)
    assert loss.item() == pytest.approx(sum(losses) / (2 * N), rel=1e-12) == parts["cross_entropy"].item()
    assert parts["accuracy"].item() == pytest.approx(right / (2 * N))


def test_simclr_at_its_ends():
    same = unit(torch.eye(8, dtype=torch.float64)).expand(2, 8, 8)
    assert simclr_loss(same, temperature=0.01)[1]["accuracy"] == 1
    assert simclr_loss(same, temperature=0.01)[0].item() < 1e-12
    loss, _ = simclr_loss(torch.ones(2, 8, 6))
    assert loss.item() == pytest.approx(math.log(15))


def test_vicreg_written_out():
    z = views(3, 7)
    x, y = z[0], z[1]
    invariance = (x - y).square().mean()
    variance = sum((1 - (one.var(0) + 1e-4).sqrt()).clamp(min=0).mean() for one in (x, y)) / 2
    covariance = 0
    for one in (x, y):
        C = torch.cov(one.T)
        covariance += (C.square().sum() - C.diagonal().square().sum()) / 6
    loss, parts = vicreg_loss(z, 2, 25.0, 20.0, 2.0)
    expected = [invariance.item(), variance.item(), covariance.item()]
    assert [part.item() for part in parts.values()] == pytest.approx(expected, rel=1e-12)
    assert loss.item() == pytest.approx(25 * expected[0] + 20 * expected[1] + 2 * expected[2], rel=1e-12)


def test_vicreg_of_constant_features():
    _, parts = vicreg_loss(torch.full((2, 8, 6), 3.0))
    assert parts["variance"].item() == pytest.approx(0.99) and parts["covariance"] == 0 == parts["invariance"]


@pytest.mark.parametrize("objective", [simclr_loss, vicreg_loss])
def test_local_views_are_ignored(objective):
    assert torch.equal(objective(views(5), 2)[0], objective(views(5)[:2], 2)[0])
