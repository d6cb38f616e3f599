"""The sections of a recipe: every key with its type, range and default, and what the values must be to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

from .._values import Amount, BatchSize, Count, Natural, Positive, Seed, Share, Within, field_error
from ..data.options import Augmentation, GlueData, ImageData, TextData, Views, check_text_data, check_view_lists


@dataclass(frozen=True)
class ModelRecipe:
    """Which network. `config` holds fields of the model type's own configuration class."""

    type: str = "crate"  # "crate" or any transformers model_type with the task's head; "crate_mae" or "vit_mae"
    size: str | None = None  # a named CRATE size
    config: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None  # run directory or saved folder whose weights are the start (fine-tuning)
    init_fresh: list[str] = field(default_factory=list)  # with init_from: parts of names of weights that start anew
    whiten_patches: bool = False  # from scratch: the patch embedding (a convolution) starts by whitening patches


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train: names of transformers' `TrainingArguments` and nothing else, with their meanings and units."""

    seed: Seed = 0
    num_train_epochs: Positive = 10
    max_steps: Literal[-1] | Count = -1  # > 0 replaces num_train_epochs
    per_device_train_batch_size: BatchSize = 64
    per_device_eval_batch_size: BatchSize = 256
    gradient_accumulation_steps: BatchSize = 1
    learning_rate: Amount = 1e-3
    weight_decay: Amount = 0.05
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    warmup_steps: Amount = 0.1  # below 1: a share of all steps
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup"] = "cosine"
    max_grad_norm: Amount = 1.0
    label_smoothing_factor: Share = 0.0
    bf16: bool | Literal["auto"] = False  # auto: where the GPU or CPU has instructions for it; a run writes down which
    tf32: bool | None = None  # float32 products in TF32 on a GPU; null: PyTorch's default, on with torch_compile
    torch_compile: bool = False
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None  # with torch_compile
    dataloader_num_workers: Annotated[int, Within(0, 64)] = 0
    save_strategy: Literal["no", "epoch", "steps"] = "no"
    save_steps: Count = 500
    save_total_limit: Count | None = 2


@dataclass(frozen=True)
class OptimiserRecipe:
    """Which optimizer, and what `TrainingArguments` do not have a name for."""

    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd", "lion", "muon"] = "adamw_torch_fused"
    min_learning_rate: Amount = 0.0  # where training.lr_scheduler_type=cosine_with_min_lr ends
    ema_decay: Share = 0.0  # of an exponential moving average of the weights that is saved and evaluated; 0 is off


@dataclass(frozen=True)
class RegulariserRecipe:
    """The negative sparse rate reduction in the loss: R^c - R + sparsity |Z|_1 per token (CRATE only)."""

    weight: Amount = 0.0  # 0 is off
    parts: list[Literal["subspace_rate", "rate", "l1"]] = field(default_factory=lambda: ["subspace_rate", "rate", "l1"])
    layers: Literal["all", "random"] | list[Count] = "random"  # random: one, drawn anew in every step; or from 1
    sparsity: Amount = 0.1  # weight of the l1 norm
    eps: Positive = 0.5  # of the rates


@dataclass(frozen=True)
class LoggingRecipe:
    """What is written down while a model is trained."""

    measure_inputs: Natural = 64  # images or blocks of text on which a CRATE's rates and sparsity are logged; 0 is off
    measure_every_epochs: Count = 1
    tensorboard: bool = False  # event files in the run directory; needs the tensorboard package


@dataclass(frozen=True)
class Recipe:
    """A whole run. `name` defaults to the file's name without suffix."""

    name: str = ""
    description: str = ""
    task: Literal[
        "image-classification", "masked-autoencoding", "causal-lm", "masked-lm", "sentence-classification"
    ] = "image-classification"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: ImageData = field(default_factory=ImageData)
    augmentation: Augmentation = field(default_factory=Augmentation)
    views: Views = field(default_factory=Views)
    text: TextData = field(default_factory=TextData)
    glue: GlueData = field(default_factory=GlueData)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    regulariser: RegulariserRecipe = field(default_factory=RegulariserRecipe)
    logging: LoggingRecipe = field(default_factory=LoggingRecipe)


