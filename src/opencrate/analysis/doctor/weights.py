"""What the doctor reads from weights alone: parameters that look untrained, blank, rounded, or unlike their peers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .signatures import FEW_VALUES_ENTRIES

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_POSITIONS = re.compile("position|wpe$")
_SAMPLE = 1 << 16
_UNUSED = ("mask_token", "token_type_embeddings")
"""Parameters that many trained models never use; they may be blank."""


@dataclass(frozen=True)
class FreshParameters:
    """How many vectors of two or more entries there are, and which are 0 or 1 everywhere, as before training.

    `odd` are those that are not so in most layers. `every_gain`: all gains are (all vectors, in a model without gains);
    `head`: a classifier's bias is.
    """

    vectors: int
    fresh: tuple[str, ...]
    odd: tuple[str, ...]
    every_gain: bool
    head: bool


def fresh_parameters(model: nn.Module) -> FreshParameters:
    """Which vectors (gains, biases) look as before training."""
    vectors = {name: weight for name, weight in model.named_parameters() if weight.ndim == 1 and len(weight) > 1}
    fresh = {name: any(bool((weight == value).all()) for value in (0, 1)) for name, weight in vectors.items()}
    odd = []
    for names in peers(vectors).values():
        blank = [name for name in names if fresh[name]]
        odd += blank if 0 < len(blank) <= len(names) / 2 else []
    gains = [name for name in vectors if name.endswith("weight")] or list(vectors)
    head = any(is_fresh and name.split(".")[0] in ("classifier", "head", "score") for name, is_fresh in fresh.items())
    every_gain = bool(gains) and all(fresh[name] for name in gains)
    return FreshParameters(len(vectors), tuple(name for name in fresh if fresh[name]), tuple(odd), every_gain, head)


def peers(parameters: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the same parameter in several layers, by the name with `*` for the layer; only where there are two."""
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    return {group: names for group, names in groups.items() if len(names) > 1}


def scale_outlier(model: nn.Module) -> tuple[float, str]:
    """The largest distance (a factor) of a matrix's or gain's root mean square from the median of its peers, and whose.

    The factor is 1 where nothing has peers, infinite for a zero among others.
    """
    scaled = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 or name.endswith("weight")}
    worst, where = 1.0, ""
    for names in peers(scaled).values():
        sizes = torch.stack([scaled[name].detach().double().square().mean().sqrt().cpu() for name in names])
        factor = (sizes / sizes.quantile(0.5)).log().abs().exp().nan_to_num(1.0, posinf=float("inf"))
        if float(factor.max()) > worst:
            worst, where = float(factor.max()), names[int(factor.argmax())]
    return worst, where


def fewest_values(model: nn.Module) -> tuple[int, str] | None:
    """The fewest distinct values in a matrix (of its first 65,536 entries), and its name; `None` without matrices."""
    counts = {
        name: len(weight.detach().flatten()[:_SAMPLE].unique())
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and weight.numel() >= FEW_VALUES_ENTRIES and not any(word in name for word in _UNUSED)
    }
    name = min(counts, key=lambda name: counts[name], default=None)
    return None if name is None else (counts[name], name)


def dead_rows(model: PreTrainedModel, tokens: Tensor) -> tuple[int, int]:
    """Rows of the token embedding, of different `tokens (v)`, and of position tables, that are zero or not unique."""
    tables = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    table: Any = model.get_input_embeddings()
    positions = sum(_dead(one.weight.detach()) for name, one in tables.items() if _POSITIONS.search(name))
    return _dead(table.weight.detach()[tokens.to(table.weight.device)]), positions


def _dead(rows: Tensor) -> int:
    """How many rows `(v, d)` are zero or not the only one of their values."""
    _, inverse, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return int(((counts[inverse] > 1) | (rows == 0).all(1)).sum())
