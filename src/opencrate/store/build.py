"""From a recipe to a configuration, a seeded model and its image processor."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ViTMAEForPreTraining, set_seed
from transformers.image_utils import PILImageResampling

from .._auto import register
from .._files import folder_of
from .._memory import require_memory
from .._pretrained import read_config
from .._suggest import suggest
from .._values import field_error, fitted
from ..configuration_crate import pair
from ..data.options import ImageData
from ..data.text.options import TRAINED
from ..data.text.tokenizers import vocabulary_size
from ..image_processing_crate import CrateImageProcessor
from ..modeling_crate_mae import sincos_positions
from ..recipe.schema import ENCODERS, READ_BY, Recipe, has_teacher

register()  # models are found by transformers' Auto classes, whatever was imported first

_FROM_DATA = ("image_size", "num_channels")
AUTO_MODELS = {
    "image-classification": transformers.AutoModelForImageClassification,
    "masked-autoencoding": transformers.AutoModelForPreTraining,
    "self-supervised": transformers.AutoModelForImageClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "sentence-classification": transformers.AutoModelForSequenceClassification,
}
"""A recipe's task -> the transformers Auto class that builds its models."""
_AVERAGES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "lion": 1, "muon": 1}
"""Numbers that an optimizer keeps for each weight, at least."""
_CONTEXT = ("max_position_embeddings", "n_positions")
"""What configurations call the number of positions."""


def build_config(recipe: Recipe, label_names: list[str] | None = None) -> PreTrainedConfig:
    """The model configuration of a recipe, with image size, channels and classes (if any) taken from its data.

    With `model.init_from`, the other fields are those of the source; `model.size` and `model.config` over them.

    Raises:
        ValueError: unknown model type, size or field; a wrong type; a field that contradicts the data; an
            image size that the patches do not tile.
    """
    cls, given = _given_fields(recipe)
    given = {**_source_fields(recipe, cls, given), **given}
    for name in (name for name in _FROM_DATA if name in own_fields(cls)):
        value = getattr(recipe.data, name)
        if given.setdefault(name, value) != value:
            raise ValueError(
                f"model.config.{name}={given[name]} but data.{name}={value}: "
                f"the model takes what the data gives; set data.{name} only"
            )
    if label_names is not None:
        numbers = {name: number for number, name in enumerate(label_names)}
        given.update(num_labels=len(label_names), id2label=dict(enumerate(label_names)), label2id=numbers)
    config = _construct(cls, recipe.model.size, given)
    _check_patches(config)
    return config


def build_text_config(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    num_tokens: int | None = None,
    labels: dict[str, Any] | None = None,
) -> PreTrainedConfig:
    """The model configuration of a text recipe: vocabulary, special tokens and context are those of its text.

    A sequence may have `num_tokens`, by default `text.block_size`; `labels` is `num_labels` or `id2label` of a
    classifier.

    Raises:
        ValueError: unknown model type, size or field; a wrong type; a field that contradicts the text.
    """
    cls, given = _given_fields(recipe)
    known = own_fields(cls)
    context = next((name for name in _CONTEXT if name in known), None)
    from_text = {"vocab_size": vocabulary_size(tokenizer)}  # unless more is given, as by a padded vocabulary
    if context is not None:
        from_text[context] = recipe.text.block_size if num_tokens is None else num_tokens
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    given = {**_source_fields(recipe, cls, given), **given}
    config = _construct(cls, recipe.model.size, {**from_text, **given, **special, **(labels or {})})
    for name, value in from_text.items():
        if getattr(config, name) < value:
            _refuse_text(recipe, name, getattr(config, name), value)
    return config


def _refuse_text(recipe: Recipe, name: str, has: int, needs: int) -> NoReturn:
    """Say what to do about a model that is too small for its text."""
    source, sentences = recipe.model.init_from, recipe.task == "sentence-classification"
    remedy = "raise it" if source is None else "use the tokenizer that the weights of model.init_from belong to"
    if name in _CONTEXT:
        lower = f"lower {'glue.max_length' if sentences else 'text.block_size'} to {has}"
        remedy = (
            f"{lower}, or raise it" if source is None else f"{lower}: the weights of {source} have no more positions"
        )
    raise ValueError(f"model.config.{name}={has} but the text needs {needs}; {remedy}")


