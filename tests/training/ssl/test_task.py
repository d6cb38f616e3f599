"""The task `self-supervised`: what a run leaves and logs, collapse on purpose, and what is refused."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from opencrate.recipe.load import load_recipe
from opencrate.store.runs import initial_model
from opencrate.store.saved import open_saved
from opencrate.training.callbacks import TaskCallback
from opencrate.training.optimizers import build_optimizer
from opencrate.training.ssl.schedule_callback import Schedules
from opencrate.training.ssl.schedules import cosine
from opencrate.training.tasks import task_of
from opencrate.training.train import train
from opencrate.training.trainer_members import OpenTrainer

from ..common import assert_same_run
from .test_learner import batch, learner

VIEWS = (
    "task=self-supervised",
    "training.label_smoothing_factor=0",
    *("views.local_views=1", "views.local_size=8", "ssl.head_hidden=16"),
)
DINO = ("ssl.prototypes=16", "ssl.bottleneck=8")
SIMDINO = ("ssl.objective=simdino", "ssl.bottleneck=8")
DIGITS = (
    *("task=self-supervised", "views.local_views=1", "views.local_size=4", *DINO, "ssl.head_hidden=16"),
    *("model.config={hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 4, patch_size: 2}", "model.size=null"),
    *("training.max_steps=25", "data.validation_fraction=0.3", "ssl.evaluate_images=100", "ssl.teacher_momentum=0.9"),
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """1,005 training images in batches of 64: 15 steps an epoch, and 45 images left over."""
    return train(load_recipe("digits", DIGITS), tmp_path_factory.mktemp("ssl") / "digits")


def test_metrics(digits):
    found = digits.metrics
    assert [row["step"] for row in found["history"]] == [15, 25], "the incomplete batch is left out"
    for name in ("knn", "knn_majority", "linear", "linear_patches", "linear_last_two"):
        assert 0.5 < found[name] <= 1 and 0.5 < found["untrained"][name] <= 1, name
        assert found["test"][name]["accuracy"] == found[name] and found["test"][name]["test_images"] == 360
    assert found["test"]["knn"]["weights"] == "exp" and found["test"]["knn_majority"]["weights"] == "equal"
    assert found["test"]["linear"]["train_images"] == 1005 and found["test"]["linear_last_two"]["width"] == 48
    seen = found["self_supervision"]
    assert (seen["objective"], seen["images"], seen["split"]) == ("dino", 432, "validation")
    assert [row["step"] for row in seen["history"]] == list(range(26)), "every step of a run of 25"
    assert seen["history"][0].keys() < seen["history"][1].keys()
    assert seen["history"][1]["teacher_temperature"] == 0.04 and seen["history"][0]["teacher_momentum"] == 0.9
    assert seen["history"][25]["teacher_momentum"] == pytest.approx(cosine(24, 25, 0.9, 1.0))
    assert [(row["epoch"], row["step"]) for row in seen["evaluations"]] == [(0, 0), (1, 15), (pytest.approx(5 / 3), 25)]
    names = [reading["name"] for reading in seen["readings"]]
    assert names == ["teacher entropy", "batch entropy", "effective rank"], "the spread of logits says nothing"
    assert all(reading["healthy"] for reading in seen["readings"])
    lines = [json.loads(line) for line in (digits.directory / "log.jsonl").read_text().splitlines()]
    assert sum("self_supervision" in line for line in lines) == 26 + 3
    assert "untrained" in task_of("self-supervised").outcome(found) and "k-NN" in task_of("self-supervised").outcome(
        found
    )


def test_loss_in_the_log_is_the_mean_of_the_steps(digits):
    rows = digits.metrics["self_supervision"]["history"][1:16]
    mean = sum(row["cross_entropy"] for row in rows) / 15
    assert digits.metrics["history"][0]["train_loss"] == pytest.approx(mean, rel=1e-5)


def test_model_is_the_teacher_with_student_and_heads_beside_it(digits):
    saved = open_saved(digits.directory)
    assert saved.kind == "features" and saved.model.config.num_labels == 0 and saved.label_names == []
    student = AutoModelForImageClassification.from_config(saved.model.config)
    student.load_state_dict(load_file(digits.directory / "student.safetensors"))
    different = [not torch.equal(a, b) for a, b in zip(student.parameters(), saved.model.parameters())]
    assert all(different)
    heads = load_file(digits.directory / "head.safetensors")
    assert {name.partition(".")[0] for name in heads} == {"student_head", "teacher_head"}
    before = initial_model(digits.directory)
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), saved.model.parameters()) if a.ndim > 1)
    white_box = digits.metrics["white_box"]["history"]
    assert white_box[0]["step"] == 0 and white_box[-1]["step"] == 25


@pytest.mark.parametrize("objective", ["lejepa", "simclr", "vicreg", "simdino"])
def test_other_objectives_train(small, objective, tmp_path):
    alone = ("views.local_views=0",) if objective in ("simclr", "vicreg") else ()
    more = ("ssl.bottleneck=8", "ssl.group_size=4") if objective == "simdino" else ("ssl.features=8",)
    recipe = small(*VIEWS, f"ssl.objective={objective}", *more, *alone, "optimiser.optim=muon")
    run = train(recipe, tmp_path / "run")
    assert run.metrics["steps"] == 3 and "knn" not in run.metrics and "validation" not in run.metrics["data"]
    assert (tmp_path / "run" / "student.safetensors").exists() == (objective == "simdino")
    assert "no labels" in task_of("self-supervised").outcome(run.metrics)


def test_resumed_by_signal_is_the_same_run(small, tmp_path, monkeypatch):
    """In the middle of an epoch, of a ViT, whose checkpoints are written by its state dict."""
    vit = "{hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 24, patch_size: 4}"
    words = ("model.type=vit", f"model.config={vit}", "training.max_steps=30", "ssl.weight_decay_end=0.4")
    recipe = small(*VIEWS, *DINO, *words)
    train(recipe, tmp_path / "whole")

    def stop(self, args, state, control, **kwargs):
        self._stopping = control.should_save = state.global_step == 13

    with monkeypatch.context() as patched:
        patched.setattr("opencrate.training.callbacks.StopSignals.on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped")
    with pytest.raises(
        ValueError, match=r"cannot resume with another recipe: ssl\.objective was 'dino', now 'simdino'"
    ):
        other = replace(recipe, ssl=replace(recipe.ssl, objective="simdino"))
        train(other, tmp_path / "stopped", resume=True)
    assert train(recipe, tmp_path / "stopped", resume=True).metrics["resumed_at"] == [13]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


COLLAPSES = {
    "uniform": (*DINO, "ssl.teacher_temperature=100", "ssl.student_temperature=10"),
    "one-hot": (*DINO, "ssl.centre_momentum=1", "ssl.teacher_momentum=0", "ssl.teacher_temperature=0.01"),
    "constant": (*SIMDINO, "ssl.expansion_weight=0", "ssl.teacher_momentum=0.9"),
}
KNOBS = {"uniform": "temperature", "one-hot": "centre", "constant": "expansion"}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_collapse_on_purpose_is_named_in_the_first_tenth(small, kind, tmp_path, caplog):
    end = ("ssl.teacher_temperature_epochs=0",) if kind != "constant" else ()
    words = ("training.max_steps=100", "training.warmup_steps=0", "training.learning_rate=0.01", *end)
    with caplog.at_level(logging.WARNING):
        run = train(small(*VIEWS, *COLLAPSES[kind], *words), tmp_path / "run")
    found = run.metrics["self_supervision"]["collapsed"]
    assert found["kind"] == kind and found["step"] <= 10 and KNOBS[kind] in found["advice"]
    warnings = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(warnings) == 1 and kind in warnings[0] and KNOBS[kind] in warnings[0]
    assert f"collapsed ({kind})" in task_of("self-supervised").outcome(run.metrics)


def test_a_healthy_run_is_not_called_collapsed(small, tmp_path, caplog):
    words = (*DINO, "training.max_steps=60", "training.warmup_steps=0", "ssl.teacher_temperature_epochs=0")
    run = train(small(*VIEWS, *words), tmp_path / "run")
    assert run.metrics["self_supervision"]["collapsed"] is None and "collapsed" not in caplog.text


def test_schedules():
    one = learner(clip_each=0.25, freeze_last_layer_epochs=1, teacher_momentum=0.5, weight_decay_end=0.4)
    recipe = load_recipe("digits", ["task=self-supervised", "training.weight_decay=0.04"])
    recipe = replace(recipe, ssl=one.given)
    optimizer, schedules = build_optimizer(one, recipe), Schedules(one, recipe)
    assert isinstance(schedules, TaskCallback)
    decays, frozen, last = [], [], one.student_head.last_parameters()[1]
    for step in range(4):
        state = SimpleNamespace(global_step=step, max_steps=4)
        schedules.on_step_begin(None, state, None, optimizer=optimizer, train_dataloader=range(2))
        assert (one.step, one.epoch) == (step, step // 2)
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
        one.zero_grad()
        (1000 * one(**batch())[0]).backward()
        schedules.on_pre_optimizer_step(None, state, None)
        frozen.append(last.grad is None)
        norms = [value.grad.norm() for value in one.parameters() if value.grad is not None]
        assert max(norms) <= 0.2501
        optimizer.step()
        before = [value.clone() for value in one.teacher.parameters()]
        schedules.on_optimizer_step(None, state, None)
        share = 1 - cosine(step, 4, 0.5, 1.0)
        for old, new, student in zip(before, one.teacher.parameters(), one.student.parameters()):
            torch.testing.assert_close(new, old + share * (student - old))
    assert decays == [[pytest.approx(cosine(step, 4, 0.04, 0.4)), 0.0] for step in range(4)]
    assert frozen == [True, True, False, False]


def test_parts_of_a_data_set_without_labels(tmp_path):
    from ...recipes.folders import FOLDER_OVERRIDES, write_classes

    folder = write_classes(tmp_path / "images", 3)
    for path in folder.glob("*/*.png"):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    for path in folder.iterdir():
        if path.is_dir():
            path.rmdir()
    recipe = load_recipe("imagefolder", [*FOLDER_OVERRIDES, f"data.path={folder}", *VIEWS, *DINO])
    parts = task_of("self-supervised").build(recipe, skip_bad=False)
    assert parts.untrained is None and parts.test is None and parts.evaluated is None and len(parts.monitored) == 7
    assert task_of("self-supervised").test(parts.model, parts, recipe) == {}


REFUSED = {
    "model.type": (["model.type=swin", "model.config={}"], r"model\.type=swin: task self-supervised trains crate, vit"),
    "accumulation": (["training.gradient_accumulation_steps=2"], r"accumulation_steps=2: must be 1 for task self"),
    "smoothing": (["training.label_smoothing_factor=0.1"], r"label_smoothing_factor=0\.1: must be 0 for task self"),
    "average": (["optimiser.ema_decay=0.9"], r"ema_decay=0\.9: must be 0 .*the teacher"),
    "images": (["training.per_device_train_batch_size=25"], r"24 training images are fewer than a global batch of 25"),
    "local size": (["views.local_size=6"], r"views\.local_size=6: must be a multiple of the patch"),
    "below a patch": (
        ["views.local_size=2"],
        r"local_size=2: must be a multiple of the patch \(4x4 pixels\) and at most",
    ),
    "above the image": (["views.local_size=20"], r"local_size=20: must be .* at most data\.image_size \(16x16\)"),
}


BATCHES = {
    "one image": (
        ["ssl.objective=lejepa", "training.per_device_train_batch_size=1"],
        r"per_device_train_batch_size=1: must be at least 2 for ssl\.objective=lejepa, which compares images",
    ),
    "groups": (
        ["ssl.objective=simdino", "ssl.group_size=5"],
        r"ssl\.group_size=5: must divide the global batch of 8 images \(training\.per_device_train_batch_size=8\)",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_an_objective_cannot_compare_are_refused_before_training(small, name, tmp_path, monkeypatch):
    overrides, message = BATCHES[name]
    monkeypatch.setattr(OpenTrainer, "train", None)
    with pytest.raises(ValueError, match=message):
        train(small(*VIEWS, *overrides), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_one_image_is_a_batch_for_dino(small, tmp_path):
    """Which compares the views of each image alone."""
    assert train(
        small(*VIEWS, *DINO, "training.per_device_train_batch_size=1", "training.max_steps=2"), tmp_path / "run"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(small, name, tmp_path):
    overrides, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        train(small(*VIEWS, *DINO, *overrides), tmp_path / "run")
    assert not list(tmp_path.iterdir())


REFUSED_WHEN_READ = {
    "mixup": (["augmentation.mixup=0.5"], r"'augmentation\.mixup' is set, but task self-supervised reads nothing of"),
    "prototypes": (["ssl.prototypes=0"], r"'ssl\.prototypes' .*at least 2"),
    "unread": (
        ["ssl.sigreg_weight=0.1"],
        r"'ssl\.sigreg_weight' is set, but only lejepa reads it, and .* is dino; .* 0\.05",
    ),
    "unread by two": (["ssl.objective=lejepa", "ssl.bottleneck=8"], r"only dino and simdino read it"),
    "no teacher": (
        ["ssl.objective=lejepa", "ssl.teacher_momentum=0.9"],
        r"'ssl\.teacher_momentum' .*no teacher; .* 0\.996, its",
    ),
    "no view": (["views.global_views=0"], r"'views\.global_views' must be a whole number of at least 1"),
    "no features": (["ssl.objective=lejepa", "ssl.features=0"], r"'ssl\.features' must be .*at least 1"),
    "no bottleneck": (["ssl.objective=simdino", "ssl.bottleneck=0"], r"'ssl\.bottleneck' must be .*at least 1"),
    "one view": (["views.global_views=1", "views.local_views=0"], r"views\.local_views=0: must be at least 1"),
    "local": (
        ["ssl.objective=simclr"],
        r"'views\.local_views' must be 0 for ssl\.objective=simclr, which compares two",
    ),
    "global": (
        ["ssl.objective=vicreg", "views.global_views=1"],
        r"'views\.global_views' must be 2 for ssl\.objective=vicreg, which compares two",
    ),
    "other task": (["task=image-classification", "ssl.objective=simdino"], r"'ssl\.objective' is set, but task image-"),
}


@pytest.mark.parametrize("name", REFUSED_WHEN_READ)
def test_recipes_that_contradict_themselves_are_refused(name):
    overrides, message = REFUSED_WHEN_READ[name]
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", ["task=self-supervised", *overrides])


def test_sharded_weights_are_refused(small, monkeypatch, tmp_path):
    original = OpenTrainer.__init__

    def sharded(self, *arguments, **options):
        original(self, *arguments, **options)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(OpenTrainer, "__init__", sharded)
    with pytest.raises(ValueError, match="cannot be trained with sharded weights"):
        train(small(*VIEWS, *DINO), tmp_path / "run")


def test_start_from_another_architecture_is_refused(digits, tmp_path):
    vit = ["model.type=vit", "model.config={}", f"model.init_from={digits.directory}"]
    with pytest.raises(ValueError, match=r"holds a crate model, but model\.type is vit"):
        train(load_recipe("digits", [*DIGITS, *vit]), tmp_path / "run")


def test_starts_from_its_own_weights_and_leaves_a_start_for_a_classifier(digits, tmp_path):
    source = f"model.init_from={digits.directory}"
    run = train(
        load_recipe("digits", [*DIGITS, source, "training.max_steps=1", "data.validation_fraction=0"]), tmp_path / "a"
    )
    assert run.metrics["initialisation"]["new"] == [] and run.metrics["initialisation"]["left_out"] == []
    size = "model.config={hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 4, patch_size: 2}"
    recipe = load_recipe("digits", [source, "model.size=null", size, "training.max_steps=1"])
    run = train(recipe, tmp_path / "b")
    assert run.metrics["initialisation"]["new"] == ["classifier.weight", "classifier.bias"]


def test_prototypes_follow_the_first_epoch(digits, small, tmp_path):
    """DINO's last layer stands still for an epoch of three steps, then moves."""
    found = {}
    for steps in (3, 4):
        run = train(
            small(*VIEWS, *DINO, f"training.max_steps={steps}", "training.weight_decay=0"), tmp_path / f"{steps}"
        )
        heads = load_file(run.directory / "head.safetensors")
        found[steps] = {name: value for name, value in heads.items() if name.endswith("original1")}
    first, second = found[3], found[4]
    name = "student_head.last_layer.parametrizations.weight.original1"
    assert torch.equal(first[name], first[name.replace("student", "teacher")])
    assert not torch.equal(first[name], second[name])


