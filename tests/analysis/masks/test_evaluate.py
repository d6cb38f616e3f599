"""Evaluation of masks: known answers, floors, differences in pairs, noise, and real models on small data sets."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor
from opencrate.analysis.masks.evaluate import ELLIPSE, WHOLE, Seen, ViewOptions, evaluate_segmentation, evaluate_views
from opencrate.analysis.segmentation import evaluation
from opencrate.analysis.segmentation.average_precision import average_precision
from opencrate.analysis.segmentation.class_table import class_table
from opencrate.analysis.segmentation.evaluation import FLOOR, MODEL, UNTRAINED
from opencrate.analysis.segmentation.floors import centred_ellipse, smooth_random_features, whole_image
from opencrate.analysis.segmentation.noise import noisy_picture
from opencrate.analysis.segmentation.scores import CONSTANT, ScoreOptions, Views, score_mask
from opencrate.data.segmentation.load import load_masks
from opencrate.store.saved import SavedModel, open_saved

from ...data import masked_sets as sets

GRID = (8, 12)
EXACT = ScoreOptions(rules=("mass:1",), refine="none")
ATTENTION = ("attention", "mass:0.6, best head")
BEST, CHOSEN = ("attention", "mass:1, best head"), ("attention", "mass:1, head of other images")


def seeing(data, shift=0, heads=1):
    """A viewer whose first head and whose features are the true object, moved to the right by some patches."""
    truths = {np.asarray(one.picture).tobytes(): one for one in data}

    def view(picture):
        truth = truths[np.asarray(picture).tobytes()]
        inside = np.roll(truth.foreground[2::4, 2::4], shift, 1).ravel().astype(float)
        others = np.ones((heads - 1, len(inside)))
        return Views(np.stack([inside, 1 - inside], 1), np.concatenate([inside[None], others]), GRID)

    return view


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """An interval of average precision takes most of the time, and no test needs a good one."""
    monkeypatch.setattr(evaluation, "_RESAMPLES", 100)


@pytest.fixture
def data(tmp_path):
    sets.folder(tmp_path / "set", count=4)
    return load_masks("folder", tmp_path / "set")


def value(found, name, measure):
    (one,) = [one for one in found.subjects if one.name == name and not one.sigma]
    return float(found.interval(one, measure).mean)


def test_attention_that_is_the_truth(data):
    found = evaluate_views({"m": Seen(seeing(data, heads=3))}, data, EXACT)
    assert value(found, "m", BEST) == 1 and value(found, "m", CHOSEN) == 1
    assert value(found, "m", ("attention on the grid", "mass:1, best head")) == 1
    for method in ("TokenCut", "MaskCut"):
        assert value(found, "m", ("object", f"CorLoc, {method}")) == 1
        assert value(found, "m", ("object", f"J, {method}")) > 0.95  # bilinear resizing cuts the corners
    for kind in ("box", "mask"):
        assert value(found, "m", (kind, f"AP50, {CONSTANT}")) == pytest.approx(1)
    assert found.num_images == 4 and found.unit == "image" and not found.empty


def test_masks_beside_the_truth_have_their_known_overlap(data):
    found = evaluate_views({"m": Seen(seeing(data, shift=1)), "n": Seen(seeing(data))}, data, EXACT)
    assert value(found, "m", BEST) == pytest.approx(192 / 320)  # 16 x 16 pixels, moved by 4
    assert value(found, "m", (("mask"), f"AP75, {CONSTANT}")) == 0
    (difference,) = [one for one in found.differences if one.second.name == "n" and one.measure == BEST]
    assert float(difference.interval.high) < 0 and float(difference.interval.mean) == pytest.approx(-0.4)


def test_a_model_against_itself_is_no_different(data):
    found = evaluate_views({"a": Seen(seeing(data, shift=1)), "b": Seen(seeing(data, shift=1))}, data, EXACT)
    both = [one for one in found.differences if one.second.role == MODEL]
    assert {one.measure for one in both} == {*found.measures}
    for one in both:
        assert float(one.interval.low) <= 0 <= float(one.interval.high) and float(one.interval.mean) == 0


def test_floors_stand_beside_every_model(data):
    truth, wrong = Seen(seeing(data), (seeing(data, shift=3),)), Seen(seeing(data, shift=2, heads=3))
    found = evaluate_views({"m": truth, "n": wrong}, data, EXACT)
    names = [one.name for one in found.of(FLOOR)]
    assert names == [WHOLE, ELLIPSE, "smooth random maps, 1 heads", "smooth random maps, 3 heads"]
    assert [one.name for one in found.of(UNTRAINED)] == ["m, untrained"]
    area = 16 * 16 / (sets.HEIGHT * sets.WIDTH)
    assert value(found, WHOLE, BEST) == value(found, WHOLE, ("object", "J, TokenCut")) == pytest.approx(area)
    assert value(found, "m, untrained", BEST) < value(found, "m", BEST)
    against = {
        one.first.name: {two.second.name for two in found.differences if two.first is one.first}
        for one in found.differences
    }
    assert against["m"] == {"n", "m, untrained", WHOLE, ELLIPSE, names[2]}
    assert against["n"] == {WHOLE, ELLIPSE, names[3]}
    model = found.of(MODEL)[0]
    best = found.best_floor(model, BEST)
    assert best is not None and float(best.interval.low) > 0
    floors = [found.interval(one, BEST) for one in (*found.of(FLOOR), *found.of(UNTRAINED)) if one.name in against["m"]]
    assert value(found, best.second.name, BEST) == max(float(one.mean) for one in floors if one is not None)


def test_ellipse_is_chosen_on_other_images(data):
    found = evaluate_views({"m": Seen(seeing(data))}, data, EXACT)
    table = np.array([[_jaccard(one, share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)] for one in data])
    expected = [row[np.delete(table, index, 0).mean(0).argmax()] for index, row in enumerate(table)]
    assert value(found, ELLIPSE, ("object", "J, MaskCut")) == pytest.approx(np.mean(expected))


def _jaccard(one, share):
    mask = centred_ellipse(one.size, share)
    return (mask & one.foreground).sum() / (mask | one.foreground).sum()


def test_sequences_are_the_units(tmp_path):
    sets.davis(tmp_path)
    data = load_masks("davis", tmp_path)
    found = evaluate_views({"m": Seen(seeing(data))}, data, EXACT)
    assert found.unit == "sequence" and found.units == ("cow", "ant")
    assert {one.count for one in found.intervals.values()} == {2}


def test_images_without_objects_are_named_and_count_as_false_alarms(tmp_path):
    sets.folder(tmp_path, count=4)
    sets.save(tmp_path / "masks/p3.png", np.zeros((sets.HEIGHT, sets.WIDTH), dtype=np.uint8))
    data = load_masks("folder", tmp_path)
    full = {np.asarray(one.picture).tobytes(): one for one in data}
    viewer = seeing(data)

    def view(picture):
        found = viewer(picture)
        if not full[np.asarray(picture).tobytes()].empty:
            return found
        return Views(smooth_random_features(GRID, 0), np.ones((1, 96)), GRID)

    found = evaluate_views({"m": Seen(view)}, data, EXACT)
    assert found.empty == ("p3",) and found.intervals[0, BEST].count == 3
    assert value(found, "m", BEST) == 1 and value(found, "m", ("object", "CorLoc, TokenCut")) == 1
    assert value(found, "m", ("object", "J, TokenCut")) > 0.98 and value(found, WHOLE, ("object", "J, MaskCut")) > 0
    assert {found.interval(one, ("object", "J, MaskCut")).count for one in found.subjects} == {3}
    with pytest.raises(ValueError, match="no object in any of its 1 images"):
        evaluate_views({"m": Seen(view)}, _only(data, 3), EXACT)


def _only(data, index):
    from dataclasses import replace

    return replace(data, entries=data.entries[index : index + 1], groups=data.groups[index : index + 1])


def test_noise(data):
    picture = data[0].picture
    assert noisy_picture(picture, 0, 0) is picture
    grey = sets.Image.new("RGB", (200, 100), (128, 128, 128))
    noisy = np.asarray(noisy_picture(grey, 10, 3)).astype(float)
    assert noisy.std() == pytest.approx(10, rel=0.03) and noisy.mean() == pytest.approx(128, abs=0.3)
    assert np.array_equal(noisy, np.asarray(noisy_picture(grey, 10, 3)))
    assert not np.array_equal(noisy, np.asarray(noisy_picture(grey, 10, 4)))
    for sigma in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="noise="):
            noisy_picture(grey, sigma, 0)

    def brightness(shown):
        values = np.asarray(shown).astype(float)[2::4, 2::4].mean(-1).ravel()
        return Views(np.stack([values, 255 - values], 1), values[None] + 1e-3, GRID)

    plain = evaluate_views({"m": Seen(brightness)}, data, EXACT, noise=(0,))
    assert plain.sigmas == (0,)
    found = evaluate_views({"m": Seen(brightness)}, data, EXACT, noise=(75, 0, 25))
    assert found.sigmas == (0, 25, 75)
    assert value(found, "m", BEST) == value(plain, "m", BEST)
    assert len(found.of(MODEL, 25)) == 1 and not found.of(FLOOR, 25)


def test_classes_of_heads():
    rows = [(np.array([1, 2]), np.array([[1.0, 0.0], [0.0, 0.5]])), (np.array([2]), np.array([[0.0, 1.0]]))]
    table = class_table(rows, ("a", "b"), {1: "fish", 2: "lamp"})
    assert table is not None and table.names == ("fish", "lamp") and table.counts == (1, 2)
    assert table.means.tolist() == [[1, 0], [0, 0.75]] and table.best == [0, 1]
    assert math.isnan(table.rows()[0]["low"]) and table.rows()[3]["mean"] == 0.75 and table.rows()[3]["head"] == 2
    together = class_table(rows, ("a", "a"), {})
    assert together is not None and together.counts == (1, 1) and together.names == ("1", "2")
    assert class_table([(np.array([], dtype=int), np.zeros((0, 2)))], ("a",), {}) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small CRATE for 32-px images, and one without attention maps."""
    found = {}
    for kind in ("mssa", "tssa"):
        torch.manual_seed(0)
        config = CrateConfig(
            image_size=32,
            patch_size=8,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_labels=2,
            compression=kind,
        )
        folder = tmp_path_factory.mktemp("models") / kind
        CrateForImageClassification(config).save_pretrained(folder)
        CrateImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        found[kind] = open_saved(folder)
    return found


