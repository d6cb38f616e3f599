"""What a saved folder holds, decided once, from its config.json alone and without torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

from .._files import HUB_PREFIX, read_config_file, shown

Kind = Literal["classifier", "features", "autoencoder", "causal", "masked", "sentences", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TEXTS: tuple[Kind, ...] = ("causal", "masked", "sentences", "other")
"""Kinds that read text, or may."""
LANGUAGE: tuple[Literal["causal", "masked"], ...] = ("causal", "masked")
_SENTENCES = r"For(SequenceClassification|TokenClassification|MultipleChoice|QuestionAnswering)$"
_ABOUT: dict[Kind, tuple[str, str, str]] = {
    "classifier": (r"ForImageClassification$", "an image classifier", "predict, evaluate, probe, segment, features, "),
    "features": (r"$^", "an image encoder without classes", "probe, segment, features, "),
    "autoencoder": (
        r"MAEForPreTraining$",
        "a masked autoencoder with its decoder",
        "reconstruct, probe, segment, features, ",
    ),
    "causal": (r"(ForCausalLM|LMHeadModel)$", "a causal language model", "generate, evaluate, features, "),
    "masked": (r"ForMaskedLM$", "a masked language model", "evaluate, features, "),
    "sentences": (_SENTENCES, "a classifier of texts", ""),
    "other": (r"", "a model without a head", ""),
}
"""Kind -> the classes, what it is in words, and the commands that take it beside those that take every kind."""


def kind_of(source: str | Path) -> Kind:
    """What a folder's model is for, by the class that its config.json names; "other" for a model of the Hub.

    Raises:
        ValueError: no such folder, or no readable config.json.
    """
    return "other" if str(source).startswith(HUB_PREFIX) else _kind(*_architecture(source))


def kind_of_class(name: str) -> Kind:
    """What a class of transformers is for, by its name."""
    return next(kind for kind, (pattern, _, _) in _ABOUT.items() if re.search(pattern, name))


def kind_of_model(model: Any) -> Kind:
    """What a transformers model is for: a classifier of images without classes gives features."""
    return _kind(type(model).__name__, model.config.id2label)


def _kind(name: str, classes: Any) -> Kind:
    kind = kind_of_class(name)
    return "features" if kind == "classifier" and classes == {} else kind


def require_kind(source: str | Path, kinds: Collection[Kind]) -> Kind:
    """The kind of a folder's model, one of `kinds`; a model of the Hub is taken on trust until it is opened.

    Raises:
        ValueError: another kind, in one line with the commands that take it; or as `kind_of`.
    """
    kind = kind_of(source)
    if kind not in kinds and not str(source).startswith(HUB_PREFIX):
        raise wrong_kind(source, _architecture(source)[0], kind, kinds)
    return kind


def wrong_kind(source: str | Path, name: str, kind: Kind, kinds: Collection[Kind]) -> ValueError:
    """The error about a model of class `name` whose kind is none of `kinds`."""
    _, words, commands = _ABOUT[kind]
    wanted = " or ".join(_ABOUT[one][1] for one in KINDS if one in kinds)
    return ValueError(
        f"{shown(source)}: holds {name or 'unnamed class'}, {words}, not {wanted}; it can be given to "
        f"{commands}finetune, analyze, audit and doctor"
    )


def _architecture(source: str | Path) -> tuple[str, Any]:
    """The class that a folder's model was saved from, empty where the configuration does not say; and its classes."""
    fields = read_config_file(source)
    return next(iter(fields.get("architectures") or ()), ""), fields.get("id2label")
