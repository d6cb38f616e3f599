"""Fine-tuning, smoke forms, resuming and interruption from the command line."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from ..recipes.folders import CLASSES, FOLDER_OVERRIDES, write_classes

SHORT = ("training.max_steps=2", "training.per_device_train_batch_size=8", "training.save_strategy=no")
SIZES = ("data.image_size=16", "data.resize_size=null")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Images of two classes that `folder_run` does not know."""
    root = tmp_path_factory.mktemp("others")
    write_classes(root, 6)
    (root / "bottom").rename(root / "low")
    (root / "middle").rename(root / "high")
    for file in (root / "top").iterdir():
        file.unlink()
    (root / "top").rmdir()
    return root


def test_finetune_starts_from_a_run_and_says_what_is_new(opencrate, folder_run, others, tmp_path):
    words = ["finetune", folder_run, "imagefolder", f"data.path={others}", *SHORT, *SIZES]
    result = opencrate(*words, "training.learning_rate=0", "training.weight_decay=0", "--output", tmp_path / "run")
    assert result.code == 0
    assert "new: classifier.weight, classifier.bias; left out: classifier.bias, classifier.weight" in result.err
    assert result.err.count("\n") == 1 and f"initialised from {folder_run}" in result.err
    before, after = (load_file(folder / "model.safetensors") for folder in (folder_run, tmp_path / "run"))
    assert before.keys() == after.keys() and after["classifier.weight"].shape[0] == 2
    same = [name for name in before if name not in ("classifier.weight", "classifier.bias")]
    assert all(torch.equal(before[name], after[name]) for name in same), "nothing moved at learning rate 0"
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())["initialisation"]
    assert sorted(record["loaded"]) == sorted(same) and record["source"] == str(folder_run)
    assert (tmp_path / "run" / "report.html").is_file()


def test_finetune_from_a_converted_checkpoint_at_another_size(opencrate, plain_crate, official_words, others, tmp_path):
    assert opencrate("convert", plain_crate, tmp_path / "official.pth", "--to-official").code == 0
    assert opencrate("convert", tmp_path / "official.pth", tmp_path / "folder", *official_words).code == 0
    words = ["finetune", tmp_path / "folder", "imagefolder", f"data.path={others}", *SHORT]
    result = opencrate(*words, "data.image_size=32", "data.resize_size=36", "--no-report", "--output", tmp_path / "run")
    assert result.code == 0 and "positions interpolated from 4x4 to 8x8 patches" in result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["initialisation"]["interpolated"] == ["crate.embeddings.position_embeddings"]


def test_finetune_print_config_is_a_train_recipe(opencrate, folder_run, tmp_path):
    result = opencrate("finetune", folder_run, "transfer-pets", "--print-config", "training.seed=4")
    (tmp_path / "again.yaml").write_text(result.out)
    assert opencrate("train", tmp_path / "again.yaml", "--print-config").out == result.out
    assert f"init_from: {folder_run}" in result.out and "size: null" in result.out and "seed: 4" in result.out


def test_fine_tuned_run_is_analyzed_against_its_start_or_says_that_it_is_gone(opencrate, folder_run, others, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder_run, source)
    words = ["finetune", source, "imagefolder", f"data.path={others}", *SHORT, *SIZES, "--no-report"]
    assert opencrate(*words, "--output", tmp_path / "run").code == 0
    words = ("analyze", tmp_path / "run", "--num-images", 2, "--output")
    assert opencrate(*words, tmp_path / "with").err == ""
    shutil.rmtree(source)
    result = opencrate(*words, tmp_path / "without")
    assert result.code == 0 and "untrained model" in result.err and f"{source}: no such folder" in result.err
    one, other = (
        json.loads((tmp_path / name / "layers.json").read_text())[0]["series"] for name in ("with", "without")
    )
    assert one["trained"] == other["trained"] and one["initialisation"] != other["initialisation"]


