"""One file, one tensor: whatever reads it, in every mode, format and orientation."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline
from transformers.image_utils import load_image

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor
from opencrate.data.draws import Draw
from opencrate.data.images.labelled import labelled_dataset
from opencrate.data.images.tensors import ImageTransform, to_tensors
from opencrate.data.images.training import TrainingImages
from opencrate.evaluation.inputs import read_files
from opencrate.image_processing_crate import as_grey_or_colour, eight_bits, read_picture

SIDE = 16
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS)
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (12, 20), dtype=np.uint16)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def pictures() -> dict[str, Image.Image]:
    """The same noise in every mode that PIL has."""
    transparent = PICTURE.convert("RGBA")
    transparent.putalpha(Image.fromarray(COLOURS[..., 1]))
    palette = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    clear = palette.copy()
    clear.info["transparency"] = bytes(range(0, 256, 4))
    found = {mode: PICTURE.convert(mode) for mode in ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")}
    found |= {"LA": transparent.convert("LA"), "RGBA": transparent, "RGBa": transparent.convert("RGBa")}
    found |= {"La": found["LA"].convert("La"), "P": palette, "P with transparency": clear, "PA": palette.convert("PA")}
    found |= {"LAB": Image.merge("LAB", PICTURE.split()), "I;16": Image.fromarray(DEEP)}
    found |= {"I;16B": Image.frombytes("I;16B", (20, 12), DEEP.astype(">u2").tobytes())}
    found |= {"I": Image.fromarray(DEEP.astype(np.int32)), "I to 255": PICTURE.convert("I")}
    fractions = (DEEP / np.float32(65535)).astype(np.float32)
    found |= {"F": Image.fromarray(fractions), "F to 255": Image.fromarray(fractions * np.float32(255))}
    return found


PICTURES = pictures()


def saved(picture: Image.Image, kind: str, folder: Path, **options) -> Path | None:
    """The picture as a file; `None` where the format does not take its mode."""
    file = folder / f"picture.{kind.lower()}"
    try:
        picture.save(file, kind, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def reader(request):
    """A model's channels, its processor and its pipeline."""
    channels = request.param
    processor = CrateImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.4] * channels,
        image_std=[0.3] * channels,
    )
    config = CrateConfig.from_size("digits", num_channels=channels, image_size=SIDE, patch_size=8)
    model = CrateForImageClassification(config)
    return channels, processor, pipeline("image-classification", model=model, image_processor=processor)


def readings(file: Path, reader) -> dict[str, torch.Tensor]:
    """The tensor `(C, SIDE, SIDE)` of a file by every way that reads it."""
    channels, processor, classify = reader
    transform = ImageTransform(processor, channels)
    cell = {"path": str(file), "bytes": None}
    dataset = labelled_dataset([cell, {"path": None, "bytes": file.read_bytes()}], [0, 1], ["a", "b"], file)
    prepared = {
        "evaluation": to_tensors(dataset, transform)[0],
        "evaluation of bytes": to_tensors(dataset, transform, limit=0)[1],
        "training": TrainingImages(dataset, transform)[Draw(0, 0, 0)],
        "processor, name": processor(images=str(file), return_tensors="pt"),
        "processor, path": processor(images=[file], return_tensors="pt"),
        "pipeline, name": classify.preprocess(str(file)),
    }
    with Image.open(file) as picture:
        prepared["processor, picture"] = processor(images=picture, return_tensors="pt")
        prepared["pipeline, picture"] = classify.preprocess(picture)
    found = {way: batch["pixel_values"].reshape(channels, SIDE, SIDE) for way, batch in prepared.items()}
    ((_, pixels),) = read_files(transform, [file], 1)
    return found | {"predict": pixels[0]}


@pytest.mark.parametrize("mode", PICTURES)
def test_every_way_reads_every_mode_alike(mode, reader, tmp_path):
    files = [saved(PICTURES[mode], kind, tmp_path) for kind in FORMATS]
    files = [file for file in files if file]
    assert files or mode in ("La",)
    for file in files:
        found = readings(file, reader)
        for way, tensor in found.items():
            assert torch.equal(tensor, found["evaluation"]), f"{way} of {file.name}"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_turns_a_photograph_as_its_tag_says(orientation, reader, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        file = saved(PICTURE, kind, tmp_path, exif=exif)
        found = readings(file, reader)
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture).convert("L" if reader[0] == 1 else "RGB")
        expected = reader[1](images=np.asarray(upright), return_tensors="pt")["pixel_values"][0]
        for way, tensor in found.items():
            assert torch.equal(tensor, expected), f"{way} of {file.name}"


@pytest.mark.parametrize("mode", [mode for mode in PICTURES if mode[0] not in "IF" and mode != "La"])
def test_modes_of_8_bits_are_read_as_transformers_reads_them(mode):
    assert np.array_equal(as_grey_or_colour(PICTURES[mode], 3), load_image(PICTURES[mode]))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_pictures_are_scaled_not_clipped(mode):
    pixels = np.asarray(as_grey_or_colour(PICTURES[mode], 1), int)
    assert np.abs(pixels - DEEP / 257).max() <= 1


