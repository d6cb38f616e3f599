"""SimDINO's loss against golden numbers; its largest expansion, and what the published run optimised."""

import doctest
import math

import pytest
import torch

from opencrate import coding_rate
from opencrate.training.ssl import simdino, simdino_loss
from opencrate.training.ssl.simdino import constant_expansion, gamma, largest_expansion

from ...golden import golden_meta, load_golden
from .common import GLOBAL, unit, views
from .test_dino import close, crops


@pytest.mark.parametrize(("stored", "expansion_of"), [("expa_type0", "student"), ("expa_type1", "average")])
def test_published_numbers(stored, expansion_of):
    golden, meta = load_golden("simdino_loss", "simdino_loss"), golden_meta("simdino_loss")
    student = crops(golden[f"{stored}.student"], meta["ncrops"]).requires_grad_()
    teacher = crops(golden[f"{stored}.teacher"], 2)
    loss, parts = simdino_loss(student, teacher, meta["eps"], meta["coeff"], expansion_of=expansion_of)
    loss.backward()
    for value, name in (
        (loss.detach(), "loss"),
        (parts["compression"], "compression"),
        (parts["expansion"], "expansion"),
    ):
        scale = max(
            1.0, golden[f"{stored}.{name}"].abs().item()
        )  # the float32 sum of cosines of order 1 is off by 3e-8
        assert abs(value.item() - golden[f"{stored}.{name}"].item()) <= 1e-6 * scale
    close(student.grad.flatten(0, 1), golden[f"{stored}.grad_student"])


def test_written_out():
    """The formula with dense determinants and a loop over the pairs."""
    student, teacher = unit(views(5, 8)), unit(views(GLOBAL, 8, seed=1))
    p, N, eps = 6, 8, 0.3
    pairs = [(teacher[i] * student[v]).sum(-1).mean() for i in range(2) for v in range(5) if i != v]
    for name, features in (("student", student[:2]), ("average", (student[:2] + teacher) / 2)):
        rates = [torch.logdet(torch.eye(p) + p / (N * eps) * z.T @ z) / 2 for z in features]
        expansion = (p + N) / (p * N) * sum(rates) / 2
        expected = -0.7 * sum(pairs) / len(pairs) - 0.9 * expansion
        assert simdino_loss(student, teacher, eps, 0.7, 0.9, name)[0].item() == pytest.approx(
            expected.item(), rel=1e-12
        )


def orthonormal(rows, features, seed=0):
    return torch.linalg.qr(views(1, features, rows, seed)[0]).Q.T


def test_doctest():
    assert doctest.testmod(simdino).failed == 0 and doctest.testmod(simdino).attempted == 1


def released(Z, processes, eps):
    """Expansion in one process of the published code, `reduce_cov 0`: only eps and gamma know of the others."""
    B, p = Z.shape
    scale = p / (processes * B * eps)
    return gamma(processes * B, p) * torch.logdet(torch.eye(p, dtype=Z.dtype) + scale * Z.T @ Z) / 2


def test_what_the_released_run_optimised():
    """64 images in each of 8 processes, eps 0.05, 256 features: ours with eps 0.4, weight 0.30, groups of 64."""
    weight = gamma(512, 256) / gamma(64, 256)
    assert weight == pytest.approx(0.30, rel=1e-12)
    Z, teacher = unit(views(3, 512, 256)), unit(views(GLOBAL, 512, 256, seed=1))
    mean = sum(released(z, 8, 0.05) for view in Z[:2] for z in view.split(64)).item() / 16
    _, parts = simdino_loss(Z, teacher, 0.4, 1.0, weight, group_size=64)
    assert weight * parts["expansion"].item() == pytest.approx(mean, rel=1e-9)


def test_largest_expansion_of_the_released_run():
    """0.4496, and that orthogonal features reach it, in the published form and in ours."""
    Z = orthonormal(64, 256)
    assert released(Z, 8, 0.05).item() == pytest.approx(0.4496, abs=5e-5)
    _, parts = simdino_loss(Z.expand(2, 64, 256), Z.expand(2, 64, 256), 0.4, 1.0, 0.3)
    assert 0.3 * parts["expansion"].item() == pytest.approx(0.4496, abs=5e-5)
    assert 0.3 * largest_expansion(64, 256, 0.4) == pytest.approx(released(Z, 8, 0.05).item(), rel=1e-9)
    assert parts["expansion_share"].item() == pytest.approx(1, abs=1e-9)


def test_the_same_command_on_one_process_is_another_objective():
    Z = orthonormal(64, 256)
    assert released(Z, 1, 0.05).item() == pytest.approx(2.7465, abs=5e-5)
    assert largest_expansion(64, 256, 0.05) == pytest.approx(released(Z, 1, 0.05).item(), rel=1e-9)


@pytest.mark.parametrize(("samples", "features"), [(5, 9), (9, 5), (7, 7)])
def test_no_features_expand_more(samples, features):
    for seed in range(20):
        z = unit(views(1, samples, features, seed))[0]
        assert gamma(samples, features) * coding_rate(z, math.sqrt(0.3)) <= largest_expansion(samples, features, 0.3)
    if samples <= features:
        z = orthonormal(samples, features)
        best = gamma(samples, features) * coding_rate(z, math.sqrt(0.3)).item()
        assert best == pytest.approx(largest_expansion(samples, features, 0.3), rel=1e-12)


def test_constant_features():
    z = unit(torch.ones(2, 8, 6, dtype=torch.float64))
    _, parts = simdino_loss(z, z, 0.4)
    assert parts["compression"].item() == pytest.approx(1)
    assert parts["expansion"].item() == pytest.approx(constant_expansion(8, 6, 0.4), rel=1e-12)
    assert parts["expansion_share"].item() == pytest.approx(parts["constant_share"].item(), rel=1e-12)


def test_float32_input_is_finite_however_collapsed():
    z = unit(torch.ones(2, 8, 6)).requires_grad_()
    loss, _ = simdino_loss(z, z.detach(), 1e-6)
    loss.backward()
    assert bool(loss.isfinite()) and bool(z.grad.isfinite().all())
