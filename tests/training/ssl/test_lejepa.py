"""LeJEPA's loss against lightly's module, the exact integral, and its value for Gaussian features."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from opencrate.training.ssl import draw_directions, lejepa_loss
from opencrate.training.ssl.lejepa import SIGREG_NULL, sigreg

from .common import views


def lightly_loss():
    """lightly's module by its file: `import lightly.loss` would need torchvision, which this loss does not use."""
    found = importlib.util.find_spec("lightly")
    if found is None or not found.submodule_search_locations:
        pytest.skip("lightly (MIT) is not installed: the independent form of this loss")
    path = Path(found.submodule_search_locations[0]) / "loss" / "lejepa_loss.py"
    spec = importlib.util.spec_from_file_location("lightly_lejepa_loss", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LeJEPALoss()


def test_equals_lightly():
    loss = lightly_loss()
    z = views(4, 32, 16, dtype=torch.float32)
    torch.manual_seed(0)
    directions = torch.randn(16, 1024)  # as their module draws them
    torch.manual_seed(0)
    theirs = loss(local_proj=z[2:], global_proj=z[:2])
    torch.testing.assert_close(lejepa_loss(z, 2, 0.05, directions / directions.norm(dim=0))[0], theirs)


def test_invariance():
    z = views(4, 5)
    centre = z[:2].mean(0)
    expected = sum((view - centre).square().sum(-1).mean() for view in z) / 4 / 6
    loss, parts = lejepa_loss(z, 2, 0.0, draw_directions(6, 4, 0, 0))
    assert parts["invariance"].item() == pytest.approx(expected.item(), rel=1e-12) == loss.item()


def test_sigreg_is_the_integral():
    """By adaptive quadrature. The trapezoidal rule with 17 knots is within 1 % for features of order 1."""
    z, directions = views(1, 7, 3)[0], draw_directions(3, 2, 1, 2).double()

    def difference(t, samples):
        return abs(np.exp(1j * t * samples).mean() - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    exact = [len(z) * quad(difference, -3, 3, args=((z @ a).numpy(),))[0] for a in directions.T]
    assert sigreg(z, directions).item() == pytest.approx(np.mean(exact), rel=0.01)


def test_views_are_averaged():
    z, directions = views(4, 9), draw_directions(6, 8, 0, 0)
    each = [sigreg(view, directions).item() for view in z]
    _, parts = lejepa_loss(z, 2, 0.5, directions)
    assert parts["sigreg"].item() == pytest.approx(sum(each) / 4, rel=1e-12)
    assert sigreg(z, directions).item() == pytest.approx(sum(each) / 4, rel=1e-12)


def test_null_value():
    assert pytest.approx(1.0527, abs=5e-5) == SIGREG_NULL
    for images in (16, 256):
        z = torch.randn(64, images, 8, generator=torch.Generator().manual_seed(0))
        assert sigreg(z, draw_directions(8, 64, 0, 0)).item() == pytest.approx(SIGREG_NULL, rel=0.05)


def test_other_distributions_are_further():
    z = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    directions = draw_directions(8, 64, 0, 0)
    for other in (torch.zeros_like(z), 0.3 * z, z + 1, z * torch.tensor([3.0] + [0.1] * 7), z.sign() * 2):
        assert sigreg(other, directions).item() > 10 * SIGREG_NULL


def test_directions():
    a = draw_directions(6, 100, seed=3, step=4)
    assert a.shape == (6, 100) and a.dtype == torch.float32
    torch.testing.assert_close(a.norm(dim=0), torch.ones(100))
    assert torch.equal(a, draw_directions(6, 100, 3, 4))
    assert not torch.equal(a, draw_directions(6, 100, 3, 5)) and not torch.equal(a, draw_directions(6, 100, 4, 4))
    assert draw_directions(6, 2, 0, 0, like=views()).dtype == torch.float64
    state = torch.get_rng_state()
    draw_directions(6, 2, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_directions_are_the_same_everywhere():
    """Runs are resumed on other machines."""
    first = draw_directions(2, 2, seed=0, step=0).flatten().tolist()
    assert first == pytest.approx([-0.7708993, 0.0655583, 0.6369570, -0.9978487], abs=1e-6)
