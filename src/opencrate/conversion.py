"""Published checkpoints to OpenCRATE and back: one key map per family, values untouched.

``load_official`` reads a state dict, a ``.pth`` / ``.pt`` / ``.safetensors`` file or ``hf://owner/name/file`` and
returns a model; ``to_official`` is its inverse, key for key and bit for bit.
"""

import argparse
import functools
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ._suggest import suggest
from .configuration_crate import CRATE_SIZES, CrateConfig, pair
from .configuration_crate_mae import CRATE_MAE_SIZES, CrateMAEConfig
from .modeling_crate import CrateForImageClassification
from .modeling_crate_mae import CrateMAEForPreTraining

__all__ = ["FAMILIES", "load_official", "read_checkpoint", "to_official"]

# official prefix -> ours; "{l}" stands for the layer number. Longest match first is not needed: no prefix of one
# row is a prefix of another.
_EMBEDDING = {
    "cls_token": "crate.embeddings.cls_token",
    "pos_embedding": "crate.embeddings.position_embeddings",
}
_COMPRESSION = {
    "transformer.layers.{l}.0.norm.": "crate.layers.{l}.compress.norm.",
    "transformer.layers.{l}.0.fn.qkv.": "crate.layers.{l}.compress.mssa.subspaces.",
    "transformer.layers.{l}.0.fn.to_out.0.": "crate.layers.{l}.compress.mssa.output.",
    "transformer.layers.{l}.1.norm.": "crate.layers.{l}.sparsify.norm.",
}
_HEAD = {"mlp_head.0.": "norm.", "mlp_head.1.": "classifier."}

KEY_MAPS: dict[str, dict[str, str]] = {
    "crate": {
        **_EMBEDDING,
        "to_patch_embedding.1.": "crate.embeddings.patch_embeddings.norm_pixels.",
        "to_patch_embedding.2.": "crate.embeddings.patch_embeddings.projection.",
        "to_patch_embedding.3.": "crate.embeddings.patch_embeddings.norm_tokens.",
        **_COMPRESSION,
        "transformer.layers.{l}.1.fn.weight": "crate.layers.{l}.sparsify.ista.dictionary",
        **_HEAD,
    },
    "crate_alpha": {
        **_EMBEDDING,
        "conv1.": "crate.embeddings.patch_embeddings.projection.",
        **_COMPRESSION,
        "transformer.layers.{l}.1.fn.D": "crate.layers.{l}.sparsify.ista.dictionary",
        "transformer.layers.{l}.1.fn.D1": "crate.layers.{l}.sparsify.ista.decoder_dictionary",
        **_HEAD,
    },
    "crate_mae": {
        "cls_token": "crate.embeddings.cls_token",
        "mask_token": "crate.embeddings.mask_token",
        "decoder_pos_embed": "crate.embeddings.position_embeddings",
        "patch_embed.proj.": "crate.embeddings.patch_embeddings.projection.",
        "blocks.{l}.layers.0.0.norm.": "crate.layers.{l}.compress.norm.",
        "blocks.{l}.layers.0.0.fn.qkv.": "crate.layers.{l}.compress.mssa.subspaces.",
        "blocks.{l}.layers.0.0.fn.to_out.0.": "crate.layers.{l}.compress.mssa.output.",
        "blocks.{l}.layers.0.1.norm.": "crate.layers.{l}.sparsify.norm.",
        "blocks.{l}.layers.0.1.fn.weight": "crate.layers.{l}.sparsify.ista.dictionary",
        "norm.": "crate.norm.",
        "decoder_blocks.{l}.layers.0.0.norm.": "decoder.layers.{l}.synthesize.norm.",
        "decoder_blocks.{l}.layers.0.0.fn.weight": "decoder.layers.{l}.synthesize.dictionary",
        "decoder_blocks.{l}.layers.0.1.norm.": "decoder.layers.{l}.expand.norm.",
        "decoder_blocks.{l}.layers.0.1.fn.qkv.": "decoder.layers.{l}.expand.mssa.subspaces.",
        "decoder_blocks.{l}.layers.0.1.fn.to_out.0.": "decoder.layers.{l}.expand.mssa.output.",
        "decoder_norm.": "decoder.norm.",
        "decoder_pred.": "decoder.predict.",
        "pos_embed": "unused_pos_embed",
        "decoder_embed.weight": "unused_decoder_embed_weight",
        "decoder_embed.bias": "unused_decoder_embed_bias",
    },
}
FAMILIES = tuple(KEY_MAPS)

# Settings in which a model must equal the published code's for its tensors to mean the same there.
_PUBLISHED = (
    *("patch_embedding", "layer_norm_eps", "head_layer_norm_eps", "compression", "sparsification"),
    *("attention_scale", "attention_output_bias", "compression_kappa", "subspace_constraint"),
    *("ista_start", "ista_num_steps", "ista_threshold", "ista_residual", "dictionary_decode", "dictionary_constraint"),
)

