"""What text, which tokenizer, which blocks: plain values, without torch or transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..._values import Count, Share, Within, check_fields

TRAINED = ("characters", "bytes", "bpe", "wordpiece")
"""Tokenizers that are trained on the training text itself."""


@dataclass(frozen=True)
class TextData:
    """Which text, how it is divided, and how it becomes blocks of tokens."""

    path: str = "stdlib"  # "stdlib", a text, .jsonl or .parquet file, a folder of them, or hf://owner/name[/config]
    text_column: str | None = None  # of tables; null: `text`, else the only column of strings
    document: Literal["file", "paragraph", "line"] = "file"  # what one document of a plain text file is
    streaming: bool = False  # hf:// only: read while downloading
    max_documents: Count | None = None  # at most this many documents of every part, the first; null: all
    validation_fraction: Share = 0.1  # of the characters, from the end; used where there is no validation part
    test_fraction: Share = 0.0  # of the characters, at the very end; used where there is no test part
    tokenizer: str = "characters"  # "characters", "bytes", "bpe", "wordpiece", a folder or file, or hf://owner/name
    vocab_size: Annotated[int, Within(2, 10**7)] = 8192  # of bpe and wordpiece, special tokens included
    block_size: Annotated[int, Within(2, 2**20)] = 256  # tokens, special tokens included
    packing: Literal["stream", "documents"] = "stream"  # documents: no block holds two; short ones are padded
    mask_probability: Annotated[float, Within(1e-6, 1)] = 0.15  # masked language modelling: share of tokens predicted
    whole_word: bool = False  # masked language modelling: all tokens of a word or none


@dataclass(frozen=True)
class GlueData:
    """Which GLUE task, and how its sentences become tokens."""

    path: str = "glue/SST-2"  # a folder with train.tsv and dev.tsv
    task: str = "sst2"  # cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli
    max_length: Annotated[int, Within(2, 2**20)] = 128  # tokens of an example, special ones included
    tokenizer: str | None = None  # as of text, made from the training sentences; null: that of model.init_from


def check_text_data(data: TextData) -> None:
    """Refuse impossible values.

    Raises:
        ValueError: names the field, the value and what is allowed.
    """
    check_fields(data, "text.")
    if data.validation_fraction + data.test_fraction >= 1:
        raise ValueError(
            f"text.test_fraction={data.test_fraction}: must be a share that, with text.validation_fraction "
            f"({data.validation_fraction}), stays below 1"
        )
    if data.streaming and not data.path.startswith("hf://"):
        raise ValueError("text.streaming=True: must be true only with a path hf://owner/name")
