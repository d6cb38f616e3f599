"""The size at which a picture is segmented, and its normalisation."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from opencrate import CrateImageProcessor
from opencrate.analysis.masks.pictures import default_size, fitted_size, prepared
from opencrate.data.images.tensors import ImageTransform


@pytest.mark.parametrize(
    ("picture", "size", "patch", "square", "expected"),
    [
        ((300, 400), 480, (16, 16), False, (480, 640)),
        ((400, 300), 480, (8, 8), False, (640, 480)),
        ((333, 500), 100, (16, 16), False, (96, 144)),
        ((333, 500), 100, (16, 16), True, (96, 96)),
        ((10, 2000), 16, (16, 16), False, (16, 3200)),
        ((64, 64), 20, (8, 16), False, (16, 16)),
    ],
)
def test_sizes_are_the_nearest_multiples_of_the_patch(picture, size, patch, square, expected):
    assert fitted_size(picture, size, patch, square) == expected


def test_default_sizes():
    assert [default_size((patch, patch)) for patch in (4, 8, 14, 16)] == [240, 480, 480, 480]


@pytest.mark.parametrize("size", [7, 0, -480, 48.0])
def test_sizes_that_no_patch_fits(size):
    with pytest.raises(ValueError, match=r"size=.*at least the patch"):
        fitted_size((300, 400), size, (8, 8))


@pytest.mark.parametrize("make", [CrateImageProcessor, transformers.ViTImageProcessor, transformers.CLIPImageProcessor])
def test_only_the_processors_normalisation_is_applied(make):
    processor = make(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.4, 0.3])
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    found = prepared(Image.fromarray(pixels), ImageTransform(processor, 3), (24, 32))
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.4, 0.3]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32).permute(2, 0, 1))
    assert prepared(Image.fromarray(pixels), ImageTransform(processor, 3), (48, 16)).shape == (3, 48, 16)
