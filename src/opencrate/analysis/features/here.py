"""The features that one input makes fire: atoms on a picture, and features of a word in a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...store.saved import SavedModel
from ..record.states import record
from .codes import code_modules
from .find import Context, context_at, promoted_tokens

_MAX_TOKENS = 1024


@dataclass(frozen=True)
class NearAtom:
    """An atom that lies near some patch of a picture: its entry of the code is large there.

    Attributes:
        index: of the atom, from 0.
        maximum: of its entry of the code.
        share: of the patches where it is above 0.
        values: float32 `(rows, columns)`, its entry of the code of every patch.
    """

    index: int
    maximum: float
    share: float
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class WordFeature:
    """A feature that fires more on a word than elsewhere in a text.

    Attributes:
        layer, index: where it is: the layer from 1, the entry of the code from 0.
        on_word, elsewhere: mean activation at the tokens of the word, and at all others.
        maximum: of its activation in the text.
        promoted: tokens whose logits a unit of it raises most, with by how much; empty where that is not known.
        context: the place of the word where it is largest.
    """

    layer: int
    index: int
    on_word: float
    elsewhere: float
    maximum: float
    promoted: tuple[tuple[str, float], ...]
    context: Context


def nearest_atoms(codes: np.ndarray, grid: tuple[int, int], count: int) -> list[NearAtom]:
    """The atoms whose largest entry of the code is largest, at most `count`, silent ones left out.

    Args:
        codes: `(N, m)` of a picture's patches, row by row; of a CRATE's ISTA step non-negative.
        grid: rows and columns of the patches, N in all.

    >>> [atom.index for atom in nearest_atoms(np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]), (1, 2), 5)]
    [2, 1]
    """
    largest = codes.max(0)
    order = np.argsort(-largest, kind="stable")[:count]
    return [
        NearAtom(
            index=int(index),
            maximum=float(largest[index]),
            share=float((codes[:, index] > 0).mean()),
            values=codes[:, index].reshape(grid).astype(np.float32),
        )
        for index in order
        if largest[index] > 0
    ]


def word_positions(text: str, offsets: Sequence[tuple[int, int]], word: str) -> list[int]:
    """The tokens that hold a part of a word, wherever it stands in a text, in any case.

    Args:
        offsets: of every token, where it begins and ends in the text; both the same for a token that is not of it.

    >>> word_positions("The king and KING", [(0, 3), (3, 8), (8, 12), (12, 15), (15, 17)], "king")
    [1, 3, 4]
    """
    found: set[int] = set()
    for match in re.finditer(re.escape(word), text, re.IGNORECASE):
        start, end = match.span()
        found.update(number for number, (first, last) in enumerate(offsets) if first < end and last > start)
    return sorted(found)


def features_of_word(
    language: SavedModel, text: str, word: str, *, layer: int | None = None, count: int = 6
) -> list[WordFeature]:
    """The features of one layer that fire more on a word of a text than on its other tokens, the largest gap first.

    Args:
        language: a language model: a CRATE, or one of a known type.
        text: holds the word; at most 1,024 tokens and the model's context are read.
        layer: from 1; by default the last.
        count: of the features.

    Raises:
        ValueError: a word that is empty or not in the text, a text of other tokens only, or a layer that is not there.
    """
    if not word.strip():
        raise ValueError("word: empty; give a word, or a part of one, that stands in the text")
    tokenizer, total = language.tokenizer, len(code_modules(language.model))
    number = total if layer is None else layer
    if not tokenizer.is_fast:
        raise ValueError(f"{language.source}: its tokenizer cannot say where tokens stand in a text")
    read = tokenizer(text, return_offsets_mapping=True)
    ids = read["input_ids"][: min(_MAX_TOKENS, language.context)]
    places = word_positions(text, read["offset_mapping"][: len(ids)], word.strip())
    if not places or len(places) == len(ids):
        where = f"in the first {len(ids)} tokens of the text" if not places else "all of the text"
        raise ValueError(f"word: {word.strip()!r} stands {'not ' if not places else ''}{where}; give another one")
    (states,) = record(language.model, [torch.tensor([ids])], layers=[number])
    (step,) = states.steps()
    if step.codes is None:
        raise ValueError(f"layer={number}: has no code to look into")
    codes = step.codes[0].float().cpu().numpy()
    here = np.isin(np.arange(len(ids)), places)
    on_word, elsewhere = codes[here].mean(0), codes[~here].mean(0)
    gaps = on_word - elsewhere
    chosen = [int(index) for index in np.argsort(-gaps, kind="stable")[:count] if gaps[index] > 0]
    promoted = promoted_tokens(language, number, np.asarray(chosen, dtype=np.int64), 6)
    return [
        WordFeature(
            layer=number,
            index=index,
            on_word=float(on_word[index]),
            elsewhere=float(elsewhere[index]),
            maximum=float(codes[:, index].max()),
            promoted=raised,
            context=context_at(language, np.asarray(ids), codes[:, index], places[codes[places, index].argmax()]),
        )
        for index, raised in zip(chosen, promoted)
    ]
