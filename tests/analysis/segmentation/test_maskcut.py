"""Masks by normalised cuts on made tokens; the published outputs are compared in tests/parity/test_maskcut.py."""

import numpy as np
import pytest

from opencrate.analysis.segmentation import maskcut as module, tokencut as tokencut_module
from opencrate.analysis.segmentation.boxes import box_ious, mask_box, scaled_box
from opencrate.analysis.segmentation.maskcut import foreground, maskcut
from opencrate.analysis.segmentation.ncut import Cut
from opencrate.analysis.segmentation.tokencut import tokencut
from tests.golden import load_golden

from .scenes import GRID, two_objects


@pytest.mark.parametrize("published", [False, True])
def test_planted_objects_are_found(published):
    features, labels = two_objects()
    found = maskcut(features, GRID, num_masks=2, published=published)
    assert [one.stage for one in found] == [0, 1]
    assert {int(labels[one.mask].max()) for one in found} == {1, 2}
    assert all(np.array_equal(one.mask, labels == labels[one.mask].max()) for one in found)
    assert not (found[0].mask & found[1].mask).any()
    assert all(0.9 < one.score <= 1 and (one.vector[one.mask] > one.vector.mean()).all() for one in found)


def test_two_runs_are_equal():
    features, _ = two_objects(noise=2.0)
    first, second = (maskcut(features, GRID) for _ in range(2))
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert np.array_equal(one.mask, other.mask) and np.array_equal(one.vector, other.vector)


def side_of(values, **options):
    values = np.asarray(values, dtype=float)
    return foreground(Cut(values.ravel(), 0.0, 0.0), values.shape, **options)


def test_the_side_with_three_corners_is_background():
    """Here the object reaches into the fourth, and the largest entry is on the ground."""
    values = np.ones((4, 4))
    values[1:4, 1:4] = -0.5
    values[0, 3] = values[3, 0] = 1
    found = side_of(values)
    assert np.array_equal(found.side, values < 0) and found.vector[1, 1] == 0.5
    without = side_of(values, corners=False)
    assert np.array_equal(without.side, values > 0)


def test_the_largest_entry_decides_otherwise():
    values = np.full((4, 4), 0.1)
    values[0, :] = values[1, 0] = -1.0
    assert np.array_equal(side_of(values).side, values < 0)
    assert np.array_equal(side_of(-values).side, values < 0)


def test_only_what_is_connected_with_the_seed():
    """Through the sides of tokens, not their corners."""
    values = np.full((5, 5), -0.1)
    values[2, 2], values[2, 3], values[3, 4], values[0, 2] = 2, 1, 1, 1
    found = side_of(values)
    assert found.seed == 12 and found.side.sum() == 4
    assert np.argwhere(found.component).tolist() == [[2, 2], [2, 3]]


def test_a_dropped_mask_does_not_come_back():
    """The published code keeps at stage 2 what it dropped at stage 1; ours cuts again without it."""
    features = load_golden("maskcut", "demo1_p16")["feats"].numpy().T
    assert [one.stage for one in maskcut(features, (14, 14), published=True)] == [0, 2]
    assert [one.stage for one in maskcut(features, (14, 14))] == [0]


def test_what_is_dropped(monkeypatch):
    """A mask like an earlier one, and a small one unless it is the first."""
    squares = [np.zeros((12, 12), dtype=bool) for _ in range(4)]
    squares[0][5, 5] = True  # small, but the first
    squares[1][4:8, 4:8] = True
    squares[2][4:8, 4:9] = True  # like the second
    squares[3][9, 9] = True  # small
    vectors, left = iter([np.where(one, 10.0, -0.01).ravel() for one in squares]), []

    def next_cut(graph):
        left.append(int(graph.present.sum()))
        return Cut(next(vectors), 0.5, 0.0)

    monkeypatch.setattr(module, "normalised_cut", next_cut)
    features = np.random.default_rng(0).standard_normal((144, 5))
    found = maskcut(features, (12, 12), num_masks=4)
    assert [(one.stage, one.mask.sum()) for one in found] == [(0, 1), (1, 15)]
    assert left == [144, 143, 128, 124]  # a dropped mask is painted out as well


def test_nothing_to_cut():
    assert maskcut(np.ones((144, 3)), (12, 12)) == []
    assert len(maskcut(np.eye(2)[[0, 1] * 8], (4, 4), num_masks=50)) <= 16


@pytest.mark.parametrize("grid, num_masks, message", [
    ((12, 15), 3, r"grid=\(12, 15\): has 180 places for 192 tokens; .* leave the class token out"),
    (GRID, 0, "num_masks=0: must be an integer >= 1"),
    (GRID, 1.5, "num_masks=1.5"),
])  # fmt: skip
def test_refusals(grid, num_masks, message):
    with pytest.raises(ValueError, match=message):
        maskcut(two_objects()[0], grid, num_masks=num_masks)


def test_tokencut_finds_one_object_and_its_box():
    features, labels = two_objects()
    found = tokencut(features, GRID)
    label = labels[found.mask].max()
    assert label > 0 and np.array_equal(found.mask, labels == label)
    assert found.box == mask_box(labels == label) and found.side[found.mask].all() and found.score > 0.9


def test_tokencut_knows_no_corners(monkeypatch):
    values = np.full((4, 4), 1.0)
    values[1:3, 1:4] = -0.5
    monkeypatch.setattr(tokencut_module, "normalised_cut", lambda graph: Cut(values.ravel(), 0.5, 0.0))
    found = tokencut(np.random.default_rng(0).standard_normal((16, 3)), (4, 4))
    assert np.array_equal(found.mask, values > 0) and found.box == (0, 0, 4, 4)


def test_boxes_by_hand():
    assert mask_box(np.zeros((3, 3))) is None
    assert mask_box([[0, 1, 0], [0, 0, 0], [1, 0, 0]]) == (0, 0, 2, 3)
    assert scaled_box((1, 0, 3, 2), (4, 6), (40, 30)) == (5, 0, 15, 20)
    ious = box_ious([[0, 0, 2, 2], [5, 5, 5, 5]], [[1, 1, 3, 3], [0, 0, 2, 2], [9, 9, 9, 9]])
    assert np.allclose(ious, [[1 / 7, 1, 0], [0, 0, 0]])
