"""Data sets with true masks: what is read in every layout, and what is refused."""

import json

import numpy as np
import pytest
from datasets import Dataset

from opencrate.data.segmentation.load import load_masks
from opencrate.data.segmentation.polygons import fill_polygons
from opencrate.data.segmentation.truth import VOID

from . import masked_sets as sets


def test_coco_from_folder_zip_and_file(tmp_path):
    sets.coco(tmp_path / "coco")
    json_file = tmp_path / "coco/annotations/instances_val2017.json"
    for path in (tmp_path / "coco", sets.zipped(tmp_path / "coco"), json_file):
        found = load_masks("coco", path)
        assert len(found) == 2 and found.class_names == {1: "fish", 2: "lamp"} and not found.sequences
        one, other = found
        assert one.name == "val2017/a.png" and other.empty and not one.empty
        assert np.array_equal(one.instances[0], sets.square()) and one.instances[1].sum() == 10 * sets.HEIGHT
        assert one.crowd.tolist() == [False, False, True]
        assert one.boxes.tolist() == [[4, 8, 20, 24], [30, 0, 40, 32]] and len(one.instance_boxes) == 3
        assert (one.labels[:, 0] == VOID).all() and one.labels[10, 10] == 1 and one.labels[0, 35] == 2
        assert np.array_equal(np.asarray(one.picture), np.asarray(sets.picture()))
        assert other.instances.shape == (0, sets.HEIGHT, sets.WIDTH) and other.boxes.shape == (0, 4)


def test_smaller_instances_lie_in_front(tmp_path):
    content = sets.coco(tmp_path)
    content["annotations"][1]["segmentation"] = [[6, 10, 12, 10, 12, 20, 6, 20]]
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    one = load_masks("coco", tmp_path)[0]
    assert one.labels[12, 8] == 2 and one.labels[9, 5] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].pop("segmentation"),
            "1 of 3 annotations have no 'segmentation', the first is id 0",
        ),
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c["annotations"].clear(), "lists no annotations"),
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["images"].append({"id": 1, "file_name": "no.png"}), "no image no.png in val2017/, images/"),
        (lambda c: c["images"].append({"id": 99, "file_name": "no.png"}), r"no.png: no such image.*1 of 3 are missing"),
        (lambda c: c["annotations"][0].pop("image_id"), "an entry lacks 'image_id'"),
    ],
)
def test_damaged_coco_files(tmp_path, change, message):
    content = sets.coco(tmp_path)
    change(content)
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_masks("coco", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "4x4 pixels for an image of 32x48"),
        ({"segmentation": [[1, 2, 3]]}, "a polygon of 3 numbers"),
        ({"category_id": 5}, "category_id=5: none of"),
        ({"bbox": [1, 2, 3, float("nan")]}, "must be finite"),
        ({"bbox": None}, "image id 2"),
    ],
)
def test_damaged_annotations(tmp_path, change, message):
    content = sets.coco(tmp_path)
    content["annotations"][0].update(change)
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_masks("coco", tmp_path)[0]


def test_image_of_another_size_than_stated(tmp_path):
    """The masks would lie elsewhere."""
    content = sets.coco(tmp_path)
    number = content["annotations"][0]["image_id"]
    next(one for one in content["images"] if one["id"] == number).update(height=16, width=24)
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="height x width is 16 x 24, but the image file has 32 x 48"):
        for _ in load_masks("coco", tmp_path):
            pass


def test_several_files_of_annotations(tmp_path):
    sets.coco(tmp_path)
    folder = tmp_path / "annotations"
    (folder / "instances_train2017.json").write_bytes((folder / "instances_val2017.json").read_bytes())
    assert len(load_masks("coco", tmp_path)) == 2
    with pytest.raises(ValueError, match=r"split='test' fits 0 of .*give one of train2017, val2017"):
        load_masks("coco", tmp_path, split="test")


