"""The one way to read a saved model back: a run directory, a folder written by `save_pretrained`, or a Hub name."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .._files import HUB_PREFIX, folder_of, shown
from .._pretrained import read_config, read_image_processor, read_model, reason, require_finite, timm_fields
from ..conversion import source_state_dict
from ..conversion.timm import load_timm, timm_processor
from ..data.images.tensors import ImageTransform, in_batches, to_tensors
from ..data.text.tokenizers import check_objective, check_vocabulary, load_tokenizer
from ..recipe.schema import ENCODERS, Recipe
from . import runs
from .build import class_names_of, initialise
from .kinds import LANGUAGE, Kind, kind_of_model, require_kind, wrong_kind

logger = logging.getLogger(__name__)

_TITLES = {"crate": "CRATE", "crate_text": "CRATE", "vit": "ViT", "crate_mae": "CRATE-MAE", "vit_mae": "ViTMAE"}
_WRONG = {
    "missing": "weights are missing",
    "unexpected": "there are weights that the model lacks",
    "mismatched": "weights have another shape than config.json says",
}


@dataclass(frozen=True)
class SavedModel:
    """A model read back, in evaluation mode, with what lies beside it.

    Processor, tokenizer, recipe and metrics are read when they are asked for, so that a folder in which one is
    missing or damaged can be used where it does not matter.

    Attributes:
        source: its folder or name as it was given, or `hf://owner/name`.
        kind: what it is for, by its class.
        tokenizer_from: the tokenizer, or where it is read from; `None` is beside the model.
        processor_from: the image processor, where it is not read from beside the model.
        path: its folder, absolute: what is read later may be read from another working directory.
    """

    source: str
    model: PreTrainedModel
    kind: Kind
    tokenizer_from: PreTrainedTokenizerBase | str | None = None
    processor_from: Any = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        path = Path(self.source) if self.source.startswith(HUB_PREFIX) else folder_of(self.source)
        object.__setattr__(self, "path", path.absolute())

    @property
    def _where(self) -> str:
        return self.source if self.source.startswith(HUB_PREFIX) else str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether it is a run directory, with a recipe and metrics."""
        return (self.path / runs.RECIPE).is_file() and (self.path / runs.METRICS).is_file()

    @cached_property
    def recipe(self) -> Recipe | None:
        """What the run was trained by; `None` where it is no run."""
        return runs.read_recipe(self.path) if self.is_run else None

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """What the run came to; `None` where it is no run."""
        return runs.read_metrics(self.path) if self.is_run else None

    @cached_property
    def processor(self) -> Any:
        """The image processor beside the model.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        return read_image_processor(self._where) if self.processor_from is None else self.processor_from

    @cached_property
    def transform(self) -> ImageTransform:
        """From a decoded image to what the model reads."""
        return ImageTransform.for_model(self.model.config, self.processor)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a model that reads text.

        Raises:
            ValueError: there is none, it cannot be read, or it is one of another vocabulary.
        """
        given = self.tokenizer_from
        if isinstance(given, PreTrainedTokenizerBase):
            return given
        try:
            found = load_tokenizer(self._where if given is None else given)
        except ValueError as error:
            raise ValueError(f"{error}{'' if given else '; give `tokenizer`'}") from error
        check_vocabulary(found, self.model.config, self.source)
        return found

    @property
    def context(self) -> int:
        """The most tokens that a model of text reads at a time."""
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return int(limit or self.tokenizer.model_max_length) - _skipped_positions(self.model)

    @property
    def start(self) -> int:
        """The token that stands before a text: beginning, else end, else class token."""
        names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
        return next(value for value in (getattr(self.tokenizer, name) for name in names) if value is not None)

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's."""
        return self.recipe.name if self.recipe else name_of(self._where)

    @property
    def title(self) -> str:
        """The architecture and the name, for readers: `CRATE (digits)`."""
        config = self.model.config
        steps = (getattr(config, "compression", ""), getattr(config, "sparsification", ""))
        kind = "attention + MLP" if steps == ("attention", "mlp") else _TITLES.get(config.model_type, config.model_type)
        return f"{kind} ({self.name})"

    @property
    def reads(self) -> Literal["images", "texts"]:
        """What it takes."""
        return "texts" if self.model.main_input_name == "input_ids" else "images"

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return class_names_of(self.model.config)

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def own_data(self) -> str:
        """What the run was trained on, as its recipe names it; empty where there is no run."""
        if self.recipe is None:
            return ""
        return str(self.recipe.text.path if self.reads == "texts" else self.recipe.data.path)

    def batches(self, images: Dataset, batch_size: int = 256) -> DataLoader:
        """Model-ready batches of `pixel_values` and `labels`, in order."""
        return in_batches(to_tensors(images, self.transform), batch_size)

    def untrained(self, seed: int | None = None) -> PreTrainedModel:
        """The model before any training, on the same device, by the seed and whitening of the recipe beside it.

        Args:
            seed: by default that of the recipe, and 0 for a model without one.

        Raises:
            ValueError: its recipe whitens the patches first, and the file with that is missing or damaged.
        """
        if self.is_run or runs.was_given_away(self.path):
            model = runs.initial_model(self.path, seed)
        elif self.model.config.model_type in ENCODERS:
            model = initialise(self.model.config, seed or 0, "masked-autoencoding")
        else:
            return untrained_copy(self.model, seed=seed or 0)
        nn.Module.to(model, self.model.device)  # transformers' own `to` has no type
        return model.eval()


