"""Any transformers model read back from disk or the Hub, with images or text to measure it on, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from ..analysis.whitebox import load_model, locate, name_of
from ..data.sources import load_images, read_any_parts
from ..data.tensors import ImageTransform, in_batches, to_tensors
from ..data.text.blocks import TokenBlocks
from ..data.text.cache import tokenised
from ..data.text.datasets import PlainBlocks
from ..data.text.options import TextData
from ..data.text.tokenizers import frame_of, load_tokenizer
from . import runs
from .texts import documents_of

_PARTS = ("test", "validation", "all", "train")


@dataclass(frozen=True)
class PlainModel:
    """A model without a run around it.

    Attributes:
        source: the folder, or `hf://owner/name`.
    """

    source: str
    model: PreTrainedModel

    @property
    def title(self) -> str:
        """Its type and name, for readers: `gpt2 (my-model)`."""
        return f"{self.model.config.model_type} ({name_of(self.source)})"

    @property
    def reads(self) -> Literal["images", "texts"]:
        """What it takes."""
        return "texts" if self.model.main_input_name == "input_ids" else "images"

    def batches(self, data: str | None, text: str | None, block_size: int, batch_size: int = 32) -> DataLoader:
        """Model-ready batches: of images (`pixel_values`), or of blocks of a text (`input_ids`).

        Without `data` or `text`, those are taken that the run held out.

        Raises:
            ValueError: nothing or the wrong kind given, or a source that is missing, empty or damaged.
        """
        if self.reads == "texts":
            if data is not None:
                raise ValueError(f"{self.source}: a model that reads text; give --text TEXT (and no --data)")
            return in_batches(self._blocks(text, block_size), batch_size)
        known = data is not None or (Path(self.source).expanduser() / runs.RECIPE).is_file()
        if not known or text is not None:
            raise ValueError(f"{self.source}: a model that reads images; give --data IMAGES (and no --text)")
        return image_batches(self.source, self.model.config, data, batch_size)[0]

    def _blocks(self, text: str | None, block_size: int) -> PlainBlocks:
        """The text's tokens in one stream, cut into blocks with the tokenizer's own special tokens."""
        documents = documents_of(self.source, None if text is None else TextData(text))
        tokenizer = load_tokenizer(self.source)
        file = tokenised(documents, tokenizer)
        limit = getattr(self.model.config, "max_position_embeddings", None) or block_size
        try:
            blocks = TokenBlocks(file, min(block_size, limit), "stream", frame_of(tokenizer))
        except ValueError as error:
            raise ValueError(f"{documents.where}: {str(error).replace('text.block_size=', '--block-size ')}") from None
        return PlainBlocks(blocks)


def open_plain(source: str) -> PlainModel:
    """Read a model from a folder, or from the Hub for `hf://owner/name`.

    Raises:
        ValueError: as `whitebox.load_model`.
    """
    return PlainModel(str(source), load_model(source))


def load_processor(source: str) -> Any:
    """The image processor beside a model, in a folder or at `hf://owner/name`.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    where, options = locate(source)
    try:
        return AutoImageProcessor.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no image processor there ({_first_line(error)})") from error


def image_batches(source: str, config: Any, data: str | None, batch_size: int = 32) -> tuple[DataLoader, str]:
    """Model-ready batches of images without labels, and what they are in words.

    Args:
        source: the model's folder, or `hf://owner/name`.
        config: of the model.
        data: as `DataRecipe.path`, or a folder of image files; `None` is the test part of the run's own data.

    Raises:
        ValueError: no data given and none known, no image processor, or images that cannot be read.
    """
    transform = ImageTransform.for_model(config, load_processor(source))
    if data is not None:
        images = _images(data)
        return in_batches(to_tensors(images, transform), batch_size), f"{len(images):,} of {data}"
    folder = Path(source).expanduser()
    if not (folder / runs.RECIPE).is_file():
        raise ValueError(f"{source}: has no recipe, so it names no images; give --data IMAGES")
    own = runs.read_recipe(folder).data
    images = load_images(own, smallest=transform.smallest, labelled=False).test
    return in_batches(to_tensors(images, transform), batch_size), f"the {len(images):,} test images of {own.path}"


def is_image_classifier(source: str) -> bool:
    """Whether a folder holds an image classifier, which is read with its labels; a Hub model never is.

    Raises:
        ValueError: no such folder, or no readable configuration.
    """
    where, options = locate(source)
    if not options:
        return False
    try:
        config = AutoConfig.from_pretrained(where, **options)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{source}: cannot be loaded: {_first_line(error)}") from error
    return (config.architectures or [""])[0].endswith("ForImageClassification")


def _images(data: str) -> Dataset:
    """The images of any source, whatever their labels; also a folder of image files without classes."""
    parts = read_any_parts(data)
    return next(parts[part] for part in _PARTS if part in parts)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
