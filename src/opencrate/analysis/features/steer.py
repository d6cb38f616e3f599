"""What changes when a feature is set by hand: the next-token distribution, and texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...evaluation.generation import Sampling, generate
from ...evaluation.inputs import evaluating
from ...evaluation.language import LanguageModel
from .codes import feature_set_to
from .find import token_text


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
    language: LanguageModel,
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
        layer: from 1.
        feature: entry of the layer's code, from 0.
        value: to set it to, at every token.
        ids: texts to measure the distribution on, int64 `(B, N)`.
        prompt: what both texts begin with.
        sampling: how they are drawn.
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
    raised, lowered = change.topk(min(count, len(change))), (-change).topk(min(count, len(change)))
    return Steering(
        layer=layer,
        feature=feature,
        value=value,
        kl=float(kl),
        raised=_named(language, raised.indices, raised.values),
        lowered=_named(language, lowered.indices, -lowered.values),
        prompt=prompt,
        before=before,
        after=after,
    )


def _named(language: LanguageModel, tokens: Tensor, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple((token_text(language, token), value) for token, value in zip(tokens.tolist(), values.tolist()))


def _log_probabilities(language: LanguageModel, ids: Tensor) -> Tensor:
    with evaluating(language.model):
        return language.model(input_ids=ids.to(language.model.device)).logits.float().log_softmax(-1).cpu()
