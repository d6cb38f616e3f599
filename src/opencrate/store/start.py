"""Fine-tuning: the weights a model starts from, every one of them loaded, new or left out by name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .._files import folder_of
from .._pretrained import read_model
from .._suggest import suggest
from ..configuration_crate import pair
from ..data.images.class_names import nameless
from ..data.text.tokenizers import load_tokenizer, tokenizer_identity
from ..positions import resized_table
from ..recipe.schema import ENCODERS, ModelRecipe, Recipe, recipe_value
from ..recipe.source_settings import has_tokenizer, source_settings
from .build import auto_class_of, class_names_of, initialise, own_fields, saved_config

logger = logging.getLogger(__name__)

_POSITIONS = ("position_embeddings", "pos_embed")
_MASK_TOKEN = "embeddings.mask_token"
_POOLER = ".pooler."
"""transformers' layer between encoder and head: a part of the head, which a model for masked words does not have."""
_AUTOENCODER_NORM = r"crate\.norm\."
"""The norm after a CRATE autoencoder's encoder; a classifier has it after pooling, as `norm`."""
_FROM_DATA = {"image_size", "num_channels"}


@dataclass(frozen=True)
class Initialisation:
    """Where the weights of a model come from; each list holds names of tensors.

    Attributes:
        source: the folder, as given.
        loaded: taken as they are.
        interpolated: tables of positions or of offsets, brought to another grid of patches.
        new: not taken, so started from the recipe's seed.
        left_out: tensors of the source that the model has no use for.
        grid: [rows, columns] of patches before and after, where a table was interpolated.
        settings: what the weights were trained with and are used with now, [source, model], where it differs:
            fields of the configuration, and keys of the recipe that say how images or text become inputs.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    grid: list[list[int]] | None = None
    settings: dict[str, list[Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for readers."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.interpolated and self.grid is not None:
            (rows, columns), (new_rows, new_columns) = self.grid
            parts.append(f"positions interpolated from {rows}x{columns} to {new_rows}x{new_columns} patches")
        parts.append(f"new: {', '.join(self.new) or 'none'}")
        parts.append(f"left out: {', '.join(self.left_out) or 'none'}")
        if self.settings:
            changed = (f"{name} {before} -> {after}" for name, (before, after) in self.settings.items())
            parts.append(f"settings changed: {', '.join(changed)}")
        return f"initialised from {self.source}: {'; '.join(parts)}"


Start = tuple[PreTrainedModel, Initialisation | None]


def start_model(recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Start:
    """The model of a recipe before its first step, and where its weights come from (`None`: its seed alone).

    What was loaded, is new or was left out is logged, and what differs from how the weights were trained.

    Raises:
        ValueError: as `load_weights`.
    """
    model, found = start_from_config(recipe, config)
    if found is not None:
        found.settings.update(_changed_inputs(recipe, tokenizer))
        logger.info("%s", found)
    return model, found


def start_from_config(recipe: Recipe, config: PreTrainedConfig) -> Start:
    """As `start_model`, without a word."""
    model = initialise(config, recipe.training.seed, recipe.task)
    return model, None if recipe.model.init_from is None else load_weights(model, recipe.model)


def load_weights(model: PreTrainedModel, recipe: ModelRecipe) -> Initialisation:
    """Put the weights of `recipe.init_from` into a model, in place.

    The head's linear layer starts anew where the classes differ, the tables of positions and of offsets are
    interpolated (bicubic) where the grid of patches differs, and what `recipe.init_fresh` names starts anew. A
    classifier that starts from a masked autoencoder takes the encoder with its final norm; the decoder and the mask
    token are left out. Nothing else is left out.

    `recipe.init_from` is a run directory or saved folder of the same model type, with or without a head, or of a
    masked autoencoder whose encoder is of that type.

    Raises:
        ValueError: no such folder or another model type; an encoder weight that is missing, extra or of another
            shape; a part of a name in `init_fresh` that no weight has. The model is then as it was.
    """
    source, weights = _open_source(str(recipe.init_from), model)
    plan = _Plan(model, source.config, weights, recipe)
    plan.check()
    state = model.state_dict()
    with torch.no_grad():
        for name in plan.found.loaded:
            state[name].copy_(weights[name])
        for name in plan.found.interpolated:
            state[name].copy_(_resized(name, weights[name], plan.grids))
    return plan.found


def resize_positions(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """A position table `(1, tokens + rows * columns, d)` on another grid of patches; other tokens come first."""
    tokens = table.shape[1] - before[0] * before[1]
    grid = table[:, tokens:].unflatten(1, before).permute(0, 3, 1, 2).float()
    resized = interpolate(grid, size=after, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :tokens], resized.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


def _resized(name: str, table: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    return resized_table(table, grids[1]) if _is_bias(name) else resize_positions(table, *grids)


def _is_bias(name: str) -> bool:
    """Whether a tensor has a number for each offset of two patches."""
    return name.rpartition(".")[2] == "position_bias"


class _Plan:
    """What becomes of each tensor of a source, decided before any is copied."""

    def __init__(
        self, model: PreTrainedModel, before: PreTrainedConfig, weights: dict[str, Tensor], recipe: ModelRecipe
    ) -> None:
        self.model = model
        self.weights = weights
        self.recipe = recipe
        self.encoder = f"{model.base_model_prefix}."
        self.keeps_classes = _same_classes(before, model.config)
        self.of_autoencoder = before.model_type in ENCODERS and model.config.model_type not in ENCODERS
        self.class_layers = tuple(
            f"{name}."
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith(self.encoder)
        )
        self.grids = _grid(before), _grid(model.config)
        self.resize = (0, 0) not in self.grids and self.grids[0] != self.grids[1]
        self.problems: list[str] = []
        self.found = Initialisation(
            source=str(recipe.init_from),
            grid=[list(grid) for grid in self.grids] if self.resize else None,
            settings=_changed_settings(before, model.config) | _changed_dtype(weights, model),
        )
        own = model.state_dict()
        for name, value in own.items():
            self._assign(name, value)
        for name in sorted(weights.keys() - own.keys()):
            self._leave_out(name)
        self.found.left_out.sort()

    def check(self) -> None:
        """Raise for encoder weights that do not fit, and for parts of names that fit none."""
        names = [*self.model.state_dict(), *self.weights]
        for part in self.recipe.init_fresh:
            if not any(part in name for name in names):
                words = {word for name in names for word in name.split(".") if not word.isdecimal()}
                raise ValueError(f"model.init_fresh: no weight has '{part}' in its name; {suggest(part, words)}")
        if self.problems:
            more = f" and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
            raise ValueError(
                f"{self.found.source}: does not fit the recipe's model: {'; '.join(self.problems[:3])}{more}; give "
                "model.size and model.config of the source (size null takes all of them from it), or name in "
                "model.init_fresh what shall start anew"
            )

    def _assign(self, name: str, value: Tensor) -> None:
        given = self.weights.get(name)
        head = not name.startswith(self.encoder) or _POOLER in name
        fresh = self._is_fresh(name) or (name.startswith(self.class_layers) and not self.keeps_classes)
        if fresh or (given is None and head):
            self.found.new.append(name)
            if given is not None:
                self.found.left_out.append(name)
        elif given is None:
            self.problems.append(f"{name} is missing")
        elif self.resize and self._fits_resized(name, given, value):
            self.found.interpolated.append(name)
        elif given.shape == value.shape:
            self.found.loaded.append(name)
        else:
            self.problems.append(f"{name} has shape {tuple(given.shape)}, the model's is {tuple(value.shape)}")

    def _fits_resized(self, name: str, given: Tensor, value: Tensor) -> bool:
        if _is_bias(name):
            return given.ndim == value.ndim == 3 and len(given) == len(value)
        return name.endswith(_POSITIONS) and given.shape[2:] == value.shape[2:]

    def _leave_out(self, name: str) -> None:
        encoder = name.startswith(self.encoder) and not (self.of_autoencoder and name.endswith(_MASK_TOKEN))
        if encoder and _POOLER not in name and not self._is_fresh(name):
            self.problems.append(f"the model has no {name}")
        else:
            self.found.left_out.append(name)

    def _is_fresh(self, name: str) -> bool:
        return any(part in name for part in self.recipe.init_fresh)


def _open_source(path: str, model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The model in a folder and the tensors that the folder really holds (an encoder alone has no head).

    Those of an autoencoder have the names that they have in a classifier, if that is what they are for.
    """
    own = model.config.model_type
    config = saved_config(path, own, "masked-autoencoding" if own in ENCODERS else "image-classification")
    source, info = read_model(auto_class_of(config), path)
    absent = {str(name) for name in info["missing_keys"]}
    encoder = [name for name in absent if name.startswith(f"{source.base_model_prefix}.")]
    damaged = sorted(map(str, (*encoder, *info["unexpected_keys"], *info["mismatched_keys"])))
    if damaged:
        raise ValueError(
            f"{path}: the weights are not those of its config.json ({', '.join(damaged[:3])}; {len(damaged)} in all); "
            "config.json and model.safetensors must come from the same model"
        )
    weights = {name: value for name, value in source.state_dict().items() if name not in absent}
    if config.model_type in ENCODERS and own not in ENCODERS:
        weights = {re.sub(rf"^{_AUTOENCODER_NORM}", "norm.", name): value for name, value in weights.items()}
    return source, weights


