"""Masks of pictures: the objects that are there, at the picture's size, the same every time."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import opencrate
from opencrate.analysis.masks.files import segment_files
from opencrate.analysis.masks.options import MaskOptions
from opencrate.analysis.masks.segment import MEAN, Segmenter
from opencrate.analysis.segmentation.maskcut import mask_iou
from opencrate.data.images.tensors import ImageTransform

from ..foreign_models import tiny
from .models import blind_crate, colour_crate, picture, processor


def segmented(model=None, image=None, method="maskcut", **options):
    model = blind_crate() if model is None else model
    return opencrate.segment(model, image or picture()[0], method, processor=processor(), **options)


def array(found) -> np.ndarray:
    return np.asarray(found["mask"]) > 0


def segmenter(**options) -> Segmenter:
    model = blind_crate()
    return Segmenter(model, ImageTransform.for_model(model.config, processor()), MaskOptions(**options))


@pytest.mark.parametrize("method", ["maskcut", "tokencut"])
@pytest.mark.parametrize("features", ["keys", "tokens", "codes"])
def test_an_object_of_one_colour_is_found(method, features):
    image, truth = picture()
    first = segmented(image=image, method=method, features=features, size=48, tau=0.99, refine="none")[0]
    assert first["mask"].mode == "L" and first["mask"].size == image.size
    assert set(np.unique(np.asarray(first["mask"]))) == {0, 255}
    assert mask_iou(array(first), truth) > 0.9 and 0 < first["score"] <= 1
    assert first["label"] == ("object 1" if method == "maskcut" else "object")


@pytest.mark.parametrize("options", [{"stride": 2}, {"size": 96}, {"square": True}, {"refine": "guided"}])
def test_the_object_stays_where_it_is(options):
    image, truth = picture(48, 96)
    (first, *_) = segmented(image=image, tau=0.99, **{"size": 48, "refine": "none", **options})
    centres = [np.argwhere(mask).mean(0) for mask in (array(first), truth)]
    assert np.abs(centres[0] - centres[1]).max() < 1 and mask_iou(array(first), truth) > 0.75


def test_the_same_call_gives_the_same_masks():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
    for method in ("maskcut", "tokencut", "attention", "pca"):
        first, second = (segmented(colour_crate(), noise, method, size=40) for _ in range(2))
        assert [one["label"] for one in first] == [one["label"] for one in second]
        assert all(np.array_equal(array(a), array(b)) for a, b in zip(first, second))


def test_attention_has_a_mask_for_each_head_and_their_mean():
    found = segmented(method="attention", rule="entries:0.25", size=48, refine="none")
    assert [one["label"] for one in found] == ["head 1", "head 2", MEAN]
    assert all(one["score"] is None for one in found)
    assert array(found[0]).mean() == pytest.approx(0.25, abs=0.05)
    assert [one["label"] for one in segmented(method="attention", head=2, size=48)] == ["head 2"]
    assert [one["label"] for one in segmented(method="attention", head="mean", size=48)] == [MEAN]
    more = segmented(method="attention", rule="entries:0.75", size=48, refine="none")
    assert array(more[0]).mean() > array(found[0]).mean()
    with pytest.raises(ValueError, match="head=3: the layer has heads 1 to 2"):
        segmented(method="attention", head=3, size=48)


def test_pca_says_foreground():
    (found,) = segmented(method="pca", threshold=0.0, size=48)
    assert found["label"] == "foreground" and found["score"] is None
    assert segmented(method="pca", threshold=1e9, size=48) == []


def test_masks_have_the_size_of_the_upright_picture(tmp_path):
    image, _ = picture()
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert segmented(image=source, size=48)[0]["mask"].size == (48, 64)


def test_large_pictures_are_refined_small_and_masks_are_large():
    image, truth = picture(48 * 30, 64 * 30)
    first = segmented(image=image, size=48, tau=0.99)[0]
    assert first["mask"].size == image.size and mask_iou(array(first), truth) > 0.9


def test_saved_folders_and_grey_models(tmp_path):
    model = tiny("vit")
    model.save_pretrained(tmp_path / "vit")
    grey = opencrate.CrateImageProcessor(image_mean=[0.5], image_std=[0.5])
    grey.save_pretrained(tmp_path / "vit")
    image, _ = picture()
    from_folder = opencrate.segment(tmp_path / "vit", image, "tokencut", size=32)
    loaded = opencrate.segment(model, image, "tokencut", processor=grey, size=32)
    saved = opencrate.segment(opencrate.open_saved(tmp_path / "vit"), image, "tokencut", size=32)
    assert array(from_folder[0]).any()
    assert np.array_equal(array(from_folder[0]), array(loaded[0]))
    assert np.array_equal(array(from_folder[0]), array(saved[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cut"}, "method='cut': must be one of maskcut"),
        ({"features": "values"}, "features='values'"),
        ({"refine": "sharp"}, "refine='sharp'"),
        ({"num_masks": 0}, "num_masks=0"),
        ({"tau": 1.0}, r"tau=1\.0"),
        ({"rule": "mass"}, "rule='mass'"),
        ({"head": 0}, "head=0"),
        ({"threshold": -1.0}, r"threshold=-1\.0"),
        ({"size": 3}, "size=3: must be"),
        ({"stride": 3}, "stride=3: must divide"),
        ({"size": 600}, "150 x 200 = 30,000 patches; at most 20,000.*give a smaller `size`$"),
        ({"size": 200, "stride": 1}, "give a smaller `size` or a larger `stride`$"),
        ({"layer": 5}, "layer=5: the model has layers 1 to 2"),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        segmented(**options)


def test_images_that_are_none():
    with pytest.raises(ValueError, match="image: 2x64 pixels, smaller than a patch"):
        segmented(image=Image.new("RGB", (64, 2)))
    with pytest.raises(ValueError, match="image: list; give a file or a PIL image"):
        segmented(image=[[0]])
    with pytest.raises(ValueError, match="no such file"):
        segmented(image="missing.png")
    with pytest.raises(ValueError, match="processor=None: a loaded CrateModel"):
        opencrate.segment(blind_crate(), picture()[0])


@pytest.mark.parametrize("compression", ["tssa", "gradient"])
def test_attention_of_operators_without_maps(compression):
    model = blind_crate(compression=compression)
    with pytest.raises(ValueError, match=r"has no attention maps.*method='maskcut'"):
        segmented(model, method="attention", size=48)
    assert segmented(model, method="tokencut", size=48)


def test_files_are_batched_by_size_in_their_order(tmp_path):
    sizes = [(48, 64), (48, 64), (64, 48), (48, 64), (24, 32)]
    files = []
    for number, size in enumerate(sizes):
        files.append(tmp_path / f"{number}.png")
        picture(*size)[0].save(files[-1])
    one = segmenter(size=48)
    calls = []

    class Counting(Segmenter):
        def __call__(self, pictures, **wanted):
            calls.append(len(pictures))
            return super().__call__(pictures, **wanted)

    counting = Counting(one.model, one.transform, one.options)
    found = list(segment_files(counting, files, batch_size=8, maps=True))
    assert [each.file for each in found] == files and calls == [2, 1, 2]
    assert [each.picture.size for each in found] == [(width, height) for height, width in sizes]
    alone = one([picture(48, 64)[0]])[0]
    assert np.array_equal(found[0].found.masks[0].pixels, alone.masks[0].pixels)
    assert found[0].found.maps.shape == (2, 12, 16)


def test_bad_files_are_named_or_counted(tmp_path):
    good, bad, long = (tmp_path / name for name in ("good.png", "bad.png", "long.png"))
    picture()[0].save(good)
    bad.write_bytes(b"no image")
    picture(8, 8000)[0].save(long)
    for file, words in ((bad, "bad.png: not a readable image"), (long, "long.png: 25 x 25000 = 625,000 patches")):
        with pytest.raises(ValueError, match=words):
            list(segment_files(segmenter(size=100), [good, file]))
    skipped = []
    found = list(segment_files(segmenter(size=100), [bad, good, long], skipped=skipped))
    assert [one.file for one in found] == [good] and len(skipped) == 2


def test_maps_alone():
    (found,) = segmenter(size=48)([picture()[0]], maps=True, masks=False)
    assert found.masks == () and found.maps.shape == (2, 12, 16) and found.layer == 2
    fine = replace(segmenter(), options=MaskOptions(size=48, stride=2))([picture()[0]], maps=True, masks=False)[0]
    assert fine.grid == (23, 31) and fine.maps.shape == (2, 48, 64)
