"""How well a language model predicts a text: loss per token, perplexity, bits per byte; losses are in nats."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..data.text.blocks import TokenBlocks
from ..data.text.cache import Counts, tokenised
from ..data.text.datasets import MaskedBlocks
from ..data.text.documents import Documents
from ..data.text.masking import IGNORED, Masking
from ..data.text.tokenizers import frame_of, pad_of
from ..store.saved import SavedModel
from .inputs import evaluating

Kind = Literal["causal", "masked"]
_TOKENS_PER_BATCH = 1 << 12


@dataclass(frozen=True)
class TextScore:
    """What a model makes of a text.

    Attributes:
        kind: "causal", or "masked" (then `tokens` are the masked ones, and there are no bits per byte).
        tokens, documents, bytes: scored tokens, documents, and their bytes of UTF-8.
        words: as WikiText counts them: what white space divides, and one per line end.
        unknown: tokens that the tokenizer does not know; bits per byte are then not a code length of the text.
        loss: nats per token.
        accuracy: share of tokens that are the most probable one.
        context, stride: tokens of a window, and by how many it moves; blocks without overlap for "masked".
        seconds: of the forward passes.
    """

    kind: Kind
    tokens: int
    documents: int
    bytes: int
    words: int
    unknown: int
    loss: float
    accuracy: float
    context: int
    stride: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss), of the model's own tokens: comparable between models of one tokenizer only."""
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float | None:
        """Total loss in bits over bytes of UTF-8: comparable between tokenizers that know the whole text."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.kind == "causal" else None

    @property
    def word_perplexity(self) -> float | None:
        """exp(total loss / words): what is published for WikiText."""
        return math.exp(min(self.loss * self.tokens / self.words, 700)) if self.kind == "causal" else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        derived = {name: getattr(self, name) for name in ("perplexity", "bits_per_byte", "word_perplexity")}
        return {**asdict(self), **derived}


def score_text(
    language: SavedModel,
    documents: Documents,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> TextScore:
    """Loss of a causal model on documents, by a sliding window.

    Each document is preceded by the tokenizer's beginning (else end) token, so that all of its tokens are scored, each
    once: the first window scores everything in it, each further one begins `stride` tokens later and scores those that
    are new, so that a token has at least `context - stride` before it as soon as the text has them. No end token is
    scored.

    Args:
        context: tokens per window; the model's own by default.
        stride: tokens that a window moves by, `context` for none shared; half the context by default.
        batch_size: windows at a time; about 4,096 tokens by default.

    Raises:
        ValueError: a masked model, a context beyond the model's, a stride outside 1 to context, no text.
    """
    if language.kind != "causal":
        raise ValueError(f"{language.source}: a masked model has no loss per token of running text; see score_masked")
    context, stride = _checked_windows(language, context, stride)
    file = tokenised(documents, language.tokenizer)
    begins = np.concatenate([[0], file.ends[:-1]])
    spans = [
        (int(begin), window)
        for begin, end in zip(begins, file.ends)
        for window in windows(int(end) - 1 - int(begin), context, stride)
    ]

    def batch(chosen: range) -> dict[str, Tensor]:
        ids, targets = padded([_window(file.tokens, language.start, *spans[number]) for number in chosen])
        return {"ids": ids, "targets": targets}

    words = sum(len(text.split()) + text.count("\n") for text in documents)
    return _score(language, file.counts, batch, len(spans), batch_size, context, stride, words)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over the tokens 1 to `length` of a text whose token 0 is the start token.

    Yields (first, last, scored): the model reads tokens `first` to `last - 1`; of the tokens `first + 1` to `last` that
    follow them, the last `scored` are counted. Every token from 1 to `length` is counted once.
    """
    done, first = 0, 0
    while done < length:
        last = min(first + context, length)
        yield first, last, last - done
        done, first = last, first + stride


