"""Masked language modelling: which tokens are predicted, and what replaces them."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .tokenizers import vocabulary_size

IGNORED = -100
"""The label of a token that is not predicted."""
_MASKED, _RANDOM = 0.8, 0.1  # the rest of the chosen tokens stays as it is


class Masking:
    """BERT's corruption [arXiv 1810.04805, Sec. 3.1]: of the chosen tokens 80 % become the mask token, 10 % a random
    one, 10 % stay; the labels are the chosen tokens, and -100 elsewhere.

    Every token that is not special is chosen with the given probability, individually or with all tokens of its word
    and at least one per text (`whole_word`). A word is a run of WordPieces that `##` joins; for other tokenizers, of
    tokens that join letter or digit to letter or digit without anything between.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float = 0.15, whole_word: bool = False) -> None:
        self.probability, self.whole_word = probability, whole_word
        self.mask_token: Any = tokenizer.mask_token_id  # an int, which transformers' types do not say
        size = vocabulary_size(tokenizer)
        self.special = np.zeros(size, bool)
        self.special[[token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id]] = True
        self.ordinary = np.flatnonzero(~self.special)
        if whole_word:
            self.joins_before, self.joins_after = _joins(tokenizer, size)

    def __call__(self, ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Corrupted ids and labels of one text, both int64 `(N,)`; N alone says how many random numbers are drawn."""
        draws = generator.random((2, len(ids)))
        replacements = generator.integers(len(self.ordinary), size=len(ids))
        candidates = ~self.special[ids]
        own = draws[0]
        if self.whole_word:  # all tokens of a word share the draw of its first token
            words = self.words(ids)
            own = own[np.flatnonzero(np.diff(words, prepend=-1))][words]
        chosen = (own < self.probability) & candidates
        if not chosen.any() and candidates.any():
            chosen = self._least(ids, candidates, draws[0])
        corrupted = np.where(chosen & (draws[1] < _MASKED), self.mask_token, ids)
        random = chosen & (draws[1] >= _MASKED) & (draws[1] < _MASKED + _RANDOM)
        corrupted[random] = self.ordinary[replacements[random]]
        return corrupted, np.where(chosen, ids, IGNORED)

    def words(self, ids: np.ndarray) -> np.ndarray:
        """The number of the word that each token belongs to, int64 `(N,)`, from 0."""
        begins = np.ones(len(ids), bool)
        begins[1:] = ~(self.joins_before[ids[1:]] & self.joins_after[ids[:-1]])
        return begins.cumsum() - 1

    def _least(self, ids: np.ndarray, candidates: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The token with the smallest draw, with its word: no text is left without a prediction."""
        best = int(np.where(candidates, draws, np.inf).argmin())
        words = self.words(ids) if self.whole_word else np.arange(len(ids))
        return (words == words[best]) & candidates


def _joins(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each token joins the one before it, and the one after it, to one word."""
    before, after = np.zeros(size, bool), np.zeros(size, bool)
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    if any(name.startswith("##") for name in names.values()):
        for number, name in names.items():
            before[number], after[number] = name.startswith("##"), True
        return before, after
    texts = tokenizer.batch_decode([[number] for number in names])
    for number, text in zip(names, texts):
        if text:
            before[number], after[number] = text[0].isalnum(), text[-1].isalnum()
    special = list(tokenizer.all_special_ids)
    before[special], after[special] = False, False
    return before, after