def test_16_bit_colour_and_grey_files_are_scaled_alike(tmp_path):
    """PIL takes the high byte of 16-bit colour itself."""
    Image.fromarray(DEEP).save(tmp_path / "grey.png")
    header = b"P6 20 12 65535\n"
    (tmp_path / "colour.ppm").write_bytes(header + np.repeat(DEEP[..., None], 3, 2).astype(">u2").tobytes())
    grey, colour = (as_grey_or_colour(read_picture(tmp_path / name), 1) for name in ("grey.png", "colour.ppm"))
    assert np.abs(np.asarray(grey, int) - np.asarray(colour, int)).max() <= 1


def test_values_without_a_range_are_refused():
    for values in ([-1, 5], [0, 70000], [0.5, np.nan], [-0.1, 0.2], [0.0, np.inf]):
        with pytest.raises(ValueError, match=r"pixel values from .*0 to 255, 0 to 65535"):
            eight_bits(np.array(values))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_read(kind, reader, tmp_path):
    frames = [Image.fromarray(np.roll(COLOURS, 5 * number, 1)) for number in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    several = saved(frames[0], kind, tmp_path, save_all=True, append_images=frames[1:], **options)
    found = readings(several, reader)
    one = readings(saved(frames[0], kind, tmp_path, **options), reader)["evaluation"]
    for way, tensor in found.items():
        assert torch.equal(tensor, one), way


def test_a_damaged_orientation_is_none(tmp_path):
    file = saved(PICTURE, "PNG", tmp_path, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken")
    assert np.array_equal(as_grey_or_colour(read_picture(file), 3), PICTURE)


def arrays() -> dict[str, object]:
    """The picture as arrays and tensors of every layout and type, with what `PICTURE` must become of it."""
    first = COLOURS.transpose(2, 0, 1)
    fractions = first.astype(np.float32) / 255
    return {
        "uint8, last": COLOURS,
        "uint8, first": first,
        "uint8, not contiguous": COLOURS[::-1][::-1],
        "int64": COLOURS.astype(np.int64),
        "float32 to 255": first.astype(np.float32),
        "float64 to 1": fractions.astype(np.float64),
        "tensor uint8": torch.from_numpy(first.copy()),
        "tensor float to 1": torch.from_numpy(fractions).requires_grad_(),
        "with transparency": np.concatenate([COLOURS, COLOURS[..., :1]], -1),
        "list": [COLOURS],
        "nested list": [[COLOURS]],
        "batch": COLOURS[None],
        "batch tensor": torch.from_numpy(first.copy())[None],
    }


@pytest.mark.parametrize("kind", arrays())
def test_arrays_are_read_as_the_picture(kind, reader):
    processor = reader[1]
    found = processor(images=arrays()[kind], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, processor(images=PICTURE, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("values", [COLOURS[..., 0], COLOURS[..., :1], COLOURS[..., :2], DEEP, COLOURS[..., 0] > 127])
def test_grey_arrays_are_read_as_the_grey_picture(values, reader):
    processor = reader[1]
    grey = np.asarray(as_grey_or_colour(Image.fromarray(values[..., 0] if values.ndim == 3 else values), 1))
    expected = processor(images=Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    for given in (values, [values], torch.from_numpy(values) if values.dtype != np.uint16 else values):
        assert torch.equal(processor(images=given, return_tensors="pt")["pixel_values"], expected)


def test_fractions_that_are_not_to_be_rescaled_stay(reader):
    channels, processor, _ = reader
    values = np.random.default_rng(2).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    found = processor(images=values, do_rescale=False, do_resize=False, do_normalize=False)["pixel_values"][0]
    expected = values if channels == 3 else 0.299 * values[:1] + 0.587 * values[1:2] + 0.114 * values[2:]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_it_equals_the_vit_processor_on_what_that_takes():
    options = {"size": {"height": SIDE, "width": SIDE}, "resample": 2}
    ours = CrateImageProcessor(**options, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = ViTImageProcessor(**options)
    for image in (
        PICTURE,
        COLOURS,
        COLOURS.transpose(2, 0, 1),
        [PICTURE, PICTURE.rotate(90)],
        torch.from_numpy(COLOURS),
    ):
        mine, other = (one(images=image, return_tensors="pt")["pixel_values"] for one in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_other_peoples_pipelines_are_left_alone():
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**shape, image_size=SIDE, patch_size=8))
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    classify = pipeline("image-classification", model=model, image_processor=processor)
    expected = processor(load_image(PICTURES["RGBA"]), return_tensors="pt")["pixel_values"]
    assert torch.equal(classify.preprocess(PICTURES["RGBA"])["pixel_values"], expected)


@pytest.mark.parametrize(
    ("given", "crop"),
    [
        ({"size": {"height": 32, "width": 24}}, (32, 24)),
        ({"size": 32}, (32, 32)),
        ({"size": {"shortest_edge": 32}}, (32, 32)),
        ({"size": {"shortest_edge": 32}, "crop_size": 28}, (28, 28)),
        ({}, (224, 224)),
    ],
)
def test_the_crop_follows_the_size(given, crop):
    processor = CrateImageProcessor(**given)
    found = processor(images=Image.new("RGB", (300, 400), "white"), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, *crop)
    assert found.min() > 2  # white everywhere: no border
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        assert CrateImageProcessor.from_pretrained(folder).to_dict() == processor.to_dict()


def test_a_crop_that_leaves_the_image_is_refused():
    with pytest.raises(ValueError, match="crop_size=48x48 is larger than size=32x32"):
        CrateImageProcessor(size=32, crop_size=48)
    with pytest.raises(ValueError, match="crop_size=224x224 is larger than size=32x32"):
        CrateImageProcessor()(images=PICTURE, size={"height": 32, "width": 32})
