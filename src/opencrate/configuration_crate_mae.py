"""CrateMAEConfig and the named sizes of the published autoencoders."""

import copy
from typing import Any, Literal

from ._suggest import suggest
from ._values import Amount, Share
from .configuration_crate import CrateConfig
from .configuration_crate_blocks import Layers, NormEps, Size

__all__ = ["CRATE_MAE_SIZES", "CrateMAEConfig"]


class CrateMAEConfig(CrateConfig):
    r"""Configuration of the CRATE autoencoder; the defaults are CRATE-MAE-base/16. [2311.13110]

    Every field of :class:`CrateConfig` describes the encoder, with the published autoencoder's defaults; the decoder
    has the same width. ``layer_norm_eps`` is that of the blocks, ``head_layer_norm_eps`` that of the norms after the
    encoder and after the decoder. ``pool`` has no meaning here; a classifier made of the encoder takes it.

    Args:
        decoder_num_hidden_layers: layers of the decoder; ``None`` is ``num_hidden_layers``.
        decoder_num_attention_heads: subspaces of the decoder's MSSA; ``None`` is ``num_attention_heads``.
        mask_ratio: share of the patches that is masked, in [0, 1).
        norm_pix_loss: compare with patches standardised by their own mean and (unbiased) variance.
        mask_tokens_in_encoder: ``True``: the encoder sees all tokens, masked ones as the mask token (published code);
            ``False``: visible tokens only (MAE), mask tokens and positions join before the decoder.
        loss_on: ``masked`` patches (published code), or ``all``.
        tie_decoder: every decoder layer shares D, U and the output map with the encoder layer it inverts; the norms
            stay its own. Needs as many layers and subspaces as the encoder.
    """

    model_type = "crate_mae"

    patch_embedding: Literal["norm_linear", "conv"] = "conv"
    head_layer_norm_eps: NormEps | None = 1e-6
    ista_lambda: Amount = 0.5
    decoder_num_hidden_layers: Layers | None = None
    decoder_num_attention_heads: Size | None = None
    mask_ratio: Share = 0.75
    norm_pix_loss: bool = False
    mask_tokens_in_encoder: bool = True
    loss_on: Literal["masked", "all"] = "masked"
    tie_decoder: bool = False

    def __post_init__(self, **kwargs):
        if self.decoder_num_hidden_layers is None:
            self.decoder_num_hidden_layers = self.num_hidden_layers
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "CrateMAEConfig":
        """A named size (see ``CRATE_MAE_SIZES``), with any field overridden."""
        if size not in CRATE_MAE_SIZES:
            raise ValueError(f"unknown CRATE-MAE size {size!r}; {suggest(size, CRATE_MAE_SIZES)}")
        return cls(**{**CRATE_MAE_SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As transformers', but the configuration of another kind of model, which has no decoder, is refused."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"model_type={kind!r} is not an autoencoder: a {kind} model has no decoder; load it with AutoModel, or "
                f"give a model of model_type {cls.model_type!r}"
            )
        return super().from_dict(config_dict, **kwargs)

    def of_decoder(self) -> "CrateMAEConfig":
        """A copy in which ``num_hidden_layers``, ``num_attention_heads`` and ``head_dim`` are the decoder's."""
        config = copy.deepcopy(self)
        config.num_hidden_layers = self.decoder_num_hidden_layers
        if self.decoder_num_attention_heads != self.num_attention_heads:
            config.num_attention_heads = self.decoder_num_attention_heads
            config.head_dim = self.hidden_size // self.decoder_num_attention_heads
        return config

    def _check(self) -> None:
        super()._check()
        self._require(self.hidden_size % 4 == 0, "hidden_size", "a multiple of 4, for the sine-cosine positions")
        heads = self.decoder_num_attention_heads
        fits = self.hidden_size % heads == 0 or heads == self.num_attention_heads
        self._require(fits, "decoder_num_attention_heads", f"a divisor of {self.hidden_size}")
        if self.tie_decoder:
            alike = heads == self.num_attention_heads and self.decoder_num_hidden_layers == self.num_hidden_layers
            plain = self.compression == "mssa" and self.sparsification == "ista" and self.dictionary_expansion == 1
            allowed = "false unless the decoder has as many layers and subspaces as an encoder of MSSA and a complete D"
            self._require(alike and plain, "tie_decoder", allowed)


def _mae(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **more}


_SMALL = {
    "pool": "mean",
    "decoder_num_hidden_layers": 2,
    "mask_tokens_in_encoder": False,
    "norm_pix_loss": True,
    "ista_step_size": 0.5,
    "ista_lambda": 0.1,
    "initializer": "normal",
}


CRATE_MAE_SIZES: dict[str, dict[str, Any]] = {
    # As published, encoder and decoder alike: 11.56 / 25.41 / 44.64 / 154.27 M numbers, which include two fixed
    # position tables and a linear layer that no forward uses (buffers here).
    "tiny": _mae(384, 12, 6),
    "small": _mae(576, 12, 12),
    "base": _mae(768, 12, 12),
    "large": _mae(1024, 24, 16),
    # Laptop sizes (ours): the encoders of `CRATE_SIZES` with a small decoder, which sees all patches while the encoder
    # sees those that are not masked.
    "digits": _mae(96, 6, 4, image_size=8, patch_size=2, num_channels=1, **_SMALL),
    "laptop": _mae(128, 6, 4, image_size=32, patch_size=4, **_SMALL),
}
