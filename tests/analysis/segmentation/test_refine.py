"""Masks at the size of the image, with borders that follow it."""

import importlib

import numpy as np
import pytest

from opencrate.analysis.segmentation import refine as module
from opencrate.analysis.segmentation.metrics import iou
from opencrate.analysis.segmentation.refine import (
    guided_filter,
    kept_if_alike,
    refine,
    resized_as_published,
    resized_softly,
)


def picture():
    """A bright disc on a dark ground, uint8 (96, 128, 3), where it is, and its mask on a 6 x 8 grid."""
    rows, columns = np.mgrid[:96, :128]
    inside = (rows - 45) ** 2 + (columns - 70) ** 2 < 30**2
    image = np.where(inside[..., None], [220, 190, 60], [40, 60, 90]) + np.random.default_rng(0).integers(
        -8, 9, (96, 128, 3)
    )
    coarse = inside.reshape(6, 16, 8, 16).mean((1, 3)) > 0.5
    return image.astype(np.uint8), inside, coarse


@pytest.mark.parametrize("as_float", [False, True])
def test_the_guided_filter_follows_the_image(as_float):
    image, inside, coarse = picture()
    plain, guided = (refine(coarse, image / 255 if as_float else image, method) for method in ("none", "guided"))
    assert plain.shape == guided.shape == (96, 128) and plain.dtype == guided.dtype == bool
    assert iou(guided, inside) > 0.98 > 0.8 > iou(plain, inside)


def test_guided_filter_window_by_window():
    """Equations 5, 6 and 8 written out, with windows inside the picture."""
    random = np.random.default_rng(0)
    p, guide = random.random((2, 13, 14))
    slope, offset = np.zeros((2, 13, 14))
    for i in range(2, 11):
        for j in range(2, 12):
            window = np.s_[i - 2 : i + 3, j - 2 : j + 3]
            covariance = (guide[window] * p[window]).mean() - guide[window].mean() * p[window].mean()
            slope[i, j] = covariance / (guide[window].var() + 0.01)
            offset[i, j] = p[window].mean() - slope[i, j] * guide[window].mean()
    expected = slope[4:9, 4:9].mean() * guide[6, 6] + offset[4:9, 4:9].mean()
    assert guided_filter(p, guide, 2, 0.01)[6, 6] == pytest.approx(expected, abs=1e-6)


def test_holes_are_filled():
    image, _, coarse = picture()
    coarse[2:4, 3:5] = True
    ring = coarse.copy()
    ring[3, 4] = False
    assert refine(ring, image, "none").sum() > refine(ring, image, "none", fill_holes=False).sum()


def test_sizes():
    coarse = np.array([[1, 0], [0, 0]])
    soft = resized_softly(coarse, (6, 8))
    assert soft.shape == (6, 8) and soft[0, 0] == 1 and soft[-1, -1] == 0 and 0 < soft[2, 3] < 1
    published = resized_as_published(coarse, (6, 8))
    assert published.shape == (6, 8) and published.sum() > (soft >= 0.5).sum()


def test_published_rule_for_masks_that_change():
    before, after = np.zeros((2, 4, 4), dtype=bool)
    before[:2], after[:1] = True, True
    assert kept_if_alike(after, before).sum() == 4  # IoU is exactly 1/2
    after[0, 0] = False
    assert not kept_if_alike(after, before).any()


def test_crf_names_its_package(monkeypatch):
    image, _, coarse = picture()

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"opencrate\[segmentation\], or use method='guided'"):
        refine(coarse, image, "crf")


@pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf2 is not installed")
def test_crf_follows_the_image():
    image, inside, coarse = picture()
    assert iou(refine(coarse, image, "crf"), inside) > 0.95


@pytest.mark.parametrize("image, method, message", [
    (np.ones((4, 4)), "none", r"image: shape \(4, 4\)"), (np.full((4, 4, 3), 2.0), "none", "outside"),
    (np.ones((4, 4, 3), dtype=int), "none", "int64"), (np.ones((4, 4, 3)), "best", "method='best'"),
])  # fmt: skip
def test_refusals(image, method, message):
    with pytest.raises(ValueError, match=message):
        refine(np.ones((2, 2)), image, method)
    with pytest.raises(ValueError, match="mask: shape"):
        refine(np.ones(3), np.ones((4, 4, 3)))
