"""Two rules for the top 60 %, and maps at the size of an image."""

import numpy as np
import pytest
import torch

from opencrate.analysis.segmentation.attention_masks import attention_masks, head_mean, resized, top_entries, top_mass


def test_entries_and_mass_are_two_things():
    maps = np.array([[0.70, 0.10, 0.08, 0.07, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]])
    assert attention_masks(maps, "entries:0.6").tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert attention_masks(maps, "mass:0.6").tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert attention_masks(maps, "mass:0.75")[0].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_against_the_definitions(share):
    maps = torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entries, mass = top_entries(maps, share), top_mass(maps, share)
    assert (entries.sum(-1) == round(50 * share)).all()
    for one, kept in zip(maps.numpy().reshape(-1, 50), mass.reshape(-1, 50)):
        assert one[kept].sum() >= share * one.sum() - 1e-12
        assert kept.all() or one[kept].min() >= one[~kept].max()
        assert one[kept].sum() - one[kept].min() < share * one.sum()  # none is too many


def test_one_entry_is_always_left():
    assert top_entries(np.array([[0.1, 0.9]]), 0.01).tolist() == [[False, True]]
    assert top_mass(np.array([[0.0, 1.0]]), 1.0).tolist() == [[False, True]]


def test_mean_of_heads_is_one_more_head():
    maps = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert head_mean(maps).tolist() == [[0.75, 0.25]]


def test_resizing():
    maps = np.arange(6.0).reshape(1, 6) / 15
    large = resized(maps, (2, 3), (4, 9))
    assert np.array_equal(large[0], np.kron(maps.reshape(2, 3), np.ones((2, 3))).astype(np.float32))
    assert resized(maps, (2, 3), (2, 3), "bilinear")[0] == pytest.approx(maps.reshape(2, 3))
    half = resized(maps[:, :2], (1, 2), (1, 4), "bilinear")[0, 0]
    assert half == pytest.approx(np.array([0, 0.25, 0.75, 1]) / 15, abs=1e-7)
    masks = resized(np.array([[True, False]]), (1, 2), (1, 4), "bilinear")
    assert masks.dtype == bool and masks.tolist() == [[[True, True, False, False]]]
    assert resized(torch.from_numpy(maps).bfloat16(), (2, 3), (4, 6)).shape == (1, 4, 6)


@pytest.mark.parametrize("rule", ["60", "mass", "mass:60", "mass:0", "top:0.6", "entries:x", "mass:nan"])
def test_rules_that_are_none(rule):
    with pytest.raises(ValueError, match="must be entries:SHARE or mass:SHARE"):
        attention_masks(np.ones((1, 4)), rule)


@pytest.mark.parametrize("maps, message", [
    ([[-0.1, 1.1]], "negative"), ([[np.nan, 1.0]], "NaN"), ([[0.0, 0.0]], "zero everywhere"), ([[]], "shape"),
])  # fmt: skip
def test_maps_that_are_none(maps, message):
    with pytest.raises(ValueError, match=message):
        attention_masks(np.array(maps))


def test_resizing_refuses():
    with pytest.raises(ValueError, match="mode='cubic'"):
        resized(np.ones((1, 4)), (2, 2), (4, 4), "cubic")
    with pytest.raises(ValueError, match=r"grid=\(2, 3\)"):
        resized(np.ones((1, 4)), (2, 3), (4, 4))
