"""The models of a run: ours, the published form of it, and transformers' of the same width and depth.

Only public names of the package are imported, inside functions: `compare` runs this file on other revisions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .published import published_form
from .settings import OURS, Settings

_CLASSES = {
    "image": ("CrateConfig", "CrateForImageClassification"),
    "mae": ("CrateMAEConfig", "CrateMAEForPreTraining"),
    "text": ("CrateTextConfig", "CrateForCausalLM"),
    "decode": ("CrateTextConfig", "CrateForCausalLM"),
}
_NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
MOST_LAYERS = 4_096


def config_of(settings: Settings, **changes: Any) -> Any:
    """The CRATE configuration of a run; a `ValueError` for an unknown size or field."""
    import opencrate

    cls = getattr(opencrate, _CLASSES[settings.task][0])
    return cls.from_size(settings.size, **{**settings.config, **changes})


def build(settings: Settings, form: str) -> Any:
    """A model in float32 with random weights (seed 0), in evaluation mode, on the CPU; forms see `settings.TASKS`."""
    if form == "published":
        return published_form(build(settings, OURS))
    torch.manual_seed(0)
    if form == OURS:
        return _crate(settings).eval()
    if form == "visible":
        return _crate(settings, mask_tokens_in_encoder=False).eval()
    if form == "equal":
        return _crate(settings, num_hidden_layers=equal_depth(settings)).eval()
    if form == "narrow":
        return _gpt2(config_of(settings), equal_width(settings)).eval()
    return {"vit": _vit, "vitmae": _vitmae, "gpt2": _gpt2}[form](config_of(settings)).eval()


def _crate(settings: Settings, **changes: Any) -> Any:
    import opencrate

    return getattr(opencrate, _CLASSES[settings.task][1])(config_of(settings, **changes))


def _sides(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("image_size", "patch_size", "num_channels")}


def _blocks(config: Any) -> dict[str, Any]:
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return {**{name: getattr(config, name) for name in same}, "intermediate_size": 4 * config.hidden_size}


def _vit(config: Any) -> Any:
    """transformers' ViT of the same width, depth, heads, patches and classes; without dropout."""
    from transformers import ViTConfig, ViTForImageClassification

    classes = {"num_labels": config.num_labels}
    return ViTForImageClassification(ViTConfig(**_blocks(config), **_sides(config), **classes))


def _vitmae(config: Any) -> Any:
    """transformers' ViTMAE: encoder and decoder of the same width, depth and heads; its encoder sees visible tokens."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    decoder = {
        "decoder_hidden_size": config.hidden_size,
        "decoder_num_hidden_layers": config.decoder_num_hidden_layers,
        "decoder_num_attention_heads": config.decoder_num_attention_heads,
        "decoder_intermediate_size": 4 * config.hidden_size,
    }
    mae = {"mask_ratio": config.mask_ratio, "norm_pix_loss": config.norm_pix_loss}
    return ViTMAEForPreTraining(ViTMAEConfig(**_blocks(config), **_sides(config), **decoder, **mae))


def _gpt2(config: Any, width: int | None = None) -> Any:
    """transformers' GPT-2 of the same (or another) width, depth, heads, vocabulary and context; without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width = width or config.hidden_size
    sizes = {"n_embd": width, "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads}
    text = {"vocab_size": config.vocab_size, "n_positions": config.max_position_embeddings}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**sizes, **text, **ends, **_NO_DROPOUT))


def count_parameters(model: Any) -> int:
    """Numbers that are trained; shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def equal_depth(settings: Settings) -> int:
    """The number of CRATE layers with which a model of the run's width has GPT-2's parameters, within 3 %.

    Raises:
        ValueError: no depth comes that close, as at small widths.
    """
    with torch.device("meta"):
        one, two = (count_parameters(_crate(settings, num_hidden_layers=depth)) for depth in (1, 2))
        wanted = count_parameters(_gpt2(config_of(settings)))
    depth = min(max(1, round(1 + (wanted - one) / (two - one))), MOST_LAYERS)
    found = one + (depth - 1) * (two - one)
    if abs(found - wanted) > 0.03 * wanted:
        raise ValueError(
            f"against=equal: {depth} layers of this width have {found:,} parameters and GPT-2 has {wanted:,}; no depth "
            "comes within 3 %, so leave 'equal' out, or take another size"
        )
    return depth


def equal_width(settings: Settings) -> int:
    """The width at which a GPT-2 of the run's depth and heads has CRATE's parameters, as nearly as heads allow."""
    config = config_of(settings)
    heads = config.num_attention_heads
    with torch.device("meta"):
        wanted = count_parameters(_crate(settings))
        widths = range(heads, config.hidden_size + heads, heads)
        return min(widths, key=lambda width: abs(count_parameters(_gpt2(config, width)) - wanted))


def inputs_of(settings: Settings, config: Any) -> dict[str, Tensor]:
    """Random inputs (seed 1) of a CRATE configuration, by the arguments of `forward`, with labels where there are some.

    Images ``(B, C, H, W)`` and labels ``(B)``; images and noise ``(B, n)``; or token ids ``(B, N)``.
    """
    torch.manual_seed(1)
    if settings.task in ("text", "decode"):
        length = settings.block if settings.task == "text" else settings.prompt
        ids = torch.randint(config.vocab_size, (settings.batch, length))
        return {"input_ids": ids, "labels": ids} if settings.task == "text" else {"input_ids": ids}
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    images = {"pixel_values": torch.randn(settings.batch, config.num_channels, height, width)}
    if settings.task == "mae":
        return {**images, "noise": torch.rand(settings.batch, config.grid_size[0] * config.grid_size[1])}
    return {**images, "labels": torch.randint(config.num_labels, (settings.batch,))}
