"""Changes of colours against their formulas in float64, and against PIL's."""

import colorsys

import numpy as np
import pytest
from PIL import ImageEnhance, ImageOps

from opencrate.data.images.colours import (
    blurred,
    grey_values,
    jitter_amounts,
    jittered,
    solarized,
    with_brightness,
    with_contrast,
    with_hue,
    with_saturation,
)
from opencrate.data.images.tensors import to_array, to_image

from .formats import images

STRENGTH = [0.4, 0.4, 0.2, 0.1]
PIXELS = images(12, (9, 7)).transpose(0, 3, 1, 2)
GREY = images(12, (9, 7), channels=1)[:, None]
FACTORS = np.linspace(0, 2.2, 12)


def luma(image):
    """ITU-R 601-2 of `(C, H, W)` in float64."""
    return np.tensordot([0.299, 0.587, 0.114], image, 1) if len(image) == 3 else image[0]


def blended(degenerate, image, factor):
    return (degenerate + factor * (image - degenerate)).clip(0, 255)


def reference(which, image, amount):
    """One change of an image `(C, H, W)` by its formula, float64, without rounding."""
    if which == 0:
        return blended(0, image, amount)
    if which == 1:
        return blended(np.floor(np.rint(luma(image)).mean() + 0.5), image, amount)
    if which == 2:
        return blended(luma(image), image, amount)
    flat = image.reshape(3, -1).T / 255
    turned = [colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*rgb) for rgb in flat)]
    return np.array(turned).T.reshape(image.shape) * 255


@pytest.mark.parametrize("pixels", [PIXELS, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize(
    ("change", "enhance", "which"),
    [
        (with_brightness, ImageEnhance.Brightness, 0),
        (with_contrast, ImageEnhance.Contrast, 1),
        (with_saturation, ImageEnhance.Color, 2),
    ],
)
def test_factors_are_the_formulas_and_pils(change, enhance, which, pixels):
    out = change(pixels, FACTORS)
    assert out.dtype == np.uint8 and out.shape == pixels.shape
    for before, after, factor in zip(pixels, out, FACTORS):
        expected = reference(which, before.astype(float), factor)
        assert np.abs(after - expected).max() <= (0.501 if which < 2 else 0.5 + 0.501 * abs(1 - factor))
        by_pil = to_array(enhance(to_image(before)).enhance(factor)).astype(int)
        assert (np.abs(after - by_pil) <= 1).all()
    np.testing.assert_array_equal(change(pixels, np.ones(12)), pixels)


def test_hue_is_the_turn_of_the_colour_circle():
    turns = np.linspace(-0.5, 0.5, 12)
    for before, after, turn in zip(PIXELS, with_hue(PIXELS, turns), turns):
        assert np.abs(after - reference(3, before.astype(float), turn)).max() <= 0.51
    np.testing.assert_array_equal(with_hue(PIXELS, np.zeros(12)), PIXELS)


def test_hues_that_everybody_knows():
    red, grey = np.array([200, 0, 0], np.uint8), np.array([90, 90, 90], np.uint8)
    pixels = np.tile(np.stack([red, grey], 1)[None, :, None], (3, 1, 1, 1))
    out = with_hue(pixels, np.array([1 / 3, -1 / 3, 0.5]))
    assert out[:, :, 0, 0].tolist() == [[0, 200, 0], [0, 0, 200], [0, 200, 200]]
    assert (out[..., 1] == 90).all()


def test_grey_is_pils():
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), 0).reshape(1, 3, 52, -1)
    np.testing.assert_array_equal(grey_values(every)[0, 0], np.asarray(to_image(every[0]).convert("L")))
    assert grey_values(GREY) is GREY


def test_amounts_are_uniform_in_their_ranges():
    ends = jitter_amounts([0.4, 1.5, 0.2, 0.1], np.array([[0.0] * 4, [0.5] * 4, [1.0] * 4]))
    np.testing.assert_allclose(ends, [[0.6, 0, 0.8, -0.1], [1, 1.25, 1, 0], [1.4, 2.5, 1.2, 0.1]], atol=1e-12)


@pytest.mark.parametrize("pixels", [PIXELS, GREY], ids=["colour", "grey"])
def test_jitter_applies_the_four_in_order(pixels):
    rng = np.random.default_rng(3)
    numbers, order = rng.random((12, 4)), rng.random((12, 4)).argsort(1)
    amounts = jitter_amounts(STRENGTH, numbers)
    out = jittered(pixels, STRENGTH, numbers, order)
    for row, before in enumerate(pixels.astype(float)):
        expected = before
        for which in order[row]:
            if len(before) == 3 or which < 2:
                expected = np.rint(reference(which, expected, amounts[row, which]))
        assert np.abs(out[row] - expected).max() <= 3  # ties and luma, rounded before a factor of up to 1.4
        assert np.abs(out[row] - expected).mean() < 0.3
    backwards = jittered(pixels, STRENGTH, numbers, order[:, ::-1])
    assert (np.abs(backwards.astype(int) - out) > 3).any(), "the order matters"


def test_images_do_not_depend_on_each_other(monkeypatch):
    numbers = np.random.default_rng(0).random((12, 8))
    order = numbers[:, 4:].argsort(1)
    together = jittered(PIXELS, STRENGTH, numbers[:, :4], order)
    for row in range(12):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(jittered(PIXELS[one], STRENGTH, numbers[one, :4], order[one]), together[one])
    monkeypatch.setattr("opencrate.data.images.colours._AT_ONCE", 130)
    np.testing.assert_array_equal(jittered(PIXELS, STRENGTH, numbers[:, :4], order), together)


def test_no_strength_no_change():
    numbers = np.random.default_rng(0).random((12, 8))
    before = PIXELS.copy()
    np.testing.assert_array_equal(jittered(PIXELS, [0.0] * 4, numbers[:, :4], numbers[:, 4:].argsort(1)), before)
    jittered(PIXELS, STRENGTH, numbers[:, :4], numbers[:, 4:].argsort(1))
    np.testing.assert_array_equal(PIXELS, before, "what is given stays as it is")


@pytest.mark.parametrize("pixels", [PIXELS[0], GREY[0]], ids=["colour", "grey"])
def test_solarized_and_blurred(pixels):
    np.testing.assert_array_equal(solarized(pixels), to_array(ImageOps.solarize(to_image(pixels))))
    np.testing.assert_array_equal(blurred(pixels, 0.0), pixels)
    spot = np.zeros((len(pixels), 31, 31), np.uint8)
    spot[:, 12:19, 12:19] = 255
    spread = blurred(spot, 2.0).astype(float)
    variance = ((spread[0].sum(1) / spread[0].sum()) * (np.arange(31) - 15) ** 2).sum()
    assert abs(variance - (4 + (7**2 - 1) / 12)) < 0.5, "of the square and of the blur"
