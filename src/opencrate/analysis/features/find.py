"""Features of a language model: how often they fire, where most, what they promote, and how well that explains them.

Features are drawn at random, before anything is known of them. The text is cut into blocks; its first half explains
(top contexts, tables), the second half is what explanations are judged on. See `scores` for the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ...data.text.blocks import TokenBlocks
from ...data.text.cache import tokenised
from ...data.text.documents import Documents
from ...evaluation.language import progress
from ...stats.intervals import Interval, bootstrap_mean
from ...store.saved import SavedModel
from ..record.states import record
from .codes import code_modules, codes_kind, directions, promoted_logits
from .scores import TokenTables, detection, pearson, spearman, strong_positions

SCORES = {
    "pearson": "correlation",
    "spearman": "rank correlation",
    "pearson_contexts": "correlation, top contexts only",
    "auc": "detection (AUC)",
    "auc_control": "detection by another feature's explanation",
}
"""Scores of a feature, with their names for readers."""
_SIDE = 10  # tokens shown before and after the peak of a context
_BATCH = 16


@dataclass(frozen=True)
class Context:
    """A place where a feature fires: tokens as text, its activation at each, and which of them is the peak."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        layer, index: where it is: the layer from 1, the entry of the code from 0.
        firing_rate: share of all tokens where it is above 0.
        mean, maximum: of its activation.
        promoted: tokens whose logits a unit of it raises most, with by how much (see `promoted_logits`).
        contexts: where it is largest in the explaining half, one per block.
        scores: by the names of `SCORES`; NaN where a score cannot be had (a feature that does not fire).
    """

    layer: int
    index: int
    firing_rate: float
    mean: float
    maximum: float
    promoted: tuple[tuple[str, float], ...]
    contexts: tuple[Context, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class Features:
    """Features of one model.

    Attributes:
        kind: what they are: "sparse codes" or "MLP neurons".
        widths: entries of the code, by layer.
        firing_rates: of every feature of a layer, `(m,)`, by layer.
        tokens, block_size, seed, where: how they were found.
    """

    name: str
    kind: str
    features: tuple[Feature, ...]
    widths: dict[int, int]
    firing_rates: dict[int, np.ndarray] = field(repr=False)
    tokens: int
    block_size: int
    seed: int
    where: str

    def values(self, score: str, layer: int | None = None) -> np.ndarray:
        """The finite values of a score, over all features or those of a layer."""
        found = [one.scores[score] for one in self.features if layer in (None, one.layer)]
        return np.asarray([value for value in found if np.isfinite(value)])

    def interval(self, score: str, layer: int | None = None) -> Interval | None:
        """Mean of a score over features with its 95 % bootstrap interval; `None` without two values."""
        values = self.values(score, layer)
        return bootstrap_mean(torch.from_numpy(values)) if len(values) > 1 else None

    @property
    def silent(self) -> int:
        """Features that do not fire on any token."""
        return sum(one.firing_rate == 0 for one in self.features)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per feature: where it is, how often and how strongly it fires, its scores."""
        names = ("layer", "index", "firing_rate", "mean", "maximum")
        return [{**{name: getattr(one, name) for name in names}, **one.scores} for one in self.features]

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the firing rates of features that were not drawn."""
        return {name: value for name, value in asdict(self).items() if name != "firing_rates"}


def find_features(
    language: SavedModel,
    documents: Documents,
    *,
    layers: Sequence[int] | None = None,
    num_features: int = 30,
    num_tokens: int = 1 << 16,
    block_size: int = 128,
    num_contexts: int = 5,
    num_explaining: int = 20,
    seed: int = 0,
    name: str | None = None,
) -> Features:
    """Draw features of every layer at random and look at them on a text.

    Args:
        language: a language model: a CRATE, or one of a known type (GPT-2, BERT, ...).
        documents: the text; its first `num_tokens` tokens are used.
        layers: from 1; all by default.
        num_features: drawn per layer, all of a narrower one.
        num_tokens: of both halves together; what the text has if less.
        block_size: tokens that the model reads at a time, at most its context.
        num_contexts, name: kept for readers.
        num_explaining: top contexts that `pearson_contexts` is made of.
        seed: of the draws.

    Raises:
        ValueError: layers or a kind of model that are not there; too little text for two blocks in each half.
    """
    blocks = text_blocks(language, documents, num_tokens, block_size)
    chosen = tuple(range(1, len(code_modules(language.model)) + 1)) if layers is None else tuple(layers)
    drawn, values, rates = _activations(language, blocks, chosen, num_features, seed)
    features = []
    for layer in progress(chosen, "scoring features"):
        found = (drawn[layer], values[layer], rates[layer])
        features += _features_of_layer(language, blocks, layer, found, num_contexts, num_explaining, seed)
    return Features(
        name=name or language.source,
        kind=codes_kind(language.model),
        features=tuple(features),
        widths={layer: len(rate) for layer, rate in rates.items()},
        firing_rates=rates,
        tokens=blocks.size,
        block_size=blocks.shape[1],
        seed=seed,
        where=documents.where,
    )


def difference(first: Features, second: Features, score: str, seed: int = 0) -> Interval | None:
    """Mean of a score in the first model minus that in the second, with its 95 % bootstrap interval over features.

    `None` with fewer than two scored features in one of them.
    """
    samples = first.values(score), second.values(score)
    if min(map(len, samples)) < 2:
        return None
    found = stats.bootstrap(
        samples,
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    bounds = (samples[0].mean() - samples[1].mean(), low, high, np.nan)
    mean, low, high, std = (torch.tensor(float(value)).double() for value in bounds)
    return Interval(mean, low, high, std, min(map(len, samples)), 0.95)


def text_blocks(language: SavedModel, documents: Documents, num_tokens: int, block_size: int) -> np.ndarray:
    """The first token ids of a text, `(blocks, N)`: an even number of blocks, at least four."""
    size = min(block_size, language.context)
    file = tokenised(documents, language.tokenizer)
    blocks = TokenBlocks(file, size)
    count = min(len(blocks), max(4, num_tokens // size)) // 2 * 2
    if count < 4:
        raise ValueError(f"{documents.where}: {len(file.tokens)} tokens, need at least {4 * size} for two halves")
    return blocks.take(range(count))[0]


def _activations(
    language: SavedModel, blocks: np.ndarray, layers: Sequence[int], num_features: int, seed: int
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """By layer: the features drawn `(F,)`, their activations `(blocks, N, F)`, the firing rate of every feature."""
    drawn: dict[int, np.ndarray] = {}
    values: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    fired: dict[int, Any] = {}
    batches = [torch.from_numpy(blocks[start : start + _BATCH]) for start in range(0, len(blocks), _BATCH)]
    for states in record(language.model, progress(batches, "reading"), layers=layers):
        for step in states.steps():
            if step.codes is None:
                raise ValueError(f"{language.source}: layer {step.layer} has no code to look into")
            if step.layer not in drawn:
                width = step.codes.shape[-1]
                generator = np.random.default_rng([seed, step.layer])
                drawn[step.layer] = np.sort(generator.choice(width, min(num_features, width), replace=False))
            codes = step.codes.float()
            fired[step.layer] = fired.get(step.layer, 0) + (codes > 0).sum((0, 1)).cpu().numpy()
            values[step.layer].append(codes[..., torch.from_numpy(drawn[step.layer])].cpu().numpy())
    rates = {layer: count / blocks.size for layer, count in fired.items()}
    return drawn, {layer: np.concatenate(parts) for layer, parts in values.items()}, rates


def _features_of_layer(
    language: SavedModel,
    blocks: np.ndarray,
    layer: int,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_contexts: int,
    num_explaining: int,
    seed: int,
) -> list[Feature]:
    drawn, values, rates = found
    half = len(blocks) // 2
    tops = [_top_positions(values[:half, :, column], max(num_contexts, num_explaining)) for column in range(len(drawn))]
    scores = _scores(blocks, values, half, [top[:num_explaining] for top in tops], seed)
    promoted = promoted_tokens(language, layer, drawn)
    return [
        Feature(
            layer=layer,
            index=int(index),
            firing_rate=float(rates[index]),
            mean=float(values[:, :, column].mean()),
            maximum=float(values[:, :, column].max()),
            promoted=promoted[column],
            contexts=tuple(
                context_at(language, blocks[row], values[row, :, column], at) for row, at in tops[column][:num_contexts]
            ),
            scores={name: float(score[column]) for name, score in scores.items()},
        )
        for column, index in enumerate(drawn)
    ]


def _scores(
    blocks: np.ndarray, values: np.ndarray, half: int, tops: Sequence[Sequence[tuple[int, int]]], seed: int
) -> dict[str, np.ndarray]:
    """Every score of `SCORES`, `(F,)` each."""
    previous = np.concatenate([np.full((len(blocks), 1), -1), blocks[:, :-1]], axis=1)
    explaining, held_out = (part.reshape(-1, values.shape[2]) for part in (values[:half], values[half:]))
    tokens = [part.reshape(-1) for part in (blocks[:half], blocks[half:])]
    before = [part.reshape(-1) for part in (previous[:half], previous[half:])]
    predicted = TokenTables(tokens[0], before[0], explaining).predict(tokens[1], before[1])
    narrow = np.empty_like(predicted)
    for column, top in enumerate(tops):
        narrow[:, column] = _from_contexts(blocks, previous, values[:, :, column], top, half)
    strong = strong_positions(explaining, held_out)
    columns = values.shape[2]
    others = np.roll(np.random.default_rng([seed, 1]).permutation(columns), 1) if columns > 1 else np.arange(columns)
    clash = others == np.arange(columns)
    area, control = detection(predicted, strong), detection(predicted[:, others], strong)
    flat = explaining.max(0) <= 0
    found = {
        "pearson": pearson(predicted, held_out),
        "spearman": spearman(predicted, held_out),
        "pearson_contexts": pearson(narrow, held_out),
        "auc": area,
        "auc_control": np.where(clash, np.nan, control),
    }
    return {name: np.where(flat, np.nan, score) for name, score in found.items()}


def _top_positions(values: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(block, token) of the largest activations above 0, one per block, largest first."""
    at = values.argmax(1)
    peaks = values[np.arange(len(values)), at]
    order = np.argsort(-peaks, kind="stable")[:count]
    return [(int(row), int(at[row])) for row in order if peaks[row] > 0]


