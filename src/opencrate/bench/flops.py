"""FLOPs of the matrix products that each form's maths needs; a multiplication with its addition counts as two."""

from __future__ import annotations

import math
from typing import Any

from .settings import Case, Settings

_ONLY_DENSE = ("vit", "vitmae", "gpt2")
_COUNTED = ("mssa", "attention", "tssa", "cbsa", "gradient", "symmetric"), ("ista", "mlp", "none")
"""Operators whose products are counted. Not counted of them: pooling, sums over tokens, the inverse of the gradient,
bounds of norms, a bias, a guard.
"""


def flops_of(settings: Settings, case: Case, config: Any) -> float | None:
    """Of one call of a case, `config` being the CRATE configuration that it is of; `None` for generation and for
    operators whose products are not counted (of other packages; the exact gradient in a causal model).

    A backward is two forwards: the gradient of the input and that of the weight. Causal attention counts the pairs
    that are looked at. What a form computes beside (recomputed attention maps, the matrix of an ISTA step) is not
    counted, so that a share of the GEMM rate says how much of the time went into the maths.
    """
    if settings.task == "decode" or not (case.form in _ONLY_DENSE or _counted(config)):
        return None
    if case.mode == "layers":
        return 3 * _layers(settings, case.form, config)
    forward = {"image": _image, "mae": _mae, "text": _text}[settings.task](settings, case.form, config)
    return 3 * forward if case.mode == "step" else forward


def ista_products(config: Any, published: bool) -> int:
    """Products of a row with a ``(d, m)`` matrix in the sparsification step, the decode included."""
    steps, first = config.ista_num_steps, 0
    if config.ista_start == "zero":
        steps, first = steps - 1, 1
    if published:
        products = 3 * steps
    elif config.ista_start == "input" and config.ista_num_steps == 1:
        products = 1  # one affine map
    else:
        products = 2 * steps
    return first + products + (config.dictionary_decode != "none")


def layer_flops(form: str, config: Any, rows: int, keys: float) -> float:
    """Of one layer on ``rows`` tokens, each of which looks at ``keys`` tokens."""
    width = config.hidden_size
    if form in _ONLY_DENSE:  # queries, keys, values, output; an MLP of four times the width
        return 2 * rows * 12 * width**2 + 4 * rows * keys * width
    return compression_flops(config, rows, keys) + 2 * rows * _sparsification(config, form == "published")


def compression_flops(config: Any, rows: int, keys: float) -> float:
    """Of one compression step on ``rows`` tokens, each of which looks at ``keys`` tokens; see `_COUNTED`."""
    width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    maps = width * inner * (2 if config.attention_output != "none" else 1)  # U and the output
    if config.compression == "attention":
        maps += 2 * width * inner
    if config.compression in ("mssa", "attention", "symmetric"):  # scores, and the sums over the keys
        return 2 * rows * maps + 4 * rows * keys * inner
    if config.compression == "cbsa":  # A, A V, A^T R; and the same of the representatives among themselves
        number = config.compression_options["num_representatives"]
        if hasattr(config, "grid_size") and config.compression_options["pool"] == "patches":
            side = math.isqrt(number)
            number = min(side, config.grid_size[0]) * min(side, config.grid_size[1])
        return 2 * rows * maps + 6 * rows * number * inner + 4 * rows / keys * number**2 * inner
    if config.compression == "gradient":  # V^T V, and V by the inverse
        return 2 * rows * maps + 4 * rows * config.head_dim * inner
    return 2 * rows * maps


def _counted(config: Any) -> bool:
    causal = config.compression == "gradient" and bool(getattr(config, "is_causal", False))
    return config.compression in _COUNTED[0] and config.sparsification in _COUNTED[1] and not causal


def _sparsification(config: Any, published: bool) -> int:
    """Multiplications of a token."""
    if config.sparsification == "none":
        return 0
    if config.sparsification == "mlp":
        return 2 * config.hidden_size * config.mlp_size
    return ista_products(config, published) * config.hidden_size**2 * config.dictionary_expansion


def tokens_of(settings: Settings, config: Any) -> int:
    """Tokens of one image or sequence in the layers of our form, the class token included."""
    if settings.task in ("text", "decode"):
        return settings.block if settings.task == "text" else settings.prompt
    return 1 + config.grid_size[0] * config.grid_size[1]


def _seen(settings: Settings, form: str, config: Any) -> int:
    """Tokens in the encoder of an autoencoder."""
    tokens = tokens_of(settings, config)
    if settings.task == "mae" and (form in ("visible", "vitmae") or not config.mask_tokens_in_encoder):
        return 1 + int((tokens - 1) * (1 - config.mask_ratio))
    return tokens


def _layers(settings: Settings, form: str, config: Any) -> float:
    """The layers of the encoder."""
    tokens = _seen(settings, form, config)
    keys = (tokens + 1) / 2 if settings.task == "text" else tokens
    return config.num_hidden_layers * layer_flops(form, config, settings.batch * tokens, keys)


def _pixels(config: Any) -> int:
    """Numbers in a patch."""
    patch = config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return height * width * config.num_channels


def _embedding(settings: Settings, config: Any) -> float:
    return 2 * settings.batch * (tokens_of(settings, config) - 1) * _pixels(config) * config.hidden_size


def _image(settings: Settings, form: str, config: Any) -> float:
    head = 2 * settings.batch * config.hidden_size * config.num_labels
    return _embedding(settings, config) + _layers(settings, form, config) + head


def _mae(settings: Settings, form: str, config: Any) -> float:
    tokens, decoder = tokens_of(settings, config), config.of_decoder()
    rows, width = settings.batch * tokens, config.hidden_size
    if form == "vitmae":
        layer = layer_flops(form, decoder, rows, tokens)
        layer_to_layer = 2 * settings.batch * _seen(settings, form, config) * width**2
    else:
        layer = 2 * rows * width**2 + compression_flops(decoder, rows, tokens)
        layer_to_layer = 0
    pixels = 2 * rows * width * _pixels(config)
    encoder = _embedding(settings, config) + _layers(settings, form, config)
    return encoder + layer_to_layer + decoder.num_hidden_layers * layer + pixels


def _text(settings: Settings, form: str, config: Any) -> float:
    rows = settings.batch * settings.block
    return _layers(settings, form, config) + 2 * rows * config.hidden_size * config.vocab_size
