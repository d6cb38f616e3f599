"""Views of images: each follows from (seed, epoch, image, view) alone, is what was asked for, and as often."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from opencrate.data.draws import Draw, DrawSampler, SampleGenerators
from opencrate.data.images.colours import blurred, grey_values, solarized, with_brightness
from opencrate.data.images.decoded import normalised
from opencrate.data.images.device import batches_on_device
from opencrate.data.images.sources import load_images
from opencrate.data.images.tensors import ImageTransform
from opencrate.data.images.views import MultiViewImages, ViewKind, check_views, recolour, view_kinds
from opencrate.data.options import ImageData, Views
from opencrate.recipe.load import load_recipe
from opencrate.recipe.schema import Recipe, check_values
from opencrate.reports.views import write_views
from opencrate.store.build import build_processor

from ..recipes.folders import write_image
from .formats import images, write_parquet

SMALL = Views(local_views=3, local_size=[8, 4])
PLAIN = Views(local_views=0, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0, flip=0.0, global_scale=[1.0, 1.0])
DRAWS = [Draw(index, 2, 5) for index in range(24)]


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def data(tmp_path_factory, request):
    """24 images of 20x18 pixels, and the transform to 16x12 of a model with patches of 4x2."""
    channels = request.param
    file = tmp_path_factory.mktemp("data") / "a.parquet"
    write_parquet(file, images(30, (20, 18), channels), ["a", "b", "c"] * 10)
    values = {"num_channels": channels, "image_mean": [0.4] * channels, "image_std": [0.2] * channels}
    recipe = ImageData(path=str(file), image_size=[16, 12], **values)
    return load_images(recipe, labelled=False).train, ImageTransform(build_processor(recipe), channels, (4, 2))


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_same_bits_in_batches_alone_and_in_workers(data, limit):
    made = MultiViewImages(*data, SMALL, limit=limit)
    assert (made.kept is None) == (limit == 0) and len(made) == 24
    sampler = DrawSampler(24, 5)
    sampler.set_epoch(2)
    expected = default_collate(made.__getitems__(list(sampler)))
    assert_equal(default_collate([made[draw] for draw in reversed(list(sampler))][::-1]), expected)
    for workers in (0, 2):
        loader = DataLoader(MultiViewImages(*data, SMALL), batch_size=7, sampler=sampler, num_workers=workers)
        batches = list(loader)
        assert_equal({name: torch.cat([batch[name] for batch in batches]) for name in expected}, expected)


def test_shapes_types_and_no_labels(data):
    channels = data[1].num_channels
    batch = default_collate(MultiViewImages(*data, SMALL).__getitems__(DRAWS[:5]))
    assert list(batch) == ["global_views", "local_views", "index"]
    assert batch["global_views"].shape == (5, 2, channels, 16, 12) and batch["global_views"].dtype == torch.float32
    assert batch["local_views"].shape == (5, 3, channels, 8, 4) and batch["local_views"].dtype == torch.float32
    assert batch["index"].tolist() == [0, 1, 2, 3, 4] and batch["index"].dtype == torch.int64
    assert list(MultiViewImages(*data, PLAIN)[DRAWS[0]]) == ["global_views", "index"]


def test_a_view_does_not_depend_on_the_number_of_others(data):
    few = MultiViewImages(*data, dataclasses.replace(SMALL, global_views=1, local_views=1)).__getitems__(DRAWS)
    many = MultiViewImages(*data, dataclasses.replace(SMALL, global_views=4, local_views=5)).__getitems__(DRAWS)
    for one, other in zip(few, many):
        assert torch.equal(one["global_views"], other["global_views"][:1])
        assert torch.equal(one["local_views"], other["local_views"][:1])


def test_views_seeds_epochs_and_images_differ(data):
    made = MultiViewImages(*data, Views(local_views=4, local_size=[16, 12], local_scale=[0.4, 1.0]))
    draws = [Draw(index, epoch, seed) for index in (3, 4) for epoch in (0, 1) for seed in (0, 1)]
    views = [view.numpy().tobytes() for item in made.__getitems__(draws) for name in made.kinds for view in item[name]]
    assert len(set(views)) == len(views) == 8 * 6


def test_parts_of_an_image_have_numbers_of_their_own():
    generators = SampleGenerators(6)
    several = [generators(1, 2, 3, part).random(64) for part in range(5)]
    assert len(np.unique(np.concatenate(several))) == 5 * 64
    np.testing.assert_array_equal(generators(1, 2, 3).random(64), several[0])


def test_another_probability_of_one_change_leaves_the_others_alone(data):
    blurred, sharp = (
        MultiViewImages(*data, dataclasses.replace(SMALL, blur=blur)).__getitems__(DRAWS)
        for blur in ([1.0, 0.0, 0.0], 0.0)
    )
    for one, other in zip(blurred, sharp):
        assert not torch.equal(one["global_views"][0], other["global_views"][0])
        assert torch.equal(one["global_views"][1], other["global_views"][1])
        assert torch.equal(one["local_views"], other["local_views"])


def test_a_view_without_changes_is_the_whole_image_normalised_as_by_the_processor(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", images(10, (16, 16)), [0, 1] * 5)
    recipe = ImageData(path=str(file), image_size=16)
    dataset, transform = load_images(recipe, labelled=False).train, ImageTransform(build_processor(recipe), 3)
    made = MultiViewImages(dataset, transform, dataclasses.replace(PLAIN, ratio=[1.0, 1.0]))
    for number in range(len(dataset)):
        expected = transform([dataset[number]["image"]])[0]
        assert all(torch.equal(view, expected) for view in made[Draw(number, 0, 0)]["global_views"])


def marked(tmp_path, pixels, **values):
    """One image, many times over, and the dataset and transform of 8x8 that read it."""
    channels = pixels.shape[2]
    recipe = ImageData(path=str(write_parquet(tmp_path / "a.parquet", [pixels] * 10, [0] * 10)), image_size=8)
    recipe = dataclasses.replace(recipe, image_mean=[0.0] * channels, image_std=[1.0] * channels)
    transform = ImageTransform(build_processor(recipe), channels)
    made = MultiViewImages(load_images(recipe, labelled=False).train, transform, Views(**values))
    return made.__getitems__([Draw(0, epoch, 1) for epoch in range(400)])


def within(share, probability, count):
    """A share of `count` trials, within 4.5 deviations."""
    return abs(share - probability) <= 4.5 * (probability * (1 - probability) / count) ** 0.5


def test_shares_of_flipped_grey_blurred_and_solarized_views(tmp_path):
    """Black left of white, a little red: mirrored, without red, with steps, bright before dark."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 250
    pixels[..., 0] += 5
    still = {"global_scale": [1.0, 1.0], "local_scale": [1.0, 1.0], "ratio": [1.0, 1.0], "jitter": 0.0}
    still |= {"global_views": 3, "local_views": 2, "local_size": 8, "blur_radius": [1.0, 1.5]}
    items = marked(tmp_path, pixels, flip=0.3, grey=0.2, blur=[0.9, 0.1, 0.5], solarize=0.25, **still)
    views = torch.stack([torch.cat([item["global_views"], item["local_views"]]) for item in items]) * 255
    solarized = (views[..., 1, :, :] < 30).all((-1, -2))  # 250 and 0 become 5 and 0
    assert not solarized[:, [0, 2, 3, 4]].any() and within(solarized[:, 1].double().mean(), 0.25, 400)
    plain = views[~solarized]
    assert within((plain[:, 1, :, 0] > plain[:, 1, :, 7]).all(-1).double().mean(), 0.3, len(plain))
    grey = (plain[:, 0] == plain[:, 1]).all((-1, -2)) & (plain[:, 1] == plain[:, 2]).all((-1, -2))
    assert within(grey.double().mean(), 0.2, len(plain))
    blue = views[..., 2, :, :].flatten(2).round()
    shares = [np.mean([len(one.unique()) > 2 for one in blue[:, view]]) for view in range(5)]
    for share, probability in zip(shares, (0.9, 0.1, 0.1, 0.5, 0.5)):
        assert within(share, probability, 400), shares


