"""CrateConfig and the named sizes of the published models."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ._hf import BackboneConfigMixin
from ._suggest import suggest

__all__ = ["CRATE_SIZES", "CrateConfig", "pair"]

# Words that transformers itself passes to a config's constructor without declaring them as fields.
_TRANSFORMERS_WORDS = {
    *PreTrainedConfig().to_dict(),
    *("num_labels", "torch_dtype", "attn_implementation", "_attn_implementation", "name_or_path"),
    *("_name_or_path", "_commit_hash", "auto_map", "trust_remote_code"),
    *("use_cache", "quantization_config"),  # written into every config by the Trainer; by quantised loading
    *("stage_names", "out_features", "out_indices"),
}

AUTOENCODER_FIELDS = frozenset(
    {
        *("decoder_num_hidden_layers", "decoder_num_attention_heads", "tie_decoder"),
        *("mask_ratio", "mask_tokens_in_encoder", "norm_pix_loss", "loss_on"),
    }
)
"""Fields that a ``crate_mae`` configuration has beside those of its encoder."""


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an ``image_size`` or ``patch_size`` given as an int or as a pair."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"a size must be one int or a (height, width) pair, got {size!r}")
    return int(size[0]), int(size[1])


@strict
class CrateConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of the CRATE vision models; the defaults are CRATE-base/16 [2306.01129, Table 1].

    Args:
        hidden_size: width d.
        num_hidden_layers: layers L.
        num_attention_heads: subspaces K.
        head_dim: dimension p of a subspace; ``None`` is d/K. K p != d is allowed.
        image_size: native (height, width) or one int; other multiples of the patch work at run time.
        patch_size: (height, width) or one int.
        num_channels: channels of the image.
        patch_embedding: ``norm_linear``: LN, linear, LN on flattened patches (CRATE); ``conv`` (CRATE-alpha).
        position_interpolation: how positions follow another image size. ``size``: bicubic to the new grid, native
            size untouched; ``scale``: what the published visualisation code does, factor (g + 0.1)/g, always;
            ``scale_if_resized``: that, but the native size untouched.
        pool: ``cls`` token or ``mean`` over all tokens (the class token included).
        layer_norm_eps: of all norms before the head.
        head_layer_norm_eps: of the head's norm; ``None`` is ``layer_norm_eps``.
        attention_scale: factor before the softmax; ``None`` is 1/sqrt(p) (published code; the paper has 1).
        attention_output: ``learned`` map W (published), ``tied`` to the bases U (paper, Eq. 12), ``none``.
        attention_output_bias: bias of the learned map.
        compression_kappa: ``None``: Z + MSSA (published code). A number: the paper's gradient step
            (1 - kappa gamma) Z + kappa gamma MSSA [2306.01129, Eq. 61], gamma = p/(N eps^2); a tied output is then
            multiplied by gamma, a learned one has absorbed it (Eq. 115).
        compression_eps: epsilon inside that gamma.
        ista_step_size: step size eta.
        ista_lambda: sparsity weight lambda.
        ista_num_steps: steps T.
        ista_start: ``input`` (complete dictionary only) or ``zero``; ``None`` picks ``input`` when it can.
        ista_threshold: ``relu`` (non-negative codes) or ``soft`` (signed soft-threshold).
        ista_residual: add the input of the sparsification step to its output.
        dictionary_expansion: atoms per width, m/d.
        dictionary_decode: what follows the code: ``none``, ``tied`` (A D^T) or ``untied`` (a second dictionary).
        compression: ``mssa``, or for ablations ``attention``: separate query, key and value projections.
        sparsification: ``ista``, or for ablations ``mlp`` (with a residual) or ``none`` (Z^{l+1} = Z^{l+1/2}).
        mlp_ratio: hidden units of the MLP per width; their number is rounded.
        subspace_constraint: ``none``; ``each``: every U_k orthonormal; ``joint``: [U_1 ... U_K] orthonormal.
        dictionary_constraint: ``none`` or ``orthonormal`` (rows of D; D^T D = D D^T = I when square).
        subspace_penalty: weight of ||U^T U - I||_F^2 (all subspaces jointly) in the training loss.
        dictionary_penalty: weight of ||D D^T - I||_F^2 in the training loss.
        initializer: ``official`` (the published code's) or ``normal`` (std ``initializer_range``, small tokens).
        initializer_range: standard deviation for ``normal``.
    """

    model_type = "crate"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    head_dim: int | None = None
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    patch_embedding: Literal["norm_linear", "conv"] = "norm_linear"
    position_interpolation: Literal["size", "scale", "scale_if_resized"] = "size"
    pool: Literal["cls", "mean"] = "cls"
    layer_norm_eps: float = 1e-5
    head_layer_norm_eps: float | None = None
    attention_scale: float | int | None = None
    attention_output: Literal["learned", "tied", "none"] = "learned"
    attention_output_bias: bool = True
    compression_kappa: float | int | None = None
    compression_eps: float | int = 0.5
    ista_step_size: float | int = 0.1
    ista_lambda: float | int = 0.1
    ista_num_steps: int = 1
    ista_start: Literal["input", "zero"] | None = None
    ista_threshold: Literal["relu", "soft"] = "relu"
    ista_residual: bool = False
    dictionary_expansion: int = 1
    dictionary_decode: Literal["none", "tied", "untied"] = "none"
    compression: Literal["mssa", "attention"] = "mssa"
    sparsification: Literal["ista", "mlp", "none"] = "ista"
    mlp_ratio: float | int = 4
    subspace_constraint: Literal["none", "each", "joint"] = "none"
    dictionary_constraint: Literal["none", "orthonormal"] = "none"
    subspace_penalty: float | int = 0.0
    dictionary_penalty: float | int = 0.0
    initializer: Literal["official", "normal"] = "official"
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self._reject_unknown(kwargs)
        if self.head_dim is None and self.num_attention_heads > 0:
            self._require_divisible_width()
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_layer_norm_eps is None:
            self.head_layer_norm_eps = self.layer_norm_eps
        if self.ista_start is None:
            complete = self.dictionary_expansion == 1 and self.dictionary_decode == "none"
            self.ista_start = "input" if complete else "zero"
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(self.num_hidden_layers))]
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        self._check()

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "CrateConfig":
        """A named size (see ``CRATE_SIZES``), with any field overridden."""
        if size not in CRATE_SIZES:
            raise ValueError(f"unknown CRATE size {size!r}; {suggest(size, CRATE_SIZES)}")
        return cls(**{**CRATE_SIZES[size], **overrides})

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

    @property
    def mlp_size(self) -> int:
        """Hidden units of the MLP where ``sparsification`` is ``mlp``."""
        return round(self.mlp_ratio * self.hidden_size)

    def _reject_unknown(self, kwargs: dict[str, Any]) -> None:
        for name in kwargs:
            if name not in _TRANSFORMERS_WORDS:
                fields = [f for f in self.__dataclass_fields__ if not f.startswith("_")]
                raise ValueError(f"{type(self).__name__}: unknown argument {name!r}; {suggest(name, fields)}")

    def _require_divisible_width(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}: choose a divisor, or set head_dim (K p may differ from d)"
            )

    def _check(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "num_channels"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("ista_num_steps", "dictionary_expansion"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("layer_norm_eps", "head_layer_norm_eps", "ista_step_size", "compression_eps"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        for name in ("ista_lambda", "subspace_penalty", "dictionary_penalty"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(self.mlp_size >= 1, "mlp_ratio", self.mlp_ratio, "at least one hidden unit for the width")
        for size, patch in zip(pair(self.image_size), pair(self.patch_size)):
            _require(patch >= 1, "patch_size", self.patch_size, "at least 1")
            fits = size >= patch and size % patch == 0
            _require(fits, "image_size", self.image_size, f"a multiple of patch_size {self.patch_size}")
        self._check_structure()

    def _check_structure(self) -> None:
        inner = self.num_attention_heads * self.head_dim
        if self.attention_output == "none":
            _require(inner == self.hidden_size, "attention_output", "none", "used with K p = d only")
        if self.subspace_constraint == "each":
            _require(self.head_dim <= self.hidden_size, "subspace_constraint", "each", "used with p <= d only")
        if self.subspace_constraint == "joint":
            _require(inner <= self.hidden_size, "subspace_constraint", "joint", "used with K p <= d only")
        if self.sparsification != "ista":
            value, allowed = self.sparsification, "'ista' when the dictionary has a penalty or a constraint"
            free = self.dictionary_penalty == 0 and self.dictionary_constraint == "none"
            _require(free, "sparsification", value, allowed)
        complete = self.dictionary_expansion == 1
        if self.ista_start == "input":
            _require(complete, "ista_start", "input", "'zero' when dictionary_expansion > 1")
        if self.dictionary_decode == "none":
            _require(complete, "dictionary_decode", "none", "'tied' or 'untied' when dictionary_expansion > 1")


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"CrateConfig: {name}={value!r} is not allowed; it must be {allowed}")


def _crate(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **more}


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
_DIGITS = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 10,
    "pool": "mean",
    "patch_embedding": "conv",
}
# For 32 x 32 colour images and few epochs; each differs from the published form because it learned faster on held-out
# training images of CIFAR-10 (docs/results.md).
_LAPTOP = {
    "image_size": 32,
    "patch_size": 4,
    "num_labels": 10,
    "pool": "mean",
    "patch_embedding": "conv",
    "ista_step_size": 0.5,
    "initializer": "normal",
}

CRATE_SIZES: dict[str, dict[str, Any]] = {
    # ImageNet-1k models of 2306.01129 and 2311.13110, Table 1: 6.09 / 13.12 / 22.80 / 77.64 M parameters.
    "tiny": _crate(384, 12, 6, **_IMAGENET_1K),
    "small": _crate(576, 12, 12, **_IMAGENET_1K),
    "base": _crate(768, 12, 12, **_IMAGENET_1K),
    "large": _crate(1024, 24, 16, **_IMAGENET_1K),
    # ImageNet-21k models at patch 8 of 2308.16271: other widths under the same letters. "demo" is crate-demo.pth.
    "emergence-tiny": _crate(192, 12, 3, **_IMAGENET_21K),
    "emergence-small": _crate(384, 12, 6, **_IMAGENET_21K),
    "emergence-base": _crate(768, 12, 12, **_IMAGENET_21K),
    "emergence-demo": _crate(768, 12, 6, **_IMAGENET_21K),
    # CRATE-alpha, 2405.20299; patches 32, 16, 14 and 8 exist: override patch_size.
    "alpha-tiny": _crate(192, 12, 3, patch_size=16, **_ALPHA),
    "alpha-small": _crate(576, 12, 12, patch_size=16, **_ALPHA),
    "alpha-base": _crate(768, 12, 12, patch_size=16, **_ALPHA),
    "alpha-large": _crate(1024, 24, 16, patch_size=14, **_ALPHA),
    "alpha-huge": _crate(1280, 32, 16, patch_size=14, **_ALPHA),
    # Laptop sizes (ours): 8 x 8 digits, and 32 x 32 colour images.
    "digits": _crate(96, 6, 4, **_DIGITS),
    "laptop": _crate(128, 6, 4, **_LAPTOP),
}