def test_davis_folders_and_table(tmp_path):
    sets.davis(tmp_path / "davis")
    found = load_masks("davis", tmp_path / "davis")
    assert found.groups == ("cow", "cow", "ant", "ant") and found.sequences and found.one_object
    assert found[2].name == "ant/00000.jpg" and np.array_equal(found[2].foreground, sets.square(8, 8, 24, 24))
    assert found[2].boxes.tolist() == [[8, 8, 24, 24]]
    names = tmp_path / "davis/ImageSets/480p/val.txt"
    names.write_text("cow\nant\n")
    assert load_masks("davis", tmp_path / "davis").groups == found.groups
    rows = [
        {
            "image": {"bytes": (tmp_path / f"davis/JPEGImages/480p/{name}/00000.jpg").read_bytes(), "path": None},
            "mask": {"bytes": (tmp_path / f"davis/Annotations/480p/{name}/00000.png").read_bytes(), "path": None},
            "sequence": name,
        }
        for name in ("cow", "ant")
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "davis.parquet")
    table = load_masks("davis", tmp_path / "davis.parquet")
    assert table.groups == ("cow", "ant") and np.array_equal(table[1].labels, found[2].labels)
    Dataset.from_list([{"image": None}]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no column mask"):
        load_masks("davis", tmp_path / "other.parquet")
    (tmp_path / "davis/Annotations/480p/ant/00001.png").unlink()
    with pytest.raises(ValueError, match=r"ant/00001.png: no such file"):
        load_masks("davis", tmp_path / "davis")


@pytest.mark.parametrize("above", ["", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, above):
    sets.voc(tmp_path / above)
    (one,) = load_masks("voc", tmp_path)
    assert one.labels[10, 10] == 15 and one.labels[7, 3] == VOID and one.labels[0, 0] == 0
    assert np.array_equal(one.instances[0], sets.square()) and one.boxes.tolist() == [[4, 8, 20, 24]]
    assert one.instance_boxes.tolist() == [[4, 8, 20, 24], [30, 0, 40, 32]]
    (tmp_path / above / "Annotations/x1.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"x1.xml: damaged"):
        load_masks("voc", tmp_path)[0]
    (tmp_path / above / "Annotations/x1.xml").unlink()
    assert np.array_equal(load_masks("voc", tmp_path)[0].boxes, one.instance_boxes)
    (tmp_path / above / "SegmentationObject/x1.png").unlink()
    with pytest.raises(ValueError, match=r"SegmentationObject.x1.png: no such file.*1 of 1"):
        load_masks("voc", tmp_path)
    with pytest.raises(ValueError, match=r"no ImageSets/Segmentation/test.txt"):
        load_masks("voc", tmp_path, split="test")


def test_folder(tmp_path):
    sets.folder(tmp_path)
    found = load_masks("folder", tmp_path)
    assert len(found) == 3 and found.one_object and np.array_equal(found[1].instances[0], sets.square(8, 8, 24, 24))
    values = np.zeros((sets.HEIGHT, sets.WIDTH), dtype=np.uint8)
    values[:, :10], values[:, 20:30], values[0] = 1, 2, 255
    sets.save(tmp_path / "masks/p0.png", sets.indexed(values))
    one = load_masks("folder", tmp_path)[0]
    assert len(one.instances) == 2 and (one.labels[0] == VOID).all() and one.labels[1, 25] == 2
    (tmp_path / "classes.txt").write_text("fish\n")
    named = load_masks("folder", tmp_path)
    assert named.class_names == {1: "fish"} and not named.one_object
    with pytest.raises(ValueError, match=r"value 2, but classes.txt names 1 classes"):
        named[0]
    sets.save(tmp_path / "masks/p1.png", sets.picture())
    with pytest.raises(ValueError, match=r"p1.png: a picture of mode RGB"):
        named[1]
    sets.save(tmp_path / "masks/p1.png", values[:5] // 255)
    with pytest.raises(ValueError, match=r"mask has 5x48 pixels .*image 32x48"):
        load_masks("folder", tmp_path)[1]
    (tmp_path / "masks/p2.png").unlink()
    with pytest.raises(ValueError, match=r"p2.png: no mask of that name in masks/ \(1 such of 3 images\)"):
        load_masks("folder", tmp_path)


def test_limit_takes_sequences_in_turn(tmp_path):
    sets.davis(tmp_path)
    found = load_masks("davis", tmp_path)
    assert found.first(3).groups == ("cow", "cow", "ant") and len(found.first(99)) == 4
    assert [one.name for one in found.first(2)] == ["cow/00000.jpg", "ant/00000.jpg"]
    with pytest.raises(ValueError, match="limit=0"):
        found.first(0)


def test_other_paths(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'coco'"):
        load_masks("cocoo", tmp_path)
    for layout in ("coco", "davis", "voc", "folder"):
        with pytest.raises(ValueError, match="no such file or folder; give"):
            load_masks(layout, tmp_path / "nothing")
        with pytest.raises(ValueError, match=r"no .*give"):
            load_masks(layout, tmp_path)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="is no zip file"):
        load_masks("voc", tmp_path / "text.zip")


def test_polygons_fill_pixels_whose_centre_is_inside():
    assert fill_polygons([[1, 1, 4, 1, 4, 3, 1, 3]], (5, 6)).sum() == 6
    assert fill_polygons([[0, 0, 4.5, 0, 0, 4.5]], (4, 4)).sum(1).tolist() == [4, 3, 2, 1]
    bow = fill_polygons([[0, 0, 4, 4, 4, 0, 0, 4]], (4, 4))  # edges that cross: inside by their odd number
    assert bow[1, 0] and bow[1, 3] and not bow[0, 1]
    assert fill_polygons([[-9, -9, 99, -9, 99, 99, -9, 99]], (3, 3)).all()
    assert not fill_polygons([], (3, 3)).any()
    two = fill_polygons([[0, 0, 1, 0, 1, 1, 0, 1], [2, 2, 3, 2, 3, 3, 2, 3]], (3, 3))
    assert two.sum() == 2 and two[0, 0] and two[2, 2]
    points = np.random.default_rng(0).uniform(0, 40, (9, 2))
    from matplotlib.path import Path

    centres = np.stack(np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5), -1).reshape(-1, 2)
    hull = points[np.argsort(np.arctan2(*(points - points.mean(0)).T))]  # a star-shaped outline does not cross itself
    assert np.array_equal(
        fill_polygons([hull.ravel().tolist()], (30, 40)),
        Path(np.vstack([hull, hull[:1]])).contains_points(centres).reshape(30, 40),
    )
