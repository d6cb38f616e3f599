"""`opencrate doctor`: verdicts, exit codes, and what is said of a folder that lacks something."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from transformers import ViTImageProcessor

from ..analysis.foreign_models import tiny
from ..analysis.language_models import STORY, causal, saved

MODELS = Path(__file__).parents[1] / "analysis" / "doctor_models"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Thirty digits as image files in one folder, without classes."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number, digit in enumerate(load_digits().images[:30]):
        Image.fromarray((digit * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A small causal CRATE that can spell STORY, with its tokenizer, and STORY in a file."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "story.txt").write_text(STORY)
    return saved(causal("crate", steps=60), folder / "model"), folder / "story.txt"


@pytest.fixture
def copy(digits_run, tmp_path):
    """The digits run under another path, to be damaged."""
    return shutil.copytree(digits_run, tmp_path / "run")


def findings(result):
    return {one["check"]: one for one in json.loads(result.out)["findings"]}


def change(run, keys, function):
    weights = load_file(run / "model.safetensors")
    changed = {name: function(value) if keys in name else value for name, value in weights.items()}
    save_file(changed, run / "model.safetensors", metadata={"format": "pt"})


def test_a_run(opencrate, digits_run):
    result = opencrate("doctor", digits_run, "--format", "json", "--num-images", 64)
    found = findings(result)
    verdicts = {name: one["verdict"] for name, one in found.items()}
    others = {"reconstruction", "perplexity", "dead-tokens", "self-supervision"}
    assert {name for name, verdict in verdicts.items() if verdict == "not checked"} == others
    assert found["finite"]["evidence"].endswith("64 images")
    assert all(one["threshold"] and one["reason"] for one in found.values())
    assert all(bool(one["advice"]) == (one["verdict"] in ("warn", "fail")) for one in found.values())
    assert result.code == (1 if "fail" in verdicts.values() else 0)
    healthy = (
        "finite",
        "dead-atoms",
        "ista-step",
        "collapsed-subspaces",
        "gradient-depth",
        "loss-curve",
        "stored-score",
    )
    assert {verdicts[name] for name in healthy} == {"ok"}


def test_the_table_and_strictness(opencrate, copy):
    lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    spiky = [{"loss": value} for value in (1, 0.9, 0.8, 0.7, 0.6, 5, 0.5)] + lines[-1:]
    (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spiky))
    plain = opencrate("doctor", copy, "--num-images", 64)
    assert (
        "loss-curve" in plain.out
        and "spikes: 1" in plain.out
        and "warn loss-curve: lower the learning rate" in plain.out
    )
    assert opencrate("doctor", copy, "--num-images", 64, "--strict").code == 1


def test_damage_gives_exit_code_1(opencrate, copy):
    change(copy, "dictionary", lambda value: value * float("nan"))
    result = opencrate("doctor", copy, "--format", "json")
    assert result.code == 1 and findings(result)["finite"]["verdict"] == "fail"
    assert findings(result)["token-rank"]["verdict"] == "not checked"


def test_a_scaled_dictionary_gives_exit_code_1(opencrate, copy):
    change(copy, "dictionary", lambda value: value * 10)
    result = opencrate("doctor", copy, "--format", "json", "--num-images", 64)
    assert result.code == 1 and findings(result)["ista-step"]["verdict"] == "fail"


def test_a_bare_folder(opencrate, plain_crate, images, tmp_path):
    result = opencrate("doctor", plain_crate, "--format", "json")
    found = findings(result)
    assert result.code == 1 and found["fresh-parameters"]["verdict"] == "fail"  # it was never trained
    assert found["ista-step"]["verdict"] == "ok"
    assert "give --data IMAGES" in found["rate-trend"]["evidence"]
    assert found["loss-curve"]["evidence"] == "no log.jsonl in the folder"
    bare = shutil.copytree(plain_crate, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    found = findings(opencrate("doctor", bare, "--format", "json"))
    assert "no preprocessor_config.json" in found["token-rank"]["evidence"]
    refused = opencrate("doctor", bare, "--data", images)
    assert refused.code == 2 and "no preprocessor_config.json" in refused.err


def test_given_images(opencrate, folder_run, images):
    found = findings(opencrate("doctor", folder_run, "--data", images, "--format", "json"))
    assert found["above-chance"]["verdict"] != "not checked"
    assert found["generalisation-gap"]["evidence"] == "training images are known for a run's own data only"


def test_data_that_is_gone(opencrate, copy):
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("path: digits", "path: /nowhere/images"))
    found = findings(opencrate("doctor", copy, "--format", "json"))
    assert found["token-rank"]["evidence"].startswith("no images: ") and found["finite"]["verdict"] == "ok"
    assert opencrate("doctor", copy, "--data", "/nowhere/else").code == 2


def test_what_is_refused(opencrate, copy, tmp_path):
    assert opencrate("doctor", tmp_path / "missing").code == 2
    (copy / "log.jsonl").write_text("{broken\n")
    result = opencrate("doctor", copy)
    assert result.code == 2 and "log.jsonl, line 1: damaged" in result.err
    (copy / "model.safetensors").write_bytes(b"no weights")
    assert opencrate("doctor", copy).code == 2


@pytest.mark.parametrize("kind", ["digits", "mae"])
def test_a_good_run_passes_and_a_damaged_one_fails(opencrate, kind, tmp_path):
    good = opencrate("doctor", MODELS / kind, "--format", "json", "--strict")
    assert good.code == 0 and findings(good)["stored-score"]["verdict"] == "ok"
    run = shutil.copytree(MODELS / kind, tmp_path / "run")
    change(run, "", lambda value: value + 0.2 * value.std() * value.sign())
    bad = opencrate("doctor", run, "--format", "json")
    assert bad.code == 1 and findings(bad)["stored-score"]["verdict"] == "fail"


def test_class_names_in_another_order(opencrate, tmp_path):
    """A run's own images are matched by name, as any other, so names that were moved in config.json show."""
    run = shutil.copytree(MODELS / "digits", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    names = [config["id2label"][str(number)] for number in range(10)]
    config["id2label"] = {str(number): name for number, name in enumerate(names[1:] + names[:1])}
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (run / "config.json").write_text(json.dumps(config))
    result = opencrate("doctor", run, "--format", "json")
    found = findings(result)
    assert result.code == 1 and found["class-order"]["verdict"] == found["stored-score"]["verdict"] == "fail"
    assert "with the best names 9" in found["class-order"]["evidence"]


def test_images_without_labels_or_with_other_classes(opencrate, pictures, images, folder_run, tmp_path):
    found = findings(opencrate("doctor", MODELS / "digits", "--data", pictures, "--format", "json"))
    assert found["output-variation"]["verdict"] == found["order"]["verdict"] == "ok"
    assert found["above-chance"]["verdict"] == "not checked"
    others = shutil.copytree(images, tmp_path / "others")
    next(others.iterdir()).rename(others / "something else")
    found = findings(opencrate("doctor", folder_run, "--data", others, "--format", "json"))
    assert found["token-rank"]["verdict"] != "not checked"
    assert found["above-chance"]["evidence"].startswith("the labels are not used: ")
    found = findings(opencrate("doctor", MODELS / "mae", "--data", pictures, "--format", "json"))
    assert found["reconstruction"]["verdict"] == "ok" and found["stored-score"]["verdict"] == "not checked"


def test_a_foreign_backbone(opencrate, pictures, tmp_path):
    tiny("dinov2").save_pretrained(tmp_path)
    size = {"height": 8, "width": 8}
    ViTImageProcessor(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(tmp_path)
    found = findings(opencrate("doctor", tmp_path, "--data", pictures, "--format", "json"))
    assert {found[name]["verdict"] for name in ("finite", "few-values", "attention-effect", "input-scale")} == {"ok"}
    assert found["above-chance"]["verdict"] == "not checked"


def test_a_language_model(opencrate, language, tmp_path):
    folder, story = language
    good = opencrate("doctor", folder, "--text", story, "--block-size", 32, "--format", "json")
    found = findings(good)
    assert good.code == 0, good.err
    names = ("perplexity", "order", "dead-tokens", "class-collapse", "gradient-depth")
    assert {found[name]["verdict"] for name in names} == {"ok"}
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    assert opencrate("doctor", bare, "--text", story, "--tokenizer", folder, "--block-size", 32).code == 0
    assert "--tokenizer" in opencrate("doctor", bare, "--text", story).err
    weights = findings(opencrate("doctor", bare, "--format", "json"))
    assert weights["finite"]["verdict"] == "ok" and "--text TEXT" in weights["perplexity"]["evidence"]


def test_inputs_of_the_other_kind_are_refused(opencrate, language, pictures):
    folder, story = language
    for words in (("--data", pictures), ("--text", story, "--data", pictures)):
        refused = opencrate("doctor", folder, *words)
        assert refused.code == 2 and "reads text; give --text TEXT" in refused.err
    for kind in ("digits", "mae"):
        refused = opencrate("doctor", MODELS / kind, "--text", story)
        assert refused.code == 2 and "reads images; give --data IMAGES" in refused.err
