"""IoU, heads, CorLoc, sequences, floors: by hand."""

import math

import numpy as np
import pytest

from opencrate.analysis.segmentation.floors import centred_ellipse, smooth_random_maps, whole_image
from opencrate.analysis.segmentation.metrics import (
    by_sequence,
    choose_on_others,
    corloc,
    head_ious,
    head_scores,
    iou,
    nearest_labels,
)


def test_iou_by_hand():
    mask, truth = np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 0]])
    assert iou(mask, truth) == pytest.approx(1 / 3)
    assert iou(mask, truth, void=np.array([[1, 0, 0, 0]])) == pytest.approx(1 / 2)
    assert iou(mask, truth, void=np.array([[1, 0, 1, 0]])) == 1
    assert iou(np.zeros((1, 2)), np.zeros((1, 2))) == 1 and iou(np.zeros((1, 2)), np.ones((1, 2))) == 0
    with pytest.raises(ValueError, match="truth: shape"):
        iou(mask, truth[:, :2])


def test_heads_by_hand():
    """Classes 1 and 7 are present, 0 is background, 255 counts for nothing."""
    labels = np.array([[1, 1, 0], [7, 255, 0]])
    masks = np.array([[[1, 1, 1], [0, 1, 0]], [[0, 0, 0], [1, 0, 0]]], dtype=bool)
    classes, ious = head_ious(masks, labels)
    assert classes.tolist() == [1, 7] and np.allclose(ious, [[2 / 3, 0], [0, 1]])
    assert head_ious(masks, np.zeros((2, 3)))[1].shape == (0, 2)
    with pytest.raises(ValueError, match="labels: shape"):
        head_ious(masks, labels.T)


def test_the_oracle_takes_a_head_for_every_class_and_the_choice_one_for_others():
    images = [np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.3, 0.6]]), np.zeros((0, 2)), np.array([[0.1, 0.5]])]
    found = head_scores(images)
    assert found.images.tolist() == [0, 1, 3] and np.allclose(found.oracle, [0.85, 0.6, 0.5])
    assert np.allclose(found.each, [[0.55, 0.45], [0.3, 0.6], [0.1, 0.5]])
    assert found.heads.tolist() == [1, 1, 1] and np.allclose(found.chosen, [0.45, 0.6, 0.5])
    assert (found.oracle >= found.each.max(1)).all()
    alone = head_scores(images[:1])
    assert alone.heads.tolist() == [-1] and math.isnan(alone.chosen[0])
    with pytest.raises(ValueError, match="at least one image"):
        head_scores(images[2:3])


def test_a_choice_never_sees_the_image_or_its_group():
    scores = np.array([[1.0, 0.0], [0.0, 0.1], [0.0, 0.1]])
    options, values = choose_on_others(scores)
    assert options.tolist() == [1, 0, 0] and values.tolist() == [0, 0, 0]
    options, values = choose_on_others(scores, ["a", "a", "b"])
    assert options.tolist() == [1, 1, 0] and values.tolist() == [0, 0.1, 0]
    with pytest.raises(ValueError, match="one group each"):
        choose_on_others(scores, ["a"])


def test_corloc():
    assert corloc((0, 0, 2, 2), [[0, 0, 2, 4]]) and not corloc((0, 0, 2, 2), [[0, 0, 2, 4.1]])
    assert corloc((0, 0, 2, 2), [[9, 9, 10, 10], [0, 0, 2, 2]])
    assert not corloc(None, [[0, 0, 1, 1]]) and not corloc((0, 0, 1, 1), [])


def test_a_sequence_counts_once_however_long():
    names, means = by_sequence([1.0, 0.0, 0.5, 0.1], ["b", "a", "b", "b"])
    assert names == ["b", "a"] and np.allclose(means, [1.6 / 3, 0])
    with pytest.raises(ValueError, match="3 names for 4 frames"):
        by_sequence([1.0] * 4, ["a"] * 3)


def test_labels_on_a_grid():
    labels = np.arange(24).reshape(4, 6)
    assert nearest_labels(labels, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert np.array_equal(nearest_labels(labels, (4, 6)), labels)
    assert nearest_labels(labels, (8, 6))[:, 0].tolist() == [0, 0, 6, 6, 12, 12, 18, 18]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_ellipse_covers_its_share(share):
    mask = centred_ellipse((300, 500), share)
    assert mask.mean() == pytest.approx(share, abs=2e-3)
    assert np.array_equal(mask, mask[::-1]) and np.array_equal(mask, mask[:, ::-1])
    assert whole_image((3, 4)).all()
    with pytest.raises(ValueError, match="share=0"):
        centred_ellipse((3, 4), 0)


def test_random_maps_are_smooth_attention_and_seeded():
    maps = smooth_random_maps(6, (14, 20), seed=3)
    assert maps.shape == (6, 280) and np.allclose(maps.sum(1), 1) and (maps > 0).all()
    assert np.array_equal(maps, smooth_random_maps(6, (14, 20), seed=3))
    assert not np.array_equal(maps, smooth_random_maps(6, (14, 20), seed=4))
    fields = np.log(maps).reshape(6, 14, 20)
    assert np.corrcoef(fields[:, :, 1:].ravel(), fields[:, :, :-1].ravel())[0, 1] > 0.9
    with pytest.raises(ValueError, match="num_heads=0"):
        smooth_random_maps(0, (14, 20), seed=3)
