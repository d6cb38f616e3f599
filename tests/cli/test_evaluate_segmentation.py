"""`evaluate-segmentation`: what is written and printed, and what is refused."""

import json
import re

import pandas
import pytest
from transformers import ViTConfig, ViTForImageClassification

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor
from opencrate.analysis.segmentation import evaluation

from ..data import masked_sets as sets

COMMAND = "evaluate-segmentation"
FAST = ("--size", 32, "--refine", "none")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(evaluation, "_RESAMPLES", 100)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A CRATE and a ViT with other heads and patches."""
    root = tmp_path_factory.mktemp("models")
    config = CrateConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, num_labels=2
    )
    CrateForImageClassification(config).save_pretrained(root / "crate")
    CrateImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "crate")
    shape = {"image_size": 32, "patch_size": 16, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**shape, num_hidden_layers=2)).save_pretrained(root / "vit")
    CrateImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    return root / "crate", root / "vit"


def test_page_table_and_files(opencrate, models, tmp_path):
    sets.coco(tmp_path / "coco")
    words = (
        COMMAND,
        *models,
        "--data",
        "coco",
        tmp_path / "coco",
        *FAST,
        "--noise",
        "0,50",
        "--output",
        tmp_path / "out",
    )
    result = opencrate(*words)
    assert result.code == 0, result.err
    for part in ("Attention maps: mIoU, %", "MaskCut: average precision of masks, %", "crate − vit", "centred ellipse"):
        assert part in result.out
    assert "1 of 2 images hold no object: val2017/b.png" in result.err
    page = (tmp_path / "out/segmentation_scores.html").read_text()
    for part in (
        "smooth random maps",
        "crate, untrained",
        "Which head fires for which class",
        "With noise on the images",
    ):
        assert part in page
    assert (tmp_path / "out/figures/noise.png").is_file() and "<script" not in page
    rows = pandas.read_csv(tmp_path / "out/segmentation_scores.csv", keep_default_na=False)
    assert {"model", "untrained", "floor", "difference"} == {*rows["role"]} and {0, 50} == {*rows["noise"]}
    each = pandas.read_csv(tmp_path / "out/segmentation_scores_each.csv")
    each = each[(each["subject"] == "crate") & (each["noise"] == 50)]
    wanted = {"subject": "crate", "role": "model", "noise": 50, "table": "attention", "measure": "mass:0.6, best head"}
    (row,) = (row for row in rows.to_dict("records") if wanted.items() <= row.items())
    assert sorted(each["image"]) == [2, 9] and not [name for name in each if "AP50" in name]
    assert each["attention: mass:0.6, best head"].dropna().tolist() == pytest.approx([float(row["mean"])])
    content = json.loads((tmp_path / "out/segmentation_scores.json").read_text())
    assert content["num_images"] == 2 and content["unit"] == "image" and content["classes"]
    again = opencrate(*words)
    assert again.code == 2 and "pass --overwrite" in again.err
    printed = opencrate(*words, "--overwrite", "--format", "json", "--limit", 1)
    assert json.loads(printed.out)["num_images"] == 1, printed.err


def test_layouts(opencrate, models, tmp_path):
    for layout, write in (("davis", sets.davis), ("voc", sets.voc), ("folder", sets.folder)):
        write(tmp_path / layout)
        words = (COMMAND, models[0], "--data", layout, tmp_path / layout, *FAST, "--format", "json")
        result = opencrate(*words, "--output", tmp_path / "results" / layout)
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert found["kind"] == layout and found["unit"] == ("sequence" if layout == "davis" else "image")
        measures = {row["measure"] for row in found["rows"]}
        assert ("J, TokenCut" in measures) == (layout != "voc")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "coca", "."), r"--data coca|--data 'coca'"),
        (("--data", "coco", "nowhere"), "nowhere: no such file or folder"),
        (("--data", "folder", "SET", "--layer", 7), r"--layer L?7|layer 7|layers 1 to 2"),
        (("--data", "folder", "SET", "--size", 4), "at least the patch"),
        (("--data", "folder", "SET", "--noise", "x"), "'x' is not"),
        (("--data", "folder", "SET", "--tau", 2), r"--tau"),
        (("--data", "folder", "SET", "--stride", 3), "must divide the patch"),
        (("--data", "folder", "SET", "--split"), "expected one argument"),
        ((), "--data"),
    ],
)
def test_bad_options(opencrate, models, tmp_path, words, message):
    sets.folder(tmp_path / "set", count=2)
    words = [tmp_path / "set" if word == "SET" else word for word in words]
    result = opencrate(COMMAND, models[0], *words, "--output", tmp_path / "out")
    assert result.code == 2 and re.search(message, result.err), result.err
    assert not (tmp_path / "out").exists() and result.err.count("\n") == 1
