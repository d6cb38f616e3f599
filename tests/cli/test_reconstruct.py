"""`opencrate reconstruct` and `opencrate experiment reconstruct --model`: what they write, and what they refuse."""

import csv
import json

import pytest
import torch
from PIL import Image
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from opencrate import CrateImageProcessor, CrateMAEConfig, CrateMAEForPreTraining

SIZE = {"height": 8, "width": 8}


def save(model, folder):
    model.save_pretrained(folder)
    processor = CrateImageProcessor(size=SIZE, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor.save_pretrained(folder)
    return folder


def small(seed=0, **options) -> CrateMAEForPreTraining:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
    return CrateMAEForPreTraining(CrateMAEConfig(**sizes, **options))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return save(small(), tmp_path_factory.mktemp("mae") / "mae")


@pytest.fixture(scope="module")
def vit_mae(tmp_path_factory):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, image_size=8, patch_size=2, norm_pix_loss=True))
    return save(model, tmp_path_factory.mktemp("vit") / "vit-mae")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        pixels = torch.randint(256, (10, 12, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def rows_of(folder):
    with (folder / "reconstruction.csv").open() as file:
        return list(csv.DictReader(file))


def test_writes_grid_table_and_record(opencrate, autoencoder, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = opencrate("reconstruct", autoencoder, pictures, "--batch-size", 2, "--rows", 3, "--seed", 4)
    assert result.code == 0, result.err
    folder = tmp_path / "reconstructions" / "mae"
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        f"reconstruction.{end}" for end in ("csv", "json", "png")
    ]
    record = json.loads((folder / "reconstruction.json").read_text())
    assert record["mask_ratio"] == 0.75 and record["seed"] == 4 and record["note"] == "" and len(record["images"]) == 5
    assert all(image["masked_patches"] == 12 for image in record["images"])
    assert [row["file"].endswith(f"{number}.png") for number, row in enumerate(rows_of(folder))] == [True] * 5
    mean = sum(float(row["psnr_masked"]) for row in rows_of(folder)) / 5
    assert record["mean"]["psnr_masked"] == pytest.approx(mean) and f"{mean:.4g}" in result.out
    assert Image.open(folder / "reconstruction.png").width > 500

    again = opencrate("reconstruct", autoencoder, pictures)
    assert again.code == 2 and "reconstruction.json" in again.err and "--overwrite" in again.err
    first = rows_of(folder)
    words = ("--overwrite", "--seed", 4, "--batch-size", 5)
    assert opencrate("reconstruct", autoencoder, pictures, *words).code == 0
    for one, other in zip(first, rows_of(folder)):  # whatever the batches
        assert float(one["model_error"]) == pytest.approx(float(other["model_error"]), rel=1e-5)
    assert opencrate("reconstruct", autoencoder, pictures, "--overwrite", "--seed", 5).code == 0
    assert rows_of(folder)[0]["model_error"] != first[0]["model_error"]


def test_standardised_patches_are_named_and_ratios_taken(opencrate, vit_mae, pictures, tmp_path):
    result = opencrate("reconstruct", vit_mae, pictures / "0.png", "--output", tmp_path / "o", "--mask-ratio", 0.5)
    assert result.code == 0 and "Note: the model predicts patches standardised" in result.out, result.err
    assert rows_of(tmp_path / "o")[0]["masked_patches"] == "8"
    whole = opencrate("reconstruct", vit_mae, pictures / "0.png", "--output", tmp_path / "w", "--mask-ratio", 0)
    assert whole.code == 0 and "masked patches" not in whole.out, whole.err
    record = json.loads((tmp_path / "w" / "reconstruction.json").read_text())
    assert record["images"][0]["psnr_masked"] is None and record["images"][0]["psnr_pasted"] == "inf"


def test_bad_images_are_skipped_when_asked(opencrate, autoencoder, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    words = ("reconstruct", autoencoder, pictures / "0.png", tmp_path / "bad.png", "--output", tmp_path / "out")
    refused = opencrate(*words)
    assert refused.code == 2 and "bad.png" in refused.err and not (tmp_path / "out").exists()
    done = opencrate(*words, "--skip-bad")
    assert done.code == 0 and "skipped 1 of 2 images" in done.err
    assert "bad.png" in json.loads((tmp_path / "out" / "reconstruction.json").read_text())["skipped"][0]
    nothing = opencrate("reconstruct", autoencoder, tmp_path / "bad.png", "--skip-bad", "--output", tmp_path / "none")
    assert nothing.code == 2 and "none of the 1 images can be read" in nothing.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["MODEL", "missing.png"], ["missing.png: no such file or folder"]),
        (["MODEL", "IMAGES", "--mask-ratio", "1"], ["--mask-ratio", "'1'", "below 1"]),
        (["MODEL", "IMAGES", "--mask-ratio", "-0.1"], ["--mask-ratio", "at least 0"]),
        (["MODEL", "IMAGES", "--mask-ratio", "nan"], ["--mask-ratio", "'nan'"]),
        (["MODEL", "IMAGES", "--seed", "x"], ["--seed", "'x'"]),
        (["nothing", "IMAGES"], ["nothing: no such folder"]),
        (
            ["CLASSIFIER", "IMAGES"],
            ["holds CrateForImageClassification, an image classifier, not a masked autoencoder"],
        ),
        (["ENCODER", "IMAGES"], ["holds CrateMAEModel", "with its decoder"]),
        (["ODD", "IMAGES"], ["image size 9x8 does not fit patch_size 2x2"]),
        (["BARE", "IMAGES"], ["no image processor there"]),
    ],
)
def test_bad_input(opencrate, autoencoder, pictures, plain_crate, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": autoencoder, "IMAGES": pictures, "CLASSIFIER": plain_crate}
    for name in ("ENCODER", "ODD", "BARE"):
        places[name] = tmp_path / name
    if words[0] in ("ENCODER", "ODD", "BARE"):
        model = small()
        (model.crate if words[0] == "ENCODER" else model).save_pretrained(places[words[0]])
    if words[0] == "ODD":
        size = {"height": 9, "width": 8}
        CrateImageProcessor(size=size, do_center_crop=False).save_pretrained(places["ODD"])
    result = opencrate("reconstruct", *(places.get(word, word) for word in words))
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("opencrate: error: ") and all(word in line for word in expected), line
    assert not (tmp_path / "reconstructions").exists()


# --- opencrate experiment reconstruct --model -----------------------------------------------------------------------


def test_experiment_on_a_trained_model(opencrate, autoencoder, pictures, tmp_path):
    words = ("experiment", "reconstruct", "--model", autoencoder, "--data", pictures, "--output", tmp_path / "out")
    result = opencrate(*words, "--untrained", "noise=0,1", "images=4")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "autoencoder.json").read_text())
    assert found["experiment"] == "autoencoder" and "images=4" in found["settings"]
    assert {row["model"] for row in found["rows"]} == {"mae", "mae, untrained", "mae, untrained, tied"}
    assert all(row["images"] == 4 for row in found["rows"]) and found["summary"][0].startswith("Images: 5 of ")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3 and found["summary"][1] in result.out
    assert opencrate(*words).code == 2


