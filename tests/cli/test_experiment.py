"""`opencrate experiment`: what it writes and prints, and what it refuses."""

import csv
import json

import pytest
from PIL import Image

SMALL = {
    "compress": ("--quick", "tokens=16", "steps=2", "noise=0.1", "angle=90", "step_size=0.5"),
    "sparsify": ("--quick", "tokens=4", "steps=1,2", "long_run=20", "step_size=1,3", "lam=0.1,0.3"),
    "reconstruct": ("--quick", "tokens=16", "layers=2", "condition=1", "noise=0.1", "angle=90", "lam=0", "step_size=1"),
    "denoise": ("--quick", "tokens=16", "noise=1", "steps=2"),
}


@pytest.mark.parametrize("name", SMALL)
def test_writes_table_pictures_and_words(opencrate, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = opencrate("experiment", name, *SMALL[name], "--seeds", 2)
    assert result.code == 0, result.err
    folder = tmp_path / "experiments" / name
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["experiment"] == name and found["summary"] and "seeds=2" in found["settings"]
    assert found["command"].startswith(f"opencrate experiment {name} --quick")
    with (folder / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"]) and all(row["seeds"] == "2" for row in rows)
    pictures = sorted(folder.glob("*.png"))
    assert pictures and all(Image.open(path).width > 400 for path in pictures)
    assert all(path.with_suffix(".svg").read_text().lstrip().startswith("<?xml") for path in pictures)
    assert found["title"] in result.out and found["summary"][0] in result.out and str(name) in result.out
    assert [path.name for path in folder.glob(".*")] == [".opencrate"]  # the mark of what is ours


def test_finished_results_are_not_replaced_unasked(opencrate, tmp_path):
    words = ("experiment", "compress", *SMALL["compress"], "--seeds", 2, "--output", tmp_path / "out")
    assert opencrate(*words).code == 0
    before = (tmp_path / "out" / "compress.json").read_bytes()
    refused = opencrate(*words, "base_noise=0.5")
    assert refused.code == 2 and "compress.json" in refused.err and "--overwrite" in refused.err
    assert (tmp_path / "out" / "compress.json").read_bytes() == before
    assert opencrate(*words, "base_noise=0.5", "--overwrite").code == 0
    assert (tmp_path / "out" / "compress.json").read_bytes() != before


def test_the_same_command_gives_the_same_bytes(opencrate, tmp_path):
    for name in ("one", "two"):
        assert opencrate("experiment", "compress", *SMALL["compress"], "--output", tmp_path / name).code == 0
    for path in (tmp_path / "one").iterdir():
        if path.suffix != ".json":  # which holds the command
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_settings_are_listed_and_read_back(opencrate):
    result = opencrate("experiment", "sparsify", "--settings", "lam=0.5,1")
    assert result.code == 0 and "lam=0.5,1" in result.out.splitlines()
    again = opencrate("experiment", "sparsify", "--settings", *result.out.split())
    assert again.out == result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compres"], ["unknown experiment 'compres'", "did you mean 'compress'"]),
        ([], ["NAME", "--help"]),
        (["compress", "--quik"], ["unknown option '--quik'", "did you mean '--quick'"]),
        (["compress", "nois=1"], ["unknown setting 'nois'", "did you mean 'noise'"]),
        (["compress", "noise=high"], ["noise='high'", "must be a number, or several with commas"]),
        (["compress", "tokens=1.5"], ["tokens='1.5'", "must be a whole number"]),
        (["compress", "tokens=1,2"], ["tokens='1,2'", "must be a whole number"]),
        (["compress", "eps=-1"], ["eps=-1", "must be a number of at least 1e-12"]),
        (["compress", "--seeds", "0"], ["--seeds", "'0'", "at least 1"]),
        (["compress", "--seeds", "1"], ["--seeds 1", "at least 2"]),
        (["compress", "angle=100"], ["angle=100", "at least 0 and at most 90"]),
        (["reconstruct", "ambient=16"], ["ambient=16", "32 dimensions"]),
        (["sparsify", "lam=0"], ["lam=0", "must be a number of at least 1e-12"]),
        (["compress", "--output", "file"], ["file: is a file; give a folder"]),
    ],
)
def test_bad_input(opencrate, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = opencrate("experiment", *words)
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("opencrate: error: ") and all(word in line for word in expected), line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
