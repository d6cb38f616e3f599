"""Tiny saved models of every kind that the page shows, and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opencrate import CrateConfig, CrateForImageClassification, CrateImageProcessor, CrateMAEForPreTraining
from opencrate.app import open_shelf
from opencrate.configuration_crate_mae import CrateMAEConfig

from ..analysis.foreign_models import tiny

SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["the", "king", "is", "here", "and", "queen", "not", "far", "spring", "letter"]


def save_tokenizer(folder):
    """One token per word; the models of `tiny` have 40."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "[MASK]": 3}
    vocabulary |= {word: 4 + index for index, word in enumerate([*WORDS, *(f"w{n}" for n in range(26))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_classifier(folder, **changes):
    """A CRATE of three classes with its image processor."""
    torch.manual_seed(0)
    config = CrateConfig(**{**SHAPE, **changes}, num_labels=3, id2label={0: "cat", 1: "dog", 2: "ship"})
    CrateForImageClassification(config).save_pretrained(folder)
    CrateImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders by name: pets, linear (an operator without maps), filler, writer (GPT-2), blanks (BERT)."""
    root = tmp_path_factory.mktemp("models")
    save_classifier(root / "pets")
    save_classifier(root / "linear", compression="tssa", num_hidden_layers=3)
    torch.manual_seed(0)
    decoder = {"decoder_num_hidden_layers": 1}
    CrateMAEForPreTraining(CrateMAEConfig(**SHAPE, **decoder)).save_pretrained(root / "filler")
    CrateImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "filler")
    for name, kind, head in (("writer", "gpt2", "LMHeadModel"), ("blanks", "bert", "ForMaskedLM")):
        tiny(kind, head=head).save_pretrained(root / name)
        save_tokenizer(root / name)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="session")
def shelf(folders):
    return open_shelf([str(folders[name]) for name in ("pets", "linear", "filler", "writer", "blanks")])


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A bright disc on a dark ground."""
    rows, columns = np.mgrid[:60, :80]
    disc = ((rows - 30) ** 2 + (columns - 30) ** 2 < 300)[..., None] * np.array([200, 120, 40]) + 20
    path = tmp_path_factory.mktemp("pictures") / "disc.png"
    Image.fromarray(disc.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def words_as_png(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "words.png"
    path.write_text("only words\n")
    return path
