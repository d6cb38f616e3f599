"""`opencrate analyze`: our runs and other transformers, side by side, on images and text, and what it refuses."""

import csv
import json
import re
import shutil

import pytest
from transformers import ViTImageProcessor

from opencrate import CrateConfig, CrateForCausalLM, CrateForImageClassification, CrateImageProcessor, CrateTextConfig

from .conftest import save_tokenizer


def boxes(folder):
    return json.loads((folder / "layers.json").read_text())


def test_text_model(opencrate, gpt2, book, tmp_path):
    words = ["--text", book, "--block-size", 8, "--layers", "1,3", "--num-images", 5, "--output", tmp_path / "out"]
    result = opencrate("analyze", gpt2, *words, "--measures", "subspace_rate,subspace_rate_before,basic")
    assert result.code == 0, result.err
    assert "gpt2 (tiny-gpt2): 2 layers on 5 texts, against value projections per head" in result.out
    (box,) = boxes(tmp_path / "out")
    assert box["series"]["trained"]["layers"] == [1, 3] and set(box["series"]) == {"trained", "initialisation"}
    assert len(box["series"]["trained"]["values"]["rate"]) == 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "value projections" in page and "texts of up to 8 tokens of book.txt" in page


def test_crate_of_text_counts_as_derived(opencrate, book, tmp_path):
    """A language CRATE is judged by the theory, as those of images are."""
    folder = tmp_path / "tiny-crate"
    CrateForCausalLM(CrateTextConfig.from_size("tiny", vocab_size=40)).save_pretrained(folder)
    save_tokenizer(folder)
    words = ["--text", book, "--block-size", 8, "--num-images", 5, "--output", tmp_path / "out"]
    result = opencrate("analyze", folder, *words)
    assert result.code == 0, result.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "derived from the objective" not in page and "Nothing for this model" not in page


def test_vision_backbone_on_unlabelled_images(opencrate, dino, images, tmp_path):
    from PIL import Image

    (tmp_path / "grey").mkdir()
    for index, path in enumerate(sorted((images / "top").iterdir())[:4]):
        Image.open(path).convert("L").save(tmp_path / "grey" / f"{index}.png")
    words = ["analyze", dino, "--data", tmp_path / "grey", "--subspaces", "pca", "--output", tmp_path / "out"]
    result = opencrate(*words)
    assert result.code == 0 and result.err == "", result.err
    assert "3 layers on 4 images, against PCA of tokens" in result.out
    assert boxes(tmp_path / "out")[0]["subspace_kind"] == "PCA of tokens"


def test_two_runs_side_by_side(opencrate, digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "other")
    words = ["--compare", tmp_path / "other", "--num-images", 4, "--output", tmp_path / "out"]
    result = opencrate("analyze", digits_run, *words)
    assert result.code == 0 and result.err == "", result.err
    names = [box["model"] for box in boxes(tmp_path / "out")]
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(names) == 2 and "CRATE (digits), run" in page and "CRATE (digits), other" in page
    assert "given twice" in opencrate("analyze", digits_run, "--compare", digits_run).err


