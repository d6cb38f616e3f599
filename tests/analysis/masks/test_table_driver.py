"""The numbers of an image as `benchmarks/segmentation_table.py` keeps them, and what is read back."""

import json
import sys
from pathlib import Path

import numpy as np

from opencrate.analysis.segmentation.floors import smooth_random_features, smooth_random_maps, whole_image
from opencrate.analysis.segmentation.scores import ImageScores, Views, score_detections, score_views
from opencrate.data.segmentation.load import load_masks

from ...data import masked_sets as sets

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import segmentation_page
import segmentation_table


def test_scores_of_an_image_are_read_back_as_they_were(tmp_path):
    sets.coco(tmp_path)
    for truth in load_masks("coco", tmp_path):  # one holds no object
        views = Views(smooth_random_features((8, 12), 0), smooth_random_maps(3, (8, 12), 0), (8, 12))
        nothing = np.zeros((0, *whole_image(truth.size).shape), dtype=bool)
        for scores in (score_views(views, truth), ImageScores(matches=score_detections(nothing, [], truth))):
            line = json.loads(json.dumps(segmentation_table.plain_scores(scores), allow_nan=False))
            found = segmentation_table.scores_of(line, heads=3)
            assert str(found.corloc) == str(dict(scores.corloc)) and str(found.jaccard) == str(dict(scores.jaccard))
            for key, (classes, ious) in scores.heads.items():
                assert np.array_equal(found.heads[key][0], classes) and np.array_equal(found.heads[key][1], ious)
            for key, one in scores.matches.items():
                other = found.matches[key]
                assert np.array_equal(other.scores, one.scores) and other.instances == one.instances
                assert np.array_equal(other.hits, one.hits) and np.array_equal(other.ignored, one.ignored)


def test_a_difference_is_found_in_either_order():
    row = {"subject": "a", "minus": "b", "role": "difference", "noise": "0.0", "table": "object", "measure": "J"}
    row |= {"mean": "0.02", "low": "-0.0001", "high": "0.05"}
    for names, expected in ((("a", "b"), ("2.0", "0.0", "5.0")), (("b", "a"), ("-2.0", "-5.0", "0.0"))):
        (cell,) = segmentation_page.cells([row], {"J": ("object", "J")}, {names: "pair"})
        assert cell.numbers() == expected
    assert "| pair | −2.0 [−5.0, 0.0] |" in segmentation_page.markdown([cell])
    assert not [*segmentation_page.cells([row], {"J": ("object", "J")}, {("a", "c"): "pair"})]
