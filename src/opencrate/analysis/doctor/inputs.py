"""What `opencrate doctor` gives its checks: the model of any kind, its inputs, its log, and why the rest is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from ..._files import HUB_PREFIX, folder_of, parse_json, read_bytes, shown
from ..._values import shown_value
from ...configuration_crate import pair
from ...data.images.masks import MaskedImages
from ...data.images.tensors import in_batches
from ...data.text.cache import tokenised
from ...data.text.load import blocks_of
from ...data.text.options import TextData
from ...store import runs
from ...store.inputs import Inputs, documents_of, image_batches, input_batches, labelled_images
from ...store.kinds import LANGUAGE, kind_of
from ...store.saved import SavedModel, open_saved
from .diagnose import Diagnosis, diagnose
from .outputs import take

_NO_TEXT = "no text given; name one by `text`"
_OWN_ONLY = "known for a run's own data only"
_IMAGES, _TEXTS = 256, 32
"""Inputs at a time."""


@dataclass(frozen=True)
class Given:
    """A model and what it is to be checked on; nothing named is what its run held out.

    Attributes:
        source: the folder, or `hf://owner/name`.
        data: images, with labels or without, as `ImageData.path`; unreadable ones are left out with `skip_bad`.
        text, text_column, document: a text, as `TextData`, in pieces of `block_size` tokens.
        tokenizer: a folder with one, where the model has none.
        num_inputs: images or texts, at most.
    """

    source: str
    data: str | None = None
    text: str | None = None
    text_column: str | None = None
    document: Literal["file", "paragraph", "line"] = "file"
    tokenizer: str | None = None
    block_size: int = 128
    num_inputs: int = 256
    skip_bad: bool = False


@dataclass
class Case:
    """A model, what there is to check it with (options of `diagnose`), and why the rest is missing."""

    model: Any
    inputs: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def diagnose_saved(source: str, **given: Any) -> Diagnosis:
    """Check a saved model, of whatever kind, with its training log and what its run wrote down.

    Args:
        source: a run directory, another saved folder, or `hf://owner/name`.
        given: fields of `Given`: what to check it on.

    Raises:
        ValueError: a model, data or log that cannot be read, or inputs of the other kind.
    """
    named = Given(str(source), **given)
    case = open_case(named)
    return diagnose(case.model, num_images=named.num_inputs, name=named.source, missing=case.missing, **case.inputs)


def open_case(given: Given) -> Case:
    """Everything that is named, of whatever kind the model is; errors as of `diagnose_saved`."""
    kind, local = kind_of(given.source), not given.source.startswith(HUB_PREFIX)
    if kind in LANGUAGE:
        case = _language(given)
    else:
        saved = open_saved(given.source, finite=False)
        if saved.reads == "texts":
            case = _texts(saved, given) if local else _language(given)
        else:
            case = _images(saved, given, labelled=kind == "classifier")
    if local:
        _add_log(folder_of(given.source), case)
    return case


def _refuse(given: Given, reads: Literal["images", "text"]) -> None:
    """Refuse what the model cannot read."""
    wrong, right = (("text", "tokenizer"), "data") if reads == "images" else (("data",), "text")
    for name in wrong:
        if getattr(given, name) is not None:
            raise ValueError(f"`{name}`: {given.source} reads {reads}; give `{right}` instead")


def _images(saved: SavedModel, given: Given, labelled: bool) -> Case:
    """A model of images in a folder, with labels where it is a classifier and they are its own."""
    _refuse(given, "images")
    case = Case(saved.model)
    if not labelled:
        return _add_images(case, saved, given)
    if saved.processor_from is None and not (saved.path / "preprocessor_config.json").is_file():
        return _no_inputs(case, "the folder has no preprocessor_config.json, so images cannot be prepared", given)
    _ = saved.transform  # an image processor that is there and damaged is an error
    held_out = bool(saved.recipe and saved.recipe.data.validation_fraction)
    split = "validation" if held_out and not given.data else "test"
    try:
        case.inputs["batches"] = saved.batches(labelled_images(saved, given.data, split, given.skip_bad))
    except (ValueError, OSError) as error:
        case.missing["labels"] = f"the labels are not used: {error}"
        return _add_images(case, saved, given)
    if saved.recipe is None or given.data:
        case.missing.update({"training images": f"training images are {_OWN_ONLY}", "stored score": _OWN_ONLY})
        return case
    case.inputs["train_batches"] = saved.batches(labelled_images(saved, None, "train", given.skip_bad))
    _add_stored(case, saved.metrics)
    if held_out:
        case.inputs["scored"] = saved.batches(labelled_images(saved, None, "test", given.skip_bad))
    return case


def _texts(saved: SavedModel, given: Given) -> Case:
    """A model of texts without a language model's head, in a folder."""
    _refuse(given, "text")
    if given.text is None:
        return _no_inputs(Case(saved.model), _NO_TEXT, given)
    read = Inputs(text=given.text, tokenizer=given.tokenizer, block_size=given.block_size)
    return Case(saved.model, {"batches": input_batches(saved, read)}, {"stored score": _OWN_ONLY})