@pytest.mark.parametrize(
    ("model", "overrides", "words"),
    [
        ("nowhere", (), ["nowhere: no such folder"]),
        (None, ("model.config.hidden_size=48",), ["does not fit", "has shape", "model.init_fresh"]),
        (None, ("model.init_fresh=[hed]",), ["init_fresh", "'hed'"]),
    ],
)
def test_finetune_refuses_what_does_not_fit(opencrate, folder_run, others, tmp_path, model, overrides, words):
    line = ["finetune", model or folder_run, "imagefolder", f"data.path={others}", *SHORT, *SIZES, *overrides]
    result = opencrate(*line, "--output", tmp_path / "run")
    assert result.code == 2 and result.err.count("\n") == 1 and all(word in result.err for word in words), result.err
    assert list(tmp_path.iterdir()) == []


def test_smoke_form_from_the_command_line(opencrate, images, tmp_path):
    words = ["train", "imagenet-tiny-paper", f"data.path={images}", "--smoke", "--no-report"]
    result = opencrate(*words, "--output", tmp_path / "run")
    assert result.code == 0 and result.err == ""
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2
    printed = opencrate("train", "imagenet-tiny-paper", "--smoke", "--print-config", "training.max_steps=3").out
    assert "max_steps: 3" in printed and "image_size: 32" in printed and "smoke" not in printed


def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(opencrate, tmp_path):
    saving = ("training.save_strategy=steps", "training.save_steps=1", "training.max_steps=25")
    words = ["train", "digits", "model.config.num_hidden_layers=1", *saving, "--output", str(tmp_path / "run")]
    command = [sys.executable, "-m", "opencrate", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "run.partial" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.startswith("opencrate: interrupted: stopped at step ") and "--resume" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    step = int(err.split("stopped at step ")[1].split(",")[0])

    assert "unfinished run" in opencrate(*words).err
    other = opencrate(*words, "--resume", "training.seed=1")
    assert other.code == 2 and "training.seed was 0, now 1" in other.err
    result = opencrate(*words, "--resume", "training.save_steps=1", "--no-report")
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 25 and step < 25
    assert f"resuming at step {step}" in result.err and not (tmp_path / "run.partial").exists()


def test_resume_and_overwrite_contradict_each_other(opencrate):
    result = opencrate("train", "digits", "--resume", "--overwrite")
    assert result.code == 2 and "give one of them" in result.err


def bad_images(root):
    """Three classes of ten images, two of which are damaged; their paths."""
    write_classes(root, 10)
    broken = [root / CLASSES[0] / "3.png", root / CLASSES[2] / "5.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:150])
    broken[1].write_text("no image")
    return broken


def test_skip_bad_trains_and_evaluates_on_the_rest(opencrate, tmp_path):
    broken = bad_images(tmp_path / "images")
    words = ["train", "imagefolder", *FOLDER_OVERRIDES, f"data.path={tmp_path / 'images'}", "--no-report"]
    refused = opencrate(*words, "--output", tmp_path / "run")
    assert refused.code == 2 and not (tmp_path / "run").exists()
    result = opencrate(*words, "--skip-bad", "--output", tmp_path / "run")
    assert result.code == 0
    assert all(f"skipped {file}: not a readable image" in result.err for file in broken)
    assert "skipped 2 images" in result.err and result.err.count("\n") == 3
    data = json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]
    assert data["train"]["images"] + data["test"]["images"] == 28 and len(data["skipped"]) == 2

    again = opencrate("evaluate", tmp_path / "run", "--format", "json")
    assert again.code == 0 and json.loads(again.out)["num_images"] == data["test"]["images"]
    assert again.err == "opencrate: left out 2 images that the training skipped\n"
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    other = ["evaluate", tmp_path / "run", "--data", tmp_path / "copy", "--format", "json"]
    assert opencrate(*other).code == 2
    result = opencrate(*other, "--skip-bad")
    assert result.code == 0 and json.loads(result.out)["num_images"] == 28 and "skipped 2 images" in result.err
