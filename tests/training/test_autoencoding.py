"""Masked autoencoding as a training task: its loss, its exactness, its test metrics, and what it refuses."""

import json
import math

import pytest
import torch

from opencrate.evaluation.reconstruction import masked_patch_errors
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_config, initialise
from opencrate.training.optimizers import muon_groups
from opencrate.training.tasks import task_of
from opencrate.training.train import train

from ..recipes.folders import FOLDER_OVERRIDES, write_image
from .common import assert_same_run
from .test_resume import STEPS, killed_and_resumed

CRATE_MAE = (
    "task=masked-autoencoding",
    "training.label_smoothing_factor=0",
    "model.type=crate_mae",
    "model.config.decoder_num_hidden_layers=1",
    "model.config.norm_pix_loss=true",
)
"""Put after FOLDER_OVERRIDES: a small autoencoder in place of the classifier."""
VIT_MAE = (
    "task=masked-autoencoding",
    "training.label_smoothing_factor=0",
    "model.type=vit_mae",
    "model.config={hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 48, "
    "decoder_hidden_size: 16, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 4, "
    "decoder_intermediate_size: 32, patch_size: 4}",
)
RANDOM = ("augmentation.crop=padded", "augmentation.flip=0.5", "augmentation.erasing=0.5", "optimiser.ema_decay=0.9")
VISIBLE = "model.config.mask_tokens_in_encoder=false"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A shallow autoencoder trained on digits for three epochs."""
    overrides = ["training.num_train_epochs=3", "model.config.num_hidden_layers=2", "logging.measure_every_epochs=1"]
    return train(load_recipe("digits-mae", overrides), tmp_path_factory.mktemp("digits") / "run")


def test_digits_errors_are_below_both_baselines(digits_run):
    metrics = digits_run.metrics
    test = metrics["test"]
    assert test["num_images"] == 360 and (test["masked_patches"], test["patches"]) == (12, 16)
    for baseline in ("mean_colour", "nearest_visible"):
        low, high = test[f"below_{baseline}"]["interval"]
        assert 0 < low < test[f"below_{baseline}"]["mean"] < high
    gap = test["error_mean_colour"]["mean"] - test["error_model"]["mean"]
    assert test["below_mean_colour"]["mean"] == pytest.approx(gap)
    assert test["psnr_pasted"]["mean"] > test["psnr"]["mean"] > 10
    losses = [row["train_loss"] for row in metrics["history"]]
    assert losses[-1] < losses[0] and math.isfinite(metrics["loss"])
    words = task_of("masked-autoencoding").outcome(metrics)
    assert f"masked-patch error {test['error_model']['mean']:.4f}" in words and "360 test images" in words


def test_layers_of_the_encoder_are_measured_on_whole_images(digits_run):
    box = digits_run.metrics["white_box"]
    assert [row["step"] for row in box["history"]] == [0, 23, 46, 69] and box["images"] == 64
    assert all(len(row["subspace_rate"]) == 2 for row in box["history"])


@pytest.mark.parametrize(
    ("overrides", "stops"),
    [
        ([*CRATE_MAE, VISIBLE, "optimiser.optim=muon", "model.whiten_patches=true", *RANDOM], [1, 5]),
        ([*CRATE_MAE, "data.validation_fraction=0.25", "training.dataloader_num_workers=2", *RANDOM], [4]),
        pytest.param([*VIT_MAE, *RANDOM, "training.gradient_accumulation_steps=2"], [3], marks=pytest.mark.slow),
    ],
    ids=["muon-whitened", "workers", "vit"],
)
def test_resumed_run_is_bit_equal(small, overrides, stops, monkeypatch, tmp_path):
    recipe = small(*overrides, *STEPS)
    whole = train(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed", stops, monkeypatch)
    assert_same_run(whole.directory, resumed.directory)
    assert resumed.metrics["resumed_at"] and resumed.metrics["test"] == whole.metrics["test"]


def parts_of(small, *overrides):
    recipe = small(*overrides)
    task = task_of(recipe.task)
    return recipe, task, task.build(recipe, skip_bad=False)


def batch_of(parts, count=6):
    rows = [parts.test[index] for index in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_penalties_are_left_to_the_trainer(small):
    """The model's own loss holds them; what is summed over images is the pixels' alone."""
    sums = []
    for weight in (0, 3.0):
        recipe, task, parts = parts_of(small, *CRATE_MAE, f"model.config.subspace_penalty={weight}")
        loss, _ = task.loss_sum(parts.model, batch_of(parts), recipe, {})
        sums += [loss.item(), task.sums(parts.model, batch_of(parts))["loss"]]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-5) and sums[0] > 0


def test_loss_is_the_mean_over_images_whatever_the_batches(small):
    _, task, parts = parts_of(small, *VIT_MAE)
    whole = task.sums(parts.model, batch_of(parts))
    pieces = [{name: value[rows] for name, value in batch_of(parts).items()} for rows in (slice(0, 2), slice(2, 6))]
    assert sum(task.sums(parts.model, piece)["loss"] for piece in pieces) == pytest.approx(whole["loss"], rel=1e-5)


def test_plain_autoencoding_has_no_masked_patches(small, tmp_path):
    plain = ("model.config.mask_ratio=0", "model.config.loss_on=all", "training.max_steps=2")
    run = train(small(*CRATE_MAE, *plain), tmp_path / "run")
    assert run.metrics["test"]["masked_patches"] == 0 and "error_model" not in run.metrics["test"]
    assert "PSNR" in task_of("masked-autoencoding").outcome(run.metrics)


@pytest.mark.parametrize("folders", [False, True])
def test_labels_are_not_needed(folders, tmp_path):
    for number in range(10):
        where = tmp_path / "images" / "only" if folders else tmp_path / "images"
        write_image(where / f"{number}.png", number % 3, number)
    words = [*FOLDER_OVERRIDES, *CRATE_MAE, f"data.path={tmp_path / 'images'}", "training.max_steps=1"]
    run = train(load_recipe("imagefolder", words), tmp_path / "run")
    assert run.metrics["test"]["num_images"] == 2 and run.metrics["data"]["train"]["images"] == 8


def test_a_vit_mae_starts_as_published():
    """transformers' own start leaves both position tables and both tokens at zero."""
    recipe = load_recipe("digits-mae-vit", smoke=True)
    model, again = (initialise(build_config(recipe), seed, recipe.task) for seed in (0, 0))
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values()))
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not table.requires_grad and table[:, 0].abs().max() == 0
        assert len(torch.unique(table[0, 1:], dim=0)) == 16, "every place has a position of its own"
    column = model.vit.embeddings.position_embeddings[0, 2]  # row 0, column 1: sin, cos of 1 over a quarter each
    frequencies = 10000.0 ** -(torch.arange(12) / 12)
    torch.testing.assert_close(
        column, torch.cat((frequencies.sin(), frequencies.cos(), torch.zeros(12), torch.ones(12)))
    )
    assert model.decoder.mask_token.std() > 0.01 and model.vit.embeddings.cls_token.std() > 0.01


