"""The CRATE autoencoder: an encoder of (compress, sparsify) layers and a decoder of their reverse. [2311.13110]

``CrateMAEModel`` is the masked encoder, ``CrateMAEForPreTraining`` adds the decoder and the loss on pixels; the
interface is that of transformers' ViTMAE. States are recorded on request as in ``modeling_crate``, of the decoder too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._graph import known
from ._hf import RECORDED_BY_FORWARD, ModelOutput, can_return_tuple, capture_outputs, init, merge_with_config_defaults
from .blocks import CrateDecoderLayer, CrateLayer, LayerList
from .configuration_crate import pair
from .configuration_crate_mae import CrateMAEConfig
from .modeling_crate import CrateEmbeddings, CrateImagePreTrainedModel, patchify
from .modeling_crate_base import STATES, CrateStates, last_norm
from .positions import Places, grid_places, places_argument
from .recording import read_by
from .sparsification import Synthesis


@dataclass
class _Encoded(ModelOutput):
    last_hidden_state: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None


@dataclass
class CrateMAEModelOutput(CrateStates, _Encoded):
    """Encoder output.

    Args:
        last_hidden_state: tokens after the final norm, class token first: ``(B, 1 + n, d)``, or with visible tokens
            only ``(B, 1 + n_visible, d)`` in the order of the noise.
        mask: 1 where a patch is masked, ``(B, n)``.
        ids_restore: place of every patch in the shuffled order, ``(B, n)``.
    """


@dataclass
class _Decoded(ModelOutput):
    logits: Tensor | None = None


@dataclass
class CrateMAEDecoderOutput(CrateStates, _Decoded):
    """Decoder output: ``logits``, the predicted patches ``(B, n, patch_height * patch_width * C)``, each ordered (row,
    column, channel), and states: ``hidden_states`` begin with the decoder's input, ``compressed_states`` are
    Y = D LN(Z), the decoder's estimates of Z^{l+1/2}, ``projected_states`` U^T LN(Y); there are no codes.
    """


@dataclass
class _Reconstructed(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    latent: Tensor | None = None


@dataclass
class CrateMAEForPreTrainingOutput(CrateStates, _Reconstructed):
    """Autoencoder output: scalar ``loss``, ``logits`` (predicted patches), ``mask`` and ``ids_restore``, and states.

    ``latent`` is the encoder's output after its norm; other names as in :class:`CrateMAEModelOutput`, and with
    ``decoder_`` before them as in :class:`CrateMAEDecoderOutput`.
    """

    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_compressed_states: tuple[Tensor, ...] | None = None
    decoder_projected_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """The fixed table ``(1, 1 + rows * columns, width)`` of MAE, zero for the class token. [2111.06377]

    A quarter of the width each: sin and cos of the column, then of the row, at frequencies 10000^(-4i/width).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [position.flatten().outer(frequencies) for position in (column, row)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat((table.new_zeros(1, width), table))[None].to(torch.get_default_dtype())


def visible_patches(num_patches: int, ratio: float) -> int | torch.SymInt:
    """How many of n patches are not masked: ``int(n (1 - ratio))``. [2111.06377]"""
    return torch.sym_int(num_patches * (1 - ratio)) if ratio else num_patches


def random_mask(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches are masked: those of the largest noise, all but :func:`visible_patches` of them. [2111.06377]

    Args:
        noise: ``(B, n)``, any order-giving numbers.
        ratio: share to mask, in [0, 1).

    Returns:
        ``mask (B, n)`` (float32, 1 = masked), ``ids_keep (B, n_visible)`` and ``ids_restore (B, n)``.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"mask_ratio={ratio!r} is not allowed; it must be at least 0 and less than 1")
    num_visible: Any = visible_patches(noise.shape[1], ratio)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return (ids_restore >= num_visible).float(), ids_shuffle[:, :num_visible], ids_restore


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens ``(B, N, d)`` at places ``(B, n)``: ``(B, n, d)``."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


class CrateMAEEmbeddings(CrateEmbeddings):
    """Embedding with a fixed position table and a mask token."""

    def __init__(self, config: CrateMAEConfig):
        super().__init__(config)
        if "absolute" in config.positions:
            del self.position_embeddings
            self.register_buffer("position_embeddings", sincos_positions(config.grid_size, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, C, H, W)`` -> the encoder's tokens, ``mask (B, n)`` and ``ids_restore (B, n)``."""
        tokens = self.patch_embeddings(pixel_values)
        mask, ids_keep, ids_restore = random_mask(self._noise(noise, tokens), self.config.mask_ratio)
        positions = self._added(self.patch_embeddings.grid(pixel_values), tokens)
        in_encoder = self.config.mask_tokens_in_encoder
        if in_encoder:
            tokens = torch.where(mask[..., None].bool(), self.mask_token.to(tokens.dtype), tokens)
        if positions is not None:
            tokens = tokens + positions[:, 1:]
        if not in_encoder:
            tokens = gather_tokens(tokens, ids_keep)
        cls = self.cls_token if positions is None else self.cls_token + positions[:, :1]
        cls = cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        return torch.cat((cls, tokens), dim=1), mask, ids_restore

    def restore(self, latent: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Visible tokens ``(B, 1 + n_visible, d)`` -> all tokens ``(B, 1 + n, d)``: mask tokens in, then positions."""
        num_masked = ids_restore.shape[1] - (latent.shape[1] - 1)
        masked = self.mask_token.expand(latent.shape[0], num_masked, -1).to(latent.dtype)
        tokens = gather_tokens(torch.cat((latent[:, 1:], masked), dim=1), ids_restore)
        tokens = torch.cat((latent[:, :1], tokens), dim=1)
        positions = self._added(grid, latent)
        return tokens if positions is None else tokens + positions

    def _added(self, grid: tuple[int, int], tokens: Tensor) -> Tensor | None:
        """The position table in the tokens' type, where positions are added to tokens."""
        return self.positions(grid).to(tokens.dtype) if "absolute" in self.config.positions else None

    def _noise(self, noise: Tensor | None, tokens: Tensor) -> Tensor:
        if noise is None and self.config.mask_ratio == 0:  # whole images: nothing to draw, patches stay in order
            return torch.arange(tokens.shape[1], dtype=torch.float32, device=tokens.device).expand(tokens.shape[:2])
        if noise is None:
            return torch.rand(tokens.shape[:2], device=tokens.device)
        if any(known(given != needed) for given, needed in zip((*noise.shape, noise.ndim), (*tokens.shape[:2], 2))):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but these images have {tuple(tokens.shape[:2])} (images, "
                "patches): give one number per patch, or none"
            )
        return noise.to(tokens.device)


class CrateMAEPreTrainedModel(CrateImagePreTrainedModel):
    """Loading, saving and initialisation of the autoencoder."""

    config_class = CrateMAEConfig
    config: CrateMAEConfig
    _no_split_modules = ["CrateMAEEmbeddings", "CrateLayer", "CrateDecoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CrateMAEEmbeddings):
            init.normal_(module.cls_token, std=0.02)
            init.normal_(module.mask_token, std=0.02)
            if "absolute" in self.config.positions:
                buffer = module.get_buffer("position_embeddings")
                init.copy_(buffer, self._sincos().to(buffer))
            return
        super()._init_weights(module)
        if isinstance(module, Synthesis):
            self._init_dictionaries(module)
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and self.config.initializer == "official":
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5  # Xavier uniform, as in MAE
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None and isinstance(module, nn.Linear):
                init.zeros_(module.bias)

    def _sincos(self) -> Tensor:
        return sincos_positions(self.config.grid_size, self.config.hidden_size)


class CrateMAEModel(CrateMAEPreTrainedModel):
    """The encoder: masked embedding, L layers and the final norm."""

    def __init__(self, config: CrateMAEConfig):
        super().__init__(config)
        self.embeddings = CrateMAEEmbeddings(config)
        self.layers: LayerList[CrateLayer] = LayerList(
            CrateLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = last_norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What makes tokens of patches, as in transformers' vision models."""
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding=None, **kwargs
    ) -> CrateMAEModelOutput:
        """Mask and encode images; ``config.mask_ratio=0`` encodes them whole.

        Args:
            pixel_values: ``(B, C, H, W)``; H and W multiples of the patch, any aspect.
            noise: ``(B, n)``: the patches of the largest noise are masked; ``None`` draws it from torch's generator, or
                at ratio 0 keeps the patches in order.
            interpolate_pos_encoding: accepted for transformers' callers; positions always follow the image size.
            kwargs: ``output_hidden_states`` and the other flags of ``CrateModel.forward``.

        Raises:
            ValueError: channels, size, noise or an output flag that do not fit the model.
        """
        self._check_outputs(kwargs)
        tokens, mask, ids_restore = self.embeddings(pixel_values, noise)
        tokens = self._as_handed_on(tokens)
        maps = bool(kwargs.get("output_attentions", self.config.output_attentions))
        places = places_argument(self._places(pixel_values, tokens, ids_restore))
        for layer in self.layers:
            tokens = layer(tokens, None, output_attentions=maps, **places)
        latent = read_by(self.norm, "hidden_states", tokens)
        return CrateMAEModelOutput(last_hidden_state=latent, mask=mask, ids_restore=ids_restore)

    def _places(self, pixel_values: Tensor, tokens: Tensor, ids_restore: Tensor) -> Places | None:
        kept = None if self.config.mask_tokens_in_encoder else ids_restore.argsort(dim=1)[:, : tokens.shape[1] - 1]
        return grid_places(self.config, self.embeddings.patch_embeddings.grid(pixel_values), tokens.device, kept)


class CrateMAEDecoder(CrateMAEPreTrainedModel):
    """The decoder: layers of (synthesise, expand), the final norm and a linear map to pixels."""

    _can_record_outputs = dict.fromkeys((state for state in STATES if state != "sparse_codes"), RECORDED_BY_FORWARD)

    def __init__(self, config: CrateMAEConfig):
        super().__init__(config.of_decoder())
        layers = (CrateDecoderLayer(self.config) for _ in range(self.config.num_hidden_layers))
        self.layers: LayerList[CrateDecoderLayer] = LayerList(layers)
        self.norm = last_norm(config)
        height, width = pair(config.patch_size)
        self.predict = nn.Linear(config.hidden_size, height * width * config.num_channels)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None, **kwargs) -> CrateMAEDecoderOutput:
        """``(B, 1 + n, d)`` -> predicted patches ``(B, n, patch_height * patch_width * C)``, and states on request.

        ``grid`` is (rows, columns) of the patches; ``None`` is that of the native size.
        """
        maps = bool(kwargs.get("output_attentions", self.config.output_attentions))
        places = places_argument(grid_places(self.config, grid or self.config.grid_size, tokens.device))
        for layer in self.layers:
            tokens = layer(tokens, None, output_attentions=maps, **places)
        tokens = read_by(self.norm, "hidden_states", tokens)
        return CrateMAEDecoderOutput(logits=self.predict(tokens)[:, 1:])


class CrateMAEForPreTraining(CrateMAEPreTrainedModel):
    """Encoder, decoder and the loss on pixels."""

    accepts_loss_kwargs = False  # without labels nothing is counted: the Trainer takes the mean over its batches

    def __init__(self, config: CrateMAEConfig):
        super().__init__(config)
        self.crate = CrateMAEModel(config)
        self.decoder = CrateMAEDecoder(config)
        width = config.hidden_size
        # The published files hold these as well, and no forward uses them: kept, so that nothing of a file is lost.
        self.register_buffer("unused_pos_embed", sincos_positions(config.grid_size, width))
        self.register_buffer("unused_decoder_embed_weight", torch.zeros(width, width))
        self.register_buffer("unused_decoder_embed_bias", torch.zeros(width))
        if config.tie_decoder:
            self._tied_weights_keys = self._mirrored()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            buffer = self.get_buffer("unused_pos_embed")
            init.copy_(buffer, self._sincos().to(buffer))
            init.zeros_(self.get_buffer("unused_decoder_embed_weight"))
            init.zeros_(self.get_buffer("unused_decoder_embed_bias"))

    def _mirrored(self) -> dict[str, str]:
        """Names of the decoder's parameters and of the encoder's that they share."""
        tied, depth = {}, self.config.num_hidden_layers
        for layer in range(depth):
            own, other = f"decoder.layers.{layer}", f"crate.layers.{depth - 1 - layer}"
            tied[f"{own}.synthesize.dictionary"] = f"{other}.sparsify.ista.dictionary"
            kind = self.config.compression
            for name, _ in self.decoder.layers[layer].expand.operator.named_parameters():
                tied[f"{own}.expand.{kind}.{name}"] = f"{other}.compress.{kind}.{name}"
        return tied

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """``config.tie_decoder`` decides; transformers reads ``tie_word_embeddings``, which images do not have."""
        return dict(self._tied_weights_keys or {})

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, noise: Tensor | None = None, interpolate_pos_encoding=None, **kwargs
    ) -> CrateMAEForPreTrainingOutput:
        """Reconstruct masked images; arguments as in :meth:`CrateMAEModel.forward`.

        Raises:
            ValueError: as there; or nothing is masked and the loss is on masked patches.
        """
        encoded = self.crate(pixel_values, noise=noise, **kwargs)
        tokens = encoded.last_hidden_state
        grid = self.crate.embeddings.patch_embeddings.grid(pixel_values)
        if not self.config.mask_tokens_in_encoder:
            tokens = self.crate.embeddings.restore(tokens, encoded.ids_restore, grid)
        decoded = self.decoder(tokens, grid, **kwargs)
        states = {f"decoder_{key}": state for key, state in self.decoder._states_of(decoded).items()}
        states |= {**self._states_of(encoded), "mask": encoded.mask, "ids_restore": encoded.ids_restore}
        loss, latent = self._loss(pixel_values, decoded.logits, encoded.mask), encoded.last_hidden_state
        return CrateMAEForPreTrainingOutput(loss=loss, logits=decoded.logits, latent=latent, **states)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` -> patches ``(B, n, patch_height * patch_width * C)``, (row, column, channel)."""
        return patchify(pixel_values, self.crate.embeddings.patch_embeddings.grid(pixel_values))

    def unpatchify(self, patches: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """The inverse of :meth:`patchify`, for images of ``original_image_size`` (the native one if ``None``)."""
        height, width = pair(original_image_size or self.config.image_size)
        patch_height, patch_width = pair(self.config.patch_size)
        rows, columns = height // patch_height, width // patch_width
        if known(rows * columns != patches.shape[1]):
            raise ValueError(
                f"{patches.shape[1]} patches are not those of an image of {height}x{width} ({rows}x{columns} patches): "
                "give original_image_size=(height, width)"
            )
        images = patches.unflatten(2, (patch_height, patch_width, -1)).unflatten(1, (rows, columns))
        return images.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _loss(self, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor | None:
        """Mean squared error, float32 or better, of the masked patches or of all, with the configured penalties."""
        pixel_values = pixel_values.to(torch.promote_types(logits.dtype, torch.float32))
        loss = (logits - self._target(pixel_values)).square().mean(dim=-1)
        if self.config.loss_on == "all":
            loss = loss.mean()
        elif known(visible_patches(mask.shape[1], self.config.mask_ratio) == mask.shape[1]):
            raise ValueError(
                f"mask_ratio={self.config.mask_ratio} masks none of {mask.shape[1]} patches, so there is no loss on "
                "masked patches: set loss_on='all', or a larger mask_ratio"
            )
        else:
            loss = (loss * mask).sum() / mask.sum()
        return self._with_penalties(loss)

    def _target(self, pixel_values: Tensor) -> Tensor:
        patches = self.patchify(pixel_values)
        if not self.config.norm_pix_loss:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()
