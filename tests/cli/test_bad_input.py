"""Bad input: exit code 2, one line that says what, where, what is allowed and what to do, nothing written."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import opencrate as opencrate_package
from opencrate.store.saved import open_saved

from ..recipes.folders import write_classes, write_image


@pytest.fixture
def refused(opencrate, tmp_path, monkeypatch):
    """Run a command line that must be refused; its single error line."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        before = snapshot(tmp_path)
        result = opencrate(*words)
        assert result.code == 2, result
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("opencrate: error: "), result.err
        assert snapshot(tmp_path) == before, "something was written"
        return lines[0]

    return run


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def has(line, *words):
    assert all(word in line for word in words), line


SMALL = ("model.size=digits", "model.config.patch_size=4", "data.image_size=16", "data.resize_size=null")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        ([], ["COMMAND", "--help"]),
        (["train"], ["RECIPE", "--help"]),
        (["train", "digits", "--overwite"], ["unknown option '--overwite'", "did you mean '--overwrite'"]),
        (["train", "digits", "--out", "x"], ["unknown option '--out'", "did you mean '--output'"]),
        (["train", "digits", "more"], ["unexpected argument 'more'", "opencrate train --help"]),
        (["evaluate", "run", "a=b"], ["unexpected argument 'a=b'"]),
        (["evaluate", "run", "--split", "tset"], ["unknown --split 'tset'", "did you mean 'test'"]),
        (["predict", "run", "x", "--top-k", "0"], ["--top-k", "'0'", "at least 1"]),
        (["predict", "run"], ["IMAGE"]),
        (["train", "digit"], ["no recipe 'digit'", "did you mean 'digits'", "opencrate recipes"]),
        (["train", "digits", "training.sed=1"], ["'training.sed'", "did you mean 'training.seed'"]),
        (["train", "digits", "seed=1"], ["'seed'", "did you mean 'training.seed'"]),
        (["train", "digits", "training.seed=x"], ["'training.seed'", "must be a whole number", "'x'"]),
        (["train", "digits", "model.size=digit"], ["unknown CrateConfig size 'digit'", "did you mean 'digits'"]),
        (["train", "digits", "model.size=enormous"], ["unknown CrateConfig size 'enormous'", "base", "tiny"]),
        (["train", "digits", "model.type=vitt"], ["unknown model.type 'vitt'", "did you mean 'vit'"]),
        (["train", "digits", "model.config.pol=cls"], ["'model.config.pol'", "did you mean 'pool'"]),
        (["train", "digits", "model.config.pool=max"], ["pool", "max", "cls", "mean"]),
        (["train", "digits", "data.image_size=9"], ["image_size=9", "multiple", "patch_size 2"]),
        (["train", "digits", "data.image_size=1"], ["image_size=1", "multiple", "patch_size 2"]),
        (["train", "digits-vit", "data.image_size=9"], ["image_size=9", "multiple", "patch_size=2"]),
        (["train", "digits", "data.num_channels=3"], ["data.image_mean", "data.num_channels is 3"]),
        (["train", "digits", "model.config.num_channels=3"], ["num_channels=3", "data.num_channels=1"]),
        (["train", "imagefolder", "data.path=nowhere"], ["nowhere", "no such folder"]),
        (["evaluate", "nowhere"], ["nowhere", "no such folder", "run directory"]),
        (["predict", "nowhere", "also-nowhere"], ["also-nowhere", "no such file or folder"]),
        (["analyze", "nowhere"], ["nowhere", "no such folder"]),
        (["convert", "nowhere.pth", "out", "--family", "crate"], ["nowhere.pth", "no such file"]),
        (["convert", "nowhere.pth", "out"], ["--family is missing", "crate_alpha"]),
        (
            ["convert", "a", "b", "--image-size", "1x2x3", "--family", "crate"],
            ["--image-size", "1x2x3", "height x width"],
        ),
    ],
)
def test_words(refused, words, expected):
    has(refused(*words), *expected)


def test_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    has(refused("train", "imagefolder", *SMALL, "data.path=empty"), "empty: no class folders", "one sub-folder")


