"""Any transformers model read back from disk or the Hub, with images or text to measure it on, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .._pretrained import read_image_processor
from ..data.images.sources import load_images, read_parts
from ..data.images.tensors import ImageTransform, drop_bad, in_batches, to_tensors
from ..data.text.blocks import TokenBlocks
from ..data.text.cache import tokenised
from ..data.text.datasets import PlainBlocks
from ..data.text.options import TextData
from ..data.text.tokenizers import check_vocabulary, frame_of, load_tokenizer
from . import runs
from .load import load_model, name_of, untrained_copy
from .saved import Split, log_skipped, title_of
from .texts import documents_of

_PARTS = ("test", "validation", "all", "train")


@dataclass(frozen=True)
class Inputs:
    """What a model is to be measured on; nothing named is what its run held out.

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


@dataclass(frozen=True)
class PlainModel:
    """A model that is measured without labels.

    Attributes:
        source: the folder, or `hf://owner/name`.
    """

    source: str
    model: PreTrainedModel

    @property
    def title(self) -> str:
        """Its architecture and the recipe's name, or the folder's, for readers: `gpt2 (my-model)`."""
        name = runs.read_recipe(self.source).name if self.is_run else name_of(self.source)
        return title_of(self.model, name)

    @property
    def reads(self) -> Literal["images", "texts"]:
        """What it takes."""
        return "texts" if self.model.main_input_name == "input_ids" else "images"

    @property
    def is_run(self) -> bool:
        """Whether a recipe lies beside the weights."""
        return (Path(self.source).expanduser() / runs.RECIPE).is_file()

    @property
    def own_data(self) -> str:
        """What the run was trained on, as its recipe names it; empty where there is no run."""
        if not self.is_run:
            return ""
        recipe = runs.read_recipe(self.source)
        return str(recipe.text.path if self.reads == "texts" else recipe.data.path)

    def untrained(self) -> PreTrainedModel:
        """The model before any training: a run's from its own seed, another's from seed 0, on the same device."""
        if not self.is_run:
            return untrained_copy(self.model, seed=0)
        return runs.initial_model(self.source).to(self.model.device).eval()

    def batches(self, inputs: Inputs, batch_size: int = 32) -> DataLoader:
        """Model-ready batches: of images (`pixel_values`), or of blocks of a text (`input_ids`).

        Without images or a text, those are taken that the run held out.

        Raises:
            ValueError: nothing or the wrong kind given, or a source that is missing, empty or damaged.
        """
        if self.reads == "texts":
            if inputs.data is not None:
                raise ValueError(f"{self.source}: a model that reads text; give --text TEXT (and no --data)")
            return in_batches(self._blocks(inputs), batch_size)
        if inputs.text is not None or (inputs.data is None and not self.is_run):
            raise ValueError(f"{self.source}: a model that reads images; give --data IMAGES (and no --text)")
        return image_batches(self.source, self.model.config, inputs, batch_size)[0]

    def _blocks(self, inputs: Inputs) -> PlainBlocks:
        """The text's tokens in one stream, cut into blocks with the tokenizer's own special tokens."""
        documents = documents_of(self.source, None if inputs.text is None else TextData(inputs.text))
        tokenizer = load_tokenizer(inputs.tokenizer or self.source)
        check_vocabulary(tokenizer, self.model.config, self.source)
        file = tokenised(documents, tokenizer)
        limit = getattr(self.model.config, "max_position_embeddings", None) or inputs.block_size
        try:
            blocks = TokenBlocks(file, min(inputs.block_size, limit), "stream", frame_of(tokenizer))
        except ValueError as error:
            raise ValueError(f"{documents.where}: {str(error).replace('text.block_size=', '--block-size ')}") from None
        return PlainBlocks(blocks)


def open_plain(source: str, finite: bool = True) -> PlainModel:
    """Read a model from a folder, or from the Hub for `hf://owner/name`.

    Args:
        source: the folder or the Hub's name.
        finite: refuse weights that are NaN or infinite.

    Raises:
        ValueError: as `load.load_model`.
    """
    return PlainModel(str(source), load_model(source, finite=finite))


def load_processor(source: str) -> Any:
    """The image processor beside a model, in a folder or at `hf://owner/name`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    return read_image_processor(source)


def image_batches(source: str, config: Any, inputs: Inputs, batch_size: int = 32) -> tuple[DataLoader, str]:
    """Model-ready batches of images without labels, and what they are in words.

    Args:
        source: the model's folder, or `hf://owner/name`.
        config: of the model.
        inputs: which images.
        batch_size: of the batches.

    Raises:
        ValueError: no data given and none known, no image processor, or images that cannot be read.
    """
    transform = ImageTransform.for_model(config, load_processor(source))
    folder = Path(source).expanduser()
    own = runs.read_recipe(folder).data if (folder / runs.RECIPE).is_file() else None
    if inputs.data is not None and (own is None or inputs.data != own.path):
        if inputs.split != "test":
            raise ValueError(f"--split {inputs.split}: parts are known for a run's own data only; leave --split out")
        images, skipped = _images(inputs.data), []
        if inputs.skip_bad:
            images, skipped = drop_bad(images, transform, labelled=False)
        words = f"{len(images):,} of {inputs.data}"
    elif own is None:
        raise ValueError(f"{source}: has no recipe, so it names no images; give --data IMAGES")
    else:
        skip_bad = inputs.skip_bad or runs.left_out_bad(folder)
        splits = load_images(own, skip_bad=skip_bad, smallest=transform.smallest, labelled=False)
        images, skipped = getattr(splits, inputs.split), splits.skipped
        if images is None:
            raise ValueError(f"--split {inputs.split}: the run held out no such images (data.validation_fraction is 0)")
        words = f"the {len(images):,} {inputs.split} images of {own.path}"
    log_skipped(skipped)
    return in_batches(to_tensors(images, transform), batch_size), words


def _images(data: str) -> Dataset:
    """The images of any source, whatever their labels."""
    parts = read_parts(data, labelled=False)
    return next(parts[part] for part in _PARTS if part in parts)
