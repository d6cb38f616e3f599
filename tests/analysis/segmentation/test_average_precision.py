"""AP by COCO's rules: by hand, against stored numbers of pycocotools, and against it where it is installed."""

import importlib

import numpy as np
import pytest

from opencrate.analysis.segmentation import coco_eval
from opencrate.analysis.segmentation.average_precision import (
    average_precision,
    average_precision_interval,
    mask_ious,
    match_image,
)
from opencrate.analysis.segmentation.coco_eval import official_average_precision

from .scenes import detections

INSTALLED = any(importlib.util.find_spec(name) for name in ("faster_coco_eval", "pycocotools"))


def test_one_image_by_hand():
    """Two instances. Found: one well, the same once more, the other badly, and nothing."""
    ious = np.array([[0.92, 0.0], [0.8, 0.0], [0.0, 0.55], [0.1, 0.1]])
    matches = match_image(ious, [0.9, 0.8, 0.7, 0.6], [False, False])
    assert matches.hits[0].tolist() == [1, 0, 1, 0] and matches.hits[1].tolist() == [1, 0, 1, 0]
    assert matches.hits[8].tolist() == [1, 0, 0, 0] and not matches.hits[9].any() and matches.instances == 2
    half = (51 * 1 + 50 * 2 / 3) / 101  # precision 1 up to recall 1/2, then 2/3
    one = 51 / 101
    assert np.allclose(average_precision([matches]), [half, one, (2 * half + 7 * one) / 10])


def test_crowds_are_neither_right_nor_wrong():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :2], masks[1, 2, :2], masks[2, 3] = True, True, True
    truths = np.zeros((2, 4, 4), dtype=bool)
    truths[0, 2:], truths[1, :2] = True, True
    ious = mask_ious(masks, truths, [True, False])
    assert np.allclose(ious, [[0, 1], [1, 0], [1, 0]])
    matches = match_image(ious, [1, 1, 1], [True, False])
    assert matches.ignored[0].tolist() == [False, True, True] and matches.hits[0].tolist() == [True, False, False]
    assert np.allclose(average_precision([matches]), 1)


def test_order_decides_where_scores_are_equal():
    good, bad = np.array([[0.9]]), np.array([[0.0]])
    first = [match_image(good, [1.0], [False]), match_image(bad, [1.0], [False])]
    assert average_precision(first)[0] > average_precision(first[::-1])[0]
    ranked = [match_image(bad, [0.2], [False]), match_image(good, [0.8], [False])]
    assert np.allclose(average_precision(ranked), average_precision(first))


def test_nothing_found_and_nothing_there():
    assert average_precision([match_image(np.zeros((0, 2)), [], [False, False])]).tolist() == [0, 0, 0]
    assert np.isnan(average_precision([match_image(np.zeros((1, 0)), [1.0], [])])).all()
    only_first = match_image(np.eye(150), np.ones(150), np.zeros(150))
    assert len(only_first.scores) == 100 and only_first.instances == 150
    with pytest.raises(ValueError, match="scores: hold NaN"):
        match_image(np.zeros((1, 1)), [np.nan], [False])
    with pytest.raises(ValueError, match="resize the masks"):
        mask_ious(np.ones((1, 2, 2)), np.ones((1, 3, 2)), [False])


STORED = {  # AP50, AP75, AP of pycocotools 2.0.11 by seed and kind
    (0, "mask"): (0.2108403148, 0.1522830595, 0.1598305959),
    (0, "box"): (0.2108403148, 0.1522830595, 0.1598305959),
    (1, "mask"): (0.3140621363, 0.2830056244, 0.2721906232),
    (1, "box"): (0.3140621363, 0.2830056244, 0.2721906232),
}


@pytest.mark.parametrize("seed, constant", [(0, True), (1, False)])
def test_stored_numbers_of_pycocotools(seed, constant):
    matches = detections(seed, constant)[2]
    for kind, found in matches.items():
        assert np.allclose(average_precision(found), STORED[seed, kind], atol=1e-9), kind


@pytest.mark.skipif(not INSTALLED, reason="neither faster-coco-eval nor pycocotools is installed")
@pytest.mark.parametrize("seed", range(6))
def test_coco_evaluator_says_the_same(seed):
    truth, results, matches = detections(seed, seed % 2 == 0)
    for kind, found in matches.items():
        assert np.allclose(average_precision(found), official_average_precision(truth, results, kind), atol=1e-9)
    assert official_average_precision(truth, [], "mask").tolist() == [0, 0, 0]


def test_official_numbers_need_a_package(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(coco_eval.importlib, "import_module", missing)
    truth, results, _ = detections(0, True)
    with pytest.raises(ImportError, match=r"opencrate\[segmentation\], or use average_precision"):
        official_average_precision(truth, results)
    with pytest.raises(ValueError, match="kind='segm': must be one of mask, box"):
        official_average_precision(truth, results, "segm")


def test_interval_holds_the_value_and_is_the_same_again():
    found = [one for seed in range(4) for one in detections(seed, True)[2]["mask"]]
    first, second = (average_precision_interval(found, resamples=200) for _ in range(2))
    assert np.array_equal(first.low.numpy(), second.low.numpy())
    assert np.allclose(first.mean.numpy(), average_precision(found)) and first.count == 48
    assert (first.low < first.mean).all() and (first.mean < first.high).all()
