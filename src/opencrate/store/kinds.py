"""What a saved folder holds, decided once, from its config.json alone and before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from .._pretrained import HUB_PREFIX, read_config_fields, shown

Kind = Literal["classifier", "autoencoder", "causal", "masked", "sentences", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TEXTS: tuple[Kind, ...] = ("causal", "masked", "sentences", "other")
"""Kinds that read text, or may."""
_ARCHITECTURES: dict[Kind, re.Pattern[str]] = {
    "classifier": re.compile(r"ForImageClassification$"),
    "autoencoder": re.compile(r"MAEForPreTraining$"),
    "causal": re.compile(r"(ForCausalLM|LMHeadModel)$"),
    "masked": re.compile(r"ForMaskedLM$"),
    "sentences": re.compile(r"For(SequenceClassification|TokenClassification|MultipleChoice|QuestionAnswering)$"),
}
_WORDS: dict[Kind, str] = {
    "classifier": "an image classifier",
    "autoencoder": "a masked autoencoder with its decoder",
    "causal": "a causal language model",
    "masked": "a masked language model",
    "sentences": "a classifier of texts",
    "other": "a model without a head",
}
_COMMANDS: dict[Kind, str] = {
    "classifier": "predict, evaluate, probe, finetune, analyze, audit and doctor",
    "autoencoder": "reconstruct, probe, finetune, analyze, audit and doctor",
    "causal": "generate, evaluate, features, finetune, analyze, audit and doctor",
    "masked": "evaluate, features, finetune, analyze, audit and doctor",
    "sentences": "finetune, analyze, audit and doctor",
    "other": "finetune, analyze, audit and doctor",
}


def kind_of(source: str | Path) -> Kind:
    """What a folder's model is for, by the class that its config.json names; "other" for a model of the Hub.

    Raises:
        ValueError: no such folder, or no readable config.json.
    """
    if str(source).startswith(HUB_PREFIX):
        return "other"
    name = _architecture(source)
    return next((kind for kind, pattern in _ARCHITECTURES.items() if pattern.search(name)), "other")


def require_kind(source: str | Path, kinds: Collection[Kind]) -> Kind:
    """The kind of a folder's model, one of `kinds`; a model of the Hub is taken on trust.

    Raises:
        ValueError: another kind, in one line with the commands that take it; or as `kind_of`.
    """
    kind = kind_of(source)
    if kind in kinds or str(source).startswith(HUB_PREFIX):
        return kind
    wanted = " or ".join(_WORDS[one] for one in KINDS if one in kinds)
    name = _architecture(source) or "unnamed class"
    takers = _COMMANDS[kind]
    raise ValueError(f"{shown(source)}: holds {name}, {_WORDS[kind]}, not {wanted}; it can be given to {takers}")


def _architecture(source: str | Path) -> str:
    """The class that a folder's model was saved from; empty where the configuration does not say."""
    names = read_config_fields(source).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