def test_saved_models_on_coco(tmp_path, saved, caplog):
    sets.coco(tmp_path)
    data = load_masks("coco", tmp_path)
    options = ViewOptions(size=32, stride=4)
    found = evaluate_segmentation([saved["mssa"], saved["tssa"]], data, views=options, noise=(50,))
    assert [one.name for one in found.subjects[:4]] == ["mssa", "tssa", "mssa, untrained", "tssa, untrained"]
    assert "tssa: its layers have no attention maps" in caplog.text and found.empty == ("val2017/b.png",)
    assert found.interval(found.subjects[0], ATTENTION) is not None
    assert found.interval(found.subjects[1], ATTENTION) is None
    assert {name for name, _ in found.classes} == {"mssa", "smooth random maps, 3 heads"}
    assert found.classes["mssa", "mass:0.6"].names == ("fish", "lamp")
    again = evaluate_segmentation([saved["mssa"], saved["tssa"]], data, views=options, noise=(50,))
    assert found.rows() == again.rows() or str(found.rows()) == str(again.rows())
    assert found.to_dict()["settings"]["stride"] == 4


def test_untrained_models_have_the_patches_that_a_run_began_with(data, saved, monkeypatch, caplog):
    options = {"views": ViewOptions(size=32), "untrained_seeds": 2}
    plain = evaluate_segmentation([saved["mssa"]], data, **options)
    seeds = []
    monkeypatch.setattr(SavedModel, "untrained", lambda self, seed: seeds.append(seed) or self.model)
    found = evaluate_segmentation([saved["mssa"]], data, **options)
    assert seeds == [0, 1]
    assert value(found, "mssa, untrained", ATTENTION) == value(found, "mssa", ATTENTION)
    monkeypatch.undo()

    def missing(self, seed):
        raise ValueError("start.safetensors: missing")

    monkeypatch.setattr(SavedModel, "untrained", missing)
    found = evaluate_segmentation([saved["mssa"]], data, **options)
    assert "start.safetensors: missing; its untrained floor has random patches" in caplog.text
    assert value(found, "mssa, untrained", ATTENTION) == value(plain, "mssa, untrained", ATTENTION)


