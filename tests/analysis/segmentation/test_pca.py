"""Foreground and colours by two analyses, against scikit-learn and a planted scene."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from opencrate.analysis.segmentation.pca import principal_components

GRID = (8, 9)


def scene(images=2, dim=12, seed=0):
    """Tokens `(M, N, d)` of an object in three shades on a ground, and where it is."""
    random = np.random.default_rng(seed)
    inside = np.zeros((images, *GRID), dtype=bool)
    inside[:, 2:6, 2:7] = True
    axes = np.linalg.qr(random.standard_normal((dim, 6)))[0].T
    tokens = np.where(inside[..., None], 5 * axes[0], 3 * axes[1]) + 0.05 * random.standard_normal((*inside.shape, dim))
    shade = random.standard_normal((*inside.shape, 3)) * [0.9, 0.6, 0.3]
    tokens = tokens + inside[..., None] * (shade @ axes[2:5])
    return tokens.reshape(images, -1, dim), inside


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_object_is_found_whatever_the_sign(published, sign):
    tokens, inside = scene()
    found = principal_components(sign * tokens, GRID, published=published)
    assert np.array_equal(found.foreground, inside)
    assert found.colours.min() == 0 and found.colours.max() == 1 and not found.colours[~inside].any()


def test_first_eigenvector_is_not_centred():
    tokens, _ = scene(1)
    expected = tokens[0] @ np.linalg.svd(tokens[0])[2][0]
    found = principal_components(tokens, GRID).first.ravel()
    assert np.allclose(np.abs(found), np.abs(expected))


@pytest.mark.parametrize("published", [False, True])
def test_colours_are_scikit_learns_components(published):
    tokens, inside = scene()
    found = principal_components(torch.from_numpy(tokens), GRID, published=published)
    expected = PCA(3).fit_transform(tokens.reshape(-1, 12)[inside.ravel()])
    parts = np.split(expected, 2) if published else [expected]
    stretched = np.concatenate([(one - one.min(0)) / np.ptp(one, axis=0) for one in parts])
    for channel in range(3):
        ours, theirs = found.colours[inside][:, channel], stretched[:, channel]
        assert np.allclose(ours, theirs) or np.allclose(ours, 1 - theirs)


def test_published_first_component():
    tokens, _ = scene()
    expected = PCA(1).fit_transform(tokens.reshape(-1, 12)).reshape(2, *GRID)
    for ours, theirs in zip(principal_components(tokens, GRID, published=True).first, expected):
        stretched = (theirs - theirs.min()) / np.ptp(theirs)
        assert np.allclose(ours, stretched) or np.allclose(ours, 1 - stretched)


def test_threshold_and_special_cases():
    tokens, _ = scene(1)
    assert 0 < principal_components(tokens[0], GRID, threshold=5.0).foreground.sum() < 20
    flat = principal_components(np.ones((1, 72, 2)), GRID)
    assert flat.foreground.all() and not flat.colours.any()
    assert not principal_components(np.zeros((1, 72, 2)), GRID).foreground.any()


@pytest.mark.parametrize("options, message", [
    ({"grid": (8, 8)}, "64 places for 72 tokens"), ({"threshold": -1.0}, "threshold=-1.0"),
    ({"threshold": 1.0, "published": True}, "below 1"), ({"features": np.ones(72)}, "need"), ({"features": np.full((72, 2), np.inf)}, "72 of 72 tokens"),
])  # fmt: skip
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        principal_components(**{"features": scene(1)[0], "grid": GRID, **options})
