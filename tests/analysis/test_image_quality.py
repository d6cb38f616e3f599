"""PSNR and SSIM by hand and by their definitions, written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from opencrate.evaluation.image_quality import psnr, ssim, ssim_map


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One channel, every pixel: weighted moments over its 11 x 11 window of the mirrored image."""
    places = np.arange(-5, 6)
    weights = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    x_, y_ = (np.pad(part, 5, mode="symmetric") for part in (x, y))
    found = np.empty_like(x)
    for i, j in np.ndindex(x.shape):
        a, b = x_[i : i + 11, j : j + 11], y_[i : i + 11, j : j + 11]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        top = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
        found[i, j] = top / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
    return found


@pytest.mark.parametrize("size", [(8, 8), (13, 17)])
def test_ssim_is_its_definition(size):
    x = images(2, 3, *size)
    y = (x + 0.2 * images(2, 3, *size, seed=1)).clamp(0, 1)
    found = ssim_map(x, y)
    for index in np.ndindex(2, 3):
        expected = ssim_by_definition(x[index].numpy(), y[index].numpy())
        np.testing.assert_allclose(found[index].numpy(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ssim(x, y), found.mean((1, 2, 3)))


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, y = torch.rand(2, 1, 1, 24, 20, generator=torch.Generator().manual_seed(0)).double()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    _, expected = metrics.structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), **options)
    torch.testing.assert_close(ssim_map(x, y)[0, 0], torch.from_numpy(expected), atol=1e-7, rtol=0)


def test_ssim_of_flat_images_is_the_luminance_term():
    x, y = torch.full((1, 1, 9, 9), 0.2), torch.full((1, 1, 9, 9), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(x, y)) == pytest.approx(expected, rel=1e-6)  # inputs are float32
    assert float(ssim(x, x)) == pytest.approx(1) and math.isinf(float(psnr(x, x)))


def test_psnr_by_hand_and_on_a_part():
    x, y = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    y[0, :, 0, 0] = 0.1
    assert float(psnr(x, y)) == pytest.approx(-10 * math.log10(0.01 / 4), abs=1e-5)
    where = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert math.isnan(float(psnr(x, y, where))) and math.isnan(float(ssim(x, y, where)))
    where[0, 0, 0] = True
    assert float(psnr(x, y, where)) == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), "two of one shape"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), "two of one shape"),
        (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 1.5), "must lie in"),
        (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), math.nan), "must lie in"),
    ],
)
def test_bad_images(x, y, words):
    with pytest.raises(ValueError, match=words):
        psnr(x, y)
