"""One short digits run and one short run on a folder of images, shared by the tests of the commands."""

import shutil
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor
from opencrate.cli.main import main

from ..analysis.foreign_models import tiny
from ..recipes.folders import FOLDER_OVERRIDES, write_classes


class Result(NamedTuple):
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def token_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENCRATE_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield


@pytest.fixture
def opencrate(capfd):
    """Run a command line in this process: `opencrate("train", "digits")`."""

    def run(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A shallow CRATE trained on digits for two epochs, with its report."""
    directory = tmp_path_factory.mktemp("digits") / "run"
    overrides = ["training.num_train_epochs=2", "model.config.num_hidden_layers=2"]
    assert main(["train", "digits", *overrides, "--output", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """`<class>/<n>.png`: three classes of ten colour images of 16x16 pixels."""
    return write_classes(tmp_path_factory.mktemp("images"), 10)


@pytest.fixture(scope="session")
def folder_run(images, tmp_path_factory):
    """A small CRATE trained on `images`."""
    directory = tmp_path_factory.mktemp("folder") / "run"
    words = ["train", "imagefolder", *FOLDER_OVERRIDES, f"data.path={images}", "training.num_train_epochs=20"]
    assert main([*words, "training.learning_rate=3e-3", "--no-report", "--output", str(directory)]) == 0
    return directory


@pytest.fixture(scope="session")
def plain_crate(tmp_path_factory):
    """A saved CRATE as the published code builds it: untrained, three classes, no run around it."""
    directory = tmp_path_factory.mktemp("plain") / "crate"
    config = CrateConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, num_labels=3
    )
    CrateForImageClassification(config).save_pretrained(directory)
    CrateImageProcessor(size={"shortest_edge": 24}, crop_size=24).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def official_words():
    """What `convert` must be told about `plain_crate`'s official form."""
    return ("--family", "crate", "--num-attention-heads", 4, "--image-size", 16, "--patch-size", 4)


WORDS = [f"w{number}" for number in range(37)]


def save_tokenizer(folder, **special):
    """One token per word, as `tiny` text models have 40."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, **{word: 3 + index for index, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", **special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 with a tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2") / "tiny-gpt2"
    tiny("gpt2", head="LMHeadModel").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory):
    """A tiny DINOv2 backbone for grey images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("dino") / "tiny-dino"
    tiny("dinov2").save_pretrained(folder)
    size = {"height": 8, "width": 8}
    ViTImageProcessor(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """A text of 100 words."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(" ".join(WORDS[7 * number % 37] for number in range(100)))
    return path


@pytest.fixture(scope="session")
def loose_images(images, tmp_path_factory):
    """Seven image files in one folder, without classes."""
    folder = tmp_path_factory.mktemp("loose") / "photos"
    folder.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.png"))[:7]):
        shutil.copy(file, folder / f"{number}.png")
    return folder
