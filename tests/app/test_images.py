"""The tab of pictures, without a browser."""

import numpy as np
import pytest
from PIL import Image

from opencrate.analysis.features.here import nearest_atoms
from opencrate.app import images
from opencrate.app.images import look, probabilities
from opencrate.app.uploads import read_picture
from opencrate.evaluation.classifier import predict
from opencrate.reports.html import fragment


def titles(parts):
    return {part.title: [figure.title for figure in part.figures] for part in parts}


def test_everything_of_a_classifier(shelf, picture):
    parts = look(shelf["pets"], "pets", str(picture), layer=1)
    found = titles(parts)
    assert list(found) == ["Class", "One layer", "All layers"]
    assert found["One layer"] == ["Masks", "Heads of layer 1", "Nearest atoms"]
    assert len(found["All layers"]) == 3 and not any(part.sentences for part in parts[1:])
    table = parts[0].tables[0].frame
    assert list(table.iloc[:, 0]) and set(table.iloc[:, 0]) == {"cat", "dog", "ship"}
    page = fragment(parts)
    assert page.count('<img src="data:image/png;base64,') == 6 and "<script" not in page and "http" not in page


def test_the_classes_are_those_of_predict(shelf, picture):
    saved = shelf["pets"]
    (expected,) = predict(saved, [picture], top_k=3)
    pixels = saved.transform.processor(images=[read_picture(saved, picture)], return_tensors="pt")["pixel_values"]
    found = probabilities(saved, pixels)
    assert [guess["label"] for guess in expected["predictions"]] == list(found)
    assert list(found.values()) == pytest.approx([guess["probability"] for guess in expected["predictions"]])


def test_an_operator_without_maps_says_so(shelf, picture):
    parts = look(shelf["linear"], "linear", str(picture))
    assert titles(parts)["One layer"] == ["Masks", "Nearest atoms"]
    assert any("linear has no attention maps" in sentence for sentence in parts[1].sentences)


def test_an_autoencoder_fills_in(shelf, picture):
    parts = look(shelf["filler"], "filler", str(picture), mask_ratio=0.5)
    assert list(titles(parts)) == ["Reconstruction", "One layer", "All layers"]
    (figure,) = parts[0].figures
    assert "8 of 16 patches are hidden" in figure.notes["How"]


def test_what_cannot_be_made_says_why_and_hides_paths(shelf, picture, monkeypatch):
    def fail(*_):
        raise ValueError(f"{picture}: no eigenvector")

    monkeypatch.setattr(images, "masks_and_heads", fail)
    part = look(shelf["pets"], "pets", str(picture))[1]
    assert part.sentences == ("Not made of pets: disc.png: no eigenvector.",)
    assert [figure.title for figure in part.figures] == ["Nearest atoms"]


def test_a_layer_that_is_not_there(shelf, picture):
    parts = look(shelf["pets"], "pets", str(picture), layer=9)
    assert all("layer" in sentence for sentence in parts[1].sentences) and len(parts[1].sentences) == 2


def test_nearest_atoms_are_the_largest_entries():
    codes = np.zeros((6, 4))
    codes[4, 2], codes[1, 0], codes[2, 0] = 3.0, 1.0, 0.5
    first, second = nearest_atoms(codes, (2, 3), 3)
    assert (first.index, first.maximum, first.share) == (2, 3.0, pytest.approx(1 / 6))
    assert (second.index, second.share) == (0, pytest.approx(2 / 6)) and first.values[1, 1] == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("words"), "it is text, not a whole picture"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a whole picture"),
        (lambda path: path.write_bytes(b""), "it is an empty file"),
        (lambda path: Image.new("1", (8000, 8000)).save(path, "PNG"), "8000 x 8000 pixels, more than 40,000,000"),
        (lambda path: Image.new("L", (90, 20)).save(path, "PNG"), "one side more than 4 times the other"),
        (lambda path: Image.new("L", (3, 3)).save(path, "PNG"), "smaller than a patch"),
    ],
)
def test_pictures_that_are_refused(shelf, tmp_path, make, words):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ValueError, match=words) as error:
        look(shelf["pets"], "pets", str(path))
    assert str(error.value).startswith("x.png: ") and str(tmp_path) not in str(error.value)


def test_a_picture_cut_short(shelf, picture, tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(picture.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"^half.png: "):
        look(shelf["pets"], "pets", str(path))
    with pytest.raises(ValueError, match="picture: none"):
        look(shelf["pets"], "pets", None)
