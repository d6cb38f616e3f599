"""What changes when a feature is set to a value: the next-token distribution, and texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.text.documents import Documents
from ...evaluation.generation import Sampling, generate
from ...evaluation.inputs import evaluating
from ...evaluation.language import progress
from ...store.saved import SavedModel
from .codes import feature_set_to
from .find import Features, named_tokens, text_blocks


@dataclass(frozen=True)
class Steering:
    """A feature set to a value at every token.

    Attributes:
        layer, feature, value: what was set.
        kl: KL(with || without) of the next-token distribution in nats, mean over all positions of the given texts.
        raised, lowered: tokens whose log-probability changes most, with the mean change in nats.
        prompt, before, after: what the model writes without and with it, drawn with the same seed.
    """

    layer: int
    feature: int
    value: float
    kl: float
    raised: tuple[tuple[str, float], ...]
    lowered: tuple[tuple[str, float], ...]
    prompt: str
    before: str
    after: str


def steer(
    language: SavedModel,
    layer: int,
    feature: int,
    value: float,
    ids: Tensor,
    prompt: str = "",
    sampling: Sampling | None = None,
    count: int = 8,
) -> Steering:
    """Set a feature and compare.

    Args:
        language: a causal model.
        layer, feature, value: the layer from 1, the entry of its code from 0, and what to set it to at every token.
        ids: texts to measure the distribution on, int64 `(B, N)`.
        prompt, sampling: what both texts begin with, and how they are drawn.
        count: tokens to name.

    Raises:
        ValueError: a layer or feature that is not there, or as `generate`.
    """
    plain = _log_probabilities(language, ids)
    before = generate(language, prompt, sampling)
    with feature_set_to(language.model, layer, feature, value):
        changed = _log_probabilities(language, ids)
        after = generate(language, prompt, sampling)
    kl = (changed.exp() * (changed - plain)).sum(-1).mean()
    change = (changed - plain).mean((0, 1))[: len(language.tokenizer)]
    raised = named_tokens(language, change, count)
    lowered = tuple((name, -gain) for name, gain in named_tokens(language, -change, count))
    return Steering(layer, feature, value, float(kl), raised, lowered, prompt, before, after)


def steer_each(
    language: SavedModel,
    report: Features,
    documents: Documents,
    chosen: Sequence[tuple[int, int, float]] | None = None,
    prompt: str = "",
    seed: int = 0,
) -> list[Steering]:
    """Set several features, one after another.

    Args:
        language, report: a causal model, and of its features.
        documents: the text to measure the distribution on.
        chosen: (layer, feature, value) each; by default in each layer the first feature of the report that fires, set
            to ten times its largest value.
        prompt, seed: what the texts begin with, and of their draws.

    Raises:
        ValueError: as `steer`.
    """
    if chosen is None:
        first: dict[int, tuple[int, int, float]] = {}
        for one in report.features:
            if one.maximum > 0:
                first.setdefault(one.layer, (one.layer, one.index, 10 * one.maximum))
        chosen = list(first.values())
    ids = torch.from_numpy(text_blocks(language, documents, 1 << 10, report.block_size)[:8])
    room = language.context - len(language.tokenizer(prompt)["input_ids"])
    sampling = Sampling(max_new_tokens=max(1, min(60, room)), temperature=0.8, seed=seed)
    return [
        steer(language, layer, feature, value, ids, prompt, sampling)
        for layer, feature, value in progress(chosen, "setting features")
    ]


def _log_probabilities(language: SavedModel, ids: Tensor) -> Tensor:
    with evaluating(language.model):
        return language.model(input_ids=ids.to(language.model.device)).logits.float().log_softmax(-1).cpu()
