"""What the commands do when everything is right."""

import errno
import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import opencrate as opencrate_package
from opencrate.cli import demo as demo_module
from opencrate.cli.main import COMMANDS, main
from opencrate.recipe.load import load_recipe, recipe_yaml
from opencrate.store.saved import open_saved

from ..recipes.folders import CLASSES, FOLDER_OVERRIDES, VIT_OVERRIDES, write_classes, write_image


def test_help_is_fast():
    """Under a second; the best of three, since other programs may be running."""

    def seconds():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "opencrate", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1


def test_help_names_every_command(opencrate):
    result = opencrate("--help")
    assert result.code == 0 and all(name in result.out for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(opencrate, command):
    result = opencrate(command, "--help")
    assert result.code == 0 and f"opencrate {command}" in result.out and result.err == ""


def test_version(opencrate):
    assert opencrate("--version").out.startswith("opencrate 0.")


def test_recipes_are_listed_one_line_each(opencrate):
    lines = opencrate("recipes").out.splitlines()
    for name in ("digits", "digits-vit", "imagefolder"):
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_print_config_is_the_resolved_recipe(opencrate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = opencrate("train", "digits", "--print-config", "training.seed=3", "model.config.pool=cls")
    assert result.out == recipe_yaml(load_recipe("digits", ["training.seed=3", "model.config.pool=cls"]))
    assert list(tmp_path.iterdir()) == []


def test_train_writes_a_run_with_report(digits_run):
    metrics = json.loads((digits_run / "metrics.json").read_text())
    assert metrics["epochs"] == 2 and metrics["accuracy"] > 0.5  # chance is 0.1
    report = (digits_run / "report.html").read_text()
    assert "<html" in report and 'src="http' not in report and "training.num_train_epochs=2" in report
    assert metrics["data"]["test"]["sha256"] in report and "360 held-out images of handwritten digits" in report


def test_default_run_directory(opencrate, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [*FOLDER_OVERRIDES, f"data.path={images}", "training.max_steps=1", "training.seed=4"]
    result = opencrate("train", "imagefolder", *overrides, "--no-report")
    assert result.code == 0 and result.err == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["imagefolder-seed4"]
    assert "runs/imagefolder-seed4" in result.out


def test_evaluate_gives_what_training_gave(opencrate, digits_run):
    result = opencrate("evaluate", digits_run, "--format", "json", "--batch-size", 100)
    assert result.code == 0 and result.err == ""
    found, metrics = json.loads(result.out), json.loads((digits_run / "metrics.json").read_text())
    assert found["top1"] == metrics["accuracy"]
    assert found["confusion"] == metrics["test"]["confusion"]
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_evaluate_prints_a_table(opencrate, digits_run):
    result = opencrate("evaluate", digits_run)
    metrics = json.loads((digits_run / "metrics.json").read_text())
    assert f"{100 * metrics['accuracy']:.2f} %" in result.out and "nats per image" in result.out


def test_evaluate_other_parts_and_other_data(opencrate, folder_run, tmp_path):
    train = json.loads(opencrate("evaluate", folder_run, "--split", "train", "--format", "json").out)
    assert train["num_images"] == 24 and train["labels"] == list(CLASSES)
    write_classes(tmp_path / "new", 2)
    new = json.loads(opencrate("evaluate", folder_run, "--data", tmp_path / "new", "--format", "json").out)
    assert new["num_images"] == 6
    assert opencrate("evaluate", folder_run, "--data", "digits").err.count("are not those of the model") == 1


def test_trained_folder_model_predicts_the_classes(opencrate, folder_run, tmp_path):
    for label, name in enumerate(CLASSES):
        write_image(tmp_path / "new" / f"{name}.png", label, seed=77)
    write_image(tmp_path / "one.png", 2, seed=78)
    result = opencrate("predict", folder_run, tmp_path / "new", tmp_path / "one.png", "--format", "json", "--top-k", 2)
    assert result.code == 0 and result.err == ""
    rows = json.loads(result.out)
    assert [row["file"] for row in rows] == [str(tmp_path / "new" / f"{n}.png") for n in CLASSES] + [
        str(tmp_path / "one.png")
    ]
    assert [row["predictions"][0]["label"] for row in rows] == [*CLASSES, "top"]
    for row in rows:
        first, second = (guess["probability"] for guess in row["predictions"])
        assert 1 >= first >= second >= 0 and first + second <= 1 + 1e-6


def test_predict_prints_a_table_and_batches_do_not_matter(opencrate, folder_run, images):
    one = opencrate("predict", folder_run, images, "--batch-size", 1).out
    many = opencrate("predict", folder_run, images).out
    assert one == many and one.count(".png") == 30


def test_pipeline_reads_a_run(folder_run, images):
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder_run))
    guess = classify(str(images / "top" / "0.png"))[0]
    assert guess["label"] in CLASSES and 1 / 3 < guess["score"] <= 1


def test_analyze_writes_the_report(opencrate, digits_run, tmp_path):
    output = tmp_path / "analysis"
    words = ("--num-images", 8, "--released-tool", "--output", output)
    result = opencrate("analyze", digits_run, *words)
    assert result.code == 0 and result.err == "" and str(output / "report.html") in result.out
    assert {"report.html", "layers.csv", "layers.json"} <= {path.name for path in output.iterdir()}
    (report,) = json.loads((output / "layers.json").read_text())
    assert set(report["series"]) == {"trained", "initialisation"}
    assert len((output / "layers.csv").read_text().splitlines()) > 2 * 2


def test_baseline_gets_a_report_too(opencrate, images, tmp_path):
    overrides = [*FOLDER_OVERRIDES, *VIT_OVERRIDES, f"data.path={images}", "training.max_steps=1"]
    result = opencrate("train", "imagefolder", *overrides, "--output", tmp_path / "vit")
    assert result.code == 0 and result.err == ""
    assert "confusion" in (tmp_path / "vit" / "report.html").read_text().lower()


def test_convert_there_and_back_is_bit_equal(opencrate, plain_crate, official_words, tmp_path):
    assert opencrate("convert", plain_crate, tmp_path / "official.pth", "--to-official").code == 0
    official = torch.load(tmp_path / "official.pth", weights_only=True)
    assert "transformer.layers.0.0.fn.qkv.weight" in official
    result = opencrate("convert", tmp_path / "official.pth", tmp_path / "folder", *official_words)
    assert result.code == 0 and result.err == ""
    before, after = (load_file(folder / "model.safetensors") for folder in (plain_crate, tmp_path / "folder"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = opencrate("convert", tmp_path / "folder", tmp_path / "again.safetensors", "--to-official")
    assert again.code == 0
    back = load_file(tmp_path / "again.safetensors")
    assert back.keys() == official.keys() and all(torch.equal(back[name], official[name]) for name in back)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module."])
def test_wrapped_checkpoints_convert(opencrate, plain_crate, official_words, tmp_path, wrapper):
    official = opencrate_package.to_official(open_saved(plain_crate, ("classifier",)).model)
    if wrapper == "module.":
        wrapped = {f"module.{name}": value for name, value in official.items()}
    else:
        wrapped = {wrapper: official, "epoch": 3}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    assert opencrate("convert", tmp_path / "wrapped.pth", tmp_path / "folder", *official_words).code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (plain_crate, tmp_path / "folder"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_convert_takes_config_fields(opencrate, plain_crate, official_words, tmp_path):
    assert opencrate("convert", plain_crate, tmp_path / "official.pth", "--to-official").code == 0
    words = ["convert", tmp_path / "official.pth", tmp_path / "folder", *official_words]
    assert opencrate(*words, "position_interpolation=scale", "ista_lambda=0.5").code == 0
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["position_interpolation"] == "scale" and config["ista_lambda"] == 0.5
    words[2] = tmp_path / "other"
    for field, message in (
        ("ista_lamda=1", "did you mean 'ista_lambda'?"),
        ("ista_lambda=abc", "ista_lambda='abc' is not allowed; it must be a number"),
    ):
        result = opencrate(*words, field)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1
        assert not (tmp_path / "other").exists()


def test_converted_folder_predicts_and_analyzes(opencrate, plain_crate, official_words, images, tmp_path):
    assert opencrate("convert", plain_crate, tmp_path / "official.pth", "--to-official").code == 0
    assert opencrate("convert", tmp_path / "official.pth", tmp_path / "folder", *official_words).code == 0
    result = opencrate("predict", tmp_path / "folder", images / "top" / "0.png", "--format", "json", "--top-k", 9)
    guesses = json.loads(result.out)[0]["predictions"]
    assert sorted(guess["label"] for guess in guesses) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    for label, name in enumerate(CLASSES):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"LABEL_{label}").symlink_to(images / name)
    result = opencrate("analyze", tmp_path / "folder", "--data", tmp_path / "data", "--num-images", 4)
    assert result.code == 0 and result.err == ""
    assert (tmp_path / "folder" / "analysis" / "report.html").is_file()


def test_demo_trains_both_and_reports(opencrate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = opencrate("demo", "training.max_steps=2", "model.config.num_hidden_layers=1")
    assert result.code == 0 and result.err.splitlines()[-1] == "opencrate: measuring and writing the report ..."
    for name in demo_module.RECIPES:
        metrics = json.loads((tmp_path / "runs" / "demo" / name / "metrics.json").read_text())
        machine = json.loads((tmp_path / "runs" / "demo" / name / "environment.json").read_text())
        assert machine["torch_threads"] == 1, "or the accuracy depends on the number of cores"
        line = next(line for line in result.out.splitlines() if line.split()[:1] == [name])
        assert f"{100 * metrics['accuracy']:.2f} %" in line and f"{metrics['parameters']:,}" in line
    report = (tmp_path / "runs" / "demo" / "report.html").read_text()
    assert "attention + MLP (digits-vit-like)" in report and "runs/demo/report.html" in result.out
    low, high = (100 * end for end in metrics["test"]["top1_interval_95"])
    assert f"{low:.1f} to {high:.1f} %" in line and "the intervals" in result.out


def test_interrupted_is_130(monkeypatch, capfd):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["recipes"], "run", interrupted)
    assert main(["recipes"]) == 130
    assert capfd.readouterr().err == "opencrate: interrupted\n"


@pytest.mark.parametrize(("debug", "lines"), [(False, 1), (True, 5)])
def test_failed_run_is_1_with_traceback_on_request(monkeypatch, capfd, debug, lines):
    def failing(arguments):
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr(COMMANDS["recipes"], "run", failing)
    assert main(["recipes", *(["--debug"] if debug else [])]) == 1
    error = capfd.readouterr().err
    assert "opencrate: failed: RuntimeError: the disk is on fire" in error
    assert len(error.splitlines()) == 1 if lines == 1 else len(error.splitlines()) >= lines


def test_full_disk_is_1_and_one_line(monkeypatch, capfd):
    def failing(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(COMMANDS["recipes"], "run", failing)
    assert main(["recipes"]) == 1
    assert capfd.readouterr().err == "opencrate: failed: no space left on device; check the files and the disk\n"


def test_interruption_says_how_to_go_on(monkeypatch, capfd):
    def interrupted(arguments):
        raise KeyboardInterrupt("saved in runs/x; --resume continues")

    monkeypatch.setattr(COMMANDS["recipes"], "run", interrupted)
    assert main(["recipes"]) == 130
    assert capfd.readouterr().err == "opencrate: interrupted: saved in runs/x; --resume continues\n"
