"""Published checkpoints to OpenCRATE and back: one key map per family, values untouched.

``load_official`` reads a state dict, a ``.pth`` / ``.pt`` / ``.safetensors`` file or ``hf://owner/name/file`` and
returns a model; ``to_official`` is its inverse, key for key and bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import ViTForImageClassification

from .._files import CONFIG
from .._memory import require_memory
from .._pretrained import timm_fields
from .._suggest import suggest
from ..configuration_crate import CrateConfig
from ..configuration_crate_blocks import CrateBlockConfig
from ..configuration_crate_mae import CrateMAEConfig
from ..configuration_crate_text import CrateTextConfig
from ..modeling_crate import CrateForImageClassification
from ..modeling_crate_mae import CrateMAEForPreTraining
from ..modeling_crate_text import CrateForCausalLM
from . import images, texts, timm
from .checkpoints import peel, read_checkpoint, source_state_dict
from .names import KEY_MAPS, load_strict, official_name, rename

__all__ = ["FAMILIES", "load_official", "official_name", "read_checkpoint", "source_state_dict", "to_official"]

FAMILIES = tuple(KEY_MAPS)
_LM_SIZES = {"crate_lm": "gpt-base", "crate_lm_overcomplete": "lm-base"}

# Settings in which a model must equal the published code's for its tensors to mean the same there.
_PUBLISHED = (
    *("layer_norm_eps", "head_layer_norm_eps", "compression", "sparsification"),
    *("attention_scale", "attention_output_bias", "compression_kappa", "subspace_constraint"),
    *("ista_start", "ista_num_steps", "ista_threshold", "ista_residual", "dictionary_decode", "dictionary_constraint"),
)
_PUBLISHED_IMAGES = ("patch_embedding", *_PUBLISHED)
_PUBLISHED_BY_FAMILY = {
    "crate": _PUBLISHED_IMAGES,
    "crate_alpha": _PUBLISHED_IMAGES,
    "crate_mae": ("mask_tokens_in_encoder",),
    **dict.fromkeys(
        texts.TEXT_FAMILIES,
        (*_PUBLISHED, "final_norm", "type_vocab_size", "tie_word_embeddings", "ista_step_size", "ista_lambda"),
    ),
}

_REFERENCES: dict[str, CrateBlockConfig] = {
    "crate": CrateConfig.from_size("base"),
    "crate_alpha": CrateConfig.from_size("alpha-base"),
    "crate_mae": CrateMAEConfig.from_size("base"),
    **{family: CrateTextConfig.from_size(size) for family, size in _LM_SIZES.items()},
}

Model = CrateForImageClassification | CrateMAEForPreTraining | CrateForCausalLM
"""What has a published form of its own."""


@overload
def load_official(
    source: str | Path | Mapping[str, Any], family: Literal["timm_vit"], **options: Any
) -> ViTForImageClassification: ...


@overload
def load_official(
    source: str | Path | Mapping[str, Any],
    family: Literal["crate", "crate_alpha", "crate_mae", "crate_lm", "crate_lm_overcomplete"],
    **options: Any,
) -> Model: ...


def load_official(
    source: str | Path | Mapping[str, Any],
    family: Literal["crate", "crate_alpha", "crate_mae", "timm_vit", "crate_lm", "crate_lm_overcomplete"],
    *,
    num_attention_heads: int | None = None,
    image_size: int | list[int] | tuple[int, int] | None = None,
    patch_size: int | list[int] | tuple[int, int] | None = None,
    pool: Literal["cls", "mean"] = "cls",
    weights: str | None = None,
    **config_overrides: Any,
) -> Model | ViTForImageClassification:
    """Build a model from a published checkpoint; sizes come from the tensors.

    Args:
        source: state dict, file, folder of transformers' or accelerate's, or ``hf://owner/name/file`` (the only form
            that touches the network). What trainers put around the weights (Lightning, timm, DINO, DDP, FSDP,
            torch.compile, ...) is peeled; files are never unpickled beyond plain tensors and settings.
        family: ``crate`` (classifiers of the CRATE and emergence repositories), ``crate_alpha``, ``crate_mae`` (the
            autoencoder; its ``pos_embed`` and ``decoder_embed``, which no forward uses, are kept as buffers),
            ``crate_lm`` or ``crate_lm_overcomplete`` (the research fork's language models); ``timm_vit`` (plain Vision
            Transformers of timm, which become transformers' ``ViTForImageClassification``).
        num_attention_heads: K. The tensors hold K p only, so it must be given (published: T 6, S 12, B 12, L 16; the
            emergence demo checkpoint 6; timm's ViT: tiny 3, small 6, base 12, large 16), unless the language model's
            training dictionary, or a config.json of timm's beside the tensors, states it.
        image_size: native size; inferred when the patch grid is square. Vision families only, as the next two.
        patch_size: inferred from a convolution, or from square patches of three channels.
        pool: ``cls`` or ``mean``.
        weights: the wrapper whose weights are taken where a checkpoint holds several sets, such as ``model`` beside
            ``model_ema``; by default the averaged ones, and it is logged which.
        config_overrides: further ``CrateConfig`` fields; for ``crate_mae`` those of ``CrateMAEConfig``, such as
            ``decoder_num_attention_heads`` (by default the encoder's), ``ista_lambda`` (the published weights were
            trained with 0.5 and 5.0), ``norm_pix_loss`` and ``mask_ratio``; for language models those of
            ``CrateTextConfig``.

    Returns:
        The model in evaluation mode, in the checkpoint's floating dtype.

    Raises:
        ValueError: unknown family; a size that cannot be inferred and was not given; keys missing, unexpected or of
            another shape; a file that is not plain tensors.
    """
    if family not in KEY_MAPS:
        raise ValueError(f"unknown checkpoint family {family!r}; {suggest(family, FAMILIES)}")
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    if family == timm.FAMILY:
        if (patch_size, pool, config_overrides) != (None, "cls", {}):
            raise ValueError(f"patch_size, pool and fields of the configuration follow from a {family!r} checkpoint")
        beside = not isinstance(source, Mapping) and (Path(source).expanduser() / CONFIG).is_file()
        fields = (timm_fields(source) if beside else None) or {}  # pyright: ignore[reportArgumentType]
        return timm.load_timm(peel(content, weights), num_attention_heads, image_size, fields)
    if family in texts.TEXT_FAMILIES:
        if (image_size, patch_size, pool) != (None, None, "cls"):
            raise ValueError(f"image_size, patch_size and pool are for images; family {family!r} reads text")
        state_dict = rename(texts.from_fork(peel(content, weights), family), KEY_MAPS[family], family)
        stated = texts.num_heads_of(content) if num_attention_heads is None else num_attention_heads
        settings = {**texts.infer_config(state_dict, family, stated), **config_overrides}
        cls: Any = CrateForCausalLM
        config = CrateTextConfig.from_size(_LM_SIZES[family], **settings)
    else:
        state_dict = rename(peel(content, weights), KEY_MAPS[family], family)
        settings = images.infer_config(state_dict, family, num_attention_heads, image_size, patch_size)
        settings.update(pool=pool, **config_overrides)
        kinds = {"crate_mae": (CrateMAEConfig, CrateMAEForPreTraining)}
        config_class, cls = kinds.get(family, (CrateConfig, CrateForImageClassification))
        config = config_class(**settings)
    require_memory(config, cls, "the model")
    model = cls(config)
    load_strict(model, state_dict, family)
    return model.eval()


def to_official(model: Model) -> dict[str, Tensor]:
    """State dict under the official names of the model's family.

    The family is ``crate_mae`` for the autoencoder; for a classifier ``crate_alpha`` where it has an untied second
    dictionary, else ``crate``; for a causal language model ``crate_lm_overcomplete`` where the code is decoded by the
    same dictionary, else ``crate_lm``. The tensors share memory with the model, as those of ``state_dict()`` do, except
    the transposed dictionaries of ``crate_lm_overcomplete``.

    Raises:
        ValueError: a model without a published counterpart, or a setting that the published code of that family does
            not have, so that it would compute something else from the same tensors.
    """
    config, family = model.config, _family_of(model)
    for name, allowed in _published_settings(config, family).items():
        if (value := getattr(config, name)) != allowed:
            raise ValueError(
                f"{name}={value!r} has no counterpart in the published code of family {family!r}, which has {allowed!r}"
            )
    official = {official_name(name, family): value.detach() for name, value in model.state_dict().items()}
    return texts.to_fork(official, family) if family in texts.TEXT_FAMILIES else official


def _family_of(model: torch.nn.Module) -> str:
    if isinstance(model, CrateMAEForPreTraining):
        return "crate_mae"
    if isinstance(model, CrateForCausalLM):
        return "crate_lm" if model.config.dictionary_decode == "none" else "crate_lm_overcomplete"
    if not isinstance(model, CrateForImageClassification) or not model.config.num_labels:
        raise ValueError(
            "only classifiers with a head, the autoencoder and causal language models have official names, not this "
            f"{type(model).__name__}"
        )
    return "crate_alpha" if model.config.dictionary_decode == "untied" else "crate"


def _published_settings(config: CrateBlockConfig, family: str) -> dict[str, Any]:
    """Values that the published code of a family fixes; sizes, eta, lambda and the pooling of images stay free."""
    may_skip = family not in texts.TEXT_FAMILIES and config.num_attention_heads == 1
    skips = may_skip and config.head_dim == config.hidden_size and config.attention_output == "none"
    fixed = {name: getattr(_REFERENCES[family], name) for name in _PUBLISHED_BY_FAMILY[family]}
    return {"attention_output": "none" if skips else "learned", **fixed}