_REFERENCES: dict[str, CrateConfig] = {
    "crate": CrateConfig(**CRATE_SIZES["base"]),
    "crate_alpha": CrateConfig(**CRATE_SIZES["alpha-base"]),
    "crate_mae": CrateMAEConfig(**CRATE_MAE_SIZES["base"]),
}
_WRAPPERS = ("state_dict", "model")
_DDP_PREFIX = "module."


def load_official(
    source: str | Path | Mapping[str, Any],
    family: Literal["crate", "crate_alpha", "crate_mae"],
    *,
    num_attention_heads: int | None = None,
    image_size: int | list[int] | tuple[int, int] | None = None,
    patch_size: int | list[int] | tuple[int, int] | None = None,
    pool: Literal["cls", "mean"] = "cls",
    **config_overrides: Any,
) -> CrateForImageClassification | CrateMAEForPreTraining:
    """Build a model from a published checkpoint; sizes come from the tensors.

    Args:
        source: state dict, file, or ``hf://owner/name/file`` (the only form that touches the network). The wrappers
            ``state_dict``, ``model`` and ``module.`` are peeled; files are never unpickled beyond plain tensors.
        family: ``crate`` (classifiers of the CRATE and emergence repositories), ``crate_alpha`` or ``crate_mae`` (the
            autoencoder; its ``pos_embed`` and ``decoder_embed``, which no forward uses, are kept as buffers).
        num_attention_heads: K. The tensors hold K p only, so it must be given (published: T 6, S 12, B 12, L 16; the
            emergence demo checkpoint 6).
        image_size: native size; inferred when the patch grid is square.
        patch_size: inferred from a convolution, or from square patches of three channels.
        pool: ``cls`` or ``mean``.
        config_overrides: further ``CrateConfig`` fields; for ``crate_mae`` those of ``CrateMAEConfig``, such as
            ``decoder_num_attention_heads`` (by default the encoder's), ``ista_lambda`` (the published weights were
            trained with 0.5 and 5.0), ``norm_pix_loss`` and ``mask_ratio``.

    Returns:
        The model in evaluation mode, in the checkpoint's floating dtype.

    Raises:
        ValueError: unknown family; a size that cannot be inferred and was not given; keys missing, unexpected or of
            another shape; a file that is not plain tensors.
    """
    _require_family(family)
    official = source_state_dict(source)
    state_dict = _rename(official, KEY_MAPS[family], family)
    config = _infer_config(state_dict, family, num_attention_heads, image_size, patch_size)
    config.update(pool=pool, **config_overrides)
    if family == "crate_mae":
        model = CrateMAEForPreTraining(CrateMAEConfig(**config))
    else:
        model = CrateForImageClassification(CrateConfig(**config))
    _load_strict(model, state_dict, family)
    return model.eval()


def to_official(model: CrateForImageClassification | CrateMAEForPreTraining) -> dict[str, Tensor]:
    """State dict under the official names of the model's family.

    The family is ``crate_mae`` for the autoencoder, ``crate_alpha`` for an untied second dictionary, else ``crate``.

    The tensors share memory with the model, as those of ``state_dict()`` do.

    Raises:
        ValueError: neither a classifier nor the autoencoder, or a setting that the published code of that family does
            not have, so that it would compute something else from the same tensors.
    """
    config, family = model.config, _family_of(model)
    for name, allowed in _published_settings(config, family).items():
        if (value := getattr(config, name)) != allowed:
            raise ValueError(
                f"{name}={value!r} has no counterpart in the published code of family {family!r}, which has {allowed!r}"
            )
    return {_official_name(name, family): value.detach() for name, value in model.state_dict().items()}


def _family_of(model: torch.nn.Module) -> str:
    if isinstance(model, CrateMAEForPreTraining):
        return "crate_mae"
    if not isinstance(model, CrateForImageClassification) or not model.config.num_labels:
        raise ValueError(f"only a classifier with a head has official names, got a {type(model).__name__} without")
    return "crate_alpha" if model.config.dictionary_decode == "untied" else "crate"


def _published_settings(config: CrateConfig, family: str) -> dict[str, Any]:
    """Values that the published code of a family fixes; sizes, eta, lambda and the pooling stay free."""
    may_skip = config.num_attention_heads == 1 and config.head_dim == config.hidden_size
    same = {"attention_output": "none" if may_skip and config.attention_output == "none" else "learned"}
    names = (*_PUBLISHED, "mask_tokens_in_encoder") if family == "crate_mae" else _PUBLISHED
    return same | {name: getattr(_REFERENCES[family], name) for name in names}


