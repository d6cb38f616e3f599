"""What `opencrate doctor` gives its checks: the model of any kind, its inputs, its log, and why the rest is missing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..._files import parse_json, read_bytes, shown
from ..._pretrained import HUB_PREFIX
from ..._values import shown_value
from ...configuration_crate import pair
from ...data.images.masks import MaskedImages
from ...data.images.tensors import in_batches
from ...data.text.cache import tokenised
from ...data.text.load import blocks_of
from ...data.text.options import TextData
from ...evaluation.language import open_language_model
from ...store import runs, texts
from ...store.kinds import kind_of
from ...store.load import load_model
from ...store.saved import open_saved
from ...store.unlabelled import Inputs, PlainModel, image_batches
from .outputs import take

_OWN_ONLY = "known for a run's own data only"
_IMAGES, _TEXTS = 256, 32
"""Inputs at a time."""


@dataclass
class Case:
    """A model, what there is to check it with (options of `diagnose`), and why the rest is missing."""

    model: Any
    inputs: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def open_case(arguments: argparse.Namespace) -> Case:
    """Everything that the options name, of whatever kind the model is.

    Raises:
        ValueError: a model, data or log that cannot be read, or inputs of the other kind.
    """
    source = arguments.model
    kind = kind_of(source)
    if kind == "classifier":
        case = _classifier(arguments)
    elif kind in ("causal", "masked"):
        case = _language(arguments)
    else:
        case = _plain(arguments)
    if not source.startswith(HUB_PREFIX):
        _add_log(Path(source).expanduser(), case)
    return case


def _refuse(arguments: argparse.Namespace, reads: str) -> None:
    """Refuse what the model cannot read."""
    wrong = ("text", "tokenizer") if reads == "images" else ("data",)
    right = "--data IMAGES" if reads == "images" else "--text TEXT"
    for option in wrong:
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option}: {arguments.model} reads {reads}; give {right} instead")


def _classifier(arguments: argparse.Namespace) -> Case:
    """An image classifier in a folder, with labels where they are its own."""
    _refuse(arguments, "images")
    if not (Path(arguments.model).expanduser() / "preprocessor_config.json").is_file():
        case = Case(load_model(arguments.model, finite=False))
        _no_inputs(case, "the folder has no preprocessor_config.json, so images cannot be prepared", arguments)
        return case
    saved = open_saved(arguments.model, finite=False)
    case = Case(saved.model)
    held_out = bool(saved.recipe and saved.recipe.data.validation_fraction)
    split = "validation" if held_out and not arguments.data else "test"
    try:
        case.inputs["batches"] = saved.batches(saved.images(arguments.data, split, arguments.skip_bad))
    except (ValueError, OSError) as error:
        case.missing["labels"] = f"the labels are not used: {error}"
        _add_images(case, arguments)
        return case
    if saved.recipe is None or arguments.data:
        case.missing.update({"training images": f"training images are {_OWN_ONLY}", "stored score": _OWN_ONLY})
        return case
    case.inputs["train_batches"] = saved.batches(saved.images(None, "train", arguments.skip_bad))
    _add_stored(case, saved.metrics)
    if held_out:
        case.inputs["scored"] = saved.batches(saved.images(None, "test", arguments.skip_bad))
    return case


def _plain(arguments: argparse.Namespace) -> Case:
    """A model without a classifier's or a language model's head in a folder, or any at the Hub."""
    plain = PlainModel(arguments.model, load_model(arguments.model, finite=False))
    if plain.reads == "images":
        _refuse(arguments, "images")
        case = Case(plain.model)
        _add_images(case, arguments)
        return case
    if arguments.model.startswith(HUB_PREFIX):
        return _language(arguments)
    _refuse(arguments, "text")
    case = Case(plain.model)
    if arguments.text is None:
        _no_inputs(case, "no text given; name one with --text TEXT", arguments)
    else:
        read = Inputs(text=arguments.text, tokenizer=arguments.tokenizer, block_size=arguments.block_size)
        case.inputs["batches"] = plain.batches(read)
        case.missing["stored score"] = _OWN_ONLY
    return case


def _add_images(case: Case, arguments: argparse.Namespace) -> None:
    """Images without labels; those of a run's own data may be missing."""
    try:
        named = Inputs(data=arguments.data, skip_bad=arguments.skip_bad)
        batches = image_batches(arguments.model, case.model.config, named, _IMAGES)[0]
    except (ValueError, OSError) as error:
        _no_inputs(case, f"no images: {error}", arguments)
        return
    kept, _ = take(batches, arguments.num_images)
    case.inputs["batches"] = [
        {"pixel_values": batch["pixel_values"]} for batch in kept
    ]  # labels may be another model's
    case.missing.setdefault("labels", "the images have no labels")
    case.missing.update({"training images": f"training images are {_OWN_ONLY}", "stored score": _OWN_ONLY})
    _add_masked_score(case, Path(arguments.model).expanduser(), arguments.data, batches.dataset)


