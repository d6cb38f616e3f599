"""Every shipped recipe: complete, of the stated size, matched where it says so, and running in its smoke form."""

import dataclasses
import math

import pytest
import torch

from opencrate.configuration_crate import pair
from opencrate.data.images.views import check_views
from opencrate.data.options import Views
from opencrate.recipe.load import (
    find_recipe,
    load_recipe,
    recipe_yaml,
    shipped_recipes,
    shipped_sweeps,
    stated_parameters,
)
from opencrate.recipe.schema import SelfSupervisionRecipe
from opencrate.store.build import build_config, build_processor, initialise
from opencrate.studies.sweep import load_sweep
from opencrate.training.ssl.simdino import largest_expansion
from opencrate.training.train import train

from .folders import write_classes

ALL = sorted(shipped_recipes())
SHIPPED = [name for name in ALL if load_recipe(name).task not in ("causal-lm", "masked-lm", "sentence-classification")]
"""Recipes for images; those for text have a file of their own."""
CLASSES = {
    "digits": 10,
    "cifar10": 10,
    "cifar100": 100,
    "tiny-imagenet-20": 20,
    "flowers102": 102,
    "pets": 37,
    "imagenet": 1000,
    "imagenet-21k": 19167,
}
"""Classes of each recipe's own data."""

LAPTOP = ("cifar10", "tiny-imagenet-20")
"""Data of the recipes at laptop size without labels."""
FROM_SCRATCH = ("model.init_from=null", "model.init_fresh=[]")
QUICK = (
    *("cifar10-alpha", "cifar10-mae-vit", "digits", "digits-mae", "imagenet-vit-tiny-paper", "transfer-pets"),
    *("cifar10-lejepa", "imagenet-simdino-base-vit", "ssl-imagefolder", "tiny-imagenet-20-dino"),
)
"""Smoke forms of the default tests: one of each kind."""


@pytest.mark.parametrize("name", ALL)
def test_recipe_is_complete(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    header = shipped_recipes()[name].read_text().split("\nname:")[0]
    for word in ("Command:", "Hardware:", "Wall-clock:", "Expected:"):
        assert f"# {word}" in header
    if name.startswith(("imagenet-", "transfer-")):
        assert "not run here" in header and "# Batch:" in header
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path) == recipe


def test_headers_of_what_was_run_say_what_came_out():
    for sweep, file in shipped_sweeps().items():
        if "not run yet" in file.read_text():
            continue
        for name in load_sweep(sweep).arms.values():
            assert (
                "not run" not in shipped_recipes()[name].read_text() and "Expected:   " in find_recipe(name).read_text()
            )


@pytest.mark.parametrize("name", SHIPPED)
def test_recipe_builds_with_the_stated_parameters(name):
    recipe = load_recipe(name, FROM_SCRATCH)
    num_classes = CLASSES.get(recipe.data.path, 3)
    names = {"image-classification": num_classes, "self-supervised": 0}
    labels = [str(number) for number in range(names[recipe.task])] if recipe.task in names else None
    with torch.device("meta"):
        model = initialise(build_config(recipe, labels), recipe.training.seed, recipe.task)
    crop = build_processor(recipe.data).crop_size
    assert crop["height"] == crop["width"] == recipe.data.image_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert stated_parameters(name) == (None if recipe.data.path == "images" else parameters)
    if recipe.task == "self-supervised":
        patch = pair(model.config.patch_size)
        check_views(recipe.views, recipe.data.image_size, patch, recipe.data.num_channels)


@pytest.mark.parametrize(
    ("name", "baseline", "tolerance"),
    [
        ("digits", "digits-vit", 0.05),
        ("cifar10", "cifar10-vit", 0.02),
        ("digits-mae", "digits-mae-vit", 0.02),
        ("cifar10-mae", "cifar10-mae-vit", 0.02),
        ("cifar10-mae-alpha", "cifar10-mae-vit", 0.02),
        *((f"{data}-{name}", f"{data}-{name}-vit", 0.01) for data in LAPTOP for name in ("dino", "simdino", "lejepa")),
        *((f"digits-{name}", f"digits-{name}-vit", 0.01) for name in ("dino", "simdino", "lejepa", "simclr", "vicreg")),
        *((f"imagenet-{name}-base", f"imagenet-{name}-base-vit", 0.02) for name in ("dino", "simdino")),
    ],
)
def test_baseline_is_matched(name, baseline, tolerance):
    crate, vit = load_recipe(name), load_recipe(baseline)
    assert abs(stated_parameters(baseline) / stated_parameters(name) - 1) < tolerance
    assert crate.data == vit.data and crate.augmentation == vit.augmentation
    assert crate.views == vit.views and crate.ssl == vit.ssl and crate.optimiser == vit.optimiser
    for field in ("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size"):
        assert getattr(crate.training, field) == getattr(vit.training, field)