def _source_fields(recipe: Recipe, cls: type[PreTrainedConfig], given: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model.init_from`'s configuration that neither recipe, nor size, nor data give."""
    if recipe.model.init_from is None:
        return {}
    source = saved_config(recipe.model.init_from, recipe.model.type, recipe.task)
    asked = {*given, *getattr(cls, "SIZES", {}).get(recipe.model.size, ())}
    taken = own_fields(cls) - {*asked, *_FROM_DATA, *(["head_dim"] if "num_attention_heads" in asked else [])}
    return {name: getattr(source, name) for name in taken if hasattr(source, name)}


def check_model(recipe: Recipe) -> None:
    """Refuse, before any data is read, a network that cannot be built, or for which there is no memory.

    What follows from the data (classes, the tokenizer's vocabulary) is left to `build_config` and `build_text_config`,
    as is `model.init_from` where no model lies there yet.

    Raises:
        ValueError: as these, or a network that is too large: the weights, and when there is no GPU also gradients and
            the optimizer's averages, need more memory than is free.
    """
    source = recipe.model.init_from
    if source is not None and not (folder_of(source) / "config.json").is_file():
        return
    config = build_config(recipe) if "data" in READ_BY[recipe.task] else _outline(recipe)
    averages = _AVERAGES[recipe.optimiser.optim] + (recipe.optimiser.ema_decay > 0)
    averages += recipe.task == "self-supervised" and has_teacher(recipe.ssl)
    copies = 1 if torch.cuda.is_available() else 2 + averages
    require_memory(config, AUTO_MODELS[recipe.task], "model", copies)


def _outline(recipe: Recipe) -> PreTrainedConfig:
    """The configuration of a text recipe before its text is known."""
    cls, given = _given_fields(recipe)
    sentences = recipe.task == "sentence-classification"
    length = recipe.glue.max_length if sentences else recipe.text.block_size
    stated: dict[str, Any] = {name: length for name in _CONTEXT}
    if not sentences and recipe.text.tokenizer in TRAINED:
        stated["vocab_size"] = recipe.text.vocab_size
    stated = {name: value for name, value in stated.items() if name in own_fields(cls)}
    return _construct(cls, recipe.model.size, {**stated, **_source_fields(recipe, cls, given), **given})


def _given_fields(recipe: Recipe) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """The configuration class of a recipe, and the fields that it gives, all of them known."""
    kind, classes = recipe.model.type, _config_classes(recipe.task)
    if kind not in classes:
        raise ValueError(f"unknown model.type '{kind}' for task {recipe.task}; {suggest(kind, classes)}")
    known = own_fields(classes[kind])
    for name in recipe.model.config:
        if name not in known:
            raise ValueError(f"unknown key 'model.config.{name}' for model.type {kind}; {suggest(name, known)}")
    return classes[kind], dict(recipe.model.config)


def _config_classes(task: str) -> dict[str, type[PreTrainedConfig]]:
    """The configuration classes of a task's models by their types."""
    return {cls.model_type: cls for cls in AUTO_MODELS[task]._model_mapping}


def initialise(config: PreTrainedConfig, seed: int, task: str = "image-classification") -> PreTrainedModel:
    """An untrained model of a task; the same configuration and seed give the same weights, bit for bit."""
    set_seed(seed)
    model = AUTO_MODELS[task].from_config(config, trust_remote_code=False)
    if isinstance(model, ViTMAEForPreTraining):
        _start_vit_mae(model)
    return model


@torch.no_grad()
def _start_vit_mae(model: ViTMAEForPreTraining) -> None:
    """The published start of a ViTMAE's embedding: transformers' own leaves tokens and both position tables at 0.

    Sine-cosine positions, tokens of standard deviation 0.02, Xavier-uniform patch embedding [2111.06377]. Without
    positions neither encoder nor decoder could distinguish the places of patches.
    """
    embeddings, decoder = model.vit.embeddings, model.decoder
    (height, width), (rows, columns) = pair(model.config.image_size), pair(model.config.patch_size)
    grid = height // rows, width // columns
    embeddings.position_embeddings.copy_(sincos_positions(grid, model.config.hidden_size))
    decoder.decoder_pos_embed.copy_(sincos_positions(grid, model.config.decoder_hidden_size))
    torch.nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))
    for token in (embeddings.cls_token, decoder.mask_token):
        torch.nn.init.normal_(token, std=0.02)


def class_names_of(config: Any) -> list[str]:
    """The names of a configuration's classes, in the order of the logits."""
    return [config.id2label[index] for index in range(config.num_labels)]


def auto_class_of(config: PreTrainedConfig) -> type:
    """The Auto class of the model that a saved configuration is of; that of classifiers where it does not say."""
    for auto_class in AUTO_MODELS.values():
        found = auto_class._model_mapping.get(type(config), ())
        names = {cls.__name__ for cls in (found if isinstance(found, tuple) else (found,))}
        if names & set(config.architectures or ()):
            return auto_class
    return transformers.AutoModelForImageClassification


def saved_config(path: str | Path, model_type: str, task: str) -> PreTrainedConfig:
    """The configuration in a run directory or any saved folder, of the type that a model starts from.

    For a classifier and for self-supervision, the autoencoder of that type will do too.

    Raises:
        ValueError: no such folder, no readable configuration, or one of another type.
    """
    config = read_config(path)
    found = config.model_type
    encoder = found if task == "masked-autoencoding" else ENCODERS.get(found, found)
    if model_type not in (found, encoder):
        fits = encoder in _config_classes(task)
        advice = f"set model.type={encoder} (and model.size=null), or " if fits else ""
        raise ValueError(
            f"{path}: holds a {found} model, but model.type is {model_type}; {advice}start from another model"
        )
    return config


def build_processor(data: ImageData) -> CrateImageProcessor:
    """The image processor that a recipe's `data` section describes, for every model type.

    Raises:
        ValueError: `resize_size` below `image_size`.
    """
    resize, (height, width) = data.resize_size, pair(data.image_size)
    target = {"height": height, "width": width}
    if resize is not None and resize < max(height, width):
        raise ValueError(
            f"data.resize_size={resize} is below data.image_size={data.image_size}: the crop would leave the "
            "image; give a larger resize_size, or null to resize straight to image_size"
        )
    return CrateImageProcessor(
        size=target if resize is None else {"shortest_edge": resize},
        crop_size=target,
        do_center_crop=resize is not None,
        image_mean=list(data.image_mean),
        image_std=list(data.image_std),
        resample=PILImageResampling[data.interpolation.upper()],
    )


def own_fields(cls: type[PreTrainedConfig]) -> set[str]:
    """Fields that a model's own configuration class declares: what a recipe may set."""
    base = {item.name for item in dataclasses.fields(PreTrainedConfig)}
    return {item.name for item in dataclasses.fields(cls) if item.name not in base and item.name[0] != "_"}


def _construct(cls: type[PreTrainedConfig], size: str | None, fields: dict[str, Any]) -> PreTrainedConfig:
    build: Any = cls if size is None else getattr(cls, "from_size", None)
    if build is None:
        raise ValueError(
            f"model.size='{size}' names a CRATE size, but model.type is {cls.model_type}; "
            "remove it and give model.config fields"
        )
    types = {item.name: item.type for item in dataclasses.fields(cls)}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise field_error(f"model.config.{name}", value, "a finite number")
        try:
            fitted(value, types.get(name, Any))
        except ValueError as error:
            raise field_error(f"model.config.{name}", value, str(error)) from None
        except TypeError:  # not the type of a value, such as a forward reference: the class itself checks it
            continue
    try:
        return build(*([] if size is None else [size]), **fields)
    except StrictDataclassError as error:
        raise ValueError(f"model.config: {error.__cause__}") from error


def _check_patches(config: PreTrainedConfig) -> None:
    """Refuse an image size that the patches do not tile (transformers' own configurations do not check)."""
    if not (hasattr(config, "image_size") and hasattr(config, "patch_size")):
        return
    image, patch = pair(config.image_size), pair(config.patch_size)
    for size, step in zip(image, patch):
        if step < 1 or size < step or size % step:
            raise ValueError(
                f"data.image_size={config.image_size} is not a multiple of patch_size={config.patch_size}; "
                "change data.image_size or model.config.patch_size"
            )
    if config.model_type == "vit_mae" and (image[0] != image[1] or not isinstance(config.patch_size, int)):
        raise ValueError(
            f"data.image_size={config.image_size}, patch_size={config.patch_size}: transformers' ViTMAE takes square "
            "images and patches only; give one number for each"
        )