def _window(tokens: np.ndarray, start: int, begin: int, window: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of one window of the document that begins at `tokens[begin]`; uncounted targets are -100."""
    first, last, scored = window
    text = np.asarray(tokens[max(begin, begin + first - 1) : begin + last], np.int64)
    sequence = text if first else np.concatenate([[start], text])
    targets = sequence[1:].copy()
    targets[: len(targets) - scored] = IGNORED
    return sequence[:-1], targets


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one length, filled up on the right, which no causal model looks at: int64 `(B, N)`."""
    length = max(len(inputs) for inputs, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORED)
    for row, (inputs, wanted) in enumerate(rows):
        ids[row, : len(inputs)] = torch.from_numpy(inputs)
        targets[row, : len(wanted)] = torch.from_numpy(wanted)
    return ids, targets


def token_losses(model: PreTrainedModel, ids: Tensor, targets: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and whether the most probable token is right, at every target that is not -100: `(B, N)`, 0 elsewhere."""
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), **{name: value.to(device) for name, value in inputs.items()}).logits
    targets = targets.to(device)
    counted = targets != IGNORED
    chosen = logits[counted].float()
    losses, right = torch.zeros(targets.shape, device=device), torch.zeros_like(counted)
    losses[counted] = F.cross_entropy(chosen, targets[counted], reduction="none")
    right[counted] = chosen.argmax(-1) == targets[counted]
    return losses.cpu(), right.cpu()


def score_masked(
    language: SavedModel,
    documents: Documents,
    *,
    probability: float = 0.15,
    whole_word: bool = False,
    block_size: int | None = None,
    batch_size: int | None = None,
) -> TextScore:
    """Pseudo-loss of a masked model: of the tokens hidden by BERT's rule, the same ones at every call.

    Args:
        documents: the text, cut into blocks of equal length; less than a block at the end is left out.
        probability: share of tokens (or words, with `whole_word`) that are masked.
        block_size: tokens per block, special ones included; the model's context by default.
        batch_size: blocks at a time.

    Raises:
        ValueError: a causal model, a block beyond the model's context, less text than one block.
    """
    if language.kind != "masked":
        raise ValueError(f"{language.source}: a causal model; use score_text")
    size, _ = _checked_windows(language, block_size, None, "block_size")
    tokenizer = language.tokenizer
    file = tokenised(documents, tokenizer)
    blocks = TokenBlocks(file, size, "stream", frame_of(tokenizer), pad_of(tokenizer))
    data = MaskedBlocks(blocks, Masking(tokenizer, probability, whole_word))

    def batch(chosen: range) -> dict[str, Tensor]:
        items = data.__getitems__(chosen)
        names = {"ids": "input_ids", "targets": "labels", "attention_mask": "attention_mask"}
        return {name: torch.stack([item[field] for item in items]) for name, field in names.items()}

    return _score(language, file.counts, batch, len(data), batch_size, size, size)


def _score(
    language: SavedModel,
    counts: Counts,
    batch: Callable[[range], dict[str, Tensor]],
    length: int,
    batch_size: int | None,
    context: int,
    stride: int,
    words: int = 0,
) -> TextScore:
    """Losses over `length` rows of a text, of which `batch` makes some into the arguments of `token_losses`."""
    loss, right, tokens, start = 0.0, 0, 0, time.perf_counter()
    size = batch_size or max(1, _TOKENS_PER_BATCH // context)
    with evaluating(language.model):
        for first in progress(range(0, length, size), "scoring"):
            inputs = batch(range(first, min(first + size, length)))
            losses, hits = token_losses(language.model, **inputs)
            if not torch.isfinite(losses).all():
                raise ValueError(
                    "model: gives losses that are not finite; its weights are damaged or training diverged"
                )
            loss += losses.double().sum().item()
            right += int(hits.sum())
            tokens += int((inputs["targets"] != IGNORED).sum())
    return TextScore(
        kind="masked" if language.kind == "masked" else "causal",
        tokens=tokens,
        documents=counts.documents,
        bytes=counts.bytes,
        words=words,
        unknown=counts.unknown,
        loss=loss / tokens,
        accuracy=right / tokens,
        context=context,
        stride=stride,
        seconds=time.perf_counter() - start,
    )


def _checked_windows(
    language: SavedModel, context: int | None, stride: int | None, name: str = "context"
) -> tuple[int, int]:
    limit = language.context
    context = min(limit, 1 << 16) if context is None else context
    if not 2 <= context <= limit:
        raise ValueError(f"{name}={context}: the model reads 2 to {limit} tokens at a time")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}: must be at least 1 and at most the context, {context}")
    return context, stride


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The items, with a bar on standard error where that is a terminal; `total` of them where they have no length."""
    return track(items, what, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
