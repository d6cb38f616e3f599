"""Any transformers model read back from disk or the Hub, with images or text to measure it on, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel

from ..analysis.whitebox import load_model, locate, name_of
from ..data.sources import load_images, read_any_parts
from ..data.tensors import ImageTransform, in_batches, to_tensors
from . import runs

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
        """Model-ready batches: of images (`pixel_values`), or of blocks of a text file (`input_ids`).

        Raises:
            ValueError: nothing or the wrong kind given, or a source that is missing, empty or damaged.
        """
        if self.reads == "texts":
            if text is None or data is not None:
                raise ValueError(f"{self.source}: a model that reads text; give --text FILE (and no --data)")
            return in_batches(self._blocks(Path(text).expanduser(), block_size), batch_size)
        known = data is not None or (Path(self.source).expanduser() / runs.RECIPE).is_file()
        if not known or text is not None:
            raise ValueError(f"{self.source}: a model that reads images; give --data IMAGES (and no --text)")
        return image_batches(self.source, self.model.config, data, batch_size)[0]

    def _blocks(self, file: Path, block_size: int) -> TextBlocks:
        """The file's tokens, cut into texts of one length with the tokenizer's own special tokens."""
        if not file.is_file():
            raise ValueError(f"{file}: no such file; give a plain text file to --text")
        where, options = locate(self.source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.source}: no tokenizer there ({_first_line(error)})") from error
        limit = getattr(self.model.config, "max_position_embeddings", None) or block_size
        return text_blocks(_read_text(file), tokenizer, min(block_size, limit), str(file))


class TextBlocks(TorchDataset):
    """Texts of equally many tokens: `input_ids (N)`, `attention_mask (N)`."""

    def __init__(self, input_ids: Tensor) -> None:
        self.input_ids = input_ids

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.input_ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_blocks(text: str, tokenizer: Any, block_size: int, name: str = "text") -> TextBlocks:
    """Cut a text into blocks of `block_size` tokens, special tokens included; a shorter rest is left out.

    Args:
        text: plain text.
        tokenizer: of the model.
        block_size: tokens per block.
        name: of the text, for messages.

    Raises:
        ValueError: the text is too short for one block.
    """
    special = tokenizer.num_special_tokens_to_add()
    length = block_size - special
    if length < 1:
        raise ValueError(f"--block-size {block_size}: must be above the tokenizer's {special} special tokens")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < length:
        raise ValueError(f"{name}: {len(ids)} tokens, too few for one text of {length}; give more, or a smaller block")
    template = tokenizer("", add_special_tokens=True)["input_ids"]
    blocks = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return TextBlocks(torch.tensor([_framed(block, template) for block in blocks]))


def _framed(block: list[int], template: list[int]) -> list[int]:
    """A block between the special tokens that the tokenizer puts around an empty text (first half before it)."""
    before = (len(template) + 1) // 2
    return [*template[:before], *block, *template[before:]]


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


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
