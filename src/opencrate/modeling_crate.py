"""CRATE for images: embedding, L layers of (compress, sparsify), pooling, head. [2306.01129; 2311.13110]

Recorded on request, under every attention backend and on every output: ``hidden_states`` (embedding, then Z^l),
``compressed_states`` (Z^{l+1/2}), ``projected_states`` (U^T LN(Z^l), ``(B, K, N, p)``), ``sparse_codes`` (the ISTA
code) and ``attentions``.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from ._graph import known
from ._hf import BackboneMixin, can_return_tuple, capture_outputs, init, merge_with_config_defaults
from .blocks import CrateLayer, LayerList
from .configuration_crate import CrateConfig, pair
from .linear_maps import dtype_of
from .modeling_crate_base import CratePreTrainedModel, CrateStates, last_norm
from .positions import grid_places, places_argument
from .recording import record


@dataclass
class CrateModelOutput(CrateStates, BaseModelOutputWithPooling):
    """Encoder output.

    Args:
        last_hidden_state: tokens of the last layer ``(B, N, d)``, no final norm, class token first.
        pooler_output: class token, or mean over all tokens, ``(B, d)``.
    """


@dataclass
class CrateImageClassifierOutput(CrateStates, ImageClassifierOutput):
    """``loss`` when labels were given, ``logits (B, num_labels)``, states as in the encoder."""


def patchify(pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images ``(B, C, H, W)`` -> patches ``(B, n, numbers per patch)``, ordered (row, column, channel) inside."""
    rows, columns = grid
    patches = pixel_values.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class CratePatchEmbeddings(nn.Module):
    """Image ``(B, C, H, W)`` -> patch tokens ``(B, n, d)``, row by row."""

    def __init__(self, config: CrateConfig):
        super().__init__()
        self.patch_size, self.num_channels = pair(config.patch_size), config.num_channels
        self.stride = self.patch_size
        self.kind = config.patch_embedding
        if config.patch_embedding == "conv":
            self.projection = nn.Conv2d(self.num_channels, config.hidden_size, self.patch_size, self.patch_size)
            return
        if config.patch_embedding == "conv_stem":
            self._make_stem(config)
            return
        patch_dim = self.num_channels * self.patch_size[0] * self.patch_size[1]
        self.norm_pixels = nn.LayerNorm(patch_dim, eps=config.layer_norm_eps)
        self.projection = nn.Linear(patch_dim, config.hidden_size)
        self.norm_tokens = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def _make_stem(self, config: CrateConfig) -> None:
        """3 x 3 convolutions of stride 2, each but the last with LN over its channels and GELU."""
        number = self.patch_size[0].bit_length() - 1
        widths = [config.hidden_size >> (number - 1 - step) for step in range(number)]
        self.projection = nn.Conv2d(self.num_channels, widths[0], 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=config.layer_norm_eps) for width in widths[:-1])
        pairs = pairwise(widths)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)

    def set_stride(self, stride: tuple[int, int]) -> None:
        """Take a patch every so many pixels (down, right), divisors of the patch: smaller ones make patches overlap.

        Raises:
            ValueError: convolutions one after another, which make tokens at their own stride only.
        """
        if self.kind == "conv_stem" and stride != self.patch_size:
            raise ValueError(
                f"stride={stride[0]}: patches of a model with patch_embedding='conv_stem' cannot be made to overlap; "
                "leave stride out, and give larger images"
            )
        self.stride = stride
        if self.kind == "conv":
            self.projection.stride = stride  # pyright: ignore[reportArgumentType]

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of these images; raises if channels or size do not fit the model."""
        channels, height, width = pixel_values.shape[-3:]
        patch_height, patch_width = self.patch_size
        if known(channels != self.num_channels):
            raise ValueError(
                f"pixel_values have {channels} channels, the model was made for {self.num_channels}: convert the "
                f"images, or build the model with num_channels={channels}"
            )
        wrong = (height < patch_height, width < patch_width, height % patch_height != 0, width % patch_width != 0)
        if any(known(condition) for condition in wrong):
            raise ValueError(
                f"image size {height}x{width} does not fit patch_size {patch_height}x{patch_width}: height and width "
                "must be positive multiples of the patch; resize or crop the images"
            )
        if self.stride == self.patch_size:
            return height // patch_height, width // patch_width
        return (height - patch_height) // self.stride[0] + 1, (width - patch_width) // self.stride[1] + 1

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = self.grid(pixel_values)
        pixel_values = pixel_values.to(dtype_of(self))
        if self.kind != "norm_linear":
            tokens = self.projection(pixel_values)
            if self.kind == "conv_stem":
                for norm, convolution in zip(self.norms, self.convolutions):
                    tokens = convolution(F.gelu(norm(tokens.movedim(1, -1))).movedim(-1, 1))
            return tokens.flatten(2).transpose(1, 2)
        overlap = self.stride != self.patch_size
        patches = self._overlapping(pixel_values) if overlap else patchify(pixel_values, grid)
        return self.norm_tokens(self.projection(self.norm_pixels(patches)))

    def _overlapping(self, pixel_values: Tensor) -> Tensor:
        """As :func:`patchify`, at the stride."""
        (height, width), (down, right) = self.patch_size, self.stride
        patches = pixel_values.unfold(2, height, down).unfold(3, width, right)
        return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class CrateEmbeddings(nn.Module):
    """Class token, patch tokens and positions: ``(B, C, H, W)`` -> ``(B, 1 + n, d)``."""

    def __init__(self, config: CrateConfig):
        super().__init__()
        self.config = config
        rows, columns = config.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        if "absolute" in config.positions:
            self.position_embeddings = nn.Parameter(torch.empty(1, 1 + rows * columns, config.hidden_size))
        self.patch_embeddings = CratePatchEmbeddings(config)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position table ``(1, 1 + n, d)`` for a patch grid, interpolated as the configuration says, never in place."""
        flavour, native = self.config.position_interpolation, self.config.grid_size
        same = known(grid[0] == native[0]) and known(grid[1] == native[1])
        if same and flavour != "scale":
            return self.position_embeddings
        cls, patches = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        table = patches.unflatten(1, native).permute(0, 3, 1, 2)
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        if flavour == "size":
            table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        else:
            factor = ((grid[0] + 0.1) / native[0], (grid[1] + 0.1) / native[1])
            kept = {"align_corners": False, "recompute_scale_factor": False}
            table = F.interpolate(table, scale_factor=factor, mode="bicubic", **kept)
        return torch.cat((cls, table.flatten(2).transpose(1, 2).to(cls.dtype)), dim=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch_embeddings(pixel_values)
        cls = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        tokens = torch.cat((cls, tokens), dim=1)
        absolute = "absolute" in self.config.positions
        return tokens + self.positions(self.patch_embeddings.grid(pixel_values)) if absolute else tokens


class CrateImagePreTrainedModel(CratePreTrainedModel):
    """What the vision models add: images in, an embedding of their patches."""

    config_class = CrateConfig
    config: CrateConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["CrateEmbeddings", "CrateLayer"]  # noqa: RUF012 (transformers' convention)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrateEmbeddings):
            std = 1.0 if self.config.initializer == "official" else self.config.initializer_range
            init.normal_(module.cls_token, std=std)
            if "absolute" in self.config.positions:
                init.normal_(module.position_embeddings, std=std)


class CrateModel(CrateImagePreTrainedModel):
    """The CRATE encoder: embedding and L layers, no final norm."""

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.embeddings = CrateEmbeddings(config)
        self.layers: LayerList[CrateLayer] = LayerList(
            CrateLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What makes tokens of patches, as in transformers' vision models."""
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, attention_mask: Tensor | None = None, interpolate_pos_encoding=None, **kwargs
    ) -> CrateModelOutput:
        """Encode images.

        Args:
            pixel_values: ``(B, C, H, W)``; H and W multiples of the patch, any aspect.
            attention_mask: ``(B, 1 + n)``, 1 = attend, or None.
            interpolate_pos_encoding: accepted for transformers' callers; positions always follow the image size.
            kwargs: ``output_hidden_states``, ``output_compressed_states``, ``output_projected_states``,
                ``output_sparse_codes``, ``output_attentions``.

        Raises:
            ValueError: channels, size or an output flag that the model does not know.
        """
        self._check_outputs(kwargs)
        tokens = self._as_handed_on(self.embeddings(pixel_values))
        mask = self._padding_or_mask(tokens, attention_mask)
        maps = kwargs.get("output_attentions", self.config.output_attentions)
        places = grid_places(self.config, self.embeddings.patch_embeddings.grid(pixel_values), tokens.device)
        further = places_argument(places) | self._padding_argument(attention_mask)
        for layer in self.layers:
            tokens = layer(tokens, mask, output_attentions=bool(maps), **further)
        record("hidden_states", tokens)
        pooled = tokens[:, 0] if self.config.pool == "cls" else tokens.mean(dim=1)
        return CrateModelOutput(last_hidden_state=tokens, pooler_output=pooled)


_FROM_AUTOENCODER = {r"^crate\.norm\.": "norm."}
"""Where a classifier keeps the norm that an autoencoder has after its encoder: after pooling, before the head."""


class CrateForImageClassification(CrateImagePreTrainedModel):
    """CRATE with LN and a linear layer on the pooled token."""

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.crate = CrateModel(config)
        self.norm = last_norm(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As transformers', and from a ``crate_mae`` folder its encoder.

        Embedding, layers and the encoder's final norm are taken; the norm then stands where the head's is, so that
        with ``pool="cls"`` the head reads the class token of the autoencoder's latent. The linear layer is new;
        transformers names it and what is left out: the decoder, the mask token and the unused tensors. Keyword
        arguments such as ``num_labels`` or ``pool`` change the encoder's configuration.
        """
        kwargs.setdefault("key_mapping", _FROM_AUTOENCODER)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if kwargs["key_mapping"] is _FROM_AUTOENCODER:  # or save_pretrained would write the autoencoder's name
            own = [one for one in model._weight_conversions or () if one.target_patterns != ["norm."]]
            model._weight_conversions = own
        return loaded

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CrateImageClassifierOutput:
        """Logits ``(B, num_labels)`` and, given ``labels (B)``, the loss (with the configured penalties).

        ``num_items_in_batch`` is for a Trainer, see :func:`~opencrate.modeling_crate_base.share_of_step`; ``kwargs``
        as in :meth:`CrateModel.forward`.
        """
        outputs = self.crate(pixel_values, **kwargs)
        logits = self.classifier(self.norm(outputs.pooler_output))
        loss = self._class_loss(logits, labels, num_items_in_batch)
        return CrateImageClassifierOutput(loss=loss, logits=logits, **self._states_of(outputs))


class CrateBackbone(BackboneMixin, CrateModel):
    """CRATE as a backbone: ``feature_maps`` ``(B, d, rows, columns)`` of the layers in ``out_features``."""

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs) -> BackboneOutput:
        """Feature maps of raw tokens (no norm, class token left out); ``kwargs`` as in :meth:`CrateModel.forward`."""
        asked = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        outputs = CrateModel.forward(self, pixel_values, output_hidden_states=True, **kwargs)
        grid = self.embeddings.patch_embeddings.grid(pixel_values)
        states = outputs.hidden_states or ()
        chosen = (state for name, state in zip(self.stage_names, states) if name in self.out_features)
        maps: Any = tuple(state[:, 1:].transpose(1, 2).unflatten(2, grid) for state in chosen)
        return BackboneOutput(feature_maps=maps, hidden_states=states if asked else None, attentions=outputs.attentions)