def _same_classes(before: PreTrainedConfig, after: PreTrainedConfig) -> bool:
    """Whether the head's rows mean the same; names like LABEL_3, which say nothing, fit any of that number."""
    names, wanted = class_names_of(before), class_names_of(after)
    return names == wanted or (len(names) == len(wanted) and nameless(names))


def _grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of patches; (0, 0) of a model without them."""
    if not (hasattr(config, "image_size") and hasattr(config, "patch_size")):
        return 0, 0
    (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
    return height // patch_height, width // patch_width


def _changed_dtype(weights: dict[str, Tensor], model: PreTrainedModel) -> dict[str, list[Any]]:
    """The number types of the source's weights, where they are not the model's."""
    before = sorted({str(value.dtype) for value in weights.values() if value.is_floating_point()})
    return {} if before == [str(model.dtype)] else {"dtype": [", ".join(before), str(model.dtype)]}


def _changed_inputs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, list[Any]]:
    """What differs between the inputs that the source was trained on and those of the recipe: [source, recipe]."""
    folder = folder_of(str(recipe.model.init_from))
    settings = source_settings(folder, recipe.task)
    settings.pop("text.tokenizer", None)  # compared itself
    if tokenizer is None and "data.image_mean" not in settings:
        logger.warning("%s: holds no image processor; mean, deviation and sizes are the recipe's", folder)
    now = {key: recipe_value(recipe, key) for key in settings}
    changed = {key: [before, now[key]] for key, before in settings.items() if not _same(before, now[key])}
    return changed if tokenizer is None else {**changed, **_changed_tokenizer(folder, tokenizer)}


def _changed_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """Whether text becomes other tokens than those that the weights know, in words."""
    if not has_tokenizer(folder):
        logger.warning("%s: holds no tokenizer; whether the recipe's is the weights' own is not known", folder)
        return {}
    before = load_tokenizer(folder)
    if tokenizer_identity(before) == tokenizer_identity(tokenizer):
        return {}
    return {"tokenizer": [f"{len(before):,} tokens, the weights' own", f"{len(tokenizer):,} other tokens"]}


def _same(before: Any, now: Any) -> bool:
    """Whether two values are the same, numbers to seven digits."""
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-7, abs_tol=1e-9)
    return before == now


def _changed_settings(before: PreTrainedConfig, after: PreTrainedConfig) -> dict[str, list[Any]]:
    names = sorted(name for name in own_fields(type(after)) - _FROM_DATA if hasattr(before, name))
    pairs = {name: [getattr(before, name), getattr(after, name)] for name in names}
    return {name: both for name, both in pairs.items() if both[0] != both[1]}
