"""The moving average of the weights: its formula, and who sees it."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opencrate.store.build import build_config, initialise
from opencrate.training.ema import WeightAverage, decay_at
from opencrate.training.train import train
from opencrate.training.trainer import RecipeTrainer


def test_decay_warms_up():
    assert [decay_at(step, 0.5) for step in (0, 1, 7, 8, 100)] == [1 / 10, 2 / 11, 8 / 17, 0.5, 0.5]


@pytest.fixture(scope="module")
def followed(small, tmp_path_factory):
    """A run, with its weights before the first step and after every step."""
    steps = []
    patched = pytest.MonkeyPatch()

    def recorded(self, args, state, control, model, **kwargs):
        steps.append({name: value.detach().double().numpy().copy() for name, value in model.named_parameters()})
        original(self, args, state, control, model=model, **kwargs)

    original = WeightAverage.on_optimizer_step
    patched.setattr(WeightAverage, "on_optimizer_step", recorded)
    recipe = small("training.num_train_epochs=4", "optimiser.ema_decay=0.4", "data.validation_fraction=0.25")
    run = train(recipe, tmp_path_factory.mktemp("ema") / "run")
    patched.undo()
    start = initialise(build_config(recipe, ["bottom", "middle", "top"]), 0)
    return run, {name: value.detach().double().numpy() for name, value in start.named_parameters()}, steps


def test_saved_model_is_the_average(followed):
    run, average, steps = followed
    average = dict(average)
    for step, weights in enumerate(steps):
        decay = min(0.4, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    saved, last = (load_file(run.directory / f"{name}.safetensors") for name in ("model", "last"))
    assert len(steps) == run.metrics["steps"] > 10
    for name, value in average.items():
        np.testing.assert_allclose(saved[name], value, atol=2e-6)
        np.testing.assert_array_equal(last[name].double(), steps[-1][name])
    assert any(np.abs(saved[name] - steps[-1][name]).max() > 1e-5 for name in average)


def test_validation_sees_the_average_and_leaves_the_weights(small, monkeypatch, tmp_path):
    """The last epoch's validation loss is the saved model's, and the raw weights go on training."""
    original = RecipeTrainer.evaluate
    seen = []

    def evaluate(self, *arguments, **options):
        before = [value.detach().clone() for value in self.model.parameters()]
        metrics = original(self, *arguments, **options)
        assert all(torch.equal(value, same) for value, same in zip(before, self.model.parameters()))
        with self.average.applied(self.model):
            batch = [self.eval_dataset[index] for index in range(len(self.eval_dataset))]
            logits = self.model(torch.stack([item["pixel_values"] for item in batch])).logits
        labels = torch.stack([item["labels"] for item in batch])
        seen.append((metrics["eval_loss"], torch.nn.functional.cross_entropy(logits, labels).item()))
        return metrics

    monkeypatch.setattr(RecipeTrainer, "evaluate", evaluate)
    overrides = ("optimiser.ema_decay=0.9", "data.validation_fraction=0.25", "training.label_smoothing_factor=0.2")
    run = train(small("training.num_train_epochs=2", *overrides), tmp_path / "run")
    assert len(seen) == 2
    torch.testing.assert_close(*map(list, zip(*seen)), rtol=1e-5, atol=1e-6)
    assert run.metrics["history"][-1]["validation_loss"] == seen[-1][0]


def test_without_average_there_is_one_set_of_weights(small, tmp_path):
    run = train(small("training.max_steps=1"), tmp_path / "run")
    assert not (run.directory / "last.safetensors").exists()
