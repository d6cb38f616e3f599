"""Readings with their healthy values, and collapse in each of its forms."""

import math

import pytest
import torch

from opencrate.training.ssl import (
    collapse,
    dino_loss,
    rank_reading,
    readings,
    simdino_loss,
    spread_reading,
    vicreg_loss,
)
from opencrate.training.ssl.monitors import ADVICE, LOGITS_RANK_SHARE

from .common import unit, views

K = 64


def gaussian(N=512, p=16):
    return torch.randn(N, p, generator=torch.Generator().manual_seed(0))


def test_rank():
    sigma = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    share = sigma / sigma.sum()
    z = torch.linalg.qr(views(1, 9, 3)[0]).Q * sigma
    reading = rank_reading(z)
    assert reading.value == pytest.approx(math.exp(-(share * share.log()).sum().item()), rel=1e-9) and reading.fine
    assert rank_reading(gaussian()).value > 15.5
    poor = rank_reading(gaussian(64, 1) * torch.ones(1, 32))
    assert poor.value == pytest.approx(1, abs=1e-3) and not poor.fine and "dimensions" in str(poor)


def test_rank_of_logits():
    """The map to the prototypes adds no dimension; the ranks at the end of runs that learned, digits and CIFAR-10."""
    logits = gaussian(512, 16) @ gaussian(16, 128)
    assert rank_reading(logits, bottleneck=16).healthy == "0.48 to 16" and rank_reading(logits, 16).fine
    assert rank_reading(logits[:8], bottleneck=16).healthy.endswith("to 8")
    for rank, bottleneck in ((6.58, 64), (9.51, 256), (13.17, 256), (20.07, 256)):
        assert rank >= LOGITS_RANK_SHARE * bottleneck
    poor = rank_reading(gaussian(64, 1) * torch.ones(1, 512), bottleneck=256)
    assert not poor.fine and poor.advice.endswith("train longer") and "weight" not in poor.advice


def test_spread():
    healthy = spread_reading(gaussian())
    assert healthy.value == pytest.approx(0.25, rel=0.02) and healthy.fine and not healthy.advice
    assert healthy.healthy == "near 1/sqrt(p) = 0.25" and str(healthy).endswith("(healthy: near 1/sqrt(p) = 0.25)")
    constant = spread_reading(torch.ones(8, 16) + 1e-3 * gaussian(8))
    assert constant.value < 1e-3 and not constant.fine and constant.advice == ADVICE["constant"]


@pytest.mark.parametrize("z", [torch.ones(1, 4), torch.ones(4), torch.ones(4, 4).long()])
def test_projections_that_are_not(z):
    with pytest.raises(ValueError, match=r"projections must be a floating tensor \(N, p\)"):
        spread_reading(z)
    with pytest.raises(FloatingPointError, match="not finite"):
        rank_reading(torch.full((2, 2), torch.nan))


def of_dino(student, teacher, teacher_temperature=0.04):
    loss, parts = dino_loss(student, teacher, torch.zeros(K), 0.1, teacher_temperature)
    return collapse(parts, K, loss.item()), readings(parts, K)


def test_healthy_dino():
    """Every image its own prototypes."""
    logits = views(2, 32, K, dtype=torch.float32) * 0.2
    found, read = of_dino(logits, logits)
    assert found is None and [one.name for one in read] == ["teacher entropy", "batch entropy"]
    assert all(one.fine and not one.advice for one in read)


def test_uniform():
    found, read = of_dino(1e-4 * views(4, 32, K, dtype=torch.float32), 1e-4 * views(2, 32, K, dtype=torch.float32))
    assert found.kind == "uniform" and "lower its temperature" in found.advice
    assert not read[0].fine and read[0].advice == found.advice


def test_one_hot():
    logits = torch.zeros(2, 32, K)
    logits[..., 3] = 5.0
    found, read = of_dino(logits, logits)
    assert found.kind == "one-hot" and "centre" in found.advice
    assert not read[0].fine and not read[1].fine


def test_one_hot_of_each_image_is_no_collapse():
    found, _ = of_dino(5 * torch.eye(K).expand(2, K, K), 5 * torch.eye(K).expand(2, K, K))
    assert found is None


