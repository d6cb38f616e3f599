"""CrateMAEConfig and the named sizes of the published autoencoders."""

import copy
from typing import Literal

from ._values import Amount, Share
from .configuration_crate import CrateConfig
from .configuration_crate_blocks import Layers, NormEps, Size, sized


class CrateMAEConfig(CrateConfig):
    r"""Configuration of the CRATE autoencoder; the defaults are CRATE-MAE-base/16. [2311.13110]

    Every field of :class:`CrateConfig` describes the encoder, with the published autoencoder's defaults; the decoder
    has the same width. ``layer_norm_eps`` is that of the blocks, ``head_layer_norm_eps`` that of the norms after the
    encoder and after the decoder. ``pool`` is not used here; a classifier made from the encoder takes it.

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
    KIND = "an autoencoder with a decoder"

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

    def of_decoder(self) -> "CrateMAEConfig":
        """A copy in which ``num_hidden_layers``, ``num_attention_heads`` and ``head_dim`` are the decoder's."""
        config = copy.deepcopy(self)
        config.num_hidden_layers = self.decoder_num_hidden_layers or self.num_hidden_layers
        if (heads := self.decoder_num_attention_heads or self.num_attention_heads) != self.num_attention_heads:
            config.num_attention_heads, config.head_dim = heads, self.hidden_size // heads
        return config

    def _check(self) -> None:
        super()._check()
        self._require(self.hidden_size % 4 == 0, "hidden_size", "a multiple of 4, for the sine-cosine positions")
        heads = self.decoder_num_attention_heads or self.num_attention_heads
        fits = self.hidden_size % heads == 0 or heads == self.num_attention_heads
        self._require(fits, "decoder_num_attention_heads", f"a divisor of {self.hidden_size}")
        if self.tie_decoder:
            alike = heads == self.num_attention_heads and self.decoder_num_hidden_layers == self.num_hidden_layers
            plain = self.sparsification == "ista" and self.dictionary_expansion == 1
            allowed = "false unless the decoder has as many layers and subspaces as an encoder with a complete D"
            self._require(alike and plain, "tie_decoder", allowed)


_SMALL = {"decoder_num_hidden_layers": 2, "mask_tokens_in_encoder": False, "norm_pix_loss": True}
_SMALL |= {"pool": "mean", "ista_step_size": 0.5, "ista_lambda": 0.1, "initializer": "normal"}

CrateMAEConfig.SIZES = {
    # As published, encoder and decoder alike: 11.56 / 25.41 / 44.64 / 154.27 M numbers, which include two fixed
    # position tables and a linear layer that no forward uses (buffers here).
    "tiny": sized(384, 12, 6),
    "small": sized(576, 12, 12),
    "base": sized(768, 12, 12),
    "large": sized(1024, 24, 16),
    # Laptop sizes (ours): the encoders of `CrateConfig` with a small decoder, which sees all patches, the encoder those
    # that are not masked.
    "digits": sized(96, 6, 4, image_size=8, patch_size=2, num_channels=1, **_SMALL),
    "laptop": sized(128, 6, 4, image_size=32, patch_size=4, **_SMALL),
}
