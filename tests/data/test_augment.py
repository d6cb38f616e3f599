"""The pieces of the augmentation: what they do to an image, and how often."""

import math

import numpy as np
import pytest
from PIL import Image

from opencrate.data.draws import Mix
from opencrate.data.images.augment import Augment, draw_crop_box, draw_erasing, mixed, own_share, shifted
from opencrate.data.images.randaugment import OPERATIONS, RandAugment
from opencrate.data.images.tensors import to_array, to_image
from opencrate.data.options import Augmentation

from .formats import images


def augmentation(size=(12, 10), **fields):
    return Augment(Augmentation(**fields), size, (120, 110, 100), Image.Resampling.BILINEAR)


def rng(seed=0):
    return np.random.default_rng(seed)


def photo(mode="RGB", size=(20, 16)):
    """A textured picture of middling contrast: values 40 to 200, every operation has something to do."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    texture = (rows * 5 + columns * 3) % 7 * 4
    bands = [rows * 5 + 40 + texture, columns * 7 + 60, 200 - rows * 3 - columns * 2 - texture]
    return Image.fromarray(np.stack(bands, -1).clip(40, 200).astype(np.uint8)).convert(mode)


def test_shifted_is_a_crop_of_the_zero_padded_image():
    pixels = images(1)[0].transpose(2, 0, 1)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
    for down in range(-4, 5):
        for right in range(-4, 5):
            expected = padded[:, 4 + down : 16 + down, 4 + right : 14 + right]
            np.testing.assert_array_equal(shifted(pixels, down, right), expected)


def test_padded_crop_takes_every_offset_equally_often():
    pixels = np.zeros((1, 9, 9), np.uint8)
    pixels[0, 4, 4] = 1
    augment, generator = augmentation((9, 9), crop="padded", crop_padding=2), rng()
    places = np.zeros((9, 9), int)
    for _ in range(5000):
        places += augment(pixels, generator)[0][0]
    assert places.sum() == 5000 and places[2:7, 2:7].sum() == 5000
    expected = 5000 / 25
    chi_square = ((places[2:7, 2:7] - expected) ** 2 / expected).sum()
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_come_as_often_as_asked(probability):
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    augment, generator = augmentation((3, 4), flip=probability), rng()
    results = [augment(pixels, generator)[0] for _ in range(3000)]
    flipped = [np.array_equal(result, pixels[..., ::-1]) for result in results]
    assert all(flip or np.array_equal(result, pixels) for flip, result in zip(flipped, results))
    assert abs(np.mean(flipped) - probability) < 4 * math.sqrt(probability * (1 - probability) / 3000) + 1e-12


def test_crop_boxes_have_the_areas_and_aspects_asked_for():
    generator, height, width = rng(), 300, 400
    boxes = np.array([draw_crop_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), generator) for _ in range(3000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    w, h = right - left, bottom - top
    assert (w / h).min() > 0.74 and (w / h).max() < 1.35
    share = w * h / (height * width)
    assert 0.079 < share.min() < 0.09 and share.max() > 0.9
    small = share < 0.3  # every such box fits: areas are uniform there
    assert abs(np.mean(share[small] < 0.19) - 0.5) < 0.05


def test_crop_aspects_are_uniform_in_their_logarithm():
    generator = rng()
    boxes = np.array([draw_crop_box(400, 400, (0.05, 0.1), (1 / 4, 4), generator) for _ in range(2000)])
    logs = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])) / np.log(4)
    assert abs(logs.mean()) < 0.05 and abs(logs.var() - 1 / 3) < 0.03


@pytest.mark.parametrize(("size", "expected"), [((10, 100), (13, 10)), ((100, 10), (10, 13)), ((1, 1), (1, 1))])
def test_crop_of_an_extreme_shape_is_the_largest_centred_one(size, expected):
    left, top, right, bottom = draw_crop_box(*size, (1.0, 1.0), (3 / 4, 4 / 3), rng())
    assert (right - left, bottom - top) == expected
    assert (left, top) == ((size[1] - expected[0]) // 2, (size[0] - expected[1]) // 2)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resized_crop_of_the_whole_image_is_pils_resize(mode):
    image = photo(mode)
    whole = augmentation((10, 8), crop="resized", crop_scale=[1.0, 1.0], crop_ratio=[0.8, 0.8])
    np.testing.assert_array_equal(whole(image, rng())[0], to_array(image.resize((8, 10), Image.Resampling.BILINEAR)))


def test_resized_crop_does_not_alias():
    rows, columns = np.mgrid[0:64, 0:64]
    board = Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8))
    augment = augmentation((8, 8), crop="resized", crop_scale=[0.9, 1.0], crop_ratio=[1.0, 1.0])
    pixels, _ = augment(board, rng())
    assert pixels.shape == (1, 8, 8) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - 127).max() < 20


def test_padding_must_be_below_the_size():
    with pytest.raises(ValueError, match=r"crop_padding=10 must be .* below the image's size \(12x10\)"):
        augmentation(crop="padded", crop_padding=10)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_acts_and_keeps_size_and_mode(name, mode):
    image = photo(mode)
    fill = (90,) * len(mode)
    results = [OPERATIONS[name](image, strength, fill) for strength in (0.3, -0.3, 1.0, -1.0)]
    assert all((result.size, result.mode) == (image.size, mode) for result in results)
    changes = [np.abs(np.asarray(result, int) - np.asarray(image)).mean() for result in results]
    if name == "identity" or (name, mode) == ("color", "L"):
        assert max(changes) == 0
    elif name in ("autocontrast", "equalize"):
        assert min(changes) > 1
    else:
        assert min(changes[2:]) > 0.3
        assert changes[2] > changes[0] and changes[3] > changes[1]  # increasing
        nothing = np.asarray(OPERATIONS[name](image, 0.0, fill), int)
        assert np.abs(nothing - np.asarray(image)).max() == 0


def test_signed_operations_go_both_ways_and_fill_with_the_colour():
    image = Image.new("RGB", (20, 20), (10, 200, 50))
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        one, other = (np.asarray(OPERATIONS[name](photo(), sign, (1, 2, 3))) for sign in (1.0, -1.0))
        assert not np.array_equal(one, other)
        filled = np.asarray(OPERATIONS[name](image, 1.0, (1, 2, 3)))
        assert {tuple(colour) for colour in filled.reshape(-1, 3)} >= {(1, 2, 3), (10, 200, 50)}
    moved = np.asarray(OPERATIONS["translate_x"](image, 1.0, (1, 2, 3)))
    assert (moved[:, -9:] == (1, 2, 3)).all() and (moved[:, :11] == (10, 200, 50)).all()  # 0.45 of 20
    brighter, darker = (np.asarray(OPERATIONS["brightness"](image, sign, (0,) * 3)) for sign in (1.0, -1.0))
    assert brighter[0, 0].tolist() == [19, 255, 95] and darker[0, 0].tolist() == [1, 20, 5]


def test_randaugment_draws_every_operation(monkeypatch):
    seen = []
    for name in list(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, lambda image, strength, fill, name=name: seen.append((name, strength)))
    randaugment, generator = RandAugment(2, 9, (0, 0, 0)), rng()
    for _ in range(1400):
        randaugment(photo(), generator)
    counts = [sum(name == other for other, _ in seen) for name in OPERATIONS]
    assert len(seen) == 2800 and len(counts) == 14
    assert all(abs(count - 200) < 60 for count in counts)
    assert {strength for _, strength in seen} == {0.3, -0.3}


@pytest.mark.parametrize(("ops", "magnitude"), [(0, 9), (2, 31), (2, -1)])
def test_randaugment_checks_its_numbers(ops, magnitude):
    with pytest.raises(ValueError, match="RandAugment"):
        RandAugment(ops, magnitude, (0,))


def test_erasing_boxes_have_the_papers_areas_and_aspects():
    generator = rng()
    found = [draw_erasing((3, 64, 64), generator) for _ in range(1500)]
    boxes = np.array([erasing.noise.shape[1:] for erasing in found])
    share = boxes.prod(1) / 64**2
    assert 0.018 < share.min() < 0.03 and 0.3 < share.max() < 0.345
    aspect = boxes[:, 0] / boxes[:, 1]
    assert 0.25 < aspect.min() < 0.4 and 2.5 < aspect.max() < 3.9
    assert abs(np.log(aspect).mean()) < 0.1  # uniform in its logarithm
    assert all(e.top + h <= 64 and e.left + w <= 64 for e, (h, w) in zip(found, boxes))
    noise = np.concatenate([erasing.noise.ravel() for erasing in found[:50]])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and noise.dtype == np.float32


def test_erasing_touches_its_box_only_and_comes_as_often_as_asked():
    augment, generator = augmentation((16, 16), erasing=0.25), rng()
    results = [augment(np.zeros((3, 16, 16), np.uint8), generator)[1] for _ in range(2000)]
    assert abs(np.mean([erasing is not None for erasing in results]) - 0.25) < 0.04
    erasing = next(erasing for erasing in results if erasing)
    pixel_values = np.full((3, 16, 16), 100, np.float32)
    erasing.apply(pixel_values)
    assert (pixel_values != 100).sum() == erasing.noise.size


def test_mixup_is_the_weighted_sum():
    a, b = (rng(seed).standard_normal((3, 6, 4), dtype=np.float32) for seed in (0, 1))
    mix = Mix("mixup", 0.3)
    out, lam = mixed(a, b, mix), own_share(mix, 6, 4)
    np.testing.assert_allclose(out, 0.3 * a + 0.7 * b, atol=1e-6)
    assert lam == 0.3 and out.dtype == np.float32


def test_cutmix_pastes_the_box_and_counts_its_pixels():
    a, b = np.zeros((3, 10, 20), np.float32), np.ones((3, 10, 20), np.float32)
    mix = Mix("cutmix", 0.7, (0.26, 0.5, 0.84, 1.0))
    out, lam = mixed(a, b, mix), own_share(mix, 10, 20)
    expected = a.copy()
    expected[:, 3:8, 10:20] = 1
    np.testing.assert_array_equal(out, expected)
    assert lam == pytest.approx(1 - 50 / 200)
    assert a.max() == 0


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_arrays_and_images_are_inverse(mode):
    image = photo(mode)
    pixels = to_array(image)
    assert pixels.shape == (len(mode), 20, 16)
    assert to_image(pixels) == image