def source_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The plain ``name -> tensor`` mapping inside a source, wrappers peeled."""
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise ValueError(_no_state_dict(content))
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(f"the checkpoint holds a {type(content).__name__}, not a mapping of names to tensors")
    if all(name.startswith(_DDP_PREFIX) for name in content):
        content = {name[len(_DDP_PREFIX) :]: value for name, value in content.items()}
    return dict(content)


def _no_state_dict(content: Mapping[str, Any]) -> str:
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if len(others) < len(content):
        return f"a state dict holds tensors only, but {_shorten(others)} beside them are not: remove those entries"
    return (
        f"no state dict found: expected tensors by name, or such a mapping under {' or '.join(_WRAPPERS)}; "
        f"got the keys {_shorten(others)}"
    )


def read_checkpoint(path: str | Path) -> Any:
    """Content of a ``.safetensors`` file or of a PyTorch file of plain tensors (``weights_only=True``).

    ``argparse.Namespace`` and NumPy scalars are allowed as well, since published training checkpoints hold them.
    """
    path = _download(str(path)) if str(path).startswith("hf://") else Path(path)
    if not path.is_file():
        hint = "; for a file on the Hugging Face Hub write hf://owner/name/file" if not path.exists() else ""
        raise FileNotFoundError(f"no checkpoint file at {path}{hint}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    with torch.serialization.safe_globals(_safe_globals()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(_refusal(path, error)) from error
        except Exception as error:  # damaged files make the unpickler trip in many ways (IndexError, KeyError, ...)
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise ValueError(f"{path} is not a readable PyTorch file, or damaged: {reason}") from error


def _refusal(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    reason = f"it would run {named.group(1)}" if named else "it is not a PyTorch file of plain tensors"
    return (
        f"{path} was not unpickled: {reason}, and loading it could run arbitrary code. If you trust its author, load "
        "it where it was made and save only the tensors: torch.save(model.state_dict(), ...) or safetensors"
    )


def _safe_globals() -> list[Any]:
    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLefd"]
    scalar = np.float64(0).__reduce__()[0]
    names = [f"{module}.multiarray.scalar" for module in ("numpy.core", "numpy._core")]  # NumPy 1 and 2
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def _download(url: str) -> Path:
    owner, name, file = (*url.removeprefix("hf://").split("/", 2), "", "", "")[:3]
    if not file:
        raise ValueError(f"{url!r} is not of the form hf://owner/name/file")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(f"{owner}/{name}", file))


def _is_state_dict(content: Mapping[str, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _require_family(family: str) -> None:
    if family not in KEY_MAPS:
        raise ValueError(f"unknown checkpoint family {family!r}; {suggest(family, FAMILIES)}")


def _rename(state_dict: Mapping[str, Tensor], key_map: Mapping[str, str], family: str) -> dict[str, Tensor]:
    """Rename by table; a name that no row covers is an error, not ignored."""
    renamed, unknown = {}, []
    for name, value in state_dict.items():
        new = _new_name(name, key_map)
        if new is None:
            unknown.append(name)
        else:
            renamed[new] = value
    if unknown:
        raise ValueError(f"checkpoint does not look like family {family!r}: unexpected keys {_shorten(unknown)}")
    return renamed


def _new_name(name: str, key_map: Mapping[str, str]) -> str | None:
    layer = re.search(r"(?:blocks|\.layers)\.(\d+)\.", name)
    for old, new in key_map.items():
        if layer:
            old, new = old.replace("{l}", layer.group(1)), new.replace("{l}", layer.group(1))
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return None


def _official_name(name: str, family: str) -> str:
    """Official name of one of our tensors; our own where the family has none."""
    return _new_name(name, {ours: official for official, ours in KEY_MAPS[family].items()}) or name


def _infer_config(
    state_dict: Mapping[str, Tensor], family: str, heads: int | None, image_size: Any, patch_size: Any
) -> dict[str, Any]:
    """Constructor arguments of ``CrateConfig`` from tensor shapes and what the caller stated."""
    width = _shape(state_dict, "crate.embeddings.cls_token", family, 3)[-1]
    layers = {int(m.group(1)) for name in state_dict if (m := re.match(r"crate\.layers\.(\d+)\.", name))}
    inner = _shape(state_dict, "crate.layers.0.compress.mssa.subspaces.weight", family, 2)[0]
    atoms = _shape(state_dict, "crate.layers.0.sparsify.ista.dictionary", family, 2)[1]
    if heads is None:
        raise ValueError(
            f"num_attention_heads cannot be inferred: the tensors hold K p = {inner} only. Give the published K of "
            "this model (CRATE tiny 6, small 12, base 12, large 16; emergence demo 6)"
        )
    if heads < 1 or inner % heads:
        raise ValueError(f"num_attention_heads={heads} does not divide K p = {inner} of this checkpoint")
    patch, channels = _infer_patch(state_dict, family, patch_size)
    positions = _shape(state_dict, "crate.embeddings.position_embeddings", family, 3)[1] - 1
    identity = heads == 1 and inner == width and "crate.layers.0.compress.mssa.output.weight" not in state_dict
    config = {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "head_dim": inner // heads,
        "patch_size": patch,
        "num_channels": channels,
        "image_size": _infer_image_size(positions, patch, image_size),
        "attention_output": "none" if identity else "learned",  # the published code: identity when K = 1 and p = d
    }
    if family == "crate_mae":
        decoder = {int(m.group(1)) for name in state_dict if (m := re.match(r"decoder\.layers\.(\d+)\.", name))}
        return {**config, "decoder_num_hidden_layers": len(decoder)}
    config["num_labels"] = _shape(state_dict, "classifier.weight", family, 2)[0]
    if family == "crate_alpha":
        return {**CRATE_SIZES["alpha-base"], **config, "dictionary_expansion": max(1, atoms // width)}
    return config


def _infer_patch(state_dict: Mapping[str, Tensor], family: str, patch_size: Any) -> tuple[Any, int]:
    dims = 2 if family == "crate" else 4
    shape = _shape(state_dict, "crate.embeddings.patch_embeddings.projection.weight", family, dims)
    if dims == 4:
        found = shape[2] if shape[2] == shape[3] else [shape[2], shape[3]]
        if patch_size is not None and pair(patch_size) != pair(found):
            raise ValueError(f"patch_size={patch_size} contradicts the checkpoint's convolution, {found}")
        return found, shape[1]
    if patch_size is not None:
        area = pair(patch_size)[0] * pair(patch_size)[1]
        if shape[1] % area:
            raise ValueError(f"patch_size={patch_size} does not divide the checkpoint's {shape[1]} pixels per patch")
        return patch_size, shape[1] // area
    side = round((shape[1] / 3) ** 0.5)
    if 3 * side**2 != shape[1]:
        raise ValueError(
            f"patch_size cannot be inferred: {shape[1]} numbers per patch are no square patch of 3 channels; give "
            "patch_size (the channels follow from it)"
        )
    return side, 3


def _infer_image_size(positions: int, patch: Any, image_size: Any) -> Any:
    patch_height, patch_width = pair(patch)
    if image_size is not None:
        rows, columns = pair(image_size)[0] // patch_height, pair(image_size)[1] // patch_width
        if rows * columns != positions:
            raise ValueError(
                f"image_size={image_size} with patch_size={patch} gives {rows}x{columns} patches, but the checkpoint "
                f"has {positions} positions"
            )
        return image_size
    side = round(positions**0.5)
    if side**2 != positions:
        raise ValueError(
            f"image_size cannot be inferred: {positions} positions are no square grid; give image_size=(height, width)"
        )
    return side * patch_height if patch_height == patch_width else [side * patch_height, side * patch_width]


def _shape(state_dict: Mapping[str, Tensor], name: str, family: str, dims: int) -> torch.Size:
    official = _official_name(name, family)
    if name not in state_dict:
        raise ValueError(f"checkpoint does not look like family {family!r}: {official!r} is missing")
    shape = state_dict[name].shape
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"checkpoint does not fit family {family!r}: {official!r} has shape {tuple(shape)}")
    return shape


def _load_strict(model: torch.nn.Module, state_dict: Mapping[str, Tensor], family: str) -> None:
    """Load every tensor; missing, extra or wrongly shaped ones are one clear error."""
    own, problems = model.state_dict(), []
    if missing := own.keys() - state_dict.keys():
        problems.append(f"missing {_shorten(_official_name(name, family) for name in missing)}")
    if extra := state_dict.keys() - own.keys():
        problems.append(f"unexpected {_shorten(_official_name(name, family) for name in extra)}")
    for name in sorted(own.keys() & state_dict.keys()):
        value, official = state_dict[name], _official_name(name, family)
        if own[name].shape != value.shape:
            problems.append(f"{official} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
        elif not value.is_floating_point():
            problems.append(f"{official} has dtype {value.dtype}, expected a floating one")
    for name, source in model.all_tied_weights_keys.items():
        if not torch.equal(state_dict.get(name, torch.empty(0)), state_dict.get(source, torch.empty(0))):
            pair_of_names = " and ".join(_official_name(each, family) for each in (name, source))
            problems.append(f"{pair_of_names} differ, but this configuration ties them")
    if problems:
        raise ValueError(f"checkpoint does not fit the {family!r} model: {'; '.join(problems[:4])}")
    dtype = functools.reduce(torch.promote_types, {value.dtype for value in state_dict.values()})
    model.to(dtype).load_state_dict(state_dict)


def _shorten(names: Any) -> str:
    names = sorted(names)
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
