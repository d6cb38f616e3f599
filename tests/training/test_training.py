"""Training: reproducible, in one data order, and complete or not there at all."""

import importlib
import json
import math
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from opencrate.store import environment, runs
from opencrate.store.build import build_config, initialise
from opencrate.store.saved import open_saved
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer

from ..recipes.folders import VIT_OVERRIDES
from .common import WHITENED

training_module = importlib.import_module("opencrate.training.train")  # the function has its name
SHORT = "training.max_steps=2"


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def short_run(small, tmp_path_factory):
    return train(small(SHORT), tmp_path_factory.mktemp("training") / "run")


def test_run_directory_is_complete(short_run):
    names = {path.name for path in short_run.directory.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "recipe.yaml",
        "metrics.json",
        "environment.json",
        "log.jsonl",
    } <= names
    assert "checkpoints" not in names
    assert not short_run.directory.with_name("run.partial").exists()


def test_metrics_say_what_happened(short_run):
    metrics = json.loads((short_run.directory / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(short_run.metrics))
    assert metrics["steps"] == 2 and metrics["seed"] == 0 and metrics["seconds"] > 0
    assert metrics["accuracy"] == metrics["test"]["top1"] and metrics["test"]["num_images"] == 6
    model = open_saved(short_run.directory, ("classifier",)).model
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["data"]["train"]["images"] == 24 and len(metrics["data"]["test"]["sha256"]) == 64
    assert all(math.isfinite(row["train_loss"]) for row in metrics["history"])


def test_a_run_keeps_the_commit_that_it_began_with(monkeypatch):
    """A commit made while it trains is not its own: the code is that of the start."""
    commits = iter(["first", "", "second", ""])
    answers = {"ls-files": lambda: "", "rev-parse": lambda: next(commits), "status": lambda: next(commits)}

    def git(command, **settings):
        return subprocess.CompletedProcess(command, 0, answers[command[3]](), "")

    monkeypatch.setattr(environment.subprocess, "run", git)
    environment._commit.cache_clear()
    try:
        assert [environment.environment()["commit"] for _ in range(2)] == ["first", "first"]
    finally:
        environment._commit.cache_clear()


def test_log_and_environment(short_run):
    lines = [json.loads(line) for line in (short_run.directory / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    made_with = json.loads((short_run.directory / "environment.json").read_text())
    assert made_with["torch"] == torch.__version__
    assert made_with["torch_threads"] == torch.get_num_threads()


def test_same_seed_same_weights_other_seed_other_weights(small, short_run, tmp_path):
    again = train(small(SHORT), tmp_path / "again")
    other = train(small(SHORT, "training.seed=1"), tmp_path / "other")
    first, second, third = (load_file(run.directory / "model.safetensors") for run in (short_run, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    assert again.metrics["loss"] == short_run.metrics["loss"]


@pytest.mark.parametrize("more", [(), WHITENED], ids=["seed", "whitened"])
def test_model_at_initialisation_is_rebuilt_exactly(small, more, monkeypatch, tmp_path):
    started_with = {}
    fit = training_module._fit

    def recorded(recipe, parts, *arguments):
        started_with.update({name: value.clone() for name, value in parts.model.state_dict().items()})
        return fit(recipe, parts, *arguments)

    monkeypatch.setattr(training_module, "_fit", recorded)
    run = train(small(SHORT, "training.seed=5", *more), tmp_path / "run")
    torch.rand(7)  # whatever happens in between
    rebuilt = runs.initial_model(run.directory).state_dict()
    trained = load_file(run.directory / "model.safetensors")
    assert rebuilt.keys() == started_with.keys()
    assert all(torch.equal(rebuilt[name], started_with[name]) for name in rebuilt)
    assert any(not torch.equal(rebuilt[name], trained[name]) for name in trained)
    other = runs.initial_model(run.directory, seed=6).state_dict()
    kept = {name for name in other if torch.equal(other[name], rebuilt[name])}
    assert any("patch_embeddings.projection.weight" in name for name in kept) == bool(more) and len(kept) < len(other)
    start = run.directory / runs.START
    assert start.is_file() == runs.read_recipe(run.directory).model.starts_whitened
    if start.is_file():  # a copied run without it would be compared with a network that never was
        start.unlink()
        with pytest.raises(ValueError, match=r"start\.safetensors: missing; it holds the whitened patch embedding"):
            runs.initial_model(run.directory)


def recorded_batches(monkeypatch, recipe, directory):
    """Every training batch in the order in which the model sees it."""
    seen = []
    original = RecipeTrainer.training_step

    def step(self, model, inputs, *arguments, **options):
        seen.append(inputs["pixel_values"].clone())
        return original(self, model, inputs, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(RecipeTrainer, "training_step", step)
        train(recipe, directory)
    return seen


def test_crate_and_vit_see_the_same_batches(small, monkeypatch, tmp_path):
    epochs = "training.num_train_epochs=2"
    one = recorded_batches(monkeypatch, small(epochs), tmp_path / "crate")
    other = recorded_batches(monkeypatch, small(*VIT_OVERRIDES, epochs), tmp_path / "vit")
    assert len(one) == len(other) == 6
    assert all(torch.equal(first, second) for first, second in zip(one, other))
    first_epoch, second_epoch = torch.cat(one[:3]), torch.cat(one[3:])
    assert not torch.equal(first_epoch, second_epoch), "the second epoch must have another order"
    sums = [epoch.sum((1, 2, 3)).sort().values for epoch in (first_epoch, second_epoch)]
    assert torch.equal(*sums), "both epochs must hold every image once"


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.bf16=true"],
        ["optimiser.optim=sgd", "training.label_smoothing_factor=0.1"],
        ["training.gradient_accumulation_steps=2", "training.lr_scheduler_type=constant_with_warmup"],
        ["data.validation_fraction=0.25"],
        ["model.config.pool=cls", "training.dataloader_num_workers=1"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_options_train(small, overrides, tmp_path):
    run = train(small(SHORT, *overrides), tmp_path / "run")
    assert math.isfinite(run.metrics["loss"])
    if "data.validation_fraction=0.25" in overrides:
        assert run.metrics["data"]["validation"]["images"] == 6
        assert 0 <= run.metrics["history"][-1]["validation_accuracy"] <= 1


def test_finished_run_is_kept_unless_overwritten(small, tmp_path):
    run = train(small(SHORT), tmp_path / "run")
    before = (run.directory / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=r"exists.*overwrite=True"):
        train(small(SHORT), run.directory)
    assert (run.directory / "metrics.json").read_bytes() == before
    train(small(SHORT, "training.seed=3"), run.directory, overwrite=True)
    assert runs.read_metrics(run.directory)["seed"] == 3
    assert files_below(tmp_path)[0] == "run" and {path.name for path in tmp_path.iterdir()} == {"run"}


def test_folder_of_somebody_else_is_never_replaced(small, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is not a run or model directory"):
        train(small(SHORT), tmp_path / "photos", overwrite=True)
    assert files_below(tmp_path) == ["photos", "photos/holiday.txt"]


def test_unfinished_run_of_another_process_is_left_alone(small, tmp_path):
    (tmp_path / "run.partial").mkdir()
    with pytest.raises(ValueError, match="unfinished run"):
        train(small(SHORT), tmp_path / "run")
    assert files_below(tmp_path) == ["run.partial"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failed_run_leaves_nothing_or_its_checkpoints(small, error, monkeypatch, tmp_path):
    original = RecipeTrainer.training_step

    def step(self, *arguments, **options):
        if self.state.global_step == 2:
            raise error("in the middle")
        return original(self, *arguments, **options)

    monkeypatch.setattr(RecipeTrainer, "training_step", step)
    with pytest.raises(error):
        train(small("training.max_steps=4"), tmp_path / "run")
    assert files_below(tmp_path) == []
    saving = ("training.save_strategy=steps", "training.save_steps=1")
    with pytest.raises(error):
        train(small("training.max_steps=4", *saving), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert load_file(tmp_path / "run.partial" / "checkpoints" / "checkpoint-2" / "model.safetensors")


def test_diverging_run_stops_and_says_so(small, tmp_path):
    recipe = small("training.learning_rate=1e6", "training.warmup_steps=0", "training.num_train_epochs=3")
    with pytest.raises(FloatingPointError, match="not finite at step"):
        train(recipe, tmp_path / "run")
    assert files_below(tmp_path) == []


def test_bad_recipe_writes_nothing(small, tmp_path):
    with pytest.raises(ValueError, match="hiden_size"):
        train(small("model.config.hiden_size=3"), tmp_path / "run")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("problem", ["missing", "extra", "shape", "damaged"])
def test_weights_must_fit_exactly(small, problem, tmp_path):
    from safetensors.torch import save_file

    model = initialise(build_config(small(), ["a", "b"]), 0)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if problem == "missing":
        weights.pop("classifier.bias")
    elif problem == "extra":
        weights["stranger"] = torch.zeros(3)
    elif problem == "shape":
        weights["classifier.bias"] = torch.zeros(5)
    save_file(weights, file, {"format": "pt"})
    if problem == "damaged":
        file.write_bytes(file.read_bytes()[:100])
    from opencrate.image_processing_crate import CrateImageProcessor

    CrateImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as caught:
        open_saved(tmp_path, ("classifier",))
    words = {"missing": "missing: classifier.bias", "extra": "stranger", "shape": "another shape", "damaged": ""}
    assert words[problem] in str(caught.value)
    assert str(tmp_path) in str(caught.value)
