"""The sections of a recipe: every key with its type, range and default, and what the values must be to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

from .._values import Amount, BatchSize, Count, Natural, Positive, Probability, Seed, Share, Within, field_error
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

    @property
    def starts_whitened(self) -> bool:
        """Whether the patch embedding is whitened before the first step; no seed can repeat that without the images."""
        return self.whiten_patches and self.init_from is None


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
    tf32: bool | None = None  # float32 products in TF32 on a GPU, losses and rates too; null: as false
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
    guard_from: Share = 0.0  # share of the steps that are trained without model.config.compression_guard, for speed


@dataclass(frozen=True)
class RegulariserRecipe:
    """The negative sparse rate reduction in the loss: R^c - R + sparsity |Z|_1 per token (CRATE only)."""

    weight: Amount = 0.0  # 0 is off
    parts: list[Literal["subspace_rate", "rate", "l1"]] = field(default_factory=lambda: ["subspace_rate", "rate", "l1"])
    layers: Literal["all", "random"] | list[Count] = "random"  # random: one, drawn anew in every step; or from 1
    sparsity: Amount = 0.1  # weight of the l1 norm
    eps: Positive = 0.5  # of the rates


@dataclass(frozen=True)
class SelfSupervisionRecipe:
    """How views of images are compared without labels. A key that the objective does not read keeps its default."""

    objective: Literal["dino", "simdino", "lejepa", "vicreg", "simclr"] = "dino"
    teacher: bool | None = None  # an average of the student, which is saved; null: for dino and simdino
    teacher_momentum: Probability = 0.996  # share of itself that the teacher keeps in a step, at the start
    teacher_momentum_end: Probability = 1.0  # at the end of a half cosine
    head_hidden: Count = 2048  # width of the hidden layers of the head
    head_layers: Count = 3  # linear maps of its MLP
    bottleneck: Count = 256  # dino, simdino: width after it
    prototypes: Annotated[int, Within(2, 10**7)] = 65_536  # dino: K
    norm_last_layer: bool = True  # dino: prototypes of norm 1, not learned norms
    features: Count = 128  # lejepa, vicreg, simclr: width of the head's output
    student_temperature: Positive = 0.1  # dino
    teacher_temperature: Positive = 0.07  # dino: after the first epochs
    teacher_temperature_start: Positive = 0.04  # dino: in the first epoch
    teacher_temperature_epochs: Natural = 30  # dino: from the first to the last one on the line between the two
    centre_momentum: Probability = 0.9  # dino: share of itself that the centre of the teacher's logits keeps
    freeze_last_layer_epochs: Natural = 1  # dino: first epochs in which the prototypes stay as they are
    eps: Positive = 0.4  # simdino: distortion inside the coding rate, not squared
    compression_weight: Amount = 1.0  # simdino
    expansion_weight: Amount = 0.3  # simdino
    expansion_of: Literal["student", "average"] = "student"  # simdino: average: the mean of student and teacher
    group_size: Annotated[int, Within(2, 10**9)] | None = None  # simdino: images of a rate; null: the global batch
    sigreg_weight: Probability = 0.05  # lejepa: lambda
    directions: Count = 1024  # lejepa: random directions of a step
    temperature: Positive = 0.2  # simclr
    invariance_weight: Amount = 25.0  # vicreg
    variance_weight: Amount = 25.0  # vicreg
    covariance_weight: Amount = 1.0  # vicreg
    weight_decay_end: Amount | None = None  # of a half cosine from training.weight_decay; null: constant
    clip_each: Amount = 0.0  # of each tensor's gradient norm; 0 is off (training.max_grad_norm is of all together)
    evaluate_every_epochs: Natural = 1  # k-NN and linear probe on labelled validation images; 0 is off
    evaluate_images: Count = 5_000  # training images that these are fitted on, and validation images, at most each


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
        "image-classification",
        "masked-autoencoding",
        "self-supervised",
        "causal-lm",
        "masked-lm",
        "sentence-classification",
    ] = "image-classification"
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: ImageData = field(default_factory=ImageData)
    augmentation: Augmentation = field(default_factory=Augmentation)
    views: Views = field(default_factory=Views)
    ssl: SelfSupervisionRecipe = field(default_factory=SelfSupervisionRecipe)
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
    "self-supervised": ("data", "views", "ssl"),
    "causal-lm": ("text",),
    "masked-lm": ("text",),
    "sentence-classification": ("glue",),
}
"""A task -> the sections of its own that it reads, the one with the path first."""
SELF_DISTILLATION = ("dino", "simdino")
"""Objectives that compare a student with a teacher."""
_TEACHER = ("teacher_momentum", "teacher_momentum_end")
_PROJECTED = ("lejepa", "vicreg", "simclr")
_OBJECTIVE_KEYS: dict[str, tuple[str, ...]] = {
    "bottleneck": SELF_DISTILLATION,
    "features": _PROJECTED,
    **dict.fromkeys(("prototypes", "norm_last_layer", "student_temperature", "teacher_temperature"), ("dino",)),
    **dict.fromkeys(("teacher_temperature_start", "teacher_temperature_epochs"), ("dino",)),
    **dict.fromkeys(("centre_momentum", "freeze_last_layer_epochs"), ("dino",)),
    **dict.fromkeys(("eps", "compression_weight", "expansion_weight"), ("simdino",)),
    **dict.fromkeys(("expansion_of", "group_size"), ("simdino",)),
    **dict.fromkeys(("sigreg_weight", "directions"), ("lejepa",)),
    "temperature": ("simclr",),
    **dict.fromkeys(("invariance_weight", "variance_weight", "covariance_weight"), ("vicreg",)),
}
"""Keys of `ssl` that some objectives alone read -> these."""
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
    if recipe.task == "self-supervised":
        _check_self_supervision(recipe, where)


def has_teacher(given: SelfSupervisionRecipe) -> bool:
    """Whether an average of the student is kept."""
    return given.objective in SELF_DISTILLATION if given.teacher is None else given.teacher


def _check_self_supervision(recipe: Recipe, where: Where) -> None:
    """Refuse keys that the objective does not read, and numbers of views that it cannot compare."""
    given, default = recipe.ssl, SelfSupervisionRecipe()
    for name, objectives in _OBJECTIVE_KEYS.items():
        if given.objective not in objectives and getattr(given, name) != getattr(default, name):
            raise ValueError(
                f"{where(f'ssl.{name}')}: 'ssl.{name}' is set, but only {' and '.join(objectives)} read"
                f"{'s' if len(objectives) == 1 else ''} it, and ssl.objective is {given.objective}; remove it, or set "
                f"it to {_stated(getattr(default, name))}, its default"
            )
    for name in () if has_teacher(given) else _TEACHER:
        if getattr(given, name) != getattr(default, name):
            raise ValueError(
                f"{where(f'ssl.{name}')}: 'ssl.{name}' is set, but there is no teacher; remove it, set it to "
                f"{_stated(getattr(default, name))}, its default, or set ssl.teacher to true"
            )
    if given.objective in ("simclr", "vicreg"):
        words = f"for ssl.objective={given.objective}, which compares two global views"
        _require(recipe.views.global_views == 2, "views.global_views", f"2 {words}", recipe, where)
        _require(recipe.views.local_views == 0, "views.local_views", f"0 {words}", recipe, where)


def _stated(value: Any) -> str:
    """A value as it is written in a recipe."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
