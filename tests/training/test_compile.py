"""Compiled training: the same numbers to rounding, a run directory as ever."""

import json

import pytest
import torch
from transformers import TrainingArguments, training_args

from opencrate.training import trainer, whitebox_callback
from opencrate.training.train import train
from opencrate.training.trainer import training_arguments

from .common import weights

SHORT = ("training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2", "optimiser.ema_decay=0.9")


def assert_compiled_run(recipe, folder):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        train(recipe(*SHORT, f"training.torch_compile={flag}"), folder / flag) for flag in ("false", "true")
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    assert not torch._dynamo.utils.counters["graph_break"]
    one, other = weights(plain.directory), weights(compiled.directory)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-4)
    losses = [json.loads((run.directory / "metrics.json").read_text())["loss"] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_training_through_dynamo(small, monkeypatch, tmp_path):
    """Traced and run without a compiler, which takes longer than everything else here."""

    def traced(*arguments, torch_compile, **options):
        backend = {"torch_compile_backend": "aot_eager"} if torch_compile else {}
        return TrainingArguments(*arguments, torch_compile=torch_compile, **backend, **options)

    monkeypatch.setattr(trainer, "TrainingArguments", traced)
    assert_compiled_run(small, tmp_path)


@pytest.mark.slow
def test_compiled_training(small, tmp_path):
    assert_compiled_run(small, tmp_path)


def test_the_modes_names_are_those_of_transformers(small, tmp_path):
    recipe = small("training.torch_compile=true", "training.torch_compile_mode=reduce-overhead", "training.tf32=false")
    arguments = training_arguments(recipe, tmp_path, validate=False)
    assert arguments.torch_compile and arguments.torch_compile_mode == "reduce-overhead"
    assert arguments.torch_compile_backend == "inductor" and arguments.tf32 is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be TF32 here")
def test_tf32_needs_a_gpu(small, tmp_path):
    with pytest.raises(ValueError, match=r"training\.tf32=true: needs a CUDA GPU of the Ampere generation"):
        training_arguments(small("training.tf32=true"), tmp_path, validate=False)


@pytest.mark.gpu
def test_cuda_graphs(small, tmp_path):
    recipe = small(
        *SHORT, "training.torch_compile=true", "training.torch_compile_mode=reduce-overhead", "training.bf16=true"
    )
    assert train(recipe, tmp_path / "run").metrics["steps"] == 4


def test_tf32_ends_with_the_run_and_leaves_rates_alone(small, monkeypatch, tmp_path):
    """As on a GPU that has TF32: off with `torch_compile` too; where it is asked for, not where layers are measured."""
    for module in (trainer, training_args):
        monkeypatch.setattr(module, "is_torch_tf32_available", lambda: True)
    assert training_arguments(small("training.torch_compile=true"), tmp_path, validate=False).tf32 is False
    seen = {"step": set(), "measured": set()}

    def noted(kind, function):
        def run(*arguments, **options):
            seen[kind].add(torch.backends.cuda.matmul.fp32_precision)
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(whitebox_callback, "layer_measures", noted("measured", whitebox_callback.layer_measures))
    monkeypatch.setattr(trainer.RecipeTrainer, "compute_loss", noted("step", trainer.RecipeTrainer.compute_loss))
    before = torch.backends.fp32_precision
    train(small("training.tf32=true", "training.max_steps=2"), tmp_path / "run")
    assert seen == {"step": {"tf32"}, "measured": {"ieee"}}
    assert torch.backends.fp32_precision == before