def _no_inputs(case: Case, reason: str, arguments: argparse.Namespace) -> None:
    """Check the weights alone, unless the user named images."""
    if arguments.data:
        raise ValueError(f"--data {arguments.data}: {reason.removeprefix('no images: ')}")
    case.missing.update(dict.fromkeys(("images", "texts", "labels", "training images", "stored score"), reason))


def _add_masked_score(case: Case, folder: Path, data: str | None, images: Dataset) -> None:
    """Of an autoencoder's run, the test images under the masks of its own evaluation, and the error it wrote down."""
    if data is not None or not (folder / runs.METRICS).is_file():
        return
    error = runs.read_metrics(folder).get("test", {}).get("error_model")
    if error is None:
        return
    (height, width), (rows, columns) = pair(case.model.config.image_size), pair(case.model.config.patch_size)
    masked = MaskedImages(images, (height // rows) * (width // columns))
    case.inputs |= {"scored": in_batches(masked, _IMAGES), "stored": {"loss": error["mean"]}}


def _add_stored(case: Case, metrics: dict[str, Any] | None) -> None:
    """What a run wrote down of its held-out data."""
    found = {name: metrics[name] for name in ("loss", "accuracy") if name in (metrics or {})}
    if "loss" in found:
        case.inputs["stored"] = found
    else:
        case.missing["stored score"] = "the run wrote down no score on held-out data"


def _language(arguments: argparse.Namespace) -> Case:
    """A language model on a text, or on what its run held out."""
    _refuse(arguments, "text")
    is_run = (Path(arguments.model).expanduser() / runs.RECIPE).is_file()
    if arguments.text is None and not is_run:
        case = Case(load_model(arguments.model, finite=False))
        _no_inputs(case, "no text given; name one with --text TEXT", arguments)
        return case
    opened = open_language_model(arguments.model, arguments.tokenizer, finite=False)
    case = Case(opened.model, missing={"labels": "the model reads text", "stored score": _OWN_ONLY})
    named = arguments.text and TextData(arguments.text, arguments.text_column, arguments.document)
    documents = texts.documents_of(arguments.model, named)
    if arguments.text is None:
        data = runs.read_recipe(arguments.model).text
        if arguments.tokenizer is None:
            _add_stored(case, runs.read_metrics(arguments.model))
    else:
        size = min(arguments.block_size, opened.context)
        data = TextData(arguments.text, arguments.text_column, arguments.document, block_size=size)
    file = tokenised(documents, opened.tokenizer)
    blocks = blocks_of(file, data, opened.kind, opened.tokenizer, "held-out")
    case.inputs["batches"] = in_batches(blocks, _TEXTS)
    return case


def _add_log(folder: Path, case: Case) -> None:
    """The training log of a run directory."""
    path = folder / runs.LOG
    if not path.is_file():
        case.missing["log"] = f"no {runs.LOG} in the folder"
        return
    advice = "remove the file to check the rest"
    lines = read_bytes(path, "a training log").splitlines()
    log = [
        parse_json(line, f"{shown(path)}, line {n}", advice=advice) for n, line in enumerate(lines, 1) if line.strip()
    ]
    wrong = [
        value for entry in log for name, value in entry.items() if "loss" in name and type(value) not in (int, float)
    ]
    if wrong or not log:
        what = f"a loss is {shown_value(wrong[0])}, no number" if wrong else "empty"
        raise ValueError(f"{shown(path)}: damaged ({what}); {advice}")
    case.inputs["log"] = log