def test_file_instead_of_folder(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    has(refused("train", "imagefolder", *SMALL, "data.path=file"), "file: is text, not a data set", "one sub-folder")


def test_class_folder_without_images(refused, tmp_path):
    write_classes(tmp_path / "data", 4)
    (tmp_path / "data" / "wide").mkdir()
    has(refused("train", "imagefolder", *SMALL, "data.path=data"), "data/wide", "class folder without images", ".png")


def test_truncated_image_is_named(refused, tmp_path):
    write_classes(tmp_path / "data", 4)
    broken = tmp_path / "data" / "top" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    has(refused("train", "imagefolder", *SMALL, "data.path=data"), "data/top/2.png", "truncated or damaged")


def test_image_smaller_than_a_patch_is_named(refused, tmp_path):
    write_classes(tmp_path / "data", 4)
    write_image(tmp_path / "data" / "top" / "2.png", 0, 0, size=(3, 16))
    line = refused("train", "imagefolder", *SMALL, "data.path=data")
    has(line, "data/top/2.png", "3x16 pixels", "smaller than a patch (4x4)")


def test_more_classes_than_the_model(refused, folder_run, tmp_path):
    write_classes(tmp_path / "data", 2)
    write_image(tmp_path / "data" / "wide" / "0.png", 0, 0)
    has(refused("evaluate", folder_run, "--data", "data"), "class 'wide'", "3 classes", "bottom, middle, top")


def test_predict_names_damaged_and_missing_images(refused, folder_run, tmp_path):
    write_image(tmp_path / "good.png", 0, 0)
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "none").mkdir()
    has(refused("predict", folder_run, "good.png", "bad.png"), "bad.png", "not a readable image")
    has(refused("predict", folder_run, "none"), "none", "no image files")


def test_finished_run_stays(refused, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    has(refused("train", "digits", "--output", "run"), "run: exists", "--overwrite")
    has(refused("convert", "run", "run/config.json", "--to-official"), ".pth, .pt or .safetensors")


def test_foreign_folder_stays_even_with_overwrite(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    has(refused("train", "digits", "--output", "mine", "--overwrite"), "mine: exists", "choose another")


def test_model_without_recipe_needs_data(refused, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "plain")
    (tmp_path / "plain" / "recipe.yaml").unlink()
    has(refused("evaluate", "plain"), "plain", "--data IMAGES")
    has(refused("analyze", "plain"), "plain", "--data IMAGES")


def test_split_that_the_run_lacks(refused, digits_run):
    has(refused("evaluate", digits_run, "--split", "validation"), "--split validation", "held out no validation")


def test_eps_must_be_positive(refused, digits_run):
    has(refused("analyze", digits_run, "--eps", "0", "--num-images", "4", "--output", "out"), "eps")


@pytest.mark.parametrize("problem", ["missing", "extra", "wrong shape"])
def test_run_whose_weights_do_not_fit(refused, digits_run, tmp_path, problem):
    shutil.copytree(digits_run, tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    weights = load_file(file)
    name = spoil(weights, problem, "classifier.weight")
    save_file(weights, file, {"format": "pt"})
    has(refused("evaluate", "run"), "run", name, "config.json and model.safetensors")


def spoil(weights, problem, name):
    """Make one key missing, extra or wrongly shaped; the name to be reported."""
    if problem == "missing":
        weights.pop(name)
    elif problem == "extra":
        weights["stranger"] = torch.zeros(2)
        return "stranger"
    else:
        weights[name] = torch.zeros(3, 5)
    return name


def official(folder):
    return dict(opencrate_package.to_official(open_saved(folder, ("classifier",)).model))


@pytest.mark.parametrize("problem", ["missing", "extra", "wrong shape"])
def test_checkpoint_that_does_not_fit(refused, plain_crate, official_words, tmp_path, problem):
    weights = official(plain_crate)
    spoil(weights, problem, "transformer.layers.1.1.fn.weight")
    torch.save(weights, tmp_path / "bad.pth")
    line = refused("convert", "bad.pth", "out", *official_words)
    has(line, {"missing": "missing", "extra": "stranger", "wrong shape": "shape"}[problem])


def test_unknown_family(refused, plain_crate, tmp_path):
    torch.save(official(plain_crate), tmp_path / "good.pth")
    line = refused("convert", "good.pth", "out", "--family", "crat")
    has(line, "family 'crat'", "did you mean 'crate'")


def test_heads_that_cannot_be_known(refused, plain_crate, tmp_path):
    torch.save(official(plain_crate), tmp_path / "good.pth")
    has(refused("convert", "good.pth", "out", "--family", "crate"), "num_attention_heads cannot be inferred")


class Dangerous:
    """A pickle that would call a function when it is read."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickle_that_is_not_plain_tensors(refused, tmp_path, how):
    content = {"state_dict": {"x": torch.zeros(1)}, "extra": Dangerous()}
    if how == "torch":
        torch.save(content, tmp_path / "bad.pth")
    else:
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(content))
    line = refused("convert", "bad.pth", "out", "--family", "crate")
    has(line, "bad.pth")
    assert "print" in line or "not a" in line, line


def test_file_that_is_no_checkpoint(refused, tmp_path):
    (tmp_path / "bad.pth").write_text("hello")
    (tmp_path / "bad.safetensors").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name in ("bad.pth", "bad.safetensors", "folder"):
        has(refused("convert", name, "out", "--family", "crate"), name)


def test_damaged_run_files(refused, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    has(refused("evaluate", "run"), "run")
    shutil.copy(digits_run / "config.json", tmp_path / "run" / "config.json")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics)[:50])
    has(refused("evaluate", "run"), "metrics.json")
