"""Masks: keyed by (seed, epoch, image) in training, by the image alone elsewhere, and nothing else depends on them."""

import numpy as np
import pytest
import torch

from opencrate.data.draws import Draw, SampleGenerators
from opencrate.data.images.masks import MaskedImages, MaskedTrainingImages, patch_order
from opencrate.data.images.sources import load_images, read_parts
from opencrate.data.images.tensors import ImageTransform, to_tensors
from opencrate.data.images.training import TrainingImages
from opencrate.data.options import Augmentation, ImageData
from opencrate.store.build import build_processor

from ..recipes.folders import write_classes, write_image

SIZE, PATCHES = 8, 16


@pytest.fixture(scope="module")
def digits():
    recipe = ImageData(path="digits", image_size=SIZE, num_channels=1, image_mean=[0.5], image_std=[0.5])
    return load_images(recipe, labelled=False).test, ImageTransform(build_processor(recipe), 1)


def test_training_noise_follows_from_seed_epoch_and_image(digits):
    augmentation = Augmentation(crop="padded", crop_padding=1, flip=0.5)
    plain, masked = (TrainingImages(*digits, augmentation) for _ in range(2))
    masked = MaskedTrainingImages(masked, PATCHES)
    draws = [Draw(index, epoch, seed) for seed in (0, 1) for epoch in (0, 1) for index in (5, 3, 300)]
    together = masked.__getitems__(draws)
    noises = [tuple(one["noise"].tolist()) for one in together]
    assert len(set(noises)) == len(draws), "another seed, epoch or image, another mask"
    for draw, one in reversed(list(zip(draws, together))):  # in another order, one at a time
        alone = masked[draw]
        assert sorted(alone) == ["noise", "pixel_values"]
        assert torch.equal(alone["noise"], one["noise"]) and torch.equal(alone["pixel_values"], one["pixel_values"])
        assert torch.equal(plain[draw]["pixel_values"], one["pixel_values"]), "as without masks"


def test_fixed_noise_is_the_same_in_every_run(digits):
    first, second = (MaskedImages(to_tensors(*digits), PATCHES) for _ in range(2))
    assert len(first) == 360 and torch.equal(first[7]["noise"], second[7]["noise"])
    assert not torch.equal(first[7]["noise"], first[8]["noise"]) and sorted(first[7]) == ["noise", "pixel_values"]


def test_every_patch_is_masked_as_often_as_any_other():
    generators = SampleGenerators(99)
    counts = sum((patch_order(generators(0, 0, index), PATCHES) >= 4).double() for index in range(4000))
    assert counts.sum() == 4000 * 12
    spread = (0.75 * 0.25 / 4000) ** 0.5
    assert (counts / 4000 - 0.75).abs().max() < 4.5 * spread


def test_streams_share_no_numbers():
    one, other = (SampleGenerators(stream)(0, 0, 3).random(8) for stream in (4, 5))
    assert not np.allclose(one, other)


def test_images_without_classes(tmp_path):
    for number in range(6):
        write_image(tmp_path / f"{number}.png", number % 3, number)
    parts = read_parts(tmp_path, labelled=False)
    assert list(parts) == ["all"] and len(parts["all"]) == 6
    data = ImageData(path=str(tmp_path), image_size=16, test_fraction=0.5)
    splits = load_images(data, labelled=False)
    assert (len(splits.train), len(splits.test)) == (3, 3)
    with pytest.raises(ValueError, match="no class folders; images lie directly in it"):
        load_images(data)


def test_the_same_images_are_held_out_as_with_labels(tmp_path):
    data = ImageData(path=str(write_classes(tmp_path, 8)), image_size=16, validation_fraction=0.25)
    with_labels, without = load_images(data), load_images(data, labelled=False)
    for part in ("train", "validation", "test"):
        assert getattr(with_labels, part)["image"][:] == getattr(without, part)["image"][:]
