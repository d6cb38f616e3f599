"""`train`, `probe`, `finetune` and `evaluate` with a masked autoencoder."""

import json

import pytest

from opencrate.cli.main import main


@pytest.fixture(scope="module")
def autoencoder_run(tmp_path_factory):
    """A shallow CRATE autoencoder trained on digits for two epochs."""
    directory = tmp_path_factory.mktemp("autoencoder") / "run"
    overrides = ["training.num_train_epochs=2", "model.config.num_hidden_layers=2", "logging.measure_inputs=0"]
    assert main(["train", "digits-mae", *overrides, "--output", str(directory)]) == 0
    return directory


def test_train_says_how_it_compares(opencrate, tmp_path):
    result = opencrate("train", "digits-mae-vit", "--smoke", "--output", tmp_path / "run")
    assert result.code == 0 and "masked-patch error" in result.out and "nearest visible patch" in result.out
    assert "accuracy" not in result.out and "360 test images" in result.out


def test_probe_beside_the_untrained_model(opencrate, autoencoder_run):
    result = opencrate("probe", autoencoder_run, "--method", "knn", "--untrained", "--format", "json")
    assert result.code == 0 and result.err == ""
    found = json.loads(result.out)
    assert (found["layer"], found["token"], found["width"]) == (2, "mean", 96)
    assert found["accuracy"] != found["untrained"]["accuracy"] and found["untrained"]["test_images"] == 360
    assert found["accuracy"] > 0.5  # chance is 0.1
    table = opencrate("probe", autoencoder_run, "--layer", 1, "--token", "cls", "--untrained").out
    assert "layer 1, token cls" in table and "untrained" in table and table.count("C = ") == 2


def test_finetune_takes_the_encoder(opencrate, autoencoder_run, tmp_path):
    words = ["digits", "training.max_steps=1", "--output", tmp_path / "run", "--no-report"]
    result = opencrate("finetune", autoencoder_run, *words)
    assert result.code == 0, result.err
    assert "new: classifier.weight, classifier.bias; left out: crate.embeddings.mask_token, decoder." in result.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["pool"]) == ("crate", 2, "mean")


def test_a_classifier_is_asked_for(opencrate, autoencoder_run):
    for command in ("evaluate", "predict"):
        words = [autoencoder_run] if command == "evaluate" else [autoencoder_run, autoencoder_run / "config.json"]
        result = opencrate(command, *words)
        assert result.code == 2 and "a masked autoencoder with its decoder, not an image classifier" in result.err, (
            result.err
        )
