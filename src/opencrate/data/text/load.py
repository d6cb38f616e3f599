"""From a `TextData` to datasets of blocks and their tokenizer: the one call that training needs."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .blocks import TokenBlocks
from .cache import TokenFile, cache_folder, tokenised
from .datasets import CausalBlocks, MaskedBlocks
from .documents import Documents, digest, held_out_by_position
from .masking import Masking
from .options import TRAINED, TextData, check_text_data
from .sources import read_parts
from .tokenizers import Objective, check_objective, frame_of, load_tokenizer, pad_of, train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSplits:
    """Blocks of text in up to three parts, with the tokenizer that made them.

    Attributes:
        train: asked with `Draw`s; `validation` and `test` with indices, `None` where nothing was held out.
        tokenizer: save it beside the model (`save_pretrained`); its `model_max_length` is the block size.
        files: the tokens of each part.
        label_names: `None`: text has no classes.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    tokenizer: PreTrainedTokenizerBase
    files: dict[str, TokenFile]
    label_names: None = None

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Of each part: documents, characters, bytes, tokens, and one hash of text, tokenizer and division."""
        names = ("documents", "characters", "bytes", "tokens")
        return {
            part: {**{name: getattr(file.counts, name) for name in names}, "sha256": file.key}
            for part, file in self.files.items()
        }


def load_text(
    data: TextData, objective: Objective = "causal", tokenizer: PreTrainedTokenizerBase | None = None
) -> TextSplits:
    """Read, divide, tokenise (once) and cut a text.

    Args:
        objective: "causal" (predict the next token) or "masked" (predict masked tokens).
        tokenizer: one to use instead of `data.tokenizer`, such as that of a model to fine-tune.

    Raises:
        ValueError: an impossible option; a source that is missing, empty or cannot be read; bytes that are no UTF-8
            (file and offset); a tokenizer that cannot be read or lacks what the objective needs; too little text.
    """
    check_text_data(data)
    parts = divided(data)
    if tokenizer is None:
        tokenizer = tokenizer_for(data, parts["train"], objective)
    check_objective(tokenizer, objective)
    tokenizer.model_max_length = data.block_size
    files = {part: tokenised(documents, tokenizer) for part, documents in parts.items()}
    made = {part: blocks_of(file, data, objective, tokenizer, part) for part, file in files.items()}
    for part, file in files.items():
        if file.counts.unknown:
            share = file.counts.unknown / file.counts.tokens
            logger.warning("%s: %.2f %% of the %s tokens are unknown to the tokenizer", data.path, 100 * share, part)
    return TextSplits(made["train"], made.get("validation"), made.get("test"), tokenizer, files)


def divided(data: TextData) -> dict[str, Documents]:
    """The parts `train`, `validation` and `test` of a source: its own, the others cut from the end of its text.

    Raises:
        ValueError: as `read_parts`; no training part; too little text to divide.
    """
    parts = read_parts(data)
    train = parts.get("train", parts.get("all"))
    if train is None:
        raise ValueError(f"{data.path}: has no train part, only {' and '.join(parts)}; training needs one")
    fractions = [
        0.0 if part in parts or data.streaming else fraction
        for part, fraction in (("validation", data.validation_fraction), ("test", data.test_fraction))
    ]
    train, validation, test = held_out_by_position(train, *fractions)
    found = {"train": train, "validation": parts.get("validation", validation), "test": parts.get("test", test)}
    return {part: documents for part, documents in found.items() if documents is not None}


def tokenizer_for(data: TextData, train: Documents, objective: Objective) -> PreTrainedTokenizerBase:
    """The tokenizer that the data names; one that is made from the training text is made once and kept."""
    if data.tokenizer not in TRAINED:
        return load_tokenizer(data.tokenizer)
    size = data.vocab_size if data.tokenizer in ("bpe", "wordpiece") else 0
    kept = cache_folder() / "tokenizers" / digest(data.tokenizer, size, objective, train.identity)
    if kept.is_dir():
        return load_tokenizer(kept)
    tokenizer = train_tokenizer(data.tokenizer, train, objective, data.vocab_size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{kept.name}.") as temporary:
        made = Path(temporary) / "made"
        tokenizer.save_pretrained(made)
        with contextlib.suppress(OSError):  # a second process leaves the folder in place, which is the same
            made.rename(kept)
    return load_tokenizer(kept)


def blocks_of(
    file: TokenFile, data: TextData, objective: Objective, tokenizer: PreTrainedTokenizerBase, part: str
) -> Dataset:
    """The tokens of one part as blocks with labels for the objective; `ValueError` for less than one block."""
    try:
        blocks = TokenBlocks(file, data.block_size, data.packing, frame_of(tokenizer), pad_of(tokenizer))
    except ValueError as error:
        raise ValueError(f"{data.path}, {part} part: {error}") from None
    if objective == "causal":
        return CausalBlocks(blocks)
    return MaskedBlocks(blocks, Masking(tokenizer, data.mask_probability, data.whole_word))
