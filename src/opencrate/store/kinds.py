"""What a saved folder holds, decided once, from its config.json alone and without torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from .._files import HUB_PREFIX, read_config_file, shown

Kind = Literal["classifier", "autoencoder", "causal", "masked", "sentences", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TEXTS: tuple[Kind, ...] = ("causal", "masked", "sentences", "other")
"""Kinds that read text, or may."""
LANGUAGE: tuple[Kind, ...] = ("causal", "masked")
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
    return "other" if str(source).startswith(HUB_PREFIX) else kind_of_class(_architecture(source))


def kind_of_class(name: str) -> Kind:
    """What a class of transformers is for, by its name."""
    return next((kind for kind, pattern in _ARCHITECTURES.items() if pattern.search(name)), "other")


def require_kind(source: str | Path, kinds: Collection[Kind]) -> Kind:
    """The kind of a folder's model, one of `kinds`; a model of the Hub is taken on trust until it is opened.

    Raises:
        ValueError: another kind, in one line with the commands that take it; or as `kind_of`.
    """
    kind = kind_of(source)
    if not str(source).startswith(HUB_PREFIX) and kind not in kinds:
        raise wrong_kind(source, _architecture(source), kinds)
    return kind


def wrong_kind(source: str | Path, name: str, kinds: Collection[Kind]) -> ValueError:
    """The error about a model of class `name` that is none of `kinds`."""
    kind = kind_of_class(name)
    wanted = " or ".join(_WORDS[one] for one in KINDS if one in kinds)
    return ValueError(
        f"{shown(source)}: holds {name or 'unnamed class'}, {_WORDS[kind]}, not {wanted}; it can be given to "
        f"{_COMMANDS[kind]}"
    )


def _architecture(source: str | Path) -> str:
    """The class that a folder's model was saved from; empty where the configuration does not say."""
    return next(iter(read_config_file(source).get("architectures") or ()), "")
