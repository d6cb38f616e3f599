"""Which models a page offers, and the Space that it can be written as."""

import ast
import shutil
import sys

import pytest
import yaml

from opencrate import open_saved
from opencrate.app import open_shelf, write_space
from opencrate.app.shelf import num_layers


def test_models_by_kind_and_by_name(shelf):
    assert shelf.names(reads="images") == ["pets", "linear", "filler"]
    assert shelf.names(("masked",)) == ["blanks"] and len(shelf.names()) == 5
    assert [num_layers(shelf[name]) for name in ("pets", "linear", "filler", "writer")] == [2, 3, 2, 3]
    with pytest.raises(ValueError, match="'cats' is not on this page"):
        shelf["cats"]


def test_two_folders_of_one_name(folders, tmp_path):
    shutil.copytree(folders["pets"], tmp_path / "pets")
    assert list(open_shelf([str(folders["pets"]), str(tmp_path / "pets")]).models) == ["pets", "pets #2"]


def test_models_that_the_page_cannot_use(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opencrate_weights", None)
    with pytest.raises(ValueError, match="models: none given, and opencrate-weights is not installed"):
        open_shelf([])
    shutil.copytree(folders["pets"], tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no image processor"):
        open_shelf([str(tmp_path / "bare")])


def test_a_space(folders, tmp_path):
    space = tmp_path / "space"
    files = write_space(space, [str(folders["pets"]), "hf://somebody/model"], max_upload=7)
    assert files[-1] == space / "app.py" and all(path.is_file() for path in files)
    _, head, text = (space / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["sdk"] == "gradio" and fields["app_file"] == "app.py" and str(fields["sdk_version"]).count(".") == 2
    assert {"title", "emoji", "colorFrom", "colorTo", "python_version", "license"} <= fields.keys()
    assert "somebody/model" in text and "pets" in text
    code = (space / "app.py").read_text()
    assert any(
        isinstance(node, ast.ImportFrom) and node.module == "opencrate.app" for node in ast.walk(ast.parse(code))
    )
    assert 'MODELS = ["models/pets", "hf://somebody/model"]' in code and "max_upload=7" in code
    assert "opencrate[app]==" in (space / "requirements.txt").read_text()
    assert "lfs" in (space / ".gitattributes").read_text()
    assert open_saved(space / "models" / "pets").num_parameters == open_saved(folders["pets"]).num_parameters
    assert str(folders["pets"].parent) not in "".join(path.read_text() for path in space.glob("*.*"))


def test_the_code_of_a_space_serves_its_models(folders, tmp_path, monkeypatch):
    write_space(tmp_path / "space", [str(folders["writer"])])
    served = {}
    monkeypatch.setattr("opencrate.app.server.serve", lambda shelf, **options: served.update(shelf=shelf, **options))
    file = tmp_path / "space" / "app.py"
    exec(compile(file.read_text(), str(file), "exec"), {"__file__": str(file), "__name__": "__main__"})
    assert list(served["shelf"].models) == ["writer"] and served["host"] is None and served["max_upload"] == 100


def test_a_space_replaces_nothing_unasked(folders, tmp_path):
    pets, writer = str(folders["pets"]), str(folders["writer"])
    write_space(tmp_path / "space", [pets])
    with pytest.raises(ValueError, match="overwrite"):
        write_space(tmp_path / "space", [writer])
    write_space(tmp_path / "space", [writer], overwrite=True)
    assert [path.name for path in (tmp_path / "space" / "models").iterdir()] == ["writer"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match="no command of ours wrote it"):
        write_space(tmp_path / "mine", [pets], overwrite=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"


def test_spaces_that_are_refused(folders, tmp_path):
    for models, words in (
        ([], "none"),
        ([str(folders["pets"])] * 2, "two of one name"),
        (["nothing"], "no such folder"),
    ):
        with pytest.raises(ValueError, match=words):
            write_space(tmp_path / "space", models)
    shutil.copytree(folders["pets"], tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no safetensors"):
        write_space(tmp_path / "space", [str(tmp_path / "bare")])
    with pytest.raises(ValueError, match="lies inside an input"):
        write_space(folders["pets"] / "space", [str(folders["pets"])])
    assert not (folders["pets"] / "space").exists()
