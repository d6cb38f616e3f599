"""A training split: the same draw gives the same bits, wherever and with whatever it is made."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from opencrate.data.draws import Draw, DrawSampler, Mix
from opencrate.data.images.sources import load_images
from opencrate.data.images.tensors import ImageTransform, to_tensors
from opencrate.data.images.training import TrainingImages
from opencrate.data.options import Augmentation, ImageData
from opencrate.store.build import build_processor

from .formats import images, write_parquet

AUGMENTATIONS = {
    "none": Augmentation(),
    "small": Augmentation(crop="padded", flip=0.5),
    "large": Augmentation(crop="resized", flip=0.5, randaugment_ops=2, erasing=0.25, mixup=0.8, cutmix=1.0),
    "all": Augmentation(crop="padded", flip=0.5, randaugment_ops=2, erasing=0.5, mixup=0.8, cutmix=1.0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 images of 20x18 pixels in three classes, and the transform to 16x16."""
    file = tmp_path_factory.mktemp("data") / "a.parquet"
    recipe = ImageData(path=str(write_parquet(file, images(30, (20, 18)), ["a", "b", "c"] * 10)), image_size=16)
    return load_images(recipe).train, ImageTransform(build_processor(recipe), 3)


def draws_of(augmentation, epoch=1, batch=8):
    sampler = DrawSampler(24, 5, batch, augmentation)
    sampler.set_epoch(epoch)
    return sampler


def together(batches):
    batches = list(batches)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def assert_equal(one, other):
    assert one.keys() == other.keys() == {"pixel_values", "labels"}
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_same_bits_in_batches_alone_and_in_workers(data, name, limit):
    augmentation = AUGMENTATIONS[name]
    train = TrainingImages(*data, augmentation, limit=limit)
    assert (train.kept is None) == (limit == 0)
    sampler = draws_of(augmentation)
    expected = together(DataLoader(train, batch_size=8, sampler=sampler))
    assert expected["pixel_values"].shape == (24, 3, 16, 16) and expected["pixel_values"].dtype == torch.float32
    alone = [train[draw] for draw in reversed(list(sampler))][::-1]
    assert_equal({key: torch.stack([item[key] for item in alone]) for key in alone[0]}, expected)
    fresh = TrainingImages(*data, augmentation, limit=1 << 20)
    assert_equal(together(DataLoader(fresh, batch_size=3, sampler=sampler, num_workers=2)), expected)


@pytest.mark.parametrize("name", ["small", "all"])
def test_two_processes_make_the_batches_of_one(data, name):
    augmentation = AUGMENTATIONS[name]
    one = together(DataLoader(TrainingImages(*data, augmentation), batch_size=8, sampler=draws_of(augmentation)))
    shards = [BatchSamplerShard(BatchSampler(draws_of(augmentation), 4, False), 2, rank) for rank in (0, 1)]
    parts = [DataLoader(TrainingImages(*data, augmentation), batch_sampler=shard) for shard in shards]
    assert_equal(together(batch for pair in zip(*parts, strict=True) for batch in pair), one)


def test_epochs_and_seeds_differ(data):
    train = TrainingImages(*data, AUGMENTATIONS["small"])
    keys = [(0, 0), (1, 0), (0, 1), (1, 1)]
    several = [torch.stack([train[Draw(n, epoch, seed)]["pixel_values"] for n in range(24)]) for seed, epoch in keys]
    for place, one in enumerate(several):
        assert not any(torch.equal(one, other) for other in several[:place])


def test_without_augmentation_it_is_the_evaluation_transform(data):
    train, plain = TrainingImages(*data), to_tensors(*data)
    for n in range(24):
        assert_equal(train[Draw(n, 3, 1)], plain[n])
    assert train[Draw(0, 0, 0)]["labels"].dtype == torch.int64


@pytest.mark.parametrize("resize_size", [None, 20])
def test_grey_images_and_centre_crops(tmp_path, resize_size):
    file = write_parquet(tmp_path / "a.parquet", images(10, (20, 18), channels=1), [0, 1] * 5)
    recipe = ImageData(
        path=str(file), image_size=[16, 12], resize_size=resize_size, num_channels=1, image_mean=[0.5], image_std=[0.2]
    )
    dataset, transform = load_images(recipe).train, ImageTransform(build_processor(recipe), 1)
    plain = to_tensors(dataset, transform)
    assert_equal(TrainingImages(dataset, transform)[Draw(5, 0, 0)], plain[5])
    for name in ("all", "large"):
        assert TrainingImages(dataset, transform, AUGMENTATIONS[name])[Draw(5, 0, 0)]["pixel_values"].shape == (
            1,
            16,
            12,
        )


def test_mixing_gives_soft_labels_and_augmented_partners(data):
    train = TrainingImages(*data, AUGMENTATIONS["small"])
    one, other = train[Draw(4, 0, 0)], train[Draw(9, 0, 0)]
    item = train[Draw(4, 0, 0, partner=9, mix=Mix("mixup", 0.25))]
    torch.testing.assert_close(item["pixel_values"], 0.25 * one["pixel_values"] + 0.75 * other["pixel_values"])
    expected = 0.25 * torch.eye(3)[one["labels"]] + 0.75 * torch.eye(3)[other["labels"]]
    torch.testing.assert_close(item["labels"], expected)
    cut = train[Draw(4, 0, 0, partner=9, mix=Mix("cutmix", 0.9, (0.0, 0.25, 0.5, 0.75)))]
    assert torch.equal(cut["pixel_values"][:, :8, 4:12], other["pixel_values"][:, :8, 4:12])
    assert torch.equal(cut["pixel_values"][:, 8:], one["pixel_values"][:, 8:])
    assert cut["labels"][other["labels"]] >= 0.25


def test_soft_labels_sum_to_one_and_follow_the_box(data):
    train = TrainingImages(*data, AUGMENTATIONS["all"])
    for epoch in range(4):
        batch = together(DataLoader(train, batch_size=24, sampler=draws_of(AUGMENTATIONS["all"], epoch)))
        assert batch["labels"].shape == (24, 3) and batch["labels"].dtype == torch.float32
        torch.testing.assert_close(batch["labels"].sum(1), torch.ones(24))
        assert batch["labels"].min() >= 0


def test_erased_share_of_images(data):
    plain = TrainingImages(*data)
    train = TrainingImages(*data, Augmentation(erasing=0.25))
    changed = [
        not torch.equal(train[Draw(n, epoch, 0)]["pixel_values"], plain[Draw(n, epoch, 0)]["pixel_values"])
        for n in range(24)
        for epoch in range(40)
    ]
    assert abs(np.mean(changed) - 0.25) < 0.06


def test_processors_that_do_more_are_refused(data):
    class Inverting(type(data[1].processor)):
        def __call__(self, images, **options):
            values = super().__call__(images, **options)
            values["pixel_values"] = values["pixel_values"] * (-1 if options.get("do_normalize", True) else 1) + 1e-3
            return values

    processor = Inverting(**{key: getattr(data[1].processor, key) for key in ("size", "image_mean", "image_std")})
    processor.do_center_crop = False
    with pytest.raises(ValueError, match="Inverting does more than resize"):
        TrainingImages(data[0], ImageTransform(processor, 3))
