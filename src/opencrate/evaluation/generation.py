"""Text from a causal language model, with its input checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer, set_seed

from .._values import Beams, Count, NewTokens, Seed, Temperature, TopP, check_fields
from ..store.saved import SavedModel
from .inputs import evaluating


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: upper bound; generation ends earlier at the end token.
        temperature: divides the logits; 0 takes the most probable token (greedy).
        top_k: draw from this many most probable tokens; `None`: all.
        top_p: draw from the most probable tokens that together have this probability; `None`: all.
        num_beams: above 1, beam search; with temperature 0 without sampling.
        seed: of the draws.
        crop: continue beyond the context with its last tokens (CRATE); otherwise that is an error.
    """

    max_new_tokens: NewTokens = 100
    temperature: Temperature = 1.0
    top_k: Count | None = None
    top_p: TopP | None = None
    num_beams: Beams = 1
    seed: Seed = 0
    crop: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def prompt_ids(language: SavedModel, prompt: str) -> Tensor:
    """Token ids of a prompt, int64 `(1, N)`; of an empty one the token that begins a text."""
    if language.kind != "causal":
        raise ValueError(f"{language.source}: a masked model cannot continue a text; give a causal one")
    tokenizer = language.tokenizer
    ids = tokenizer(prompt)["input_ids"] or [language.start]
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown != tokenizer.eos_token_id and unknown in ids:
        bad = sorted({c for c in prompt if unknown in tokenizer(c, add_special_tokens=False)["input_ids"]})
        raise ValueError(
            f"prompt: the tokenizer does not know {', '.join(map(repr, bad)) or 'a part of it'}; leave it out"
        )
    return torch.tensor([ids])


def generate(language: SavedModel, prompt: str, sampling: Sampling | None = None, stream: bool = False) -> str:
    """Go on with a prompt; the same arguments give the same text on one machine.

    Args:
        language: a causal model.
        stream: print the prompt and each word on standard output as it comes (beam search: all at the end).

    Returns:
        The text after the prompt.

    Raises:
        ValueError: a masked model; unknown characters; a prompt beyond the context, or too long for the new tokens.
    """
    sampling = sampling or Sampling()
    ids = prompt_ids(language, prompt)
    _check_length(language, ids.shape[1], sampling)
    tokenizer, model = language.tokenizer, language.model
    streams = stream and sampling.num_beams == 1
    if stream:
        print(prompt, end="", flush=True)
    set_seed(sampling.seed)
    ids = ids.to(model.device)
    with evaluating(model):
        found = model.generate(  # pyright: ignore[reportCallIssue]  # GenerationMixin's
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if streams else None,
            **_options(language, sampling),
        )
    text = str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    if stream and not streams:
        print(text)
    return text


def _options(language: SavedModel, sampling: Sampling) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "num_beams": sampling.num_beams,
        "do_sample": sampling.temperature > 0,
        "eos_token_id": language.tokenizer.eos_token_id,
        "pad_token_id": language.tokenizer.pad_token_id or language.tokenizer.eos_token_id or 0,
    }
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0}
    if sampling.crop:
        options["context_overflow"] = "crop"
    return options


def _check_length(language: SavedModel, length: int, sampling: Sampling) -> None:
    context, can_crop = language.context, language.model.config.model_type == "crate_text"
    if sampling.crop and not can_crop:
        raise ValueError(f"{language.source}: only CRATE models continue beyond their context; leave `crop` out")
    if length > context and not sampling.crop:
        raise ValueError(f"prompt: has {length} tokens, more than the model's context of {context}; shorten it")
    if length + sampling.max_new_tokens - 1 > context and not sampling.crop:
        raise ValueError(
            f"prompt and new tokens: {length} + {sampling.max_new_tokens} do not fit the context of {context}; give "
            f"max_new_tokens={context - length + 1} or less, or a shorter prompt"
            + (", or crop=True" if can_crop else "")
        )
