"""`opencrate doctor`: verdicts, exit codes, and what is said of a folder that lacks something."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file


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
    result = opencrate("doctor", digits_run, "--json", "--num-images", 64)
    found = findings(result)
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert "not checked" not in verdicts.values() and found["finite"]["evidence"].endswith("64 images")
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
        "above-chance",
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
    result = opencrate("doctor", copy, "--json")
    assert result.code == 1 and findings(result)["finite"]["verdict"] == "fail"
    assert findings(result)["token-rank"]["verdict"] == "not checked"


def test_a_scaled_dictionary_gives_exit_code_1(opencrate, copy):
    change(copy, "dictionary", lambda value: value * 4)
    result = opencrate("doctor", copy, "--json", "--num-images", 64)
    assert result.code == 1 and findings(result)["ista-step"]["verdict"] == "fail"


def test_a_bare_folder(opencrate, plain_crate, images, tmp_path):
    result = opencrate("doctor", plain_crate, "--json")
    found = findings(result)
    assert result.code == 0 and found["ista-step"]["verdict"] == "ok"
    assert "give --data FOLDER" in found["rate-trend"]["evidence"]
    assert found["loss-curve"]["evidence"] == "no log.jsonl in the folder"
    bare = shutil.copytree(plain_crate, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    found = findings(opencrate("doctor", bare, "--json"))
    assert "no preprocessor_config.json" in found["token-rank"]["evidence"]
    refused = opencrate("doctor", bare, "--data", images)
    assert refused.code == 2 and "no preprocessor_config.json" in refused.err


def test_given_images(opencrate, folder_run, images):
    found = findings(opencrate("doctor", folder_run, "--data", images, "--json"))
    assert found["above-chance"]["verdict"] != "not checked"
    assert found["generalisation-gap"]["evidence"] == "training images are known for a run's own data only"


def test_data_that_is_gone(opencrate, copy):
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("path: digits", "path: /nowhere/images"))
    found = findings(opencrate("doctor", copy, "--json"))
    assert found["token-rank"]["evidence"].startswith("no images: ") and found["finite"]["verdict"] == "ok"
    assert opencrate("doctor", copy, "--data", "/nowhere/else").code == 2


def test_what_is_refused(opencrate, copy, tmp_path):
    assert opencrate("doctor", tmp_path / "missing").code == 2
    (copy / "log.jsonl").write_text("{broken\n")
    result = opencrate("doctor", copy)
    assert result.code == 2 and "log.jsonl: damaged" in result.err
    (copy / "model.safetensors").write_bytes(b"no weights")
    assert opencrate("doctor", copy).code == 2
