"""Features of vision models: against the recorded codes, the images themselves and scikit-learn; and the page."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from opencrate import CrateImageProcessor, open_saved
from opencrate.analysis.features.patches import _selectivity, find_patch_features
from opencrate.analysis.record.states import record
from opencrate.reports.pages import write
from opencrate.reports.patch_features import describe

from .foreign_models import tiny
from .models import tiny_crate

IMAGES = torch.rand(12, 1, 4, 6, generator=torch.Generator().manual_seed(5))
BATCHES = [
    {"pixel_values": part, "labels": labels}
    for part, labels in zip(((IMAGES - 0.5) / 0.25).split(5), (torch.arange(12) % 3).split(5))
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crate") / "crate"
    tiny_crate().save_pretrained(folder)
    CrateImageProcessor(image_mean=[0.5], image_std=[0.25]).save_pretrained(folder)
    return open_saved(folder)


@pytest.fixture(scope="module")
def found(saved):
    return find_patch_features(saved, BATCHES, layers=[1, 3], num_features=5, num_patches=3, labelled=True)


def test_features_are_those_of_the_recorded_codes(saved, found):
    steps = list(zip(*(states.layers for states in record(saved.model, BATCHES, layers=[1, 3]))))
    codes = {step[0].layer: torch.cat([part.codes[:, 1:] for part in step]).float().numpy() for step in steps}
    assert [one.layer for one in found.features] == [1] * 5 + [3] * 5 and found.widths == {1: 12, 3: 12}
    for one in found.features:
        own = codes[one.layer][..., one.index]
        assert one.firing_rate == pytest.approx((own > 0).mean())
        assert one.mean == pytest.approx(own.mean(), rel=1e-5) and one.maximum == pytest.approx(own.max())
        values = [patch.value for patch in one.patches]
        assert values == sorted(values, reverse=True) and min(values, default=1) > 0
        for patch in one.patches:
            assert patch.value == own[patch.image].max() == own[patch.image, patch.row * 3 + patch.column]
        assert len({patch.image for patch in one.patches}) == len(one.patches) <= 3
    assert found.patches == 12 * 6 and found.images == 12


def test_a_patch_is_shown_as_it_is_in_the_image(found):
    shown = [patch for one in found.features for patch in one.patches]
    assert shown
    for patch in shown:
        left, top, width, height = patch.box
        own = IMAGES[patch.image][:, patch.row * 2 : patch.row * 2 + 2, patch.column * 2 : patch.column * 2 + 2]
        np.testing.assert_allclose(patch.pixels[:, top : top + height, left : left + width], own, atol=1e-6)
        assert patch.pixels.shape[1] in (4,) and patch.pixels.shape[2] in (4, 6)
        assert patch.title == f"class {patch.image % 3}"


def test_selectivity_is_the_area_on_the_other_half():
    random = np.random.default_rng(0)
    labels, means = random.integers(0, 3, 60), random.random((60, 4))
    means[:, 0] += labels == 2
    halves = np.arange(30), np.arange(30, 60)
    classes, scores = _selectivity(means, halves, labels, np.random.default_rng(1))
    assert classes[0] == 2 and scores["auc"][0] > 0.9
    for column in range(4):
        expected = roc_auc_score(labels[30:] == classes[column], means[30:, column])
        assert scores["auc"][column] == pytest.approx(expected)
    changed = means.copy()
    changed[30:] = 0  # the second half must not choose
    assert np.array_equal(_selectivity(changed, halves, labels, np.random.default_rng(1))[0], classes)


def test_chance_is_one_half():
    random = np.random.default_rng(0)
    labels, means = random.integers(0, 4, 400), random.random((400, 200))
    halves = np.arange(200), np.arange(200, 400)
    scores = _selectivity(means, halves, labels, random)[1]
    assert scores["auc"].mean() == pytest.approx(0.5, abs=0.02)


def test_without_labels_there_is_no_score(saved):
    bare = [{"pixel_values": fields["pixel_values"]} for fields in BATCHES]
    found = find_patch_features(saved, bare, layers=[2], num_features=4)
    assert all(one.selects == "" and np.isnan(list(one.scores.values())).all() for one in found.features)
    assert found.interval("auc") is None and "have no classes" in describe([found])[0]
    assert all(patch.title == "" for one in found.features for patch in one.patches)


def test_neurons_of_other_models(tmp_path):
    tiny("vit").save_pretrained(tmp_path / "vit")
    CrateImageProcessor(image_mean=[0.5], image_std=[0.25]).save_pretrained(tmp_path / "vit")
    images = [{"pixel_values": torch.randn(6, 1, 8, 8)}]
    found = find_patch_features(open_saved(tmp_path / "vit"), images, layers=[3], num_features=4)
    assert found.kind == "MLP neurons" and found.widths == {3: 24} and found.patches == 24


def test_too_few_images_and_layers_that_are_not_there(saved):
    with pytest.raises(ValueError, match="num_inputs=3: two halves need at least 4"):
        find_patch_features(saved, BATCHES, num_inputs=3)
    with pytest.raises(ValueError, match="layers 1 to 3, not 4"):
        find_patch_features(saved, BATCHES, layers=[4])


def test_the_page_can_be_searched_by_class(found, tmp_path):
    page = write(found, tmp_path / "out").read_text()
    assert page.count("<article") == 10 and page.count("<figure><img") == sum(len(o.patches) for o in found.features)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]*)"', page))
    first = re.search(r'data-search="([^"]*)" data-model="[^"]*" data-layer="1" data-rate="[^"]*" data-auc=', page)
    assert first and "class" in first[1]
    stored = json.loads((tmp_path / "out" / "features.json").read_text())["models"][0]
    assert len(stored["features"]) == 10 and stored["features"][0]["patches"][0].keys() >= {"image", "row", "value"}
