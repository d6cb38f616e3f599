"""Damaged data of every kind: named by row or file and refused in one line, or skipped and counted; never a crash."""

import gzip
import io
import logging
import unicodedata
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from opencrate.cli.main import main
from opencrate.data.fingerprint import fingerprint
from opencrate.data.images.labelled import tidy
from opencrate.data.images.sources import load_images, load_labelled, read_parts
from opencrate.data.images.tensors import ImageTransform, to_tensors
from opencrate.data.options import ImageData
from opencrate.data.text.options import TextData
from opencrate.data.text.sources import read_parts as read_texts
from opencrate.store.build import build_processor

from ..recipes.folders import FOLDER_OVERRIDES
from .formats import images, png, write_cifar, write_idx

GOOD = [png(pixels) for pixels in images(12)]


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(images(1)[0]).convert(mode).save(out, kind, **options)
    return out.getvalue()


BAD = {
    "empty": b"",
    "html": b"<!DOCTYPE html><title>404</title>",
    "text": b"not an image",
    "zip": b"PK\x03\x04" + bytes(100),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "noise": images(1).tobytes(),
    "bomb": png_of(60_000, 60_000),
    "no size": png_of(0, 5),
    "no size, ppm": b"P6 0 0 255\n",
    "png header only": GOOD[0][:30],
    "cut png": GOOD[0][:100],
    "cut jpeg": encoded("JPEG")[:250],
    "cut gif": encoded("GIF")[:60],
    "cut tiff": encoded("TIFF", compression="tiff_lzw")[:60],
    "cut webp": encoded("WEBP")[:40],
    "cut bmp": encoded("BMP")[:80],
    "fractions below 0": encoded("TIFF", "F").replace(np.float32(0).tobytes(), b"\0\0\0\0")[:-4]
    + np.float32(-3).tobytes(),
}
SAYS = {"empty": "an empty file", "html": "an HTML page", "zip": "a zip archive", "pointer": "Git LFS", "text": "text"}


def table(path, cells, labels, **columns):
    """A parquet file with plain pyarrow types."""
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": labels, **columns}), path)
    return path


def recipe_of(path, **fields):
    return ImageData(path=str(path), image_size=8, **fields)


def transform_of(recipe):
    return ImageTransform(build_processor(recipe), recipe.num_channels)


def named_and_skipped(path, *words, total=12):
    """Reading every image names the bad one in one line; skipping leaves it out, and says so."""
    recipe = recipe_of(path)
    with pytest.raises(ValueError) as caught:
        splits = load_images(recipe)
        for part in (splits.train, splits.test):
            fingerprint(part)
            to_tensors(part, transform_of(recipe))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
    splits = load_images(recipe, skip_bad=True)
    assert len(splits.skipped) == 1 and all(word in splits.skipped[0] for word in words)
    assert len(splits.train) + len(splits.test) == total
    to_tensors(splits.train, transform_of(recipe))


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind, tmp_path):
    for number, content in enumerate(GOOD):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.jpg").write_bytes(content)
    (tmp_path / "b" / "bad.jpg").write_bytes(BAD[kind])
    named_and_skipped(tmp_path, "bad.jpg", SAYS.get(kind, "not a readable image"))


@pytest.mark.parametrize("kind", [*BAD, "null"])
@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_bad_rows(form, kind, tmp_path):
    cells = [*GOOD, None if kind == "null" else BAD[kind]]
    if form == "struct":
        cells = [{"bytes": cell, "path": None} for cell in cells]
    file = table(tmp_path / "a.parquet", cells, [*([0, 1] * 6), 1])
    named_and_skipped(file, "a.parquet, row 12", SAYS.get(kind, "not a readable image"))


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}])
def test_rows_without_bytes(cell, tmp_path):
    cells = [*({"bytes": content, "path": f"{number}.png"} for number, content in enumerate(GOOD)), cell]
    file = table(tmp_path / "a.parquet", cells, [*([0, 1] * 6), 1])
    named_and_skipped(file, "a.parquet, row 12")


def test_rows_of_paths_are_files_beside_the_table(tmp_path):
    cells = []
    for number, content in enumerate(GOOD):
        (tmp_path / f"{number}.png").write_bytes(content)
        cells.append({"bytes": None, "path": f"{number}.png"})
    cells = pyarrow.array(cells, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    splits = load_images(recipe_of(table(tmp_path / "a.parquet", cells, [0, 1] * 6)))
    assert len(to_tensors(splits.train, transform_of(recipe_of(tmp_path)))) == 9


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([*([0, 1] * 6), None], "no label"),
        ([*([0.0, 1.0] * 6), None], "no label"),
        ([*([0.0, 1.0] * 6), float("nan")], "no label"),
        ([*([0.0, 1.0] * 6), 0.5], "label 0.5"),
        ([*([0, 1] * 6), -3], "label -3"),
        ([*([0, 1] * 6), 10**12], "label 1e+12"),
        ([*(["a", "b"] * 6), None], "no label"),
        ([*(["a", "b"] * 6), "  "], "no label"),
        ([*([True, False] * 6), None], "no label"),
    ],
)
def test_bad_labels(labels, words, tmp_path):
    file = table(tmp_path / "a.parquet", [*GOOD, GOOD[0]], labels)
    named_and_skipped(file, "a.parquet, row 12", words)
    assert read_parts(file, skipped=[])["all"]["row"] == list(range(12))