def _from_contexts(
    blocks: np.ndarray, previous: np.ndarray, values: np.ndarray, top: Sequence[tuple[int, int]], half: int
) -> np.ndarray:
    """Predictions on the held-out half of a table made of the windows around the top contexts alone."""
    base = values[:half].mean(keepdims=True)[0]
    if not top:
        return np.full(blocks[half:].size, base[0])
    windows = [(row, slice(max(0, at - _SIDE), at + _SIDE + 1)) for row, at in top]
    tokens, before, seen = (
        np.concatenate([part[row, window] for row, window in windows]) for part in (blocks, previous, values)
    )
    table = TokenTables(tokens, before, seen[:, None], base)
    return table.predict(blocks[half:].reshape(-1), previous[half:].reshape(-1))[:, 0]


def context_at(language: SavedModel, ids: np.ndarray, values: np.ndarray, at: int) -> Context:
    """The tokens `ids` (N) around one of them, with a feature's values (N) there."""
    start, end = max(0, at - _SIDE), at + _SIDE + 1
    return Context(
        tokens=tuple(_text(language, int(token)) for token in ids[start:end]),
        values=tuple(float(value) for value in values[start:end]),
        peak=at - start,
    )


def promoted_tokens(language: SavedModel, layer: int, drawn: np.ndarray, count: int = 8) -> Sequence[tuple]:
    """For each feature the tokens that it raises most; none where a head of more than a norm lies between (BERT's)."""
    if language.kind == "masked" and codes_kind(language.model) != "sparse codes":
        return [()] * len(drawn)
    written = directions(language.model, layer, torch.from_numpy(drawn))
    logits = promoted_logits(language.model, written.float())[: len(language.tokenizer)]
    return [named_tokens(language, column, count) for column in logits.mT]


def named_tokens(language: SavedModel, scores: Tensor, count: int) -> tuple[tuple[str, float], ...]:
    """The tokens of the largest scores `(vocabulary,)`, and their scores."""
    found = scores.topk(min(count, len(scores)))
    return tuple((_text(language, token), value) for token, value in zip(found.indices.tolist(), found.values.tolist()))


def _text(language: SavedModel, token: int) -> str:
    """A token as a reader sees it: its text, a special token by its name."""
    return str(language.tokenizer.decode([token]) or language.tokenizer.convert_ids_to_tokens(token))