def _add_images(case: Case, saved: SavedModel, given: Given) -> Case:
    """Images without labels; those of a run's own data may be missing."""
    try:
        batches = image_batches(saved, Inputs(data=given.data, skip_bad=given.skip_bad), _IMAGES)[0]
    except (ValueError, OSError) as error:
        return _no_inputs(case, f"no images: {error}", given)
    kept, _ = take(batches, given.num_inputs)
    case.inputs["batches"] = [{"pixel_values": batch["pixel_values"]} for batch in kept]  # labels may be another's
    case.missing.setdefault("labels", "the images have no labels")
    case.missing.update({"training images": f"training images are {_OWN_ONLY}", "stored score": _OWN_ONLY})
    if given.data is None:
        _add_masked_score(case, saved.path, batches.dataset)
    return case


def _no_inputs(case: Case, reason: str, given: Given) -> Case:
    """Check the weights alone, unless the user named images."""
    if given.data:
        raise ValueError(f"data={given.data}: {reason.removeprefix('no images: ')}")
    case.missing.update(dict.fromkeys(("images", "texts", "labels", "training images", "stored score"), reason))
    return case


def _add_masked_score(case: Case, folder: Path, images: Dataset) -> None:
    """Of an autoencoder's run, the test images under the masks of its own evaluation, and the error it wrote down."""
    written = runs.read_metrics(folder) if (folder / runs.METRICS).is_file() else {}
    error = written.get("test", {}).get("error_model")
    if error is None:
        return
    (height, width), (rows, columns) = pair(case.model.config.image_size), pair(case.model.config.patch_size)
    masked = MaskedImages(images, (height // rows) * (width // columns))
    case.inputs |= {"scored": in_batches(masked, _IMAGES), "stored": {"loss": error["mean"]}}


def _add_stored(case: Case, metrics: dict[str, Any] | None) -> None:
    """What a run wrote down of its held-out data."""
    found = {name: value for name, value in (metrics or {}).items() if name in ("loss", "accuracy")}
    if "loss" in found:
        case.inputs["stored"] = found
    else:
        case.missing["stored score"] = "the run wrote down no score on held-out data"


def _language(given: Given) -> Case:
    """A language model on a text, or on what its run held out."""
    _refuse(given, "text")
    is_run = (folder_of(given.source) / runs.RECIPE).is_file()
    if given.text is None and not is_run:
        return _no_inputs(Case(open_saved(given.source, finite=False).model), _NO_TEXT, given)
    opened = open_saved(given.source, LANGUAGE, tokenizer=given.tokenizer, finite=False)
    case = Case(opened.model, missing={"labels": "the model reads text", "stored score": _OWN_ONLY})
    if given.text is None:
        named, data = None, runs.read_recipe(given.source).text
        if given.tokenizer is None:
            _add_stored(case, runs.read_metrics(given.source))
    else:
        size = min(given.block_size, opened.context)
        named = data = TextData(given.text, given.text_column, given.document, block_size=size)
    documents = documents_of(given.source, named)
    file = tokenised(documents, opened.tokenizer)
    kind: Any = opened.kind  # one of LANGUAGE
    case.inputs["batches"] = in_batches(blocks_of(file, data, kind, opened.tokenizer, "held-out"), _TEXTS)
    return case


def _add_log(folder: Path, case: Case) -> None:
    """The training log of a run directory."""
    path = folder / runs.LOG
    if not path.is_file():
        case.missing["log"] = f"no {runs.LOG} in the folder"
        return
    advice = "remove the file to check the rest"
    lines = read_bytes(path, "a training log").splitlines()
    numbered = [(f"{shown(path)}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    log = [parse_json(line, where, advice=advice) for where, line in numbered]
    losses = [value for entry in log for name, value in entry.items() if "loss" in name]
    wrong = [value for value in losses if type(value) not in (int, float)]
    if wrong or not log:
        what = f"a loss is {shown_value(wrong[0])}, no number" if wrong else "empty"
        raise ValueError(f"{shown(path)}: damaged ({what}); {advice}")
    case.inputs["log"] = log
