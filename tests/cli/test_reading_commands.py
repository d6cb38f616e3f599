"""`predict` from a list and past bad files, `probe`, `recipes`."""

import io
import json
import subprocess
import sys

import pytest

from opencrate.recipe.load import shipped_recipes

from ..recipes.folders import write_classes


@pytest.fixture
def typed(monkeypatch):
    """Set what standard input holds."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def predicted(result):
    assert result.code == 0, result.err
    return [row["file"] for row in json.loads(result.out)]


def test_predict_reads_a_list(opencrate, folder_run, images, typed):
    listed = [images / "top" / "1.png", images / "bottom"]
    typed("".join(f"{path}\n" for path in listed) + "\n")
    result = opencrate("predict", folder_run, images / "middle" / "0.png", "-", "--format", "json")
    expected = [images / "middle" / "0.png", listed[0], *sorted(listed[1].iterdir())]
    assert predicted(result) == [str(path) for path in expected] and result.err == ""


def test_predict_reads_a_pipe(folder_run, images):
    command = [sys.executable, "-m", "opencrate", "predict", str(folder_run), "-", "--format", "json"]
    file = str(images / "top" / "1.png")
    done = subprocess.run(command, input=file, capture_output=True, text=True)
    assert done.returncode == 0 and [row["file"] for row in json.loads(done.stdout)] == [file], done.stderr


def test_predict_needs_a_list(opencrate, folder_run, typed):
    typed("\n")
    result = opencrate("predict", folder_run, "-")
    assert result.code == 2 and "standard input names no files" in result.err
    assert "twice" in opencrate("predict", folder_run, "-", "-").err
    typed("nowhere.png\n")
    assert "nowhere.png: no such file" in opencrate("predict", folder_run, "-").err


def test_predict_skips_bad_files_on_request(opencrate, folder_run, tmp_path):
    write_classes(tmp_path, 2)
    bad = tmp_path / "top" / "1.png"
    bad.write_text("no image")
    assert opencrate("predict", folder_run, tmp_path).code == 2
    words = ["predict", folder_run, tmp_path, tmp_path / "missing.png", "--format", "json"]
    result = opencrate(*words, "--skip-bad", "--batch-size", 2)
    assert len(predicted(result)) == 5 and str(bad) not in result.out
    lines = result.err.splitlines()
    assert len(lines) == 3 and str(bad) in lines[0] and "missing.png: no such file" in lines[1]
    assert lines[2] == "opencrate: skipped 2 of 7 images"


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_probe_of_the_runs_own_data(opencrate, digits_run, method):
    result = opencrate("probe", digits_run, "--method", method, "--format", "json")
    assert result.code == 0 and result.err == ""
    found = json.loads(result.out)
    assert (found["method"], found["layer"], found["token"]) == (method, 2, "mean")
    assert (found["train_images"], found["test_images"], found["width"]) == (1437, 360, 96)
    low, high = found["interval"]
    assert low < found["accuracy"] < high and found["accuracy"] > 0.7  # chance is 0.1


def test_probe_with_weighted_votes(opencrate, digits_run):
    words = ["probe", digits_run, "--method", "knn", "--format", "json"]
    alike, weighted = (json.loads(opencrate(*words, *more).out) for more in ([], ["--weights", "exp"]))
    assert (alike["weights"], weighted["weights"]) == ("equal", "exp")
    assert abs(alike["accuracy"] - weighted["accuracy"]) < 0.1
    assert "votes exp(cos/0.07)" in opencrate(*words[:-2], "--weights", "exp").out
    assert "--weights exp: is for --method knn" in opencrate("probe", digits_run, "--weights", "exp").err


def test_probe_of_another_layer_and_other_classes(opencrate, folder_run, images, tmp_path):
    write_classes(tmp_path, 10)
    (tmp_path / "top").rename(tmp_path / "another")
    words = ["probe", folder_run, "--data", tmp_path, "--layer", 1, "--token", "cls"]
    result = opencrate(*words)
    assert result.code == 0 and "layer 1, token cls" in result.out and "24 to fit, 6 to count" in result.out
    embedding = json.loads(opencrate("probe", folder_run, "--layer", 0, "--token", "cls", "--format", "json").out)
    assert embedding["accuracy"] <= 0.5  # the embedding's class token is the same for every image
    assert "layers 1 to 2" in opencrate("probe", folder_run, "--layer", 3).err
    assert "needs 20 training images" not in opencrate("probe", folder_run, "--method", "knn").err


def test_probe_bad_words(opencrate, plain_crate):
    assert "no recipe, so it names no data" in opencrate("probe", plain_crate).err
    assert "'-1' is not a whole number" in opencrate("probe", plain_crate, "--layer=-1").err


def test_recipes_table_has_one_line_each(opencrate):
    lines = opencrate("recipes").out.splitlines()
    for name in shipped_recipes():
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    row = next(line for line in lines if line.split()[:1] == ["imagenet-base-paper"])
    assert all(word in row for word in ("image-classification", "crate-base", "22.80 M", "imagenet")), row