def test_constant_distribution():
    """The same for every image, though neither uniform nor one-hot."""
    logits = (torch.arange(K) / K / 10).expand(2, 32, K)
    found, _ = of_dino(logits, logits)
    assert found.kind == "constant"


# Teacher's and batch entropy, loss, and spread, of recorded rows. Three runs on the digits passed a plateau near the
# uniform choice and ended with k-NN above their untrained networks'; teachers as warm as their student, or warmer, made
# networks of width 24 collapse: rows of steps 10, 15 and 70 of 100. The last is step 10 of 100 at a learning rate of 1.
PLATEAU = (
    *((6.8767, 6.9224, 6.9186, 0.155), (6.8891, 6.9288, 6.9228, 0.167), (6.8671, 6.9227, 6.9162, 0.184)),
    *((6.8869, 6.9240, 6.9211, 0.138), (6.8995, 6.9296, 6.9251, 0.143), (6.8942, 6.9301, 6.9208, 0.166)),
)
COLLAPSED = (
    *((0.704, 0.00444, -1.4975, 0.041), (0.874, 0.00394, -0.6051, 0.034)),
    *((0.998, 0.0001, -0.0125, 0.014), (0.355, 0.00041, -1.6619, 0.02)),
)


@pytest.mark.parametrize("row", PLATEAU)
def test_a_plateau_that_was_left_is_no_collapse(row):
    entropy, batch, loss, spread = row
    parts = {"teacher_entropy": entropy, "batch_entropy": batch, "cross_entropy": loss}
    assert collapse(parts, 1024, spread=spread) is None and collapse(parts, 1024, spread=0.04).kind == "constant"
    informed = {"teacher_entropy": 5.3, "batch_entropy": 6.4, "cross_entropy": 5.8}
    assert collapse(informed, 1024, spread=0.04) is None, "logits of different images have a large part in common"


@pytest.mark.parametrize("row", COLLAPSED)
def test_rows_of_collapsed_runs(row):
    """Given as shares of ln K, the second less the first, and nats above ln K."""
    most = math.log(256)
    entropy, information, above = row[0] * most, row[1] * most, row[2]
    parts = {"teacher_entropy": entropy, "batch_entropy": entropy + information, "cross_entropy": most + above}
    assert collapse(parts, 256, spread=row[3]).kind == "constant"


def test_constant_features_of_simdino():
    z = unit(torch.ones(4, 32, 16))
    _, parts = simdino_loss(z, z[:2], 0.4)
    assert collapse(parts).kind == "constant"
    share, compression = readings(parts)
    assert not share.fine and compression.fine
    z = unit(gaussian(32).expand(4, 32, 16))
    _, parts = simdino_loss(z, z[:2], 0.4)
    assert collapse(parts) is None and all(one.fine for one in readings(parts))


def test_constant_features_of_vicreg():
    _, parts = vicreg_loss(torch.ones(2, 32, 16))
    assert collapse(parts).kind == "constant" and not readings(parts)[0].fine
    _, parts = vicreg_loss(gaussian(32).expand(2, 32, 16))
    assert collapse(parts) is None and readings(parts)[0].fine


def test_constant_features_of_any():
    parts = {"invariance": 0.0, "sigreg": 100.0}
    assert collapse(parts) is None and collapse(parts, spread=0.01).kind == "constant"
    assert collapse(parts, spread=0.9) is None


def test_sigreg():
    (reading,) = readings({"invariance": 0.3, "sigreg": 1.1})
    assert reading.fine and "near 1.05" in reading.healthy
    assert not readings({"invariance": 0.3, "sigreg": 40.0})[0].fine


def test_prototypes_are_needed():
    parts = {"teacher_entropy": 1.0, "batch_entropy": 1.0, "cross_entropy": 1.0}
    for call in (collapse, readings):
        with pytest.raises(ValueError, match="K is missing"):
            call(parts)
        with pytest.raises(ValueError, match="K must be a number at least 2, got 1"):
            call(parts, 1)
