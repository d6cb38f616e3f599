"""Which folders and files are parts of the data, by all the names that people give them; nothing is left out unsaid."""

import itertools
import logging

import pytest
from PIL import Image

from opencrate.cli.common import named_files
from opencrate.data.images.files import IMAGE_SUFFIXES, what_it_is
from opencrate.data.images.sources import load_images, read_parts
from opencrate.data.options import ImageData
from opencrate.data.parts import is_part, part_of, splits_by_part
from opencrate.data.text.options import TextData
from opencrate.data.text.sources import read_parts as read_texts

from .formats import images, write_idx, write_parquet

WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation", "development"),
    "test": ("test", "testing", "tst", "holdout", "hold-out", "held_out"),
}
FORMS = ("{}", "{}_set", "{}-data", "seg_{}", "images_{}", "{}_images", "01_{}", "{}2017", "{}.set")
CASES = (str.lower, str.upper, str.capitalize)
NAMES = {
    (part, case(form.format(word)))
    for part, words in WORDS.items()
    for word, form, case in itertools.product(words, FORMS, CASES)
} | {("train", "trainset"), ("train", "TrainData"), ("test", "testSet"), ("train", "trainval"), ("test", "t10k")}
PNG = Image.new("RGB", (4, 4), "red")


def fill(root, *places, count=2):
    """`count` images in each folder."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            PNG.save(root / place / f"{number}.png")
    return root


def split(root, **names):
    """A folder of classes cat and dog for each part: three images of a class for training, two otherwise."""
    for part, name in names.items():
        fill(root, f"{name}/cat", f"{name}/dog", count=3 if part == "train" else 2)
    return root


def counts(root):
    parts = read_parts(root)
    for dataset in parts.values():
        assert dataset.features["label"].names == ["cat", "dog"]
    return {part: len(dataset) for part, dataset in parts.items()}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "opencrate")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("part", WORDS)
def test_every_usual_name_is_its_part(part):
    for named, name in NAMES:
        if named == part:
            assert part_of(name) == part and is_part(name), name


@pytest.mark.parametrize(
    "name", ["cat", "interval", "latest", "contest", "constrain", "restrain", "portrait", "evaluate_me", "Deviant", ""]
)
def test_other_words_are_no_parts(name):
    assert part_of(name) is None


def test_a_name_among_others_is_a_part_but_not_nothing_else():
    for name in ("train_station", "bullet train", "crash-test dummy", "wiki.train.tokens", "en_dev"):
        assert part_of(name) and not is_part(name), name
    assert part_of("train_test") is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("train", "dev"),
        ("train", "holdout"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("flowers_train", "flowers_eval"),
        ("trn", "tst"),
    ],
)
def test_two_folders_are_training_and_test(first, second, tmp_path, said):
    splits = load_images(ImageData(path=str(split(tmp_path, train=first, test=second))))
    assert splits.label_names == ["cat", "dog"]
    assert (len(splits.train), splits.validation, len(splits.test)) == (6, None, 4)
    assert not said()


@pytest.mark.parametrize("names", [("train", "dev", "test"), ("Train", "Eval", "Holdout"), ("tr", "val", "ts")])
def test_three_folders_are_three_parts(names, tmp_path, said):
    assert counts(split(tmp_path, **dict(zip(WORDS, names)))) == {"train": 6, "validation": 4, "test": 4}
    assert not said()


@pytest.mark.parametrize("inner", ["{}", "{}_images"])
def test_the_same_name_again_and_a_folder_around_all(inner, tmp_path):
    split(tmp_path / "archive", train=f"seg_train/{inner.format('train')}", test=f"seg_test/{inner.format('test')}")
    (tmp_path / "annotations").mkdir()
    assert counts(tmp_path) == {"train": 6, "test": 4}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            ["train/cat", "train/dog", "Training/cat", "Training/dog"],
            "'Training' and 'train' are both named for the train",
        ),
        (["train/cat", "train/dog", "val/cat", "dev/cat"], "are both named for the validation part"),
        (["train/cat", "train/dog", "Prüfung/cat", "Prüfung/dog"], "'Prüfung' beside it is not and holds 4 images"),
        (["train/cat", "train/dog", "cat"], "'cat' beside it is not"),
        (["test/cat", "test/dog", "cat", "dog"], "'test' is named for a part of the data, 'cat' beside it is not"),
        (["train", "test"], "train: no class folders; images lie directly in it"),
        (["train/cat", "train/dog", "test"], None),
    ],
)
def test_what_may_be_a_part_or_a_class_is_refused(places, words, tmp_path, said):
    fill(tmp_path, *places)
    if words is None:
        assert counts(tmp_path) == {"train": 4} and "left out 2 images of the test part" in said()
        return
    with pytest.raises(ValueError, match=words) as caught:
        read_parts(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_part_is_refused(tmp_path):
    split(tmp_path, train="train")
    (tmp_path / "Test").mkdir()
    with pytest.raises(ValueError, match="Test: no class folders; it is empty"):
        read_parts(tmp_path)


@pytest.mark.parametrize("places", [["train", "bus", "car"], ["train_station", "bus_stop"], ["test", "cat"]])
def test_a_class_may_be_called_so(places, tmp_path, said):
    names = read_parts(fill(tmp_path, *places))["all"].features["label"].names
    assert names == sorted(places)
    assert ("is read as a class" in said()) == any(map(is_part, places))


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_all_that_is_left_out_is_said_and_counted(tmp_path, said):
    split(tmp_path, train="train", test="test")
    fill(tmp_path, "extra", ".", ".git", "train/cat/.ipynb_checkpoints", "__MACOSX/train/cat", count=3)
    for name in ("train/cat/.DS_Store", "test/dog/Thumbs.db", "train/cat/a.HEIC", "train/b.heic", "LICENSE", "n/a.txt"):
        write(tmp_path / name)
    fill(tmp_path / "train", ".", count=1)
    (tmp_path / "train" / "dog" / "gone.png").symlink_to("nowhere")
    (tmp_path / "train" / "dog" / "loop").symlink_to(tmp_path)
    assert counts(tmp_path) == {"train": 6, "test": 4}
    words = said()
    for expected in (
        "3 hidden folders (",
        "2 hidden files (",
        "2 .heic files (train/b.heic, ...)",
        "1 .txt file (n/a.txt)",
        "1 file without suffix (LICENSE)",
        "3 images in a folder beside the parts (extra/0.png, ...)",
        "3 images beside the parts (0.png, ...)",
        "1 image beside the class folders (train/0.png)",
        "1 folder without images (n)",
        "1 link or device without a file (train/dog/gone.png)",
        "1 link to a folder above (train/dog/loop)",
    ):
        assert expected in words, (expected, words)


def test_nested_classes_are_said(tmp_path, said):
    fill(tmp_path, "cat/small", "cat/large", "dog")
    assert counts(tmp_path) == {"all": 6}
    assert "images of its sub-folders ('large', ...) are read as class 'cat'" in said()


def test_parts_below_classes_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"'test', 'train'\) lie in a class folder; put the class folders into the parts"
    ):
        read_parts(fill(tmp_path, "cat/train", "cat/test", "dog/train", "dog/test"))


def test_links_are_followed(tmp_path):
    fill(tmp_path / "elsewhere", "cat", "more")
    root = fill(tmp_path / "data", "dog")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    assert counts(root) == {"all": 6}


def test_suffixes_in_any_case_and_spelling(tmp_path, said):
    fill(tmp_path, "cat", "dog")
    for suffix in sorted(IMAGE_SUFFIXES):
        PNG.save(tmp_path / "dog" / f"x{suffix.upper()}", "PNG")
    assert counts(tmp_path)["all"] == 4 + len(IMAGE_SUFFIXES) and not said()


def test_images_beside_other_kinds_are_refused(tmp_path):
    fill(tmp_path, "cat", "dog")
    write_parquet(tmp_path / "more.PARQUET", images(2), [0, 1])
    with pytest.raises(ValueError, match=r"holds parquet files \(more.PARQUET\) and image files \(cat/0.png\)"):
        read_parts(tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".csv", ".arrow", ".tar.gz"])
def test_a_folder_of_something_else_says_what(suffix, tmp_path):
    for part in ("train", "dev"):
        write(tmp_path / f"{part}{suffix}")
    with pytest.raises(ValueError, match=rf"it holds 2 {suffix[suffix.rindex('.') :]} files \(dev{suffix}, ...\)"):
        read_parts(tmp_path)


@pytest.mark.parametrize(
    ("places", "parts"),
    [
        (["."], {"all": 2}),
        ([".", "more", "more/deep"], {"all": 6}),
        (["2021/05", "2021/06", "2022/01/x"], {"all": 6}),
        (["train"], {"train": 2}),
        (["train", "Valid", "TEST"], {"train": 2, "validation": 2, "test": 2}),
        (["photos/train/a", "photos/train", "photos/test"], {"train": 4, "test": 2}),
        (["images/train", "images/val", "labels/train"], {"train": 2, "validation": 2}),
        (["train/cat", "train/dog", "test"], {"train": 4, "test": 2}),
        (["cat", "dog", "none"], {"all": 4}),
    ],
)
def test_images_without_classes_are_all_read(places, parts, tmp_path, said):
    fill(tmp_path, *places)
    for place in {"labels/train", "none"}.intersection(places):
        for file in (tmp_path / place).iterdir():
            file.rename(file.with_suffix(".txt"))
    assert {part: len(dataset) for part, dataset in read_parts(tmp_path, labelled=False).items()} == parts
    assert "as a class" not in said() and "sub-folders" not in said()
    splits = load_images(ImageData(path=str(tmp_path), test_fraction=0.5, validation_fraction=0), labelled=False)
    assert len(splits.train) + len(splits.test) + len(splits.validation or ()) == sum(parts.values())


@pytest.mark.parametrize("labels", [None, [-1, -1, -1], [0, None, 1], ["a", "", "b"]])
def test_a_table_without_labels(labels, tmp_path):
    write_parquet(tmp_path / "a.parquet", images(3), labels or [0] * 3, label="label" if labels else "size")
    with pytest.raises(ValueError, match="label"):
        read_parts(tmp_path)
    assert len(read_parts(tmp_path, labelled=False)["all"]) == 3
    assert len(load_images(ImageData(path=str(tmp_path), test_fraction=0.4), labelled=False).test) == 2


def test_idx_images_without_labels(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", images(5, channels=1))
    assert len(read_parts(tmp_path, labelled=False)["train"]) == 5


def test_without_labels_a_folder_may_lose_all_its_images(tmp_path):
    fill(tmp_path, "cat", "dog")
    for file in (tmp_path / "dog").iterdir():
        file.write_bytes(b"no image")
    data = ImageData(path=str(tmp_path), test_fraction=0.5)
    assert len(load_images(data, skip_bad=True, labelled=False).skipped) == 2
    with pytest.raises(ValueError, match="class 'dog' has no readable image left"):
        load_images(data, skip_bad=True)


def test_commands_say_what_a_folder_holds_besides(tmp_path, capsys):
    fill(tmp_path, ".", ".cache")
    write(tmp_path / "a.heic")
    assert len(named_files([str(tmp_path)], False)) == 2
    assert "left out 1 hidden folder (.cache), 1 .heic file (a.heic)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["{}-00000-of-00001.parquet", "data/{}.PARQUET", "{}_set/0000.parquet", "x.{}.parquet"]
)
@pytest.mark.parametrize("names", [("train", "dev", "test"), ("Training", "VALID", "holdout")])
def test_parquet_files(name, names, tmp_path):
    for count, part in zip((4, 3, 2), names):
        write_parquet(tmp_path / name.format(part), images(count), [n % 2 for n in range(count)])
    found = read_parts(tmp_path)
    assert {part: len(dataset) for part, dataset in found.items()} == {"train": 4, "validation": 3, "test": 2}


def test_a_file_and_its_folder_say_one_part(tmp_path):
    write_parquet(tmp_path / "train" / "test-0.parquet", images(2), [0, 1])
    with pytest.raises(ValueError, match=r"say different parts of the data \(test and train\); rename it"):
        read_parts(tmp_path)


@pytest.mark.parametrize(
    "names", [("train", "t10k"), ("Train", "Test"), ("emnist-letters-train", "emnist-letters-test")]
)
def test_idx_files(names, tmp_path):
    for count, part in zip((4, 2), names):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images(count, channels=1))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", images(count, (1, 1), 1)[:, 0, 0] % 2)
    assert {part: len(dataset) for part, dataset in read_parts(tmp_path).items()} == {"train": 4, "test": 2}


@pytest.mark.parametrize("name", ["{}.txt", "{}.TXT", "wiki.{}.tokens", "{}/a.txt", "{}_data.jsonl", "{}-1.JSONL"])
@pytest.mark.parametrize("names", [("train", "dev", "test"), ("Training", "Valid", "HOLDOUT")])
def test_text_files(name, names, tmp_path, said):
    for part in names:
        is_table = name.lower().endswith("jsonl")
        write(tmp_path / name.format(part), (f'{{"text": "{part}"}}\n' if is_table else part).encode())
    write(tmp_path / "notes.docx")
    found = {part: list(documents) for part, documents in read_texts(TextData(str(tmp_path))).items()}
    assert found == {part: [text] for part, text in zip(("train", "validation", "test"), names)}
    assert "left out 1 .docx file (notes.docx)" in said()


@pytest.mark.parametrize("names", [("train", "corpus"), ("corpus", "test"), ("train", "dev", "corpus")])
def test_a_text_of_no_part_beside_parts_is_refused(names, tmp_path):
    for name in names:
        write(tmp_path / f"{name}.txt")
    with pytest.raises(ValueError, match=r"corpus\.txt: its name says neither train, validation nor test"):
        read_texts(TextData(str(tmp_path)))


@pytest.mark.parametrize("names", [["train.txt", "valid.txt"], ["a.txt", "b.txt"], ["train.jsonl", "test.jsonl"]])
def test_a_readme_is_no_text_beside_others(names, tmp_path, said):
    for name in names:
        write(tmp_path / name, b'{"text": "one"}')
    write(tmp_path / "README.md")
    write(tmp_path / "License.txt")
    documents = [text for part in read_texts(TextData(str(tmp_path))).values() for text in part]
    assert len(documents) == 2 and "x" not in documents
    assert "1 .md file (README.md)" in said() and "1 .txt file (License.txt)" in said()


def test_a_readme_alone_is_a_text(tmp_path):
    write(tmp_path / "README.md")
    assert list(read_texts(TextData(str(tmp_path)))["all"]) == ["x"]


def test_titles_with_such_words_are_one_text(tmp_path):
    for name in ("strength training.txt", "my notes.txt"):
        write(tmp_path / name)
    assert read_texts(TextData(str(tmp_path))).keys() == {"all"}


def test_splits_of_the_hub(said):
    assert splits_by_part({"Train": 1, "dev": 2, "test": 3, "extra": 4}, "hf://a/b") == {
        "train": 1,
        "validation": 2,
        "test": 3,
    }
    assert "hf://a/b: left out its splits extra" in said()
    with pytest.raises(ValueError, match="validation_matched, validation_mismatched are all named for the validation"):
        splits_by_part({"train": 1, "validation_matched": 2, "validation_mismatched": 3}, "hf://a/b")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n", "a PNG image"),
        (b"\n<!DOCTYPE HTML><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"a,b\n1,2\n", "text"),
        ("é".encode() * 300, "text"),
        (b"\x00\x01\x02", "binary data"),
        (b"\xff\xfe\x00", "binary data"),
    ],
)
def test_what_a_file_is(start, words):
    assert what_it_is(start).startswith(words)