@pytest.mark.parametrize(
    ("name", "images", "processes"),
    [
        *((f"imagenet-{size}-paper", 2048, 8) for size in ("tiny", "small", "base", "large")),
        *((f"imagenet-{size}-readme", 512, 8) for size in ("tiny", "small", "base", "large")),
        *((f"imagenet-vit-{size}-paper", 2048, 8) for size in ("tiny", "small")),
        *((name, 4096, 16) for name in ("imagenet-21k-alpha-base", "imagenet-alpha-base-finetune")),
        *((f"imagenet-mae-{size}", 4096, 16) for size in ("small", "base")),
        *((f"imagenet-dino-{size}", 1024, 16) for size in ("small", "base", "base-vit")),
        *((f"imagenet-simdino-{size}", 512, 8) for size in ("small", "base", "base-vit")),
        *((f"transfer-{name}", 256, 4) for name in ("cifar10", "cifar100", "flowers102", "pets")),
    ],
)
def test_global_batch_is_the_published_one(name, images, processes):
    training = load_recipe(name).training
    per_device, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert per_device * processes * accumulated == images
    header = shipped_recipes()[name].read_text()
    product = f"{per_device} per device x {processes} processes"
    assert product + (f" x {accumulated} accumulated" if accumulated > 1 else "") in header
    assert f"# Batch:      {images} =" in header and f"--nproc_per_node {processes} " in header


def test_paper_and_readme_forms_differ_as_published():
    paper, readme = (load_recipe(f"imagenet-base-{form}") for form in ("paper", "readme"))
    assert paper.optimiser.optim == readme.optimiser.optim == "lion"
    paper, readme = paper.training, readme.training
    assert (paper.learning_rate, paper.weight_decay) == (2.4e-4, 0.5)
    assert (readme.learning_rate, readme.weight_decay) == (2e-4, 0.05)
    assert paper.warmup_steps * paper.num_train_epochs == pytest.approx(5, rel=1e-4)
    assert readme.warmup_steps * readme.num_train_epochs == pytest.approx(20)
    assert load_recipe("imagenet-base-paper").augmentation == load_recipe("imagenet-base-readme").augmentation


def test_autoencoders_are_trained_as_published():
    """[2311.13110]: base rate 3e-5 times 4096 / 256, weight decay 0.1, 40 of 800 epochs of warm-up."""
    for size in ("small", "base"):
        training = load_recipe(f"imagenet-mae-{size}").training
        assert (training.learning_rate, training.weight_decay) == (pytest.approx(3e-5 * 4096 / 256), 0.1)
        assert training.num_train_epochs == 800 and training.warmup_steps * 800 == pytest.approx(40)


def test_self_supervision_is_trained_as_published():
    """[2104.14294]'s ViT-S/16, and SimDINO's released run in our terms: its largest expansion is 0.4496."""
    dino, simdino = load_recipe("imagenet-dino-base"), load_recipe("imagenet-simdino-small")
    given, default = dino.ssl, SelfSupervisionRecipe()
    assert given == dataclasses.replace(default, objective="dino", weight_decay_end=0.4, clip_each=3.0)
    assert (given.prototypes, given.teacher_momentum, given.teacher_temperature) == (65_536, 0.996, 0.07)
    assert (given.teacher_temperature_start, given.teacher_temperature_epochs, given.freeze_last_layer_epochs) == (
        0.04,
        30,
        1,
    )
    assert dino.training.learning_rate == pytest.approx(5e-4 * 1024 / 256) and dino.training.weight_decay == 0.04
    assert dino.training.warmup_steps * dino.training.num_train_epochs == pytest.approx(10)
    assert dino.views == Views(local_views=8, local_size=96)
    assert simdino.training.learning_rate == pytest.approx(5e-4 * 512 / 256) and simdino.model.size == "small"
    largest = largest_expansion(simdino.ssl.group_size, simdino.ssl.bottleneck, simdino.ssl.eps)
    assert round(simdino.ssl.expansion_weight * largest, 4) == 0.4496
    assert (simdino.ssl.weight_decay_end, simdino.ssl.clip_each, simdino.views.local_views) == (0.4, 3.0, 10)


def test_fine_tuning_differs_from_scratch_in_the_start_alone():
    scratch, tuned = load_recipe("cifar10"), load_recipe("cifar10-mae-finetune")
    assert (scratch.training, scratch.data, scratch.augmentation) == (tuned.training, tuned.data, tuned.augmentation)
    assert tuned.model.init_from and tuned.model.size == scratch.model.size


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Nine images of each of three classes, 40x40 pixels."""
    return write_classes(tmp_path_factory.mktemp("images"), 9, size=(40, 40))


def run_smoke_form(name, images, directory):
    data = [] if load_recipe(name).data.path == "digits" else [f"data.path={images}"]
    recipe = load_recipe(name, data, smoke=True)
    run = train(recipe, directory)
    assert run.metrics["steps"] == 2
    if recipe.task != "self-supervised":
        assert math.isfinite(run.metrics["loss"])
    assert all(math.isfinite(row["train_loss"]) for row in run.metrics["history"])


@pytest.mark.parametrize("name", QUICK)
def test_smoke_form_runs(name, images, tmp_path):
    run_smoke_form(name, images, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SHIPPED) - set(QUICK)))
def test_every_other_smoke_form_runs(name, images, tmp_path):
    run_smoke_form(name, images, tmp_path / "run")
