"""Models that are uploaded, and two models side by side: measured, limited, and gone afterwards."""

import tempfile
import zipfile

import pytest

from opencrate.app.errors import PageError, in_one_line, told, without_paths
from opencrate.app.measured import analyze_upload, compare, text_blocks
from opencrate.app.uploads import MEGABYTE, opened_model
from opencrate.reports.html import fragment

from .test_texts import TEXT

LIMIT = 10 * MEGABYTE


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def zipped(folder, file, more=(), below="model/"):
    with zipfile.ZipFile(file, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, below + path.name)
        for name, content in more:
            archive.writestr(name, content)
    return str(file)


def test_an_uploaded_model_of_images(folders, tmp_path, temporary):
    more = [("model/pytorch_model.bin", b"x"), ("model/code.py", b"1/0"), ("model/deep/config.json", b"no")]
    parts = analyze_upload([zipped(folders["pets"], tmp_path / "a.zip", more)], "", LIMIT)
    assert "CrateForImageClassification" in parts[0].sentences[0] and "16 crops" in parts[0].sentences[0]
    assert {"Predictions of the theory", "What the layers do"} <= {part.title for part in parts}
    assert "<img" in fragment(parts) and not list(temporary.iterdir())


def test_an_uploaded_model_of_texts_by_its_files(folders, temporary):
    files = [str(path) for path in folders["blanks"].iterdir()]
    parts = analyze_upload(files, TEXT, LIMIT)
    assert "BertForMaskedLM" in parts[0].sentences[0] and "tokens of the text" in parts[0].sentences[0]
    assert not list(temporary.iterdir())


def test_what_is_read_lies_alone_in_a_folder_that_goes(folders, tmp_path, temporary):
    file = zipped(folders["pets"], tmp_path / "a.zip", [("model/evil.py", b""), ("../up.json", b"{}")])
    with opened_model([file], LIMIT) as saved:
        assert {path.name for path in saved.path.iterdir()} == {
            "config.json", "model.safetensors", "preprocessor_config.json"
        }  # fmt: skip
        assert temporary in saved.path.parents
    assert not list(temporary.iterdir()) and not (tmp_path / "up.json").exists()


def refusal(files, limit=LIMIT):
    with pytest.raises(ValueError) as error, opened_model(files, limit):
        pass
    return str(error.value)


def test_uploads_that_are_refused(folders, tmp_path, temporary):
    pets = folders["pets"]
    weights, config = str(pets / "model.safetensors"), str(pets / "config.json")
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"cos\nsystem\n")
    assert "no files" in refusal([])
    assert "holds no config.json" in refusal([weights])
    assert "pytorch_model.bin is a pickle, which is never opened" in refusal([config, str(pickle)])
    assert "holds no model.safetensors" in refusal([config])
    assert "there twice" in refusal([config, config, weights])
    assert "more than 0 MB" in refusal([config, weights], 1000)
    assert "more than 0 MB" in refusal([zipped(pets, tmp_path / "a.zip")], 1000)
    broken = tmp_path / "b.zip"
    broken.write_bytes((tmp_path / "a.zip").read_bytes()[:-2000])
    assert refusal([str(broken)]).count("\n") == 0
    many = zipped(pets, tmp_path / "c.zip", [(f"model/{number}.json", b"{}") for number in range(101)])
    assert "more than 100" in refusal([many])
    assert not list(temporary.iterdir())


def test_a_zip_that_states_less_than_it_holds(folders, tmp_path, temporary):
    """A bomb: the archive says 1 kB, and what is unpacked is counted all the same."""
    file = tmp_path / "bomb.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folders["pets"] / "config.json", "config.json")
        archive.writestr("model.safetensors", bytes(4 * MEGABYTE))
    content = file.read_bytes()
    file.write_bytes(content.replace((4 * MEGABYTE).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    words = refusal([str(file)], MEGABYTE)
    assert "cannot be read" in words or "holds more than" in words
    assert not list(temporary.iterdir())


def test_a_configuration_with_code_runs_nothing(folders, tmp_path, temporary):
    file = tmp_path / "code.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(folders["pets"] / "model.safetensors", "model.safetensors")
        archive.writestr("config.json", '{"model_type": "mine", "auto_map": {"AutoModel": "code.Model"}}')
        archive.writestr("code.py", "raise SystemExit")
    words = told(ValueError(refusal([str(file)])))
    assert "never run" in words and str(temporary) not in words


def test_two_models_on_a_picture(shelf, picture):
    parts = compare([(name, shelf[name]) for name in ("pets", "linear")], str(picture))
    assert [table.title for table in parts[0].tables] == ["What they are", "What they say"]
    assert len(parts[1].figures) == 3 and "subspaces of its own" in parts[1].sentences[0]
    assert fragment(parts).count("<img") == 4  # the objective of the second model is folded


def test_two_models_on_a_text(shelf):
    parts = compare([(name, shelf[name]) for name in ("writer", "blanks")], None, TEXT)
    assert len(parts[0].tables) == 1 and parts[1].figures


@pytest.mark.parametrize(
    ("names", "words"),
    [(("pets", "pets"), "pets twice"), (("pets", "writer"), "pets reads images, writer reads texts")],
)
def test_models_that_cannot_be_compared(shelf, picture, names, words):
    with pytest.raises(ValueError, match=words):
        compare([(name, shelf[name]) for name in names], str(picture), TEXT)


def test_blocks_of_a_text(shelf):
    assert text_blocks(shelf["writer"], TEXT).shape == (2, 8)
    with pytest.raises(ValueError, match="fewer than 8"):
        text_blocks(shelf["writer"], "the king")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/tmp/gradio/ab12/cat.png: damaged", "cat.png: damaged"),
        ("~/models/big/config.json: no such file", "config.json: no such file"),
        (r"C:\Users\me\cat.png: damaged", "cat.png: damaged"),
        ("'/srv/a b' and (/srv/c)", "'a b' and (c)"),
        (
            "opencrate/digits: 3/4 of them, and/or hf://owner/name",
            "opencrate/digits: 3/4 of them, and/or hf://owner/name",
        ),
    ],
)
def test_paths_are_hidden(text, expected):
    assert without_paths(text, {"/srv/a b": "a b"}) == expected


def test_errors_are_one_line(caplog):
    def fail(error):
        raise error

    safe = in_one_line(fail)
    with pytest.raises(PageError, match=r"^x.png: two lines$"):
        safe(ValueError("/a/b/x.png: two\nlines"))
    with pytest.raises(PageError, match=r"^failed \(KeyError\); the terminal of the page says more$"):
        safe(KeyError("/secret/path"))
    assert "the page failed" in caplog.text
    with pytest.raises(PageError, match="not enough memory"):
        safe(MemoryError())
