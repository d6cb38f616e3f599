"""What a saved model is measured on: images with or without labels, or a text; by default what its run held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets import Dataset
from torch.utils.data import DataLoader

from .._files import folder_of
from ..data.images.class_names import ORDER, name_classes, read_class_names
from ..data.images.labelled import label_names, relabelled
from ..data.images.sources import ImageSplits, evaluation_part, load_images, load_labelled, read_parts
from ..data.images.tensors import drop_bad, in_batches
from ..data.options import ImageData, TextData
from ..data.text import sources as texts
from ..data.text.blocks import TokenBlocks
from ..data.text.cache import tokenised
from ..data.text.datasets import PlainBlocks
from ..data.text.documents import Documents
from ..data.text.load import divided
from ..data.text.tokenizers import frame_of
from ..recipe.load import load_recipe
from ..recipe.locations import same_place
from . import runs
from .saved import SavedModel

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
LANGUAGE_TASKS = ("causal-lm", "masked-lm")
_PARTS = ("test", "validation", "all", "train")


@dataclass(frozen=True)
class Inputs:
    """What a model is to be measured on without labels; nothing named is what its run held out.

    Attributes:
        data: images, as `ImageData.path`, or a folder of image files; their labels are not used.
        split: the part of the run's own images.
        skip_bad: leave out unreadable images, named and counted.
        text: what to read, as `TextData.path`.
        tokenizer: a folder with one, where the model has none.
        block_size: tokens per text, at most.
    """

    data: str | None = None
    split: Split = "test"
    skip_bad: bool = False
    text: str | None = None
    tokenizer: str | None = None
    block_size: int = 128

    @property
    def words(self) -> str:
        """Where they come from, for readers."""
        return self.text or self.data or "what the run held out"


HELD_OUT = Inputs()
"""What the run of the model held out, and 128 tokens at a time of a text."""


def input_batches(saved: SavedModel, inputs: Inputs = HELD_OUT, batch_size: int = 32) -> DataLoader:
    """Model-ready batches without labels: of images (`pixel_values`), or of blocks of a text (`input_ids`).

    Raises:
        ValueError: nothing or the wrong kind given, or a source that is missing, empty or damaged.
    """
    if saved.reads == "texts":
        if inputs.data is not None:
            raise ValueError(f"{saved.source}: a model that reads text; give `text` (and no `data`)")
        return in_batches(_blocks(saved, inputs), batch_size)
    if inputs.text is not None or (inputs.data is None and not saved.is_run):
        raise ValueError(f"{saved.source}: a model that reads images; give `data` (and no `text`)")
    return image_batches(saved, inputs, batch_size)[0]


def image_batches(saved: SavedModel, inputs: Inputs, batch_size: int = 32) -> tuple[DataLoader, str]:
    """Model-ready batches of images without labels, and what they are in words.

    Raises:
        ValueError: no data given and none known, no image processor, or images that cannot be read.
    """
    own = saved.recipe.data if saved.recipe else None
    if inputs.data is not None and not _names_own(saved, inputs.data):
        _refuse_split(inputs.split)
        parts = read_parts(inputs.data, labelled=False)
        images = next(parts[part] for part in _PARTS if part in parts)
        if inputs.skip_bad:
            images, skipped = drop_bad(images, saved.transform, labelled=False)
            log_skipped(skipped)
        words = f"{len(images):,} of {inputs.data}"
    elif own is None:
        raise ValueError(f"{saved.source}: has no recipe, so it names no images; give `data`")
    else:
        skip_bad = inputs.skip_bad or runs.left_out_bad(saved.path)
        splits = load_images(own, skip_bad=skip_bad, smallest=saved.transform.smallest, labelled=False)
        images = _part(splits, inputs.split)
        log_skipped(splits.skipped)
        words = f"the {len(images):,} {inputs.split} images of {own.path}"
    return saved.batches(images, batch_size), words


def labelled_images(
    saved: SavedModel, data: str | None = None, split: Split = "test", skip_bad: bool = False
) -> Dataset:
    """Labelled images, with the model's label numbers.

    Args:
        saved: the model.
        data: `None` for the run's own; else as `data.path`, all of it, or its test part where it has one.
        split: which part of the run's own data.
        skip_bad: leave out unreadable images, and log which; of its own data a run that was trained so always does.

    Raises:
        ValueError: no data given and none known, a split that the run does not have, or other classes.
    """
    if not _is_own(saved, data) and data is not None:
        _refuse_split(split)
        skipped: list[str] | None = [] if skip_bad else None
        images = load_labelled(data, saved.label_names, skipped=skipped)
        if skipped is not None:
            images, reasons = drop_bad(images, saved.transform)
            log_skipped([*skipped, *reasons])
        return images
    own = _data_recipe(saved, data)
    dataset = _part(_load(saved, own, skip_bad), split)
    names = dataset.features["label"].names
    if set(names) != set(saved.label_names):
        raise ValueError(
            f"{own.path}: its classes {names} are not those of the model, {saved.label_names}; give `data` with images "
            "of the model's classes"
        )
    return relabelled(dataset, saved.label_names, own.path)


def probe_images(saved: SavedModel, data: str | None = None, skip_bad: bool = False) -> tuple[Dataset, Dataset]:
    """Labelled images to fit a probe on and to count on: the training and the test part, of any classes.

    Arguments are those of `labelled_images`; data without parts is split as the run's recipe says.

    Raises:
        ValueError: no data given and none known, or as `load_images`.
    """
    splits = _load(saved, _data_recipe(saved, data), skip_bad)
    return splits.train, splits.test


def knows_classes(saved: SavedModel, data: str | None) -> bool:
    """Whether images have labels, and every image is of one of the model's classes.

    Raises:
        ValueError: no data given and none known, or a source that is missing, empty or damaged.
    """
    if _is_own(saved, data) or data is None:
        return True
    try:
        parts = read_parts(data)
    except ValueError:
        read_parts(data, labelled=False)
        return False
    try:
        for part in parts.values():
            relabelled(part, saved.label_names, data)
    except ValueError:
        return False
    return True


def give_class_names(saved: SavedModel, class_names: str, data: str | None = None) -> None:
    """Give the model's classes names, in place: those of `read_class_names`, or by `order` those of `data`.

    Raises:
        ValueError: as `read_class_names` and `load_labelled`, or not as many names as classes.
    """
    where = f"class_names={class_names}"
    if class_names != ORDER:
        name_classes(saved.model.config, read_class_names(class_names), where)
    elif data is None:
        raise ValueError(f"{where}: goes by the order of the classes of the images; give `data`")
    else:
        name_classes(saved.model.config, label_names(evaluation_part(data)), f"{where}: {data}")


def documents_of(source: str | Path, text: TextData | None) -> Documents:
    """The test part of a text, else its validation part, else all of it; without a text, what a run held out.

    Raises:
        ValueError: no text given and none known, or a source that is missing, empty or cannot be read.
    """
    parts = divided(_own_text(source)) if text is None else texts.read_parts(text)
    for part in _PARTS[:2] if text is None else _PARTS:
        if part in parts:
            return parts[part]
    raise ValueError(f"{source}: held no text out; say on what by `text`")


def log_skipped(reasons: Sequence[str]) -> None:
    """Name each image that was left out on request, and count them."""
    for reason in reasons:
        logger.warning("skipped %s", reason)
    if reasons:
        logger.warning("skipped %d images", len(reasons))


def _own_text(source: str | Path) -> TextData:
    """The text of a language run's recipe."""
    if (folder_of(source) / runs.RECIPE).is_file():
        recipe = runs.read_recipe(source)
        if recipe.task in LANGUAGE_TASKS:
            return recipe.text
    raise ValueError(f"{source}: not a run of a language model, so it names no text; say on what by `text`")


