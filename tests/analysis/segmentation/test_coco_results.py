"""Run lengths: text of pycocotools, there and back, and files that are damaged."""

import importlib

import numpy as np
import pytest

from opencrate.analysis.segmentation.coco_results import by_image, coco_results
from opencrate.data.segmentation.run_lengths import decode, encode

MASK = np.zeros((9, 7), dtype=bool)
MASK[2:5, 1:4] = True
MASK[3, 2], MASK[8, 6] = False, True
TEXT = ";36NK052h0N"  # pycocotools 2.0.11


def random_masks(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.random(random.integers(1, 40, 2)) > random.choice([0.0, 0.03, 0.5, 0.97, 1.0])


def test_text_of_pycocotools():
    assert encode(MASK) == {"size": [9, 7], "counts": TEXT}
    large = np.zeros((700, 500), dtype=bool)
    large[10:650, 20:400] = True
    assert encode(large)["counts"].startswith("je=Pd0l100000")


def test_there_and_back():
    for mask in random_masks(60):
        entry = encode(mask)
        assert np.array_equal(decode(entry), mask)
        assert np.array_equal(decode({**entry, "counts": entry["counts"].encode()}), mask)
    assert np.array_equal(decode({"size": [2, 2], "counts": [1, 2, 1]}), [[False, True], [True, False]])


@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed")
def test_pycocotools_says_the_same():
    from pycocotools import mask as theirs  # pyright: ignore[reportMissingImports]

    for mask in random_masks(60):
        expected = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode(mask) == {"size": list(expected["size"]), "counts": expected["counts"].decode()}


def test_results_in_order_without_empty_masks():
    masks = np.stack([MASK, np.zeros_like(MASK), ~MASK])
    found = coco_results(12, masks, [0.5, 1, np.float32(0.25)])
    assert [one["score"] for one in found] == [0.5, 0.25] and found[0]["bbox"] == [1, 2, 6, 7]
    assert {one["image_id"] for one in found} == {12} and {one["category_id"] for one in found} == {1}
    assert np.array_equal(decode(found[1]["segmentation"]), ~MASK)
    with pytest.raises(ValueError, match="scores: 2 for 3 masks"):
        coco_results(12, masks, [1, 1])


def test_entries_by_image():
    entries = [{"image_id": 7, "n": 0}, {"image_id": 2, "n": 1}, {"image_id": 7, "n": 2}]
    assert list(by_image(entries).items()) == [(2, [entries[1]]), (7, [entries[0], entries[2]])]


@pytest.mark.parametrize("segmentation, message", [
    ({"size": [2, 2], "counts": [1, 2]}, "3 pixels for a mask of 2 x 2"), ({"size": [2, 2], "counts": [5, -1]}, "damaged"),
    ({"size": [10**6, 10**6], "counts": [10**12]}, "1 to 268435456 pixels"), ({"size": [0, 2], "counts": []}, "size 0 x 2"),
    ({"size": [2, 2], "counts": "\x01"}, "no part of run lengths"), ({"size": [2, 2], "counts": "o" * 40}, "damaged"),
])  # fmt: skip
def test_damaged_files(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode(segmentation)