def open_saved(
    source: str | os.PathLike,
    kinds: Collection[Kind] | None = None,
    *,
    tokenizer: str | None = None,
    finite: bool = True,
) -> SavedModel:
    """Read a saved transformers model, with the head that it was saved with.

    Args:
        source: a run directory, another folder with a `config.json`, `opencrate/name` of an installed model, or
            `hf://owner/name`, which is downloaded. A plain Vision Transformer in timm's form will do, too.
        kinds: what it may be for; `None` takes any model. Of a language model the tokenizer is then read at once.
        tokenizer: another folder or Hub name to take the tokenizer from.
        finite: refuse weights that are NaN or infinite.

    Raises:
        ValueError: no such folder, a configuration that cannot be read, a model for something else, weights that do
            not fit the configuration; or a tokenizer that does not fit the model, or what it predicts.
    """
    text = str(source)
    if kinds is not None:
        require_kind(text, kinds)
    if (fields := timm_fields(text)) is not None:
        return _open_timm(text, fields, kinds, finite)
    config = read_config(text)
    model, info = read_model(_class_of(config, text), text, finite, config=config)
    name = type(model).__name__
    saved = SavedModel(text, model, kind_of_model(model), tokenizer)
    if kinds is not None and saved.kind not in kinds:
        raise wrong_kind(text, name, saved.kind, kinds)
    _require_exact(info, text, kinds is not None or type(model).__module__.startswith("opencrate."))
    _place(model)
    if kinds is not None and saved.kind in LANGUAGE:
        check_objective(saved.tokenizer, saved.kind)
    return saved


def _open_timm(text: str, fields: dict[str, Any], kinds: Collection[Kind] | None, finite: bool) -> SavedModel:
    """A Vision Transformer of timm's, with its own image processor."""
    try:
        file = f"{text}/model.safetensors" if text.startswith(HUB_PREFIX) else text
        model = load_timm(source_state_dict(file), fields=fields)
        processor = timm_processor(fields)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{shown(text)}: a checkpoint of timm's that cannot be read: {reason(error)}") from error
    if finite:
        require_finite(model, text)
    saved = SavedModel(text, model, kind_of_model(model), processor_from=processor)
    if kinds is not None and saved.kind not in kinds:
        raise wrong_kind(text, type(model).__name__, saved.kind, kinds)
    _place(model)
    return saved


def _place(model: PreTrainedModel) -> None:
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu").eval()


def load_model(source: nn.Module | str | os.PathLike) -> nn.Module:
    """A module as it is; the model of a saved folder, as `open_saved`."""
    return source if isinstance(source, nn.Module) else open_saved(source).model


def untrained_copy(model: nn.Module, seed: int, **changes: Any) -> PreTrainedModel:
    """The same architecture freshly initialised, on the same device; torch's random state stays as it was.

    `changes` are fields of the configuration that are to differ.

    Raises:
        ValueError: the model has no configuration to build it from, or one that the changes do not fit.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"initial='untrained': {type(model).__name__} has no configuration; pass an untrained model")
    config = type(model.config).from_dict({**model.config.to_dict(), **changes}) if changes else model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config)
    weight = next(model.parameters())
    nn.Module.to(fresh, weight.device, weight.dtype)
    return fresh


def name_of(model: nn.Module | str | os.PathLike) -> str:
    """A name for readers: the folder's, the Hub id, or the class's."""
    if isinstance(model, nn.Module):
        return type(model).__name__
    text = str(model)
    if text.startswith(HUB_PREFIX):
        return text.removeprefix(HUB_PREFIX)
    return Path(os.path.realpath(Path(text).expanduser())).name


def _require_exact(info: dict[str, Any], source: str, all_used: bool) -> None:
    """Refuse weights that do not fit the configuration; unless `all_used`, there may be some that the model lacks."""
    for problem, meaning in _WRONG.items():
        keys = sorted(map(str, info[f"{problem}_keys"]))
        first = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
        if keys and (all_used or problem != "unexpected"):
            raise ValueError(
                f"{source}: {meaning}: {first} ({len(keys)} in all); config.json and model.safetensors must "
                "come from the same model"
            )
        if keys:
            logger.warning("%s: left out %d weights that the model lacks: %s", shown(source), len(keys), first)


def _class_of(config: PreTrainedConfig, source: Any) -> Any:
    """The class the model was saved from, so that every weight has its place; AutoModel where that is not known."""
    import opencrate

    name = (config.architectures or [""])[0]
    found = getattr(opencrate if name.startswith("Crate") else transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        return transformers.AutoModel
    if not isinstance(config, found.config_class or ()):
        raise ValueError(
            f"{shown(source)}/config.json: architectures names {name}, which is not a class of the model_type "
            f"{config.model_type}; give the config.json that belongs to the weights"
        )
    return found


def _skipped_positions(model: Any) -> int:
    """How many positions no token has: RoBERTa and its kin count from the one after the padding's."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return max((one.padding_idx + 1 for one in tables if getattr(one, "padding_idx", None) is not None), default=0)