def _blocks(saved: SavedModel, inputs: Inputs) -> PlainBlocks:
    """The text's tokens in one stream, cut into blocks with the tokenizer's own special tokens."""
    documents = documents_of(saved.source, None if inputs.text is None else TextData(inputs.text))
    saved = saved if inputs.tokenizer is None else replace(saved, tokenizer_from=inputs.tokenizer)
    file = tokenised(documents, saved.tokenizer)
    limit = getattr(saved.model.config, "max_position_embeddings", None) or inputs.block_size
    try:
        blocks = TokenBlocks(file, min(inputs.block_size, limit), "stream", frame_of(saved.tokenizer))
    except ValueError as error:
        raise ValueError(f"{documents.where}: {str(error).replace('text.block_size=', 'block_size=')}") from None
    return PlainBlocks(blocks)


def _refuse_split(split: Split) -> None:
    if split != "test":
        raise ValueError(f"split={split}: parts are known for a run's own data only; leave `split` out")


def _part(splits: ImageSplits, split: Split) -> Dataset:
    images = getattr(splits, split)
    if images is None:
        raise ValueError(f"split={split}: the run held out no {split} images (data.{split}_fraction is 0)")
    return images


def _is_own(saved: SavedModel, data: str | None) -> bool:
    """Whether the words name the run's own data, or the digits, whose parts are known to every model."""
    if data is None and saved.recipe is None:
        raise ValueError(f"{saved.source}: has no recipe, so it names no data; give `data`")
    return data in (None, "digits") or _names_own(saved, data)


def _names_own(saved: SavedModel, data: str) -> bool:
    try:
        return saved.recipe is not None and same_place("data.path", data, saved.recipe.data.path)
    except ValueError:  # the recipe is damaged, and nobody needs it for other data
        return False


def _data_recipe(saved: SavedModel, data: str | None) -> ImageData:
    if _is_own(saved, data) and saved.recipe is not None and (data is None or _names_own(saved, data)):
        return saved.recipe.data
    if data == "digits":
        return load_recipe("digits").data
    base = saved.recipe.data if saved.recipe else ImageData(num_channels=saved.transform.num_channels)
    return replace(base, path=data, image_column=None, label_column=None)


def _load(saved: SavedModel, data: ImageData, skip_bad: bool) -> ImageSplits:
    before = saved.recipe is not None and data == saved.recipe.data and runs.left_out_bad(saved.path)
    splits = load_images(data, skip_bad=skip_bad or before, smallest=saved.transform.smallest)
    if skip_bad:
        log_skipped(splits.skipped)
    elif splits.skipped:
        logger.info("left out %d images that the training skipped", len(splits.skipped))
    return splits
