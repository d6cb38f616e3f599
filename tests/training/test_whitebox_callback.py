"""Measures while training: right, at every epoch, on fixed images, and without any effect on the run."""

import importlib.util
import json

import pytest
import torch

from opencrate.analysis.layers.result import layer_measures
from opencrate.reports.training import plot_training_measures
from opencrate.store.inputs import labelled_images
from opencrate.store.saved import open_saved
from opencrate.training.train import train
from opencrate.training.whitebox_callback import MEASURES

from ..recipes.folders import VIT_OVERRIDES
from .common import RANDOM, assert_same_run, weights
from .test_resume import STEPS, killed_and_resumed

THREE = "training.num_train_epochs=3"


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    recipe = small(THREE, "data.validation_fraction=0.25", "logging.measure_inputs=5", "optimiser.ema_decay=0.5")
    return train(recipe, tmp_path_factory.mktemp("measured") / "run")


def test_last_row_is_what_the_saved_model_gives(measured):
    """On the averaged weights, which the run leaves."""
    white_box = measured.metrics["white_box"]
    assert (white_box["images"], white_box["split"], white_box["eps"]) == (5, "validation", 0.5)
    assert [row["epoch"] for row in white_box["history"]] == [0, 1, 2, 3]
    saved = open_saved(measured.directory)
    images = labelled_images(saved, split="validation")
    rows = [index * len(images) // 5 for index in range(5)]
    expected = layer_measures(saved.model, saved.batches(images.select(rows)), 0.5, measures=list(MEASURES))
    for key in MEASURES:
        value = expected.totals[key] if key in expected.totals else expected.mean(key)
        assert white_box["history"][-1][key] == pytest.approx(value.tolist(), rel=1e-6), key


def test_log_has_one_line_per_measurement(measured):
    lines = [json.loads(line) for line in (measured.directory / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "white_box" in line]
    history = measured.metrics["white_box"]["history"]
    assert [{"epoch": line["epoch"], "step": line["step"], **line["white_box"]} for line in logged] == history
    assert not any("white_box" in row for row in measured.metrics["history"])


def test_measuring_changes_nothing(small, monkeypatch, tmp_path):
    drawn = []
    original = torch.Tensor.backward

    def backward(self, *arguments, **options):
        drawn.append(torch.get_rng_state())
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with_measures = train(small(THREE, *RANDOM), tmp_path / "with")
    without = train(small(THREE, *RANDOM, "logging.measure_inputs=0"), tmp_path / "without")
    first, second = weights(with_measures.directory), weights(without.directory)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert with_measures.metrics["history"] == without.metrics["history"]
    half = len(drawn) // 2
    assert half and all(torch.equal(a, b) for a, b in zip(drawn[:half], drawn[half:]))
    assert "white_box" not in without.metrics and with_measures.metrics["white_box"]["split"] == "training"
    assert with_measures.metrics["white_box"]["images"] == 24


def test_resumed_measures_are_bit_equal(small, monkeypatch, tmp_path):
    recipe = small(*STEPS, *RANDOM, "data.validation_fraction=0.25", "logging.measure_inputs=4")
    whole = train(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed", [1, 3, 6], monkeypatch)
    assert_same_run(whole.directory, resumed.directory)
    assert resumed.metrics["white_box"] == whole.metrics["white_box"]
    logs = [
        [line for line in (run.directory / "log.jsonl").read_text().splitlines() if "white_box" in line]
        for run in (whole, resumed)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_fewer_measurements_on_request_and_none_of_other_models(small, tmp_path):
    run = train(small(THREE, "logging.measure_every_epochs=2"), tmp_path / "crate")
    assert [row["epoch"] for row in run.metrics["white_box"]["history"]] == [0, 2, 3]
    assert "white_box" not in train(small(*VIT_OVERRIDES), tmp_path / "vit").metrics


def test_attention_only_has_no_atoms(small, tmp_path):
    run = train(small("training.max_steps=1", "model.config.sparsification=none"), tmp_path / "run")
    assert {"dead_atoms"} == set(MEASURES) - run.metrics["white_box"]["history"][0].keys()


def test_figure_of_the_measures(measured):
    figure = plot_training_measures(measured.metrics["white_box"])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"no measure 'gini' in it; train with logging.measure_inputs above 0"):
        plot_training_measures(measured.metrics["white_box"], ["gini"])


def test_tensorboard_without_the_package_is_refused(small, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logging.tensorboard=true: .*pip install opencrate\[tensorboard\]"):
        train(small("logging.tensorboard=true"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_losses_and_measures_once(small, monkeypatch, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = small(*STEPS, "logging.tensorboard=true")
    run = killed_and_resumed(recipe, tmp_path / "run", [5], monkeypatch)
    events = EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    last = run.metrics["white_box"]["history"][-1]
    for key in MEASURES:
        for layer in (1, 2):
            found = events.Scalars(f"white_box/{key}/layer_{layer}")
            assert [event.step for event in found] == [0, 3, 6, 9]
            assert found[-1].value == pytest.approx(last[key][layer - 1])
    losses = events.Scalars("train/loss")
    assert [event.value for event in losses] == pytest.approx([row["train_loss"] for row in run.metrics["history"]])
