"""Names of files and classes that are no plain text: shown escaped and shortened, and no hindrance."""

import json
import os
import shutil

import pytest

from opencrate._files import encoded, one_line, printable, shown

from . import hostile

NAMES = {
    "escape": "a\x1b[31mred\x1b[0m",
    "line": "a\nopencrate: error: b",
    "return": "a\rb",
    "no UTF-8": os.fsdecode(b"caf\xe9"),
    "right to left": "a\u202egnp.b",
    "markup": "[red]a",
    "long": "x" * 200,
}


def is_plain(text):
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_shows_names(name):
    assert shown(name).isprintable() and one_line(f"{name}: x").isprintable() and is_plain(printable(name))
    assert encoded(name).decode() and (name == encoded(name).decode()) == (name.isprintable() or "\n" in name)
    assert shown("é ü 漢") == "é ü 漢" and shown(b"x".decode() * 5000).startswith("x" * 50)
    assert len(shown(name * 1000)) <= 220 and len(one_line(" ".join([name] * 1000))) <= 1020


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "good"
    folder.mkdir()
    hostile.build(folder)
    return folder


@pytest.fixture
def world(good, tmp_path, monkeypatch):
    shutil.copytree(good, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_image_files(opencrate, world, name):
    shutil.copy("img.png", f"{name}.png")
    table = opencrate("predict", "m", f"{name}.png")
    assert table.code == 0 and is_plain(table.out), table
    assert json.loads(opencrate("predict", "m", f"{name}.png", "--format", "json").out)[0]["file"] == f"{name}.png"
    (world / f"{name}.png").write_text("no image")
    for words in (("--skip-bad",), ()):
        result = opencrate("predict", "m", f"{name}.png", "img.png", *words)
        assert result.code == (0 if words else 2) and is_plain(result.err) and is_plain(result.out), result


@pytest.mark.parametrize("name", [*NAMES.values(), "y" * 5000, "\ud800"], ids=[*NAMES, "very long", "surrogate"])
def test_class_names(opencrate, world, name):
    config = json.loads((world / "m" / "config.json").read_text())
    names = ["bottom", "middle", name]
    config.update(id2label=dict(enumerate(names)), label2id={one: number for number, one in enumerate(names)})
    (world / "m" / "config.json").write_text(json.dumps(config))
    for words in (("predict", "m", "img.png", "--top-k", "3"), ("evaluate", "m", "--data", "data")):
        result = opencrate(*words)
        assert result.code in (0, 2) and is_plain(result.out) and is_plain(result.err), result
        assert max(map(len, (result.out + result.err).split("\n"))) < 1300


@pytest.mark.parametrize("name", ["escape", "no UTF-8", "line", "right to left"])
def test_class_folders(opencrate, world, name):
    (world / "data" / "top").rename(world / "data" / NAMES[name])
    result = opencrate("evaluate", "m", "--data", "data")
    assert result.code == 2 and is_plain(result.err) and "rename it" in result.err, result


def test_a_report_of_a_model_with_such_a_name(opencrate, world):
    name = NAMES["escape"] + NAMES["markup"]
    shutil.copytree("m", name)
    result = opencrate("analyze", name, "--data", "data", "--output", "out", "--num-images", "4")
    assert result.code == 0 and is_plain(result.out), result
    assert not set((world / "out" / "report.html").read_text()) & {"\x1b", "\udce9"}


@pytest.mark.parametrize(
    "what", ["img.png", "data", "data/top", "m", "m/config.json", "m/model.safetensors", "good.pth"]
)
def test_what_may_not_be_read(opencrate, world, monkeypatch, what):
    """Tests may run as root, who may read everything: the answers of the system are replaced."""
    real_access = os.access
    denied = os.path.realpath(what)

    def access(path, *arguments, **options):
        return not os.path.realpath(path).startswith(denied) and real_access(path, *arguments, **options)

    monkeypatch.setattr(os, "access", access)
    words = {"img.png": ("predict", "m", "img.png"), "good.pth": ("convert", "good.pth", "out", *hostile.OFFICIAL)}.get(
        what, ("evaluate", "m", "--data", "data")
    )
    result = opencrate(*words)
    assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1, result
    assert "may not be read" in result.err or "no such" in result.err, result.err
