"""What text, which tokenizer, which blocks: plain values, without torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TRAINED = ("characters", "bytes", "bpe", "wordpiece")
"""Tokenizers that are made from the training text itself."""


@dataclass(frozen=True)
class TextData:
    """Which text, how it is divided, and how it becomes blocks of tokens."""

    path: str = "stdlib"  # "stdlib", a text, .jsonl or .parquet file, a folder of them, or hf://owner/name[/config]
    text_column: str | None = None  # of tables; null: `text`, else the only column of strings
    document: Literal["file", "paragraph", "line"] = "file"  # what one document of a plain text file is
    streaming: bool = False  # hf:// only: read while downloading
    max_documents: int | None = None  # the first so many documents of every part; null: all
    validation_fraction: float = 0.1  # of the characters, from the end; used where there is no validation part
    test_fraction: float = 0.0  # of the characters, at the very end; used where there is no test part
    tokenizer: str = "characters"  # "characters", "bytes", "bpe", "wordpiece", a folder or file, or hf://owner/name
    vocab_size: int = 8192  # of bpe and wordpiece, special tokens included
    block_size: int = 256  # tokens, special tokens included
    packing: Literal["stream", "documents"] = "stream"  # documents: no block holds two; short ones are padded
    mask_probability: float = 0.15  # share of the tokens that masked language modelling asks for
    whole_word: bool = False  # masked language modelling: all tokens of a word or none


@dataclass(frozen=True)
class GlueData:
    """Which GLUE task, and how its sentences become tokens."""

    path: str = "glue/SST-2"  # a folder with train.tsv and dev.tsv
    task: str = "sst2"  # cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli
    max_length: int = 128  # tokens of an example, special ones included
    tokenizer: str | None = None  # a folder or hf://owner/name; null: that of model.init_from


def check_text_data(data: TextData) -> None:
    """Refuse impossible values.

    Raises:
        ValueError: names the field, the value and what is allowed.
    """
    held_out = data.validation_fraction + data.test_fraction
    rules = {
        "validation_fraction": (0 <= data.validation_fraction < 1, "a share from 0 up to 1"),
        "test_fraction": (0 <= data.test_fraction < 1 and held_out < 1, "a share; with validation_fraction below 1"),
        "block_size": (data.block_size >= 2, "at least 2 tokens"),
        "vocab_size": (data.vocab_size >= 2, "at least 2"),
        "mask_probability": (0 < data.mask_probability <= 1, "a share above 0, up to 1"),
        "max_documents": (data.max_documents is None or data.max_documents >= 1, "at least 1, or null for all"),
        "streaming": (not data.streaming or data.path.startswith("hf://"), "true only with a path hf://owner/name"),
    }
    for name, (fits, allowed) in rules.items():
        if not fits:
            raise ValueError(f"text.{name}={getattr(data, name)!r}: must be {allowed}")
