"""Parquet, IDX, CIFAR binary files and Hub data sets: what is read is what was written; what does not fit is refused."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, load_dataset

from opencrate.data.fingerprint import fingerprint
from opencrate.data.images.sources import load_images, load_labelled, read_parts
from opencrate.data.images.tensors import ImageTransform, to_array
from opencrate.data.options import ImageData

from .formats import images, png, write_cifar, write_idx, write_parquet

NAMES = ["cat", "dog", "eel"]
LABELS = [0, 1, 2, 1, 0, 2, 2, 1, 0]


def pixels_of(dataset, channels=3):
    transform = ImageTransform(None, channels)
    return np.stack([to_array(transform.read(cell)) for cell in dataset["image"][:]])


def names_of(dataset):
    return [dataset.features["label"].names[label] for label in dataset["label"]]


def channels_first(pixels):
    return pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]


def error_of(path, **fields):
    with pytest.raises(ValueError) as caught:
        load_images(ImageData(path=str(path), **fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["{part}-00000-of-00001.parquet", "data/{part}-0.parquet", "{part}/0000.parquet"])
def test_parquet_parts_by_name(tmp_path, layout):
    feature = ClassLabel(names=NAMES)
    for seed, part in enumerate(("train", "validation", "test")):
        count = 9 - 3 * seed
        write_parquet(tmp_path / layout.format(part=part), images(count, seed=seed), LABELS[:count], feature)
    splits = load_images(ImageData(path=str(tmp_path)))
    for seed, part in enumerate((splits.train, splits.validation, splits.test)):
        np.testing.assert_array_equal(pixels_of(part), channels_first(images(9 - 3 * seed, seed=seed)))
        assert part["label"][:] == LABELS[: 9 - 3 * seed]
    assert splits.label_names == NAMES and splits.skipped == ()


def test_one_parquet_file_is_split(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", images(30), LABELS[:6] * 5, ClassLabel(names=NAMES))
    splits = load_images(ImageData(path=str(file)))
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert fingerprint(splits.train) != fingerprint(splits.test)


def test_validation_is_the_test_part_where_there_is_no_other(tmp_path):
    for part in ("train", "validation"):
        write_parquet(tmp_path / f"{part}.parquet", images(9), LABELS, ClassLabel(names=NAMES))
    splits = load_images(ImageData(path=str(tmp_path)))
    assert splits.validation is None and len(splits.test) == 9


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([0, 2, 1], ["0", "1", "2"], [0, 2, 1]),
        (["eel", "cat", "dog"], NAMES, [2, 0, 1]),
        ([3, 0, 3], ["0", "1", "2", "3"], [3, 0, 3]),
    ],
)
def test_labels_without_class_names(tmp_path, labels, names, numbers):
    file = write_parquet(tmp_path / "data.parquet", images(3), labels)
    dataset = read_parts(file)["all"]
    assert dataset.features["label"].names == names and dataset["label"][:] == numbers


def test_columns_found_or_named(tmp_path):
    extra = {"fine": [1, 1, 0], "thumb": [png(cell) for cell in images(3, seed=5)]}
    file = write_parquet(tmp_path / "a.parquet", images(3), ["x", "y", "x"], None, "img", "coarse", **extra)
    recipe = ImageData(path=str(file), image_column="thumb", label_column="fine")
    dataset = read_parts(recipe.path, recipe.image_column, recipe.label_column)["all"]
    np.testing.assert_array_equal(pixels_of(dataset), channels_first(images(3, seed=5)))
    assert dataset["label"][:] == [1, 1, 0]
    message = error_of(file, label_column="fine")
    assert "image columns img, thumb" in message and "data.image_column" in message
    message = error_of(file, image_column="img")
    assert "no column 'label'" in message and "coarse, fine" in message and "data.label_column" in message
    assert "has no column 'nope'" in error_of(file, image_column="nope") and "img" in error_of(
        file, image_column="nope"
    )
    assert "'coarse' (data.image_column) does not hold encoded images" in error_of(file, image_column="coarse")
    assert "'img' (data.label_column) does not hold class" in error_of(file, image_column="img", label_column="img")


def test_only_column_with_class_names_is_the_label(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet", images(3), [2, 1, 0], ClassLabel(names=NAMES), label="kind", n=[5, 6, 7]
    )
    assert names_of(read_parts(file)["all"]) == ["eel", "dog", "cat"]


def test_labels_are_matched_by_name_across_parts_and_models(tmp_path):
    write_parquet(tmp_path / "train.parquet", images(9), LABELS, ClassLabel(names=NAMES))
    turned = ClassLabel(names=["fox", "eel", "dog", "cat"])
    write_parquet(tmp_path / "test.parquet", images(3), [1, 2, 3], turned)
    splits = load_images(ImageData(path=str(tmp_path)))
    assert splits.test["label"][:] == [2, 1, 0] and splits.test.features["label"].names == NAMES
    np.testing.assert_array_equal(pixels_of(splits.test), channels_first(images(3)))
    assert load_labelled(tmp_path, ["eel", "dog", "cow", "cat"])["label"][:] == [0, 1, 3]
    with pytest.raises(ValueError, match=r"class 'cat' is not among the 2 classes .*\(dog, eel\)"):
        load_labelled(tmp_path, ["dog", "eel"])
    write_parquet(tmp_path / "test.parquet", images(3), [0, 2, 3], turned)
    assert "class 'fox' is not among the 3 classes" in error_of(tmp_path)


def test_more_labels_than_the_model_has_classes(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", images(4), [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"class '2' \(2 such classes\) is not among the 2 classes"):
        load_labelled(file, ["0", "1"])


def test_split_whose_labels_are_kept_back_counts_as_absent(tmp_path):
    write_parquet(tmp_path / "train.parquet", images(30), LABELS[:6] * 5, ClassLabel(names=NAMES))
    write_parquet(tmp_path / "test.parquet", images(3), [-1] * 3, ClassLabel(names=NAMES))
    splits = load_images(ImageData(path=str(tmp_path)))
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert "unlabelled" in error_of(tmp_path / "test.parquet")


def test_bad_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    write_parquet(file, images(3), [0, -1, 1])
    assert "label -1" in error_of(file) and "from 0 to" in error_of(file)
    write_parquet(file, images(3), [0, None, 1])
    assert "a.parquet, row 1: no label" in error_of(file) and "1 such of 3 rows" in error_of(file)
    file.write_bytes(file.read_bytes()[:-20])
    assert "a.parquet: not a readable parquet file" in error_of(file)
    write_parquet(tmp_path / "train.parquet", images(3), [0, 1, 0])
    message = error_of(tmp_path)
    assert "a.parquet: its name says neither train" in message and "rename or remove it" in message


def test_training_part_alone_is_not_evaluated(tmp_path):
    write_parquet(tmp_path / "train.parquet", images(9), LABELS, ClassLabel(names=NAMES))
    with pytest.raises(ValueError, match="has a train part only"):
        load_labelled(tmp_path, NAMES)
    write_parquet(tmp_path / "test.parquet", images(9), LABELS, ClassLabel(names=NAMES))
    (tmp_path / "train.parquet").unlink()
    assert "has no train part, only test" in error_of(tmp_path)


@pytest.mark.parametrize("names", ["{part}-images-idx3-ubyte", "{part}-images.idx3-ubyte.gz"])
def test_idx_files(tmp_path, names):
    parts = {"train": images(12, channels=1), "t10k": images(6, channels=1, seed=1)}
    for part, pixels in parts.items():
        file = names.format(part=part)
        write_idx(tmp_path / file, pixels)
        write_idx(tmp_path / file.replace("images", "labels").replace("idx3", "idx1"), np.arange(len(pixels)) % 6)
    splits = load_images(ImageData(path=str(tmp_path), num_channels=1))
    for part, pixels in zip((splits.train, splits.test), parts.values()):
        np.testing.assert_array_equal(pixels_of(part, 1), channels_first(pixels))
        assert names_of(part) == [str(n % 6) for n in range(len(pixels))]


def test_idx_needs_its_labels(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", images(4, channels=1))
    with pytest.raises(ValueError, match="labels are missing; need train-labels-idx1-ubyte or"):
        read_parts(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 0], np.uint8))
    with pytest.raises(ValueError, match="4 images but 3 labels"):
        read_parts(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-5], "truncated or damaged"),
        (lambda content: content[:9], "truncated or damaged"),
        (lambda content: b"PK" + content[2:], "not an IDX file"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "type 0x0d; need 0x08"),
        (lambda content: b"", "not an IDX file"),
    ],
)
def test_bad_idx(tmp_path, change, words):
    file = write_idx(tmp_path / "train-images-idx3-ubyte", images(4, channels=1))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 0, 1], np.uint8))
    file.write_bytes(change(file.read_bytes()))
    message = error_of(tmp_path)
    assert "train-images-idx3-ubyte" in message and words in message


def test_bad_gzip(tmp_path):
    file = write_idx(tmp_path / "train-images-idx3-ubyte.gz", images(4, channels=1))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([0, 1, 0, 1], np.uint8))
    file.write_bytes(file.read_bytes()[:-30])
    assert "not a readable gzip file" in error_of(tmp_path)


def test_cifar10_binary(tmp_path):
    pixels = images(20, (32, 32))
    labels = np.arange(20) % 3
    write_cifar(tmp_path / "data_batch_1.bin", pixels[:7], labels[:7])
    write_cifar(tmp_path / "data_batch_2.bin", pixels[7:14], labels[7:14])
    write_cifar(tmp_path / "test_batch.bin", pixels[14:], labels[14:])
    assert "batches.meta.txt: missing" in error_of(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    splits = load_images(ImageData(path=str(tmp_path)))
    np.testing.assert_array_equal(pixels_of(splits.train), channels_first(pixels[:14]))
    np.testing.assert_array_equal(pixels_of(splits.test), channels_first(pixels[14:]))
    assert splits.train["label"][:] + splits.test["label"][:] == labels.tolist() and splits.label_names == NAMES
    (tmp_path / "batches.meta.txt").write_text("cat\ndog")
    assert "label 2, but 2 classes are named" in error_of(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"0" * 3072)
    assert "data_batch_1.bin: 3072 bytes are not whole records of 3073" in error_of(tmp_path)


def test_cifar100_binary_takes_the_fine_labels(tmp_path):
    pixels, fine = images(6, (32, 32)), np.array([0, 1, 2, 2, 1, 0])
    write_cifar(tmp_path / "train.bin", pixels, np.zeros(6), fine)
    write_cifar(tmp_path / "test.bin", pixels[:3], np.zeros(3), fine[:3])
    (tmp_path / "fine_label_names.txt").write_text("\n".join(NAMES))
    splits = load_images(ImageData(path=str(tmp_path)))
    np.testing.assert_array_equal(pixels_of(splits.train), channels_first(pixels))
    assert splits.train["label"][:] == fine.tolist() and len(splits.test) == 3


@pytest.mark.parametrize("names", [("batches.meta", "data_batch_1", "test_batch"), ("meta", "train", "test")])
def test_cifar_pickles_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x02}.")
    message = error_of(tmp_path)
    assert "pickles that can run any code" in message and "binary version" in message


def test_hub_only_when_written_so(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", images(9), LABELS, ClassLabel(names=NAMES))
    write_parquet(tmp_path / "test.parquet", images(3), LABELS[:3], ClassLabel(names=NAMES))
    asked = []

    def local(name, streaming):
        asked.append(name)
        files = {part: str(tmp_path / f"{part}.parquet") for part in ("train", "test")}
        return load_dataset("parquet", data_files=files)

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert "no such folder or file" in error_of("owner/name") and "hf://owner/name" in error_of("owner/name")
    assert "not of the form hf://owner/name" in error_of("hf://name")
    assert asked == []
    splits = load_images(ImageData(path="hf://owner/name"))
    assert asked == ["owner/name"] and splits.label_names == NAMES
    np.testing.assert_array_equal(pixels_of(splits.train), channels_first(images(9)))
    assert fingerprint(splits.test) == fingerprint(load_images(ImageData(path=str(tmp_path))).test)


def test_hub_failure_is_one_line(monkeypatch):
    def fail(name, streaming):
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = error_of("hf://owner/name")
    assert "hf://owner/name: cannot be had" in message and "local folder" in message


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK\x03\x04")
    assert "data.zip: is a zip archive, not a data set" in error_of(tmp_path / "data.zip")
    assert "no class folders" in error_of(tmp_path)