def test_each_change_has_a_number_of_its_own():
    views = Views(jitter=0.5, jitter_strength=[0.4, 0.0, 0.0, 0.0], grey=0.5, blur=0.5, blur_radius=[1.0, 3.0])
    before = images(1, (8, 8)).transpose(0, 3, 1, 2)[None]
    expected = {
        1: with_brightness(before[0], np.array([1.4])),  # the amounts' numbers are 1, the most
        2: np.repeat(grey_values(before[0]), 3, axis=1),
        3: blurred(before[0, 0], 3.0),
        5: solarized(before[0]),
    }
    for place in range(14):
        numbers, pixels = np.ones((1, 1, 14)), before.copy()
        numbers[..., place] = 0
        recolour(pixels, [ViewKind((8, 8), [1.0, 1.0], blur=0.5, solarize=0.5)], views, numbers)
        np.testing.assert_array_equal(pixels[0, 0], np.squeeze(expected.get(place, before)))


def test_areas_of_the_crops(tmp_path):
    """Columns of rising brightness: a crop's range of values says how wide it is."""
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (128, 128, 3))
    one = {"ratio": [1.0, 1.0], "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}
    items = marked(tmp_path, ramp, local_views=1, local_size=4, global_scale=[0.5, 0.8], local_scale=[0.1, 0.2], **one)
    for name, size, (least, most) in (("global_views", 8, (0.5, 0.8)), ("local_views", 4, (0.1, 0.2))):
        views = torch.stack([item[name] for item in items]) * 255 / 2
        widths = (views.amax((-1, -2, -3)) - views.amin((-1, -2, -3))) * size / (size - 1)
        shares = (widths / 128) ** 2
        assert shares.min() > least - 0.02 and shares.max() < most + 0.02
        middle = (shares < (least + most) / 2).double().mean()
        assert within(middle, 0.5, shares.numel())


def test_kinds_of_views():
    kinds = view_kinds(Views(global_views=3, local_views=2, local_size=[8, 12]), (32, 24))
    assert [(kind.size, kind.blur, kind.solarize) for kind in kinds["global_views"]] == [
        ((32, 24), 1.0, 0.0),
        ((32, 24), 0.1, 0.2),
        ((32, 24), 0.1, 0.0),
    ]
    assert [(kind.size, kind.blur, kind.solarize) for kind in kinds["local_views"]] == [((8, 12), 0.5, 0.0)] * 2
    assert {kind.blur for of_name in view_kinds(Views(blur=0.0), (32, 32)).values() for kind in of_name} == {0.0}


def test_a_folder_without_classes(tmp_path):
    for number in range(6):
        write_image(tmp_path / f"{number}.png", number % 3, number)
    recipe = ImageData(path=str(tmp_path), image_size=16, test_fraction=0.5)
    train = load_images(recipe, labelled=False).train
    made = MultiViewImages(train, ImageTransform(build_processor(recipe), 3), Views(local_size=8))
    assert made[Draw(2, 0, 0)]["local_views"].shape == (8, 3, 8, 8)


def test_views_are_made_by_a_loader(data):
    made = MultiViewImages(*data, SMALL)
    assert batches_on_device(made, "auto", torch.device("cpu")) is None
    with pytest.raises(ValueError, match=r"data.keep_on must be auto or cpu, since views .* CPU; got 'device'"):
        batches_on_device(made, "device", torch.device("cpu"))


LISTS = [
    ({"global_views": 1, "local_views": 0}, "views.local_views=0: must be at least 1 where views.global_views is 1"),
    ({"global_scale": [1.0, 0.4]}, "views.global_scale=[1.0, 0.4]: must be [least, most] with least <= most"),
    ({"local_scale": [0.1]}, "views.local_scale=[0.1]: must be [least, most]"),
    ({"ratio": [0.5, 1.0, 2.0]}, "views.ratio=[0.5, 1.0, 2.0]: must be [least, most]"),
    ({"blur_radius": [2.0, 0.1]}, "views.blur_radius=[2.0, 0.1]: must be [least, most]"),
    ({"blur": [0.5, 0.5]}, "views.blur=[0.5, 0.5]: must be one probability, or [first global view"),
    ({"jitter_strength": [0.4] * 3}, "views.jitter_strength=[0.4, 0.4, 0.4]: must be [brightness, contrast"),
    ({"jitter_strength": [0.4] * 3 + [0.6]}, "with hue <= 0.5 (half a turn)"),
    ({"local_size": [16, 16, 16]}, "views.local_size=[16, 16, 16]: must be pixels or [height, width]"),
]
VALUES = [
    ({"global_views": 0}, "views.global_views=0: must be a whole number of at least 1"),
    ({"flip": 1.5}, "views.flip=1.5: must be a number of at least 0 and at most 1"),
    (
        {"blur": [1.0, 0.5, -0.1]},
        "views.blur=[1.0, 0.5, -0.1]: must be a number of at least 0 and at most 1, or a list",
    ),
    ({"global_scale": [0.0, 1.0]}, "views.global_scale=[0.0, 1.0]: must be a list, each item a number of at least"),
    (
        {"local_size": 10},
        "views.local_size=10: must be a multiple of the patch (4x4 pixels) and at most data.image_size ",
    ),
    ({"local_size": 2}, "(32x32), for example 16; or set views.local_views to 0"),
    ({"local_size": [16, 36]}, "views.local_size=[16, 36]: must be a multiple of the patch (4x4 pixels) and at most"),
    ({}, "views.local_size=96: must be a multiple of the patch (4x4 pixels) and at most data.image_size (32x32)"),
]


@pytest.mark.parametrize(("fields", "words"), LISTS + VALUES)
def test_views_that_cannot_be(fields, words):
    with pytest.raises(ValueError) as error:
        check_views(Views(**fields), 32, 4, 3)
    assert words in str(error.value)


def test_views_that_can_be(data):
    for fields in (
        {"local_size": 16},
        {"local_size": [32, 4]},
        {"local_views": 0},
        {"global_views": 1, "local_size": 8},
    ):
        check_views(Views(**fields), (32, 32), (4, 4), 1)
    with pytest.raises(ValueError, match=r"data.num_channels=4: views are made of 1"):
        check_views(Views(local_size=16), 32, 4, 4)
    with pytest.raises(ValueError, match=r"views.local_size=96: .* patch \(4x2 pixels\) .* for example \[8, 6\]"):
        MultiViewImages(*data, Views())


def of_task(task, **fields):
    return dataclasses.replace(Recipe(), task=task, views=Views(**fields))


@pytest.mark.parametrize(("fields", "words"), LISTS)
def test_recipes_refuse_lists_that_cannot_be(fields, words):
    with pytest.raises(ValueError) as error:
        check_values(of_task("self-supervised", **fields), lambda key: f"a.yaml ({key})")
    assert str(error.value).startswith("a.yaml (views.") and words in str(error.value)


def test_only_the_task_that_reads_views_takes_them():
    check_values(of_task("self-supervised", local_size=16), str)
    with pytest.raises(ValueError, match=r"'views.local_size' is set, but task image-classification reads nothing of"):
        load_recipe("digits", ["views.local_size=16"])
    with pytest.raises(ValueError, match=r"'augmentation.flip' is set, but task self-supervised reads nothing of"):
        changed = dataclasses.replace(Recipe().augmentation, flip=0.5)
        check_values(dataclasses.replace(of_task("self-supervised"), augmentation=changed), str)


def test_a_picture_of_the_views(data, tmp_path):
    made = MultiViewImages(*data, SMALL)
    write_views(tmp_path / "views.png", made, DRAWS[:2])
    with Image.open(tmp_path / "views.png") as picture:
        width, height = picture.size
        assert 500 < width < 1500 and 250 < height < 800
        assert len(picture.convert("L").getcolors()) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]


def test_normalised_values_are_looked_up():
    table = np.arange(512, dtype=np.float32).reshape(2, 256)
    out = normalised(np.full((3, 2, 4, 5), 7, np.uint8), table)
    assert out.shape == (3, 2, 4, 5) and (out[:, 0] == 7).all() and (out[:, 1] == 263).all()
