"""Images from a name or a folder to splits, fingerprints and tensors for evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from opencrate.configuration_crate import CrateConfig
from opencrate.data.fingerprint import fingerprint
from opencrate.data.images.sources import load_images, load_labelled
from opencrate.data.images.tensors import CachedImages, ImageTransform, LazyImages, to_tensors
from opencrate.data.options import ImageData
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_processor

from ..recipes.folders import CLASSES, write_classes, write_image


def digits_transform(num_channels=1):
    data = load_recipe("digits").data
    return ImageTransform(build_processor(data), num_channels, smallest=(2, 2))


def folder_recipe(path, **fields):
    return ImageData(path=str(path), image_size=16, **fields)


def test_digits_split_is_scikit_learns():
    splits = load_images(load_recipe("digits").data)
    digits = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=digits.target)
    assert splits.train["label"][:] == digits.target[train].tolist()
    assert splits.test["label"][:] == digits.target[test].tolist()
    pixels = to_tensors(splits.test, digits_transform()).pixel_values
    expected = (np.rint(digits.images[test] * 255 / 16) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(pixels[:, 0].numpy(), expected, atol=1e-6)
    assert pixels.shape == (360, 1, 8, 8) and pixels.dtype == torch.float32


def test_validation_comes_out_of_training_only():
    recipe = load_recipe("digits", ["data.validation_fraction=0.1"]).data
    with_validation, without = load_images(recipe), load_images(load_recipe("digits").data)
    assert fingerprint(with_validation.test) == fingerprint(without.test)
    assert len(with_validation.train) + len(with_validation.validation) == len(without.train)
    assert set(with_validation.validation["label"]) == set(range(10))


def test_split_seed_changes_the_split():
    one, two = (load_images(load_recipe("digits", [f"data.split_seed={seed}"]).data) for seed in (0, 1))
    assert fingerprint(one.test) != fingerprint(two.test)


def test_plain_class_folders_are_split_by_class(tmp_path):
    splits = load_images(folder_recipe(write_classes(tmp_path / "data", 10)))
    assert splits.label_names == list(CLASSES)
    assert splits.validation is None
    assert sorted(splits.test["label"]) == [0, 0, 1, 1, 2, 2]
    assert len(splits.train) == 24


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_own_held_out_folder_is_the_test_set(tmp_path, held_out):
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / held_out, 2)
    splits = load_images(folder_recipe(tmp_path))
    assert (len(splits.train), splits.validation, len(splits.test)) == (12, None, 6)
    assert len(load_labelled(tmp_path, list(CLASSES))) == 6


def test_three_folders_are_three_parts(tmp_path):
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_classes(tmp_path / name, count)
    splits = load_images(folder_recipe(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 9, 6]


def test_train_folder_alone_is_split(tmp_path):
    write_classes(tmp_path / "train", 5)
    splits = load_images(folder_recipe(tmp_path))
    assert (len(splits.train), len(splits.test)) == (12, 3)


def test_labels_follow_the_models_names_not_the_folders(tmp_path):
    write_classes(tmp_path / "data", 2)
    dataset = load_labelled(tmp_path / "data", ["top", "other", "middle", "bottom"])
    names = [dataset.features["label"].names[label] for label in dataset["label"]]
    folders = [cell["path"].split("/")[-2] for cell in dataset["image"]]
    assert names == folders


def test_fingerprint_sees_content_labels_and_order_but_not_the_place(tmp_path):
    for place in ("a", "b"):
        write_classes(tmp_path / place, 2)
    splits = [load_labelled(tmp_path / place, list(CLASSES)) for place in ("a", "b")]
    first, second = (fingerprint(split) for split in splits)
    assert first == second
    assert first["images"] == 6 and first["of"] == "content"
    assert fingerprint(splits[0].select([1, 0, 2, 3, 4, 5])) != first
    assert fingerprint(splits[0].select(range(5))) != first
    large = fingerprint(splits[0], content_limit=10)
    assert large["of"] == "names and sizes" and large["sha256"] != first["sha256"]
    write_image(tmp_path / "b" / "top" / "0.png", 2, seed=9)
    assert fingerprint(load_labelled(tmp_path / "b", list(CLASSES))) != first


def test_cached_and_lazy_images_are_equal(tmp_path):
    dataset = load_labelled(write_classes(tmp_path, 3, size=(20, 14)), list(CLASSES))
    transform = ImageTransform(build_processor(folder_recipe(tmp_path)), 3)
    cached, lazy = to_tensors(dataset, transform), to_tensors(dataset, transform, limit=0)
    assert isinstance(cached, CachedImages) and isinstance(lazy, LazyImages)
    assert len(cached) == len(lazy) == 9
    for index in (0, 4, 8):
        assert torch.equal(cached[index]["pixel_values"], lazy[index]["pixel_values"])
        assert torch.equal(cached[index]["labels"], lazy[index]["labels"])


def test_resize_then_centre_crop(tmp_path):
    recipe = folder_recipe(tmp_path, resize_size=32, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[8:24, 24:40] = 255  # exactly what the 16-pixel crop of the centre sees
    Image.fromarray(pixels).save(tmp_path / "image.png")
    transform = ImageTransform(build_processor(recipe), 3)
    assert torch.equal(transform([{"path": str(tmp_path / "image.png"), "bytes": None}]), torch.ones(1, 3, 16, 16))


def test_image_smaller_than_a_patch_names_the_file(tmp_path):
    write_image(tmp_path / "tiny.png", 0, 0, size=(16, 3))
    config = CrateConfig.from_size("digits", num_channels=3, patch_size=4)
    transform = ImageTransform.for_model(config, build_processor(folder_recipe(tmp_path)))
    with pytest.raises(ValueError, match=r"tiny.png: image of 16x3 pixels is smaller than a patch \(4x4\)"):
        transform([{"path": str(tmp_path / "tiny.png"), "bytes": None}])


def test_truncated_image_names_the_file(tmp_path):
    write_image(tmp_path / "cut.png", 0, 0, size=(64, 64))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            digits_transform(3)([{"path": str(tmp_path / name), "bytes": None}])


def test_models_of_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="num_channels=4"):
        ImageTransform.for_model(CrateConfig.from_size("digits", num_channels=4), None)


def break_folder(root, kind):
    write_classes(root, 4)
    if kind == "no images in a class":
        (root / "wide").mkdir()
    elif kind == "too small to split":
        write_image(root / "wide" / "only.png", 0, 0)
    elif kind == "one class":
        for name in CLASSES[1:]:
            for file in (root / name).iterdir():
                file.unlink()
            (root / name).rmdir()
    elif kind == "other classes in test":
        (root / "train").mkdir()
        for name in CLASSES:
            (root / name).rename(root / "train" / name)
        write_image(root / "test" / "sideways" / "0.png", 0, 0)
    elif kind == "loose images":
        for name in CLASSES:
            for file in (root / name).iterdir():
                file.rename(root / f"{name}{file.name}")
            (root / name).rmdir()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no images in a class", ["wide", "class folder without images"]),
        ("too small to split", ["too few images to split", "1 in class 'wide'"]),
        ("one class", ["only one class ('bottom')"]),
        ("other classes in test", ["class 'sideways'", "bottom, middle, top"]),
        ("loose images", ["images lie directly in it", "one sub-folder per class"]),
    ],
)
def test_bad_folder_is_one_clear_error(tmp_path, kind, words):
    break_folder(tmp_path / "data", kind)
    with pytest.raises(ValueError) as caught:
        load_images(folder_recipe(tmp_path / "data"))
    assert all(word in str(caught.value) for word in words), str(caught.value)
