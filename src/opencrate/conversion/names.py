"""Names of the published families and ours: one key map per family, both directions."""

import functools
import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .checkpoints import shorten

# official prefix -> ours; "{l}" is the layer number. Longest match first is not needed: no prefix of one
# row is a prefix of another.
_EMBEDDING = {"cls_token": "crate.embeddings.cls_token", "pos_embedding": "crate.embeddings.position_embeddings"}
_COMPRESSION = {
    "transformer.layers.{l}.0.norm.": "crate.layers.{l}.compress.norm.",
    "transformer.layers.{l}.0.fn.qkv.": "crate.layers.{l}.compress.mssa.subspaces.",
    "transformer.layers.{l}.0.fn.to_out.0.": "crate.layers.{l}.compress.mssa.output.",
    "transformer.layers.{l}.1.norm.": "crate.layers.{l}.sparsify.norm.",
}
_HEAD = {"mlp_head.0.": "norm.", "mlp_head.1.": "classifier."}

_LANGUAGE = {
    "transformer.wte.weight": "crate.embeddings.token_embeddings.weight",
    "transformer.wpe.weight": "crate.embeddings.position_embeddings.weight",
    "transformer.h.{l}.prenorm_1.": "crate.layers.{l}.compress.norm.",
    "transformer.h.{l}.attn.c_attn.": "crate.layers.{l}.compress.mssa.subspaces.",
    "transformer.h.{l}.attn.c_proj.": "crate.layers.{l}.compress.mssa.output.",
    "transformer.h.{l}.prenorm_2.": "crate.layers.{l}.sparsify.norm.",
    "transformer.h.{l}.ista.weight": "crate.layers.{l}.sparsify.ista.dictionary",
    "lm_head.weight": "lm_head.weight",
}

logger = logging.getLogger(__name__)

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

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
    "timm_vit": {  # transformers' names as on the Hub, which every version reads; see timm.py
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
        "blocks.{l}.norm1.": "vit.encoder.layer.{l}.layernorm_before.",
        "blocks.{l}.attn.q.": "vit.encoder.layer.{l}.attention.attention.query.",
        "blocks.{l}.attn.k.": "vit.encoder.layer.{l}.attention.attention.key.",
        "blocks.{l}.attn.v.": "vit.encoder.layer.{l}.attention.attention.value.",
        "blocks.{l}.attn.proj.": "vit.encoder.layer.{l}.attention.output.dense.",
        "blocks.{l}.norm2.": "vit.encoder.layer.{l}.layernorm_after.",
        "blocks.{l}.mlp.fc1.": "vit.encoder.layer.{l}.intermediate.dense.",
        "blocks.{l}.mlp.fc2.": "vit.encoder.layer.{l}.output.dense.",
        "norm.": "vit.layernorm.",
        "head.": "classifier.",
    },
    "crate_lm": _LANGUAGE,
    "crate_lm_overcomplete": {**_LANGUAGE, "transformer.ln_f.": "crate.norm."},
}


def rename(state_dict: Mapping[str, Tensor], key_map: Mapping[str, str], family: str) -> dict[str, Tensor]:
    """Rename by table; a name that no row covers is an error, not ignored. Names that are all ours stay."""
    own = {new: new for new in key_map.values()}
    if all(_new_name(name, own) for name in state_dict):
        return dict(state_dict)
    new_names = {name: _new_name(name, key_map) for name in state_dict}
    if unknown := [name for name, new in new_names.items() if new is None]:
        raise ValueError(f"checkpoint does not look like family {family!r}: unexpected keys {shorten(unknown)}")
    return {new: state_dict[name] for name, new in new_names.items() if new}


def _new_name(name: str, key_map: Mapping[str, str]) -> str | None:
    layer = re.search(r"(?:blocks|\.layers|\.h)\.(\d+)\.", name)
    for old, new in key_map.items():
        if layer:
            old, new = old.replace("{l}", layer.group(1)), new.replace("{l}", layer.group(1))
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return None


def official_name(name: str, family: str) -> str:
    """Official name of one of our tensors; our own where the family has none."""
    return _new_name(name, {ours: official for official, ours in KEY_MAPS[family].items()}) or name


def num_layers(state_dict: Mapping[str, Tensor], stack: str = "crate") -> int:
    """Layers of the encoder or the ``decoder``, under our names."""
    return len({m.group(1) for name in state_dict if (m := re.match(rf"{stack}\.layers\.(\d+)\.", name))})


def shape_of(state_dict: Mapping[str, Tensor], name: str, family: str, dims: int) -> torch.Size:
    """Shape of one of the tensors that sizes are read from; it must exist and have `dims` axes."""
    official = official_name(name, family)
    if name not in state_dict:
        raise ValueError(f"checkpoint does not look like family {family!r}: {official!r} is missing")
    shape = state_dict[name].shape
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"checkpoint does not fit family {family!r}: {official!r} has shape {tuple(shape)}")
    return shape


def subspaces_of(
    state_dict: Mapping[str, Tensor], family: str, heads: int | None, published: str, why: str = ""
) -> dict[str, int]:
    """K and p as a configuration names them, from K p and the stated K; an error gives the `published` K of models."""
    inner = shape_of(state_dict, "crate.layers.0.compress.mssa.subspaces.weight", family, 2)[0]
    if heads is None:
        raise ValueError(
            f"num_attention_heads cannot be inferred: the tensors hold K p = {inner} only{why}. Give the published K "
            f"of this model ({published})"
        )
    if heads < 1 or inner % heads:
        raise ValueError(f"num_attention_heads={heads} does not divide K p = {inner} of this checkpoint")
    return {"num_attention_heads": heads, "head_dim": inner // heads}


def load_strict(model: PreTrainedModel, state_dict: Mapping[str, Tensor], family: str) -> None:
    """Load every tensor; missing, extra or wrongly shaped ones are one clear error."""
    own, problems = model.state_dict(), []
    if missing := own.keys() - state_dict.keys():
        problems.append(f"missing {shorten(official_name(name, family) for name in missing)}")
    if extra := state_dict.keys() - own.keys():
        problems.append(f"unexpected {shorten(official_name(name, family) for name in extra)}")
    for name in sorted(own.keys() & state_dict.keys()):
        value, official = state_dict[name], official_name(name, family)
        if own[name].shape != value.shape:
            problems.append(f"{official} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
        elif value.dtype not in _FLOATING:
            problems.append(f"{official} has dtype {value.dtype}, expected one of {', '.join(map(str, _FLOATING))}")
    for name, source in model.all_tied_weights_keys.items():
        if not torch.equal(state_dict.get(name, torch.empty(0)), state_dict.get(source, torch.empty(0))):
            pair_of_names = " and ".join(official_name(each, family) for each in (name, source))
            problems.append(f"{pair_of_names} differ, but this configuration ties them")
    if problems:
        raise ValueError(f"checkpoint does not fit the {family!r} model: {'; '.join(problems[:4])}")
    dtypes = {value.dtype for value in state_dict.values()}
    dtype = functools.reduce(torch.promote_types, dtypes)
    if len(dtypes) > 1:
        logger.warning("the checkpoint's weights are of %s; the model is of %s", shorten(map(str, dtypes)), dtype)
    if broken := [name for name, value in state_dict.items() if not value.isfinite().all()]:
        first = official_name(broken[0], family)
        logger.warning("%d tensors of the checkpoint hold NaN or infinite numbers, the first is %s", len(broken), first)
    torch.nn.Module.to(model, dtype).load_state_dict(state_dict)