def test_analyze_says_how_far_the_decoder_undoes_the_encoder(opencrate, autoencoder, pictures, tmp_path):
    result = opencrate("analyze", autoencoder, "--data", pictures, "--output", tmp_path / "report")
    assert result.code == 0 and "2 layers on 5 images, against learned U" in result.out, result.err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "The decoder as the encoder" in page and "one layer, directions" in page
    assert (tmp_path / "report" / "figures" / "autoencoder_inverse.png").is_file()
    assert "not derived from the objective" not in page


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compress", "--model", "MODEL"], "--model: belongs to `opencrate experiment reconstruct`"),
        (["reconstruct", "--untrained"], "--untrained: needs --model RUN"),
        (["reconstruct", "--data", "digits"], "--data: needs --model RUN"),
        (["reconstruct", "--model", "MODEL", "--seeds", "3"], "--seeds: with --model the intervals are over images"),
        (["reconstruct", "--model", "MODEL"], "has no recipe, so it names no images"),
        (["reconstruct", "--model", "MODEL", "layers=3"], "unknown setting 'layers'"),
        (["reconstruct", "--model", "VIT", "--data", "digits"], "is not a CRATE autoencoder"),
    ],
)
def test_experiment_refuses(opencrate, autoencoder, vit_mae, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": autoencoder, "VIT": vit_mae}
    result = opencrate("experiment", *(places.get(word, word) for word in words))
    assert result.code == 2 and expected in result.err, result.err
    assert not list(tmp_path.iterdir())
