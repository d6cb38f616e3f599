"""The tab of texts: go on with a text, fill in what is masked, find the features of a word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from markupsafe import Markup
from torch import Tensor

from ..analysis.features.codes import codes_kind
from ..analysis.features.here import WordFeature, features_of_word
from ..evaluation.generation import Sampling, generate
from ..evaluation.inputs import evaluating
from ..reports import tables
from ..reports.features import shaded
from ..reports.html import Part, Table
from ..stats.words import percent
from ..store.saved import SavedModel

MAX_CHARACTERS = 20_000
MAX_NEW_TOKENS = 300
TOP = 5
_MOST_MASKS = 8


def go_on(saved: SavedModel, prompt: str, max_new_tokens: int = 100, temperature: float = 1.0, seed: int = 0) -> str:
    """A prompt and what a causal model goes on with; a long text of a CRATE is cut to its context.

    Raises:
        ValueError: a model that is not causal, a prompt that is too long or has unknown characters, or an option
            outside its range.
    """
    _require_length(prompt)
    if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be 1 to {MAX_NEW_TOKENS} on this page")
    crop = saved.model.config.model_type == "crate_text"
    options = Sampling(max_new_tokens=int(max_new_tokens), temperature=float(temperature), seed=int(seed), crop=crop)
    return prompt + generate(saved, prompt, options)


def fill_in(saved: SavedModel, text: str) -> tuple[Part, ...]:
    """The most probable tokens at every mask of a text, by a masked model.

    Raises:
        ValueError: a model that is not masked, or a text without the mask, with too many, or too long.
    """
    if saved.kind != "masked":
        raise ValueError(f"{saved.name}: not a masked language model; choose one that is")
    _require_length(text)
    tokenizer = saved.tokenizer
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    places = [place for place, token in enumerate(ids[0].tolist()) if token == tokenizer.mask_token_id]
    if not 1 <= len(places) <= _MOST_MASKS:
        raise ValueError(
            f"text: holds {tokenizer.mask_token} {len(places)} times; write it 1 to {_MOST_MASKS} times, "
            "where a word is to be filled in"
        )
    if ids.shape[1] > saved.context:
        raise ValueError(
            f"text: has {ids.shape[1]} tokens, more than the model's context of {saved.context}; shorten it"
        )
    found = _most_probable(saved, ids, places)
    rows = tables.frame(
        {"mask": str(number), "token": token, "probability": percent(value)}
        for number, tokens in enumerate(found, 1)
        for token, value in tokens
    )
    return (Part("What the masks hide", (), (Table("Most probable tokens", rows),)),)


def _most_probable(saved: SavedModel, ids: Tensor, places: Sequence[int]) -> list[list[tuple[str, float]]]:
    """Of every place the tokens with their probabilities."""
    model = saved.model
    with evaluating(model):
        logits = model(input_ids=ids.to(model.device)).logits[0, list(places)].float().cpu()
    values, tokens = logits.softmax(-1).topk(min(TOP, logits.shape[-1]))
    name = saved.tokenizer.decode
    return [
        [(str(name([token])).strip(), value) for token, value in zip(*row)]
        for row in zip(tokens.tolist(), values.tolist())
    ]


def word_features(saved: SavedModel, text: str, word: str, layer: int | None = None) -> tuple[Part, ...]:
    """The features of a layer that fire more on a word than elsewhere in a text, with the place where most.

    Raises:
        ValueError: as `features_of_word`, or a text that is too long.
    """
    _require_length(text)
    found = features_of_word(saved, text, word, layer=layer)
    if not found:
        return (Part("Features", (f"No feature of this layer fires more on “{word.strip()}” than elsewhere.",)),)
    kind = codes_kind(saved.model)
    sentence = (
        f"The features ({kind}) of layer {found[0].layer} that fire more on “{word.strip()}” than on the other tokens "
        "of this text, the largest difference first; shades show where each fires."
    )
    cards = Markup('<div class="grid">{}</div>').format(Markup("").join(map(_card, found)))
    return (Part("Features", (sentence,), (cards,)),)


def _card(one: WordFeature) -> Markup:
    """A feature as the page shows it."""
    words = f"mean {one.on_word:.3g} on the word, {one.elsewhere:.3g} elsewhere; largest {one.maximum:.3g}"
    promoted = Markup("").join(
        Markup("<span>{} {:+.2f}</span>").format(token.replace("\n", "↵"), value) for token, value in one.promoted
    )
    raised = Markup('<p class="tokens">promotes {}</p>').format(promoted) if one.promoted else ""
    card = '<article class="card"><h3>Feature {}</h3><p class="numbers">{}</p><p class="context">{}</p>{}</article>'
    return Markup(card).format(one.index, words, shaded(one.context, one.maximum), raised)


def _require_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"text: has {len(text):,} characters, more than {MAX_CHARACTERS:,}; shorten it")