def test_muon_takes_the_matrices_of_encoder_and_decoder():
    model = initialise(build_config(load_recipe("digits-mae")), 0, "masked-autoencoding")
    names = {id(value): name for name, value in model.named_parameters()}
    chosen = sorted(names[id(value)] for value in muon_groups(model, 0.1)[0]["params"])
    inside = ("subspaces.weight", "output.weight", "dictionary")
    assert len(chosen) == 3 * (6 + 2) and all(name.endswith(inside) for name in chosen)
    assert sum(name.startswith("decoder.layers.") for name in chosen) == 6


def test_norm_linear_patches_cannot_be_whitened(small):
    with pytest.raises(ValueError, match=r"whiten_patches=true.*patch_embedding=conv"):
        parts_of(small, *CRATE_MAE, "model.config.patch_embedding=norm_linear", "model.whiten_patches=true")


def test_whitened_tokens_are_uncorrelated(small):
    _, _, parts = parts_of(small, *CRATE_MAE, "model.whiten_patches=true", "model.config.hidden_size=48")
    pixels = torch.stack([parts.train.images.transform([cell])[0] for cell in parts.train.images.dataset["image"][:]])
    tokens = parts.model.crate.embeddings.patch_embeddings(pixels).flatten(0, 1).double()
    moments = tokens.T @ tokens / len(tokens)
    values = torch.linalg.eigvalsh(moments)
    assert values.max() < 1.001 and values.max() / values.min() < 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*CRATE_MAE, "model.config.mask_ratio=1.0"], ["mask_ratio", "below 1; got 1.0"]),
        ([*CRATE_MAE, "model.config.mask_ratio=-0.1"], ["mask_ratio", "at least 0", "got -0.1"]),
        (
            [*VIT_MAE[:-1], VIT_MAE[-1].replace("{", "{mask_ratio: 1.5, ")],
            ["model.config.mask_ratio=1.5", "less than 1"],
        ),
        ([*CRATE_MAE, "model.config.mask_ratio=0"], ["masks none of the 16 patches", "loss_on=all"]),
        ([*CRATE_MAE, "model.config.mask_ratio=0.99"], ["masks all 16 patches"]),
        ([*CRATE_MAE, "augmentation.mixup=0.2"], ["augmentation.mixup=0.2", "for classifiers", "set it to 0"]),
        ([*CRATE_MAE, "augmentation.cutmix=1"], ["augmentation.cutmix=1"]),
        ([*CRATE_MAE, "training.label_smoothing_factor=0.1"], ["training.label_smoothing_factor=0.1"]),
        ([*CRATE_MAE, "regulariser.weight=0.1"], ["regulariser.weight=0.1"]),
        ([*CRATE_MAE, "data.image_size=18"], ["image_size", "18", "multiple"]),
        ([*VIT_MAE[:-1], VIT_MAE[-1].replace("{", "{mask_ratio: 0.0, ")], ["masks none of the 16 patches"]),
        ([*VIT_MAE, "data.image_size=18"], ["data.image_size=18 is not a multiple of patch_size=4"]),
        ([*VIT_MAE, "data.image_size=[16, 32]"], ["square"]),
        (["task=masked-autoencoding"], ["unknown model.type 'crate'", "crate_mae"]),
        (["model.type=crate_mae"], ["unknown model.type 'crate_mae' for task image-classification"]),
    ],
)
def test_what_does_not_fit_is_one_clear_error(small, overrides, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        train(small(*overrides), tmp_path / "run")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_model_gives_what_the_metrics_say(digits_run):
    """The saved weights, read back, have the recorded error on the same masks."""
    from opencrate.store.saved import open_saved

    saved = open_saved(digits_run.directory, ("classifier", "autoencoder"))
    parts = task_of("masked-autoencoding").build(saved.recipe, skip_bad=False)
    batch = batch_of(parts, 360)
    errors = masked_patch_errors(saved.model, batch["pixel_values"], batch["noise"])
    recorded = json.loads((digits_run.directory / "metrics.json").read_text())["test"]
    assert errors.model.mean().item() == pytest.approx(recorded["error_model"]["mean"], rel=1e-5)
    assert errors.nearest_visible.mean().item() == pytest.approx(recorded["error_nearest_visible"]["mean"], rel=1e-6)