def test_refused_models(saved, data):
    with pytest.raises(ValueError, match="models: 0"):
        evaluate_segmentation([], data)
    with pytest.raises(ValueError, match="layer=9"):
        evaluate_segmentation([saved["mssa"]], data, views=ViewOptions(layer=9, size=32))


_SHARED = Path(os.environ.get("OPENCRATE_SEGMENTATION") or Path(__file__).parents[4] / "shared/data/segmentation")


@pytest.mark.skipif(not _SHARED.is_dir(), reason="the sets are not there; OPENCRATE_SEGMENTATION names their folder")
def test_floors_of_the_known_sets():
    """Of COCO-70 and DAVIS-100, as two programs before this one had them."""
    data = load_masks("coco", _SHARED / "coco-train2017-70.zip")
    for mask, box, masks in (
        (whole_image, (1.46, 0.69, 0.71), (0.24, 0.00, 0.08)),
        (lambda size: centred_ellipse(size, 0.5), (2.10, 0.04, 0.64), (0.31, 0.03, 0.07)),
    ):
        scores = [score_mask(mask(one.size), mask((4, 4)), one) for one in data]
        for kind, expected in (("box", box), ("mask", masks)):
            found = average_precision([one.matches[kind, CONSTANT] for one in scores])
            assert np.round(100 * found, 2) == pytest.approx(expected, abs=0.011)
    frames = load_masks("davis", _SHARED / "davis2016-val-100.parquet")
    whole = [score_mask(whole_image(one.size), whole_image((4, 4)), one) for one in frames]
    assert np.mean([one.jaccard["TokenCut"] for one in whole]) == pytest.approx(0.077, abs=5e-4)
    assert np.mean([one.corloc["TokenCut"] for one in whole]) == pytest.approx(0.03, abs=0.005)
