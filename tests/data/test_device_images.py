"""Images kept on a device: the batches of the loader, bit for bit where the device is a CPU."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from opencrate.data.draws import Draw, DrawSampler, Mix
from opencrate.data.images.device import DeviceImages, batches_on_device
from opencrate.data.images.masks import MaskedTrainingImages
from opencrate.data.images.sources import load_images
from opencrate.data.images.tensors import ImageTransform
from opencrate.data.images.training import TrainingImages
from opencrate.data.options import Augmentation, ImageData
from opencrate.store.build import build_processor

from .formats import images, write_parquet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PADDED = Augmentation(crop="padded", crop_padding=5, flip=0.5)
AUGMENTATIONS = {
    "none": Augmentation(),
    "padded": PADDED,
    "erasing": replace(PADDED, erasing=0.5),
    "mixed": replace(PADDED, erasing=0.5, mixup=0.8, cutmix=1.0),
}


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def data(tmp_path_factory, request):
    """24 images of 20x18 pixels in three classes, and the transform to 16x12."""
    channels = request.param
    file = write_parquet(
        tmp_path_factory.mktemp("data") / "a.parquet", images(30, (20, 18), channels=channels), ["a", "b", "c"] * 10
    )
    values = {"num_channels": channels, "image_mean": [0.5] * channels, "image_std": [0.2] * channels}
    recipe = ImageData(path=str(file), image_size=[16, 12], **values)
    return load_images(recipe).train, ImageTransform(build_processor(recipe), channels)


def batches(augmentation, epoch):
    sampler = DrawSampler(24, 5, 8, augmentation)
    sampler.set_epoch(epoch)
    draws = list(sampler)
    return [draws[start : start + 7] for start in range(0, 24, 7)]


def assert_equal_batches(train, made, augmentation):
    for epoch in range(3):
        for draws in batches(augmentation, epoch):
            expected, found = default_collate(train.__getitems__(draws)), made.__getitems__(draws)
            assert expected.keys() == found.keys()
            for name in expected:
                assert expected[name].dtype == found[name].dtype
                torch.testing.assert_close(found[name].cpu(), expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_those_of_the_loader(data, name):
    train = TrainingImages(*data, AUGMENTATIONS[name])
    made = batches_on_device(train, "device", CPU)
    assert len(made) == 24
    assert_equal_batches(train, made, AUGMENTATIONS[name])


def test_hidden_patches_are_those_of_the_loader(data):
    train = MaskedTrainingImages(TrainingImages(*data, PADDED), 12)
    assert_equal_batches(train, batches_on_device(train, "device", CPU), PADDED)


def test_draws_of_several_mixes_in_one_batch(data):
    train = TrainingImages(*data, PADDED)
    box = (0.26, 0.5, 0.84, 1.0)
    draws = [
        Draw(1, 0, 3, partner=2, mix=Mix("mixup", 0.3)),
        Draw(2, 0, 3, partner=1, mix=Mix("cutmix", 0.7, box)),
        Draw(5, 1, 3, partner=5, mix=Mix("mixup", 0.9)),
    ]
    expected, found = default_collate(train.__getitems__(draws)), DeviceImages(train, CPU).__getitems__(draws)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("augmentation", "why"),
    [
        (replace(PADDED, randaugment_ops=2), "augmentation.randaugment_ops"),
        (replace(PADDED, crop="resized"), "augmentation.crop=resized"),
    ],
)
def test_what_cannot_be_made_there(data, augmentation, why):
    train = TrainingImages(*data, augmentation)
    assert batches_on_device(train, "auto", CUDA) is None
    with pytest.raises(ValueError, match=rf"data.keep_on must be auto or cpu, since.*{why}.*got 'device'"):
        batches_on_device(train, "device", CPU)
    with pytest.raises(ValueError, match="do not fit in memory"):
        batches_on_device(TrainingImages(*data, PADDED, limit=0), "device", CPU)


def test_auto_is_a_cuda_device_with_room(data, monkeypatch):
    train = TrainingImages(*data, PADDED)
    monkeypatch.setattr(DeviceImages, "__init__", lambda self, images, device: None)
    for free, kept in ((4 * train.kept.nbytes, True), (4 * train.kept.nbytes - 4, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert (batches_on_device(train, "auto", CUDA) is not None) == kept
    assert batches_on_device(train, "auto", CPU) is None and batches_on_device(train, "cpu", CUDA) is None
    assert batches_on_device(object(), "device", CUDA) is None, "text is read by a loader"


@pytest.mark.gpu
def test_batches_on_a_gpu(data):
    train = TrainingImages(*data, AUGMENTATIONS["mixed"])
    assert_equal_batches(train, DeviceImages(train, CUDA), AUGMENTATIONS["mixed"])
