"""CrateConfig and the named sizes of the published models."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from ._hf import BackboneConfigMixin
from ._values import Pixels, Within
from .configuration_crate_blocks import CrateBlockConfig, sized

AUTOENCODER_FIELDS = frozenset(
    {
        *("decoder_num_hidden_layers", "decoder_num_attention_heads", "tie_decoder"),
        *("mask_ratio", "mask_tokens_in_encoder", "norm_pix_loss", "loss_on"),
    }
)
"""Fields that a ``crate_mae`` configuration has beside those of its encoder."""


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an ``image_size`` or ``patch_size`` given as an int or as a pair."""
    both = (size, size) if isinstance(size, int) else size
    if not isinstance(both, (list, tuple)) or [type(side) for side in both] != [int, int]:
        raise ValueError(f"a size must be one int or a (height, width) pair, got {size!r}")
    return both[0], both[1]


class CrateConfig(BackboneConfigMixin, CrateBlockConfig):
    r"""Configuration of the CRATE vision models; the defaults are CRATE-base/16 [2306.01129, Table 1].

    The settings of the blocks are those of :class:`~opencrate.configuration_crate_blocks.CrateBlockConfig`.

    Args:
        image_size: native (height, width) or one int; other multiples of the patch work at run time.
        patch_size: (height, width) or one int.
        num_channels: channels of the image.
        patch_embedding: ``norm_linear``: LN, linear, LN on flattened patches (CRATE); ``conv`` (CRATE-alpha);
            ``conv_stem`` (ours): overlapping 3 x 3 convolutions of stride 2 with LN and GELU between, as many as make
            one token of a patch of 2, 4, 8, ... pixels.
        position_interpolation: how positions follow another image size. ``size``: bicubic to the new grid, native
            size untouched; ``scale``: what the published visualisation code does, factor (g + 0.1)/g, always;
            ``scale_if_resized``: that, but the native size untouched.
        pool: ``cls`` token or ``mean`` over all tokens (the class token included).
    """

    model_type = "crate"
    KIND = "a CRATE vision model"

    image_size: Pixels | list[Pixels] | tuple[Pixels, Pixels] = 224
    patch_size: Pixels | list[Pixels] | tuple[Pixels, Pixels] = 16
    num_channels: Annotated[int, Within(1, 4_096)] = 3
    patch_embedding: Literal["norm_linear", "conv", "conv_stem"] = "norm_linear"
    position_interpolation: Literal["size", "scale", "scale_if_resized"] = "size"
    pool: Literal["cls", "mean"] = "cls"
    if TYPE_CHECKING:  # properties, which a constructor takes
        out_features: list[str] | None = None
        out_indices: list[int] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        outputs = {"out_indices": kwargs.pop("out_indices", None), "out_features": kwargs.pop("out_features", None)}
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(self.num_hidden_layers))]
        self.set_output_features_output_indices(**outputs)
        self._check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As transformers', and of an autoencoder's configuration the part that describes its encoder."""
        if config_dict.get("model_type") == "crate_mae" and cls.model_type == "crate":
            left_out = {"model_type", "architectures", "auto_map", *AUTOENCODER_FIELDS}
            config_dict = {name: value for name, value in config_dict.items() if name not in left_out}
        return super().from_dict(config_dict, **kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches (rows, columns) of an image of the native size."""
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    def _check(self) -> None:
        self._check_blocks()
        for size, patch in zip(pair(self.image_size), pair(self.patch_size)):
            fits = size >= patch and size % patch == 0
            self._require(fits, "image_size", f"a multiple of patch_size {self.patch_size}")
        if self.patch_embedding == "conv_stem":
            height, width = pair(self.patch_size)
            halved = height == width and height > 1 and height & (height - 1) == 0
            self._require(halved, "patch_size", "2, 4, 8, ... with patch_embedding='conv_stem'")
            narrowed = self.hidden_size % (height // 2) == 0
            self._require(narrowed, "hidden_size", f"a multiple of {height // 2} with patch_embedding='conv_stem'")


_IMAGENET_1K = {"patch_size": 16, "num_labels": 1000}
_IMAGENET_21K = {"patch_size": 8, "num_labels": 21842}
_ALPHA = {
    "num_labels": 1000,
    "patch_embedding": "conv",
    "attention_output_bias": False,
    "layer_norm_eps": 1e-6,
    "head_layer_norm_eps": 1e-5,
    "ista_num_steps": 2,
    "ista_residual": True,
    "dictionary_expansion": 4,
    "dictionary_decode": "untied",
}
# At 2 x 2 pixels the published embedding's LN over the patch would erase its brightness and contrast, two of its four
# numbers (95 % against 98 % on digits): the convolution keeps them.
_OURS = {"num_labels": 10, "pool": "mean", "patch_embedding": "conv"}
_DIGITS = {"image_size": 8, "patch_size": 2, "num_channels": 1, **_OURS}
# For 32 x 32 colour images and few epochs; each differs from the published form because it learned faster on held-out
# training images of CIFAR-10 (docs/results/classification.md).
_LAPTOP = {"image_size": 32, "patch_size": 4, "ista_step_size": 0.5, "initializer": "normal", **_OURS}

CrateConfig.SIZES = {
    # ImageNet-1k models of 2306.01129 and 2311.13110, Table 1: 6.09 / 13.12 / 22.80 / 77.64 M parameters.
    "tiny": sized(384, 12, 6, **_IMAGENET_1K),
    "small": sized(576, 12, 12, **_IMAGENET_1K),
    "base": sized(768, 12, 12, **_IMAGENET_1K),
    "large": sized(1024, 24, 16, **_IMAGENET_1K),
    # ImageNet-21k models at patch 8 of 2308.16271: other widths under the same letters. "demo" is crate-demo.pth.
    "emergence-tiny": sized(192, 12, 3, **_IMAGENET_21K),
    "emergence-small": sized(384, 12, 6, **_IMAGENET_21K),
    "emergence-base": sized(768, 12, 12, **_IMAGENET_21K),
    "emergence-demo": sized(768, 12, 6, **_IMAGENET_21K),
    # CRATE-alpha, 2405.20299; patches 32, 16, 14 and 8 exist: override patch_size.
    "alpha-tiny": sized(192, 12, 3, patch_size=16, **_ALPHA),
    "alpha-small": sized(576, 12, 12, patch_size=16, **_ALPHA),
    "alpha-base": sized(768, 12, 12, patch_size=16, **_ALPHA),
    "alpha-large": sized(1024, 24, 16, patch_size=14, **_ALPHA),
    "alpha-huge": sized(1280, 32, 16, patch_size=14, **_ALPHA),
    # Laptop sizes (ours): 8 x 8 digits, and 32 x 32 colour images.
    "digits": sized(96, 6, 4, **_DIGITS),
    "laptop": sized(128, 6, 4, **_LAPTOP),
}
