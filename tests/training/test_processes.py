"""Two processes of a `torchrun` give what one gives on the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opencrate.recipe.load import load_recipe

from .heads import PENALTIES, gradient
from .two import HEADS, record

ROOT = Path(__file__).parents[2]
EPOCHS = "training.num_train_epochs=7"  # three steps each: 21, and the last of each epoch has fewer images
AUGMENTED = (
    "augmentation.crop=padded",
    "augmentation.mixup=0.4",
    "augmentation.cutmix=1.0",
    "training.label_smoothing_factor=0.1",
)
FORMS = {
    "adamw": (EPOCHS, *AUGMENTED, "optimiser.ema_decay=0.9", "data.validation_fraction=0.1"),
    "lion": (EPOCHS, *AUGMENTED, "optimiser.optim=lion", "training.learning_rate=1e-4"),
    "accumulation": (
        "training.max_steps=3",
        *AUGMENTED,
        "training.gradient_accumulation_steps=2",
        "model.config.subspace_penalty=0.1",
        "regulariser.weight=0.1",
        "training.save_strategy=steps",
        "training.save_steps=2",
    ),
    "autoencoder": (
        "task=masked-autoencoding",
        "model.type=crate_mae",
        "model.config.decoder_num_hidden_layers=1",
        "model.config.mask_tokens_in_encoder=false",
        "model.config.dictionary_penalty=0.1",
        "training.label_smoothing_factor=0",
        "training.num_train_epochs=3",
        "augmentation.crop=padded",
        "data.validation_fraction=0.1",
    ),
}
SIZES = {"adamw": 5, "lion": 5, "accumulation": 2, "autoencoder": 5}
"""Images per process: 24 (or 21) images make steps of 10, 10 and the rest; or of 8."""


def overrides_of(small, form, processes):
    size = SIZES[form] * 2 // processes
    return [*FORMS[form], f"training.per_device_train_batch_size={size}"], small().data.path


@pytest.fixture(scope="module")
def together(small, tmp_path_factory):
    """Two forms in two processes (one start of the libraries), and each in this one: name -> (one, two, folder)."""
    return in_one_and_two(small, tmp_path_factory.mktemp("processes"), ("adamw", "accumulation"))


@pytest.fixture(scope="module")
def others(small, tmp_path_factory):
    """The other forms, as `together`."""
    return in_one_and_two(small, tmp_path_factory.mktemp("others"), ("lion", "autoencoder"))


def in_one_and_two(small, folder, forms):
    from ..recipes.folders import FOLDER_OVERRIDES

    jobs = []
    for form in forms:
        overrides, path = overrides_of(small, form, 2)
        jobs.append(["imagefolder", [*FOLDER_OVERRIDES, f"data.path={path}", *overrides], str(folder / f"{form}-2")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.two", str(folder / "jobs.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for number, (form, job) in enumerate(zip(forms, jobs)):
        one = record(load_recipe(job[0], [*job[1], overrides_of(small, form, 1)[0][-1]]), folder / f"{form}-1")
        two = torch.load(folder / f"jobs.json.{number}.pt", weights_only=True)
        found[form] = one, two, folder
    return found


@pytest.mark.parametrize(
    ("runs", "form"),
    [
        ("together", "adamw"),
        ("together", "accumulation"),
        pytest.param("others", "lion", marks=pytest.mark.slow),
        pytest.param("others", "autoencoder", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_the_first_step(runs, form, request):
    one, two, _ = request.getfixturevalue(runs)[form]
    assert one["gradients"].keys() == two["gradients"].keys()
    first, second = (torch.cat([value.flatten() for value in run["gradients"].values()]) for run in (one, two))
    print(f"{form}: first gradients differ by {(first - second).norm() / first.norm():.1e} of their norm")
    assert (first - second).norm() <= 1e-6 * first.norm()
    torch.testing.assert_close(one["losses"][0], two["losses"][0], rtol=1e-6, atol=0)


def test_losses_of_twenty_adamw_steps(together):
    one, two, folder = together["adamw"]
    assert len(one["losses"]) == len(two["losses"]) == 21
    print(f"largest difference of a loss: {max(abs(a - b) for a, b in zip(one['losses'], two['losses'])):.1e}")
    torch.testing.assert_close(one["losses"], two["losses"], rtol=0, atol=1e-5)
    histories = [json.loads((folder / f"adamw-{count}" / "metrics.json").read_text())["history"] for count in (1, 2)]
    for first, second in zip(*histories):
        assert first["validation_accuracy"] == second["validation_accuracy"]
        for name in ("train_loss", "validation_loss", "learning_rate"):
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_autoencoder_hides_the_same_patches(others):
    one, two, folder = others["autoencoder"]
    assert len(one["losses"]) == 9
    torch.testing.assert_close(one["losses"], two["losses"], rtol=0, atol=1e-4)
    found = [json.loads((folder / f"autoencoder-{count}" / "metrics.json").read_text()) for count in (1, 2)]
    for first, second in zip(*(metrics["history"] for metrics in found)):
        assert first["validation_loss"] == pytest.approx(second["validation_loss"], abs=1e-4)
    errors = [metrics["test"]["error_model"]["mean"] for metrics in found]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)


@pytest.mark.slow
def test_lion_differs_in_few_signs(others):
    """Its step is a sign, so rounding shows where a momentum is nearly zero; the share is that of the first step."""
    one, two, _ = others["lion"]
    pairs = [(one["gradients"][name].sign(), two["gradients"][name].sign()) for name in one["gradients"]]
    different = sum((first != second).sum().item() for first, second in pairs)
    share = different / sum(first.numel() for first, _ in pairs)
    print(f"share of differing signs in the first step: {share:.1e}")
    assert share < 1e-3
    torch.testing.assert_close(one["losses"], two["losses"], rtol=0, atol=1e-3)


def test_layers_are_measured_as_by_one_process(together):
    _, _, folder = together["adamw"]
    one, two = (json.loads((folder / f"adamw-{count}" / "metrics.json").read_text())["white_box"] for count in (1, 2))
    assert one["images"] == two["images"] == 3 and one["split"] == two["split"] == "validation"
    assert len(one["history"]) == len(two["history"]) == 8
    for first, second in zip(one["history"], two["history"]):
        assert first["step"] == second["step"]
        for name in ("subspace_rate", "rate", "nonzero_fraction", "l1_per_token"):
            assert first[name] == pytest.approx(second[name], rel=1e-3), (first["step"], name)


def test_the_first_process_alone_writes(together):
    _, _, folder = together["accumulation"]
    one, two = (folder / f"accumulation-{count}" for count in (1, 2))
    metrics = json.loads((two / "metrics.json").read_text())
    assert metrics["processes"] == 2 and metrics["samples_per_step"] == 8
    assert json.loads((one / "metrics.json").read_text())["samples_per_step"] == 8
    lines = [json.loads(line)["step"] for line in (two / "log.jsonl").read_text().splitlines()]
    assert lines == [0, 3, 3, 3], "the measures before and after the epoch, the epoch and the summary, once each"
    kept = two / "checkpoints" / "checkpoint-2"
    assert {"rng_state_0.pth", "rng_state_1.pth", "progress.json"} <= {path.name for path in kept.iterdir()}
    assert len(json.loads((kept / "progress.json").read_text())["losses_since_logged"]) == 2
    for first, second in zip(*(load_file(run / "model.safetensors").values() for run in (one, two))):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, average", HEADS)
def test_transformers_trainer_steps_as_one_process(together, name, average):
    """2 processes of 4 batches of 2 make the step of one batch of 16, penalties once."""
    folder = together["adamw"][2]
    step = torch.load(folder / "jobs.json.heads.pt", weights_only=True)[name, average]
    expected = -gradient(name, penalties=PENALTIES)
    assert (step - expected).norm() <= 1e-5 * expected.norm()