SECTIONS: dict[str, Any] = {
    item.name: item.default_factory for item in dataclasses.fields(Recipe) if item.default_factory is not MISSING
}
"""A section's name -> its class."""
RENAMED = {
    **{f"training.{name}": f"optimiser.{name}" for name in ("optim", "min_learning_rate", "ema_decay")},
    **{f"training.srr_{name}": f"regulariser.{name}" for name in ("weight", "parts", "layers", "eps")},
    "training.srr_lambda": "regulariser.sparsity",
    "training.measure_images": "logging.measure_inputs",
    **{f"training.{name}": f"logging.{name}" for name in ("measure_every_epochs", "tensorboard")},
}
"""Keys of earlier versions -> their names now."""
ENCODERS = {"crate_mae": "crate", "vit_mae": "vit"}
"""Model types of masked autoencoders -> the type that their encoder is without them."""

READ_BY: dict[str, tuple[str, ...]] = {
    "image-classification": ("data", "augmentation"),
    "masked-autoencoding": ("data", "augmentation"),
    "self-supervised": ("data", "views"),
    "causal-lm": ("text",),
    "masked-lm": ("text",),
    "sentence-classification": ("glue",),
}
"""A task -> the sections about data that it reads, the one with the path first."""
_DATA_SECTIONS = sorted({section for read in READ_BY.values() for section in read})

Where = Callable[[str], str]


def check_values(recipe: Recipe, where: Where) -> None:
    """Refuse, by `ValueError`, a value that does not fit the others; `where` is what set a dotted key."""
    _check_sections(recipe, where)
    _check_regulariser(recipe, where)
    compiles = recipe.training.torch_compile or recipe.training.torch_compile_mode is None
    allowed = "null where training.torch_compile is false; set that to true"
    _require(compiles, "training.torch_compile_mode", allowed, recipe, where)
    _check_images(recipe, where)


def _check_sections(recipe: Recipe, where: Where) -> None:
    """Refuse settings that the task does not read, which is almost certainly a mistake."""
    read = READ_BY[recipe.task]
    unread = [section for section in _DATA_SECTIONS if section not in read]
    for section in unread:
        given = getattr(recipe, section)
        for name, value in dataclasses.asdict(given).items():
            if value != getattr(type(given)(), name):
                raise ValueError(
                    f"{where(f'{section}.{name}')}: '{section}.{name}' is set, but task {recipe.task} reads nothing "
                    f"of '{section}'; remove it, or change the task"
                )
    try:
        if "text" in read:
            check_text_data(recipe.text)
        if "views" in read:
            check_view_lists(recipe.views)
    except ValueError as error:
        raise ValueError(f"{where(str(error).partition('=')[0])}: {error}") from None


def _check_regulariser(recipe: Recipe, where: Where) -> None:
    parts, layers = recipe.regulariser.parts, recipe.regulariser.layers
    fits = 0 < len(parts) == len(set(parts))
    _require(fits, "regulariser.parts", "one or more of subspace_rate, rate, l1, each once", recipe, where)
    _require(len(layers) > 0, "regulariser.layers", "all, random, or a list of layers from 1", recipe, where)


def _check_images(recipe: Recipe, where: Where) -> None:
    size = recipe.data.image_size
    fits = isinstance(size, int) or len(size) == 2
    _require(fits, "data.image_size", "pixels or [height, width]", recipe, where)
    channels = recipe.data.num_channels
    for key in ("data.image_mean", "data.image_std"):
        what = f"a list of one value per channel (data.num_channels is {channels})"
        _require(len(recipe_value(recipe, key)) == channels, key, what, recipe, where)
    for key in ("augmentation.crop_scale", "augmentation.crop_ratio"):
        limits = recipe_value(recipe, key)
        fits = len(limits) == 2 and limits[0] <= limits[1]
        _require(fits, key, "[least, most] with least <= most", recipe, where)


def recipe_value(recipe: Recipe, key: str) -> Any:
    """The value of a key `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def _require(fits: bool, key: str, allowed: str, recipe: Recipe, where: Where) -> None:
    if not fits:
        raise field_error(f"{where(key)}: '{key}'", recipe_value(recipe, key), allowed)
