"""Bad images among good ones: named without `skip_bad`, counted and left out with it."""

import numpy as np
import pytest
from PIL import Image

from opencrate.data.images.sources import load_images
from opencrate.data.images.tensors import ImageTransform, drop_bad, to_tensors
from opencrate.data.images.training import TrainingImages
from opencrate.data.options import ImageData
from opencrate.store.build import build_processor

from ..recipes.folders import write_classes, write_image
from .formats import images, png, write_parquet


def bad_folder(root):
    """Ten images per class, with one truncated, one that is none, one too small and one without a range added."""
    write_classes(root, 10)
    write_image(root / "top" / "cut.png", 2, 0, size=(64, 64))
    (root / "top" / "cut.png").write_bytes((root / "top" / "cut.png").read_bytes()[:300])
    (root / "middle" / "text.png").write_text("no image")
    write_image(root / "middle" / "small.png", 1, 0, size=(3, 16))
    Image.fromarray(np.full((16, 16), -1.0, np.float32)).save(root / "bottom" / "deep.tiff")
    return ImageData(path=str(root), image_size=16)


def test_skip_bad_leaves_out_counts_and_names(tmp_path):
    recipe = bad_folder(tmp_path / "data")
    splits = load_images(recipe, skip_bad=True, smallest=(4, 4))
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert len(splits.skipped) == 4
    for name, reason in (
        ("cut.png", "not a"),
        ("text.png", "not a"),
        ("small.png", "smaller"),
        ("deep.tiff", "from -1"),
    ):
        assert any(name in line and reason in line for line in splits.skipped), splits.skipped
    good = load_images(ImageData(path=str(write_classes(tmp_path / "good", 10)), image_size=16))
    assert [cell["path"].split("/")[-2:] for cell in splits.train["image"][:]] == [
        cell["path"].split("/")[-2:] for cell in good.train["image"][:]
    ]


def test_patch_size_decides_what_is_too_small(tmp_path):
    assert len(load_images(bad_folder(tmp_path), skip_bad=True, smallest=(2, 2)).skipped) == 3


@pytest.mark.parametrize("build", [to_tensors, TrainingImages])
def test_without_it_the_first_bad_image_is_an_error(tmp_path, build):
    recipe = bad_folder(tmp_path)
    splits = load_images(recipe)
    assert splits.skipped == () and len(splits.train) + len(splits.test) == 34
    with pytest.raises(ValueError, match=r"\.(png|tiff): (not a readable|image of)"):
        build(splits.train, ImageTransform(build_processor(recipe), 3, (4, 4)))


def test_images_in_a_table_are_named_by_their_row(tmp_path):
    cells = [png(cell) for cell in images(12)]
    cells[7] = cells[7][:60]
    recipe = ImageData(path=str(write_parquet(tmp_path / "a.parquet", cells, [0, 1] * 6)), image_size=8)
    splits = load_images(recipe, skip_bad=True)
    assert len(splits.skipped) == 1 and "a.parquet, row 7: not a readable image" in splits.skipped[0]
    turned = load_images(recipe).train.select(range(8, -1, -1))
    bad = load_images(recipe)
    named = [drop_bad(part, ImageTransform(None, 3))[1] for part in (turned, bad.train, bad.test)]
    assert {line for lines in named for line in lines} == set(splits.skipped)


def test_a_class_must_keep_an_image(tmp_path):
    recipe = bad_folder(tmp_path)
    for file in (tmp_path / "top").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="class 'top' has no readable image left; 14 of 34 images are bad"):
        load_images(recipe, skip_bad=True, smallest=(4, 4))
