"""timm's Vision Transformers as transformers' `ViTForImageClassification`: the same function of an image.

Names go by the table of the family ``timm_vit`` in ``names``; here is what else differs. timm keeps queries, keys and
values in one matrix, and may have a scale after each half-step (folded into the map before it) and no position for the
class token (zero then). What transformers' model cannot compute is refused: registers, a distillation token, pooling
other than the class token, norms elsewhere.
"""

import re
from collections.abc import Mapping
from math import floor
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification
from transformers.image_utils import PILImageResampling

from .._memory import require_memory
from ..image_processing_crate import CrateImageProcessor
from .images import infer_image_size
from .names import KEY_MAPS, rename, shorten

FAMILY = "timm_vit"
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
"""Heads by the size in a name of timm's, such as `vit_small_patch16_224`."""
_TEST_HEADS = {"test_vit": 2}
_REFUSED = {
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "head_dist.": "a distillation head",
    "norm_pre.": "a norm before the layers (as CLIP's)",
    "patch_embed.norm.": "a norm of the patches",
    "patch_embed.backbone.": "a convolutional stem",
    "fc_norm.": "the mean of the tokens instead of the class token",
    "attn_pool.": "pooling by attention instead of the class token",
    "q_norm.": "norms of queries and keys",
    "k_norm.": "norms of queries and keys",
    "mlp.norm.": "a norm inside the MLP",
    "fc1_g.": "a gated MLP",
    "gamma_1": "a scale under another name",
}
"""Parts of names -> what a checkpoint has that transformers' ViT does not compute."""
_CLASS, _POSITIONS = "cls_token", "pos_embed"


def load_timm(
    tensors: Mapping[str, Tensor], heads: int | None = None, image_size: Any = None, fields: Mapping[str, Any] = {}
) -> ViTForImageClassification:
    """The model of timm's tensors, in evaluation mode and in their type.

    Args:
        tensors: a state dict under timm's names.
        heads: the number of heads, where `fields` do not name a known size.
        image_size: native size, where the grid of patches is not square.
        fields: timm's config.json, if there is one, as of `_pretrained.timm_fields`.

    Raises:
        ValueError: an architecture that transformers' ViT does not compute, tensors missing or of another shape, or
            heads that are not known.
    """
    _check_supported(tensors, fields)
    tensors = rename(_like_vit(tensors), KEY_MAPS[FAMILY], FAMILY)
    config = _config(tensors, heads or _heads(fields), image_size, fields)
    require_memory(config, ViTForImageClassification, "the model")
    dtype = next(iter(tensors.values())).dtype
    loaded: Any = ViTForImageClassification.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    model, info = loaded
    if wrong := [f"{kind[:-5]} {shorten(map(str, info[kind]))}" for kind in _PROBLEMS if info[kind]]:
        raise ValueError(f"checkpoint does not fit family {FAMILY!r}: {'; '.join(wrong)}")
    return model.eval()


_PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def timm_processor(fields: Mapping[str, Any]) -> CrateImageProcessor:
    """The image processor of timm's config.json: its evaluation transform."""
    settings = fields["pretrained_cfg"]
    _, height, width = settings.get("test_input_size") or settings.get("input_size") or (3, 224, 224)
    share = float(settings.get("test_crop_pct") or settings.get("crop_pct") or 0.875)
    crops = settings.get("crop_mode", "center") == "center" and height == width
    target = {"height": height, "width": width}
    return CrateImageProcessor(
        size={"shortest_edge": floor(height / share)} if crops else target,
        crop_size=target,
        do_center_crop=crops,
        image_mean=list(settings.get("mean", (0.485, 0.456, 0.406))),
        image_std=list(settings.get("std", (0.229, 0.224, 0.225))),
        resample=PILImageResampling[str(settings.get("interpolation", "bicubic")).upper()],
    )


def _check_supported(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    for name in tensors:
        for part, what in _REFUSED.items():
            if part in name:
                raise ValueError(f"{name}: {what}, which transformers' ViT does not compute; give a plain ViT")
    if _CLASS not in tensors:
        raise ValueError("no class token ('cls_token'), which transformers' ViT needs; give a plain ViT")
    pool = fields.get("global_pool", "token")
    if pool not in ("token", ""):
        raise ValueError(f"global_pool={pool!r}: transformers' ViT reads the class token; give a model with 'token'")


def _like_vit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors with three matrices instead of one, scales folded in, and a position for the class token."""
    found = {}
    for name, value in tensors.items():
        if name.endswith(("ls1.gamma", "ls2.gamma")):
            continue
        scale = tensors.get(re.sub(r"attn\.proj\.\w+$", "ls1.gamma", re.sub(r"mlp\.fc2\.\w+$", "ls2.gamma", name)))
        if ".attn.qkv." in name:
            if len(value) % 3:
                raise ValueError(f"{name}: has {len(value)} rows, which are not those of queries, keys and values")
            found |= {name.replace("qkv", part): rows for part, rows in zip("qkv", value.chunk(3))}
        elif scale is not None and scale is not value:
            found[name] = value * (scale[:, None] if value.ndim == 2 else scale)
        else:
            found[name] = value
    positions, patches = found.get(_POSITIONS), found.get("patch_embed.proj.weight")
    if positions is None or positions.ndim != 3 or patches is None or patches.ndim != 4:
        raise ValueError("no 'pos_embed' or 'patch_embed.proj.weight' of a Vision Transformer; give a plain ViT")
    if round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:  # a square grid alone
        found[_POSITIONS] = torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)
    return found


def _heads(fields: Mapping[str, Any]) -> int | None:
    stated = (fields.get("model_args") or {}).get("num_heads")
    name = str(fields.get("architecture", ""))
    size = re.match(r"(?:vit|deit3?)_([a-z]+)_", name)
    return stated or _TEST_HEADS.get(name) or _HEADS.get(size[1] if size else "")


def _config(tensors: Mapping[str, Tensor], heads: int | None, image_size: Any, fields: Mapping[str, Any]) -> ViTConfig:
    """The configuration, from the shapes of the renamed tensors."""
    width, channels, *patch = tensors["vit.embeddings.patch_embeddings.projection.weight"].shape
    layers = {match[1] for name in tensors if (match := re.match(r"vit\.encoder\.layer\.(\d+)\.", name))}
    inner = tensors.get("vit.encoder.layer.0.intermediate.dense.weight")
    if not layers or inner is None:
        raise ValueError(f"checkpoint does not look like family {FAMILY!r}: it has no layers 'blocks.0...'")
    if heads is None or heads < 1 or width % heads:
        raise ValueError(
            f"num_attention_heads={heads}: does not divide the width {width}, or is not known from the architecture's "
            "name; convert the checkpoint with num_attention_heads of the model"
        )
    rows = patch[0] if patch[0] == patch[1] else list(patch)
    positions = tensors["vit.embeddings.position_embeddings"].shape[1] - 1
    classifier = tensors.get("classifier.weight")
    names = fields.get("label_names") if classifier is not None else None
    count = 0 if classifier is None else len(classifier)
    labels: dict[str, Any] = (
        {"num_labels": count} if not names or len(names) != count else {"id2label": dict(enumerate(names))}
    )
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=len(inner),
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=infer_image_size(positions, rows, image_size),
        patch_size=rows,
        num_channels=channels,
        qkv_bias="vit.encoder.layer.0.attention.attention.query.bias" in tensors,
        architectures=["ViTForImageClassification"],
        **labels,
    )
