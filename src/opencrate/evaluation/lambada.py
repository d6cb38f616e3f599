"""LAMBADA: predict the last word of a passage. [arXiv 1606.06031]

The word, with the space before it, is tokenised together with its passage, which counts as right if greedy decoding
gives every token of the word. Passages longer than the context lose their beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._files import parse_json, require_file
from ..data.text.masking import IGNORED
from ..data.text.sources import read_text
from ..data.text.tokenizers import encode
from ..store.saved import SavedModel
from .classifier import wilson_interval
from .inputs import evaluating
from .language import padded, progress, token_losses

_TOKENS_PER_BATCH = 1 << 12


@dataclass(frozen=True)
class LambadaScore:
    """What a model makes of LAMBADA.

    Attributes:
        passages: how many.
        accuracy: share of last words that are predicted in all their tokens.
        interval: of the accuracy, 95 % (Wilson).
        word_loss: nats per last word, the sum over its tokens, mean over passages.
        loss: nats per token of the last words.
        truncated: passages that lost their beginning.
    """

    passages: int
    accuracy: float
    interval: tuple[float, float]
    word_loss: float
    loss: float
    truncated: int

    @property
    def perplexity(self) -> float:
        """exp(word_loss), per word."""
        return math.exp(min(self.word_loss, 700))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "perplexity": self.perplexity}


def read_lambada(path: str | Path) -> list[tuple[str, str]]:
    """(passage without its last word, last word) of each line of a `.jsonl` file.

    A line has `context` and `continuation` (of one word), or `text`, whose last word is the one to predict.

    Raises:
        ValueError: no such file, a line that is not such an object, or no lines.
    """
    path = require_file(path, "LAMBADA as a .jsonl file")
    lines = enumerate(read_text(path).splitlines(), start=1)
    found = [_passage(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path}: empty; give LAMBADA as a .jsonl file")
    return found


def _passage(line: str, where: str) -> tuple[str, str]:
    row = parse_json(line, where, advice="give LAMBADA as a .jsonl file")
    try:
        text = row["text"] if "text" in row else f"{row['context']} {row['continuation'].strip()}"
        context, _, word = text.rstrip().rpartition(" ")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: needs `context` and `continuation`, or `text`") from error
    if not context or not word:
        raise ValueError(f"{where}: has fewer than two words")
    return context, word


def score_lambada(
    language: SavedModel, passages: Sequence[tuple[str, str]], batch_size: int | None = None
) -> LambadaScore:
    """Last-word loss and accuracy of a causal model.

    Args:
        passages: from `read_lambada`.
        batch_size: passages at a time; about 4,096 tokens by default.

    Raises:
        ValueError: a masked model, or a word that is longer than the context.
    """
    if language.kind != "causal":
        raise ValueError(f"{language.source}: a masked model cannot predict a next word; give a causal one")
    rows, truncated = _rows(language, passages)
    rows.sort(key=lambda row: len(row[0]), reverse=True)
    losses, right, tokens, batches = [], 0, 0, []
    while rows:
        size = batch_size or max(1, _TOKENS_PER_BATCH // len(rows[0][0]))
        batches.append(rows[:size])
        rows = rows[size:]
    with evaluating(language.model):
        for batch in progress(batches, "scoring"):
            ids, targets = padded(batch)
            loss, hit = token_losses(language.model, ids, targets)
            counted = targets != IGNORED
            losses.append(loss.sum(1).numpy())
            right += int((hit | ~counted).all(1).sum())
            tokens += int(counted.sum())
    total = np.concatenate(losses).astype(np.float64)
    return LambadaScore(
        passages=len(total),
        accuracy=right / len(total),
        interval=wilson_interval(right, len(total)),
        word_loss=float(total.mean()),
        loss=float(total.sum() / tokens),
        truncated=truncated,
    )


def _rows(language: SavedModel, passages: Sequence[tuple[str, str]]) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Inputs and targets of each passage, and how many were cut to the context."""
    rows, truncated = [], 0
    contexts = encode(language.tokenizer, [context for context, _ in passages])
    wholes = encode(language.tokenizer, [f"{context} {word}" for context, word in passages])
    for (_, word), context, whole in zip(passages, contexts, wholes):
        known = next((i for i, (a, b) in enumerate(zip(context, whole)) if a != b), min(len(context), len(whole)))
        length = len(whole) - known
        if length > language.context:
            raise ValueError(f"LAMBADA: '{word}' has {length} tokens, more than the context of {language.context}")
        sequence = np.asarray([language.start, *whole], np.int64)
        if len(sequence) > language.context + 1:
            sequence, truncated = sequence[-language.context - 1 :], truncated + 1
        targets = sequence[1:].copy()
        targets[: len(targets) - length] = IGNORED
        rows.append((sequence[:-1], targets))
    return rows, truncated