def test_a_finished_run_is_not_extended(small, tmp_path):
    words = (*VIEWS, *DINO, "training.save_strategy=epoch", "training.lr_scheduler_type=constant")
    train(small(*words), tmp_path / "run")
    with pytest.raises(ValueError, match="cannot continue as a longer run, since the teacher's momentum"):
        train(small(*words, "training.num_train_epochs=2"), tmp_path / "run", resume=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("objective", ["dino", "simdino", "lejepa"])
def test_a_run_on_a_gpu(objective, tmp_path):
    """Its losses are those of a CPU, its checkpoints resume, and its evaluation is where the model is."""
    alone = [word for word in DIGITS if word not in DINO]
    own = {"dino": DINO, "simdino": SIMDINO, "lejepa": ("ssl.objective=lejepa", "ssl.features=8")}[objective]
    words = [word for word in alone if objective != "lejepa" or "teacher_momentum" not in word]
    run = train(load_recipe("digits", [*words, *own, "training.max_steps=4"]), tmp_path / "gpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.accelerator.is_available", lambda: False)
        other = train(load_recipe("digits", [*words, *own, "training.max_steps=4"]), tmp_path / "cpu")
    first, second = (one.metrics["history"][-1]["train_loss"] for one in (run, other))
    assert first == pytest.approx(second, rel=1e-3) and run.metrics["knn"] > 0.5