def test_no_label_at_all(tmp_path):
    file = table(tmp_path / "a.parquet", GOOD, pyarrow.array([None] * 12, pyarrow.int64()))
    for skipped in (None, []):
        with pytest.raises(ValueError, match=r"a\.parquet, row 0: no label"):
            read_parts(file, skipped=skipped)


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ([1] * 12, [0, 1] * 6, "has no column of encoded images"),
        (["a.png"] * 12, [0, 1] * 6, "has no column of encoded images"),
        ([[1, 2]] * 12, [0, 1] * 6, "has no column of encoded images"),
        (GOOD, [[0]] * 12, "no column 'label'"),
        (GOOD, [b"a"] * 12, "image columns image, label"),
        (GOOD, [{"a": 1}] * 12, "no column 'label'"),
        (pyarrow.array([], pyarrow.binary()), pyarrow.array([], pyarrow.int64()), "no rows"),
    ],
)
def test_columns_of_a_wrong_type(image, label, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        read_parts(table(tmp_path / "a.parquet", image, label))
    assert "\n" not in str(caught.value)


def damaged_page(content: bytes) -> bytes:
    """A parquet file whose footer is whole and whose data is not."""
    return content[:4] + bytes(255 - byte for byte in content[4:800]) + content[800:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[: len(content) // 2], "truncated or damaged"),
        (lambda content: b"", "it is an empty file"),
        (lambda content: b"image,label\nx,1\n", "it is text"),
        (lambda content: b"\x1f\x8b" + content, "it is a gzip archive"),
        (lambda content: b"ARROW1" + content[6:-4] + b"ROW1", "it is an Arrow file"),
        (damaged_page, "cannot be read as one table"),
    ],
)
def test_a_parquet_file_that_is_none(change, words, tmp_path):
    file = table(tmp_path / "a.parquet", GOOD, [0, 1] * 6)
    file.write_bytes(change(file.read_bytes()))
    for skipped in (None, []):
        with pytest.raises(ValueError, match=words) as caught:
            read_parts(file, skipped=skipped)
        assert "a.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_cifar_labels_without_a_name(tmp_path):
    write_cifar(tmp_path / "data_batch_1.bin", images(13, (32, 32)), np.array([*([0, 1] * 6), 7]))
    (tmp_path / "batches.meta.txt").write_text("a\nb\n")
    named_and_skipped(tmp_path, "data_batch_1.bin, image 12", "label 7")


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_is_read_by_content(compressed, tmp_path):
    """`.gz` says what the file was when it was named; browsers unpack, people rename."""
    for kind, values in (("images-idx3", images(4, channels=1)), ("labels-idx1", np.array([0, 1, 0, 1]))):
        file = write_idx(tmp_path / f"train-{kind}-ubyte", values)
        if compressed:
            file.write_bytes(gzip.compress(file.read_bytes()))
        else:
            file.rename(file.with_name(f"{file.name}.gz"))
    assert len(read_parts(tmp_path)["train"]) == 4


def test_idx_that_is_something_else(tmp_path):
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{kind}-ubyte").write_text("<html>")
    with pytest.raises(ValueError, match=r"not an IDX file \(it is an HTML page\)"):
        read_parts(tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04\0\0", b"text\0more", b"\x89PNG\r\n\x1a\n\0"])
def test_a_text_that_is_none(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.txt: not (text but|UTF-8)"):
        read_texts(TextData(str(tmp_path / "a.txt")))


SAME = [("caf\u00e9", "cafe\u0301"), ("cat", "cat "), ("big cat", "big\u00a0cat"), ("cat", "c\u200bat"), ("Cat", "cat")]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "opencrate")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("names", SAME)
def test_classes_that_look_the_same_are_refused_in_one_part(names, tmp_path, said):
    for number, name in enumerate((*names, "dog")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(GOOD[number])
    if names == ("Cat", "cat"):  # as the letters A and a, two classes
        assert len(read_parts(tmp_path)["all"].features["label"].names) == 3 and "differ in capitals only" in said()
        return
    with pytest.raises(ValueError, match="look the same to a person; rename one"):
        read_parts(tmp_path)


@pytest.mark.parametrize("names", SAME)
def test_classes_that_look_the_same_are_one_across_parts(names, tmp_path, said):
    for part, name in zip(("train", "test"), names):
        for number, label in enumerate((name, "dog")):
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / "0.png").write_bytes(GOOD[number])
    splits = load_images(recipe_of(tmp_path))
    assert sorted(splits.label_names) == sorted([tidy(names[0]), "dog"])
    assert sorted(splits.test["label"][:]) == [0, 1] and splits.test.features == splits.train.features
    assert bool(said()) == (names == ("Cat", "cat"))
    assert len(load_labelled(tmp_path, [names[0], "dog"])) == 2


def test_capitals_alone_match_only_what_is_unambiguous(tmp_path):
    for number, name in enumerate(("a", "A", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(GOOD[number])
    assert load_labelled(tmp_path, ["A", "a", "B"])["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match="class 'a' is not among"):
        load_labelled(tmp_path, ["A", "á", "B", "Ａ"])


def test_label_strings_that_look_the_same_are_one(tmp_path):
    names = ["caf\u00e9", "cafe\u0301 ", "dog"] * 4
    dataset = read_parts(table(tmp_path / "a.parquet", GOOD, names))["all"]
    assert dataset.features["label"].names == [unicodedata.normalize("NFC", "caf\u00e9"), "dog"]
    assert dataset["label"][:] == [0, 0, 1] * 4


def test_commands_refuse_with_2_and_skip_on_request(tmp_path, monkeypatch, capsys):
    table(tmp_path / "a.parquet", [*GOOD * 2, None, GOOD[0]], [*([0, 1] * 12), 1, None])
    monkeypatch.chdir(tmp_path)
    words = ["train", "imagefolder", "data.path=a.parquet", *FOLDER_OVERRIDES, "--no-report", "--output", "run"]
    assert main(words) == 2
    assert "a.parquet, row 25: no label" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    err = capsys.readouterr().err
    assert "a.parquet, row 24: not a readable image" in err and "skipped 2 images" in err