def test_checkpoints_of_a_run(opencrate, digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    result = opencrate("analyze", run, "--checkpoints", "--num-images", 2)
    assert result.code == 2 and "holds none; train with training.save_strategy=epoch" in result.err
    for step in (5, 10, 15, 20, 25):
        shutil.copytree(digits_run, run / "checkpoints" / f"checkpoint-{step}")
    assert "it has 5, 10, 15, 20, 25" in opencrate("analyze", run, "--checkpoints", 7, "--num-images", 2).err
    words = ["--num-images", 2, "--output", tmp_path / "out"]
    assert opencrate("analyze", run, "--checkpoints", *words).code == 0
    (box,) = boxes(tmp_path / "out")
    assert list(box["series"]) == ["trained", "initialisation", "step 5", "step 10", "step 20", "step 25"]


@pytest.mark.slow
def test_theory_section(opencrate, digits_run, tmp_path):
    result = opencrate("analyze", digits_run, "--theory", "--num-images", 2, "--output", tmp_path / "out")
    assert result.code == 0 and "Theory against practice" in (tmp_path / "out" / "report.html").read_text()
    rows = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert {row["layer"] for row in rows} == {1, 2} and {"quantity", "mean", "low", "high", "verdict"} <= set(rows[0])
    assert len((tmp_path / "out" / "theory.csv").read_text().splitlines()) == len(rows) + 1


CERTIFIED = {
    **{"compression": "gradient", "attention_output": "tied"},
    **{"ista_step": "bounded", "ista_step_size": 1.0, "ista_start": "positive"},
}


def saved_crate(folder, **settings):
    """An untrained CRATE of colour images of 16x16 pixels."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    CrateForImageClassification(CrateConfig(**sizes, num_labels=3, **settings)).save_pretrained(folder)
    CrateImageProcessor(size={"shortest_edge": 24}, crop_size=24).save_pretrained(folder)
    return folder


def saved_text_crate(folder, **settings):
    """An untrained causal CRATE of 40 words."""
    CrateForCausalLM(CrateTextConfig.from_size("tiny", vocab_size=40, **settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (CERTIFIED, "its objective on all 3 images, as guaranteed by construction"),
        pytest.param({"compression": "cbsa"}, "Nothing of it is guaranteed for this model", marks=pytest.mark.slow),
    ],
    ids=["gradient", "cbsa"],
)
def test_theory_of_other_compressions(opencrate, images, tmp_path, settings, said):
    folder, out = saved_crate(tmp_path / "crate", **settings), tmp_path / "out"
    result = opencrate("analyze", folder, "--data", images, "--theory", "--num-images", 3, "--output", out)
    assert result.code == 0, result.err
    page = re.sub(r"<[^>]*>", "", (out / "report.html").read_text())
    assert "Certificate" in page and said.replace("images", "inputs") in page
    rows = list(csv.DictReader((out / "certificate.csv").open()))
    assert len(rows) == 4 and {row["guaranteed"] for row in rows} == {str("gradient" in settings.values())}
    forms = {row["form"] for row in json.loads((out / "theory.json").read_text())}
    assert forms == {"", "exact", "model", "model_minus"}


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"position": "relative_bias"}, marks=pytest.mark.slow), CERTIFIED],
    ids=["relative_bias", "gradient"],
)
def test_theory_of_texts(opencrate, book, tmp_path, settings):
    """Of a causal model, R^c of the whole text is not what each token steps down: nothing is guaranteed."""
    folder, out = saved_text_crate(tmp_path / "crate", **settings), tmp_path / "out"
    words = ["--text", book, "--block-size", 8, "--theory", "--num-images", 3, "--output", out]
    result = opencrate("analyze", folder, *words)
    assert result.code == 0, result.err
    rows = list(csv.DictReader((out / "certificate.csv").open()))
    assert {row["num_inputs"] for row in rows} == {"3"}
    guaranteed = {row["objective"] for row in rows if row["guaranteed"] == "True"}
    assert guaranteed == ({"LASSO"} if settings is CERTIFIED else set())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["DIGITS", "--num-images", 9999], ["--num-images 9999", "only 360 there"]),
        (["DIGITS", "--eps", "-1"], ["--eps: '-1' is not a number of at least"]),
        (["DIGITS", "--layers", "9"], ["--layers", "1 to 2, not 9"]),
        (["DIGITS", "--layers", "a,b"], ["'a,b' is not a list of layer numbers"]),
        (["DIGITS", "--measures", "rats"], ["rats"]),
        (["DIGITS", "--subspaces", "value"], ["--subspaces 'value'", "did you mean 'values'"]),
        (["DIGITS", "--beside", "x"], ["unknown option '--beside'"]),
        (["GPT2"], ["names no text", "--text TEXT"]),
        (["GPT2", "--text", "BOOK", "--block-size", "8", "--theory"], ["--theory", "is not a CRATE"]),
        (["GPT2", "--text", "nowhere.txt"], ["nowhere.txt", "no such folder or file"]),
        (["GPT2", "--text", "EMPTY"], ["empty, it contains no text"]),
        (["GPT2", "--text", "BYTES"], ["not UTF-8"]),
        (["GPT2", "--text", "BOOK", "--compare", "DINO"], ["one model reads images, another text"]),
        (["DINO"], ["reads images", "--data IMAGES"]),
        (["hf://owner/name"], ["--output is missing"]),
        (["EMPTY"], ["is not a folder", "hf://owner/name"]),
    ],
)
def test_bad_words(opencrate, digits_run, gpt2, dino, book, tmp_path, words, expected):
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    places = {"DIGITS": digits_run, "GPT2": gpt2, "DINO": dino, "BOOK": book, "EMPTY": tmp_path / "empty"}
    result = opencrate("analyze", *[{**places, "BYTES": tmp_path / "bytes"}.get(word, word) for word in words])
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in expected), result.err


def test_an_unknown_type_says_what_is_missing(opencrate, tmp_path, images):
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "resnet")
    result = opencrate("analyze", tmp_path / "resnet", "--data", images)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "model type 'resnet'" in result.err and "BlockHooks(layers=" in result.err


def test_a_classifier_without_labels(opencrate, plain_crate, images, loose_images, tmp_path):
    """Images in no classes, or in other people's, are measured all the same, and it is said that labels are not used."""
    for number, data in enumerate((loose_images, images)):
        words = ["--data", data, "--num-images", 5, "--layers", "1", "--output", tmp_path / str(number)]
        result = opencrate("analyze", plain_crate, *words)
        assert result.code == 0 and "1 layer on 5 images" in result.out, result.err
        assert "measured without labels" in result.err and "accuracy" not in result.out
