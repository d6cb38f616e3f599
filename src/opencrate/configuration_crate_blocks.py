"""The settings of the blocks that all CRATE models share."""

import inspect
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ._suggest import suggest
from ._values import Amount, Positive, Share, Within, allowed, fitted, shown_value
from .registry import LEARNED, Operator, Step, imports_of, operator_of, unregistered
from .sparsification import ISTA

# Words that transformers itself passes to a config's constructor without declaring them as fields.
_TRANSFORMERS_WORDS = {
    *PreTrainedConfig().to_dict(),
    *("num_labels", "torch_dtype", "attn_implementation", "_attn_implementation", "name_or_path"),
    *("_name_or_path", "_commit_hash", "auto_map", "trust_remote_code"),
    *("use_cache", "quantization_config"),  # written into every config by the Trainer; by quantised loading
    *("stage_names", "out_features", "out_indices"),
}
_STEPS: tuple[Step, ...] = ("compression", "sparsification")

Size = Annotated[int, Within(1, 2**20)]
Layers = Annotated[int, Within(1, 4_096)]
NormEps = Annotated[float, Within(1e-12, 1)]
_COMMON = {
    "num_labels": Annotated[int, Within(0, 2**20)],
    "dtype": Literal["float32", "float64", "float16", "bfloat16"] | None,
    "id2label": dict[int, str] | dict[str, str] | None,
    "label2id": dict[str, int] | dict[str, str] | None,
    "architectures": list[str] | None,
    "problem_type": Literal["regression", "single_label_classification", "multi_label_classification"] | None,
    "chunk_size_feed_forward": Annotated[int, Within(0, 2**20)],
    "is_encoder_decoder": bool,
    "output_hidden_states": bool | None,
    "return_dict": bool | None,
    "transformers_version": str | None,
}
"""What every transformers configuration has."""


class CrateBlockConfig(PreTrainedConfig):
    r"""Settings of the blocks, shared by the configurations of vision and text models.

    Every field is checked against its type and range whenever it is set; the error is a one-line ``ValueError``.

    Args:
        hidden_size: width d.
        num_hidden_layers: layers L.
        num_attention_heads: subspaces K.
        head_dim: dimension p of a subspace; ``None`` is d/K. K p != d is allowed.
        layer_norm_eps: of all norms before the head.
        head_layer_norm_eps: of the norm after the last layer; ``None`` is ``layer_norm_eps``.
        position: what tells tokens apart by their places: ``absolute`` positions added to the embedding (published),
            ``relative_bias``: a learned number per head and distance (images: offset in rows and columns) inside the
            softmax, ``rope``: rotations of the tensor that serves as queries, keys and values, ``both`` of these,
            ``none``, or ``absolute+`` one of them.
        rotary_base: of the frequencies of ``rope``; ``None`` is 10,000 in a text and 100 in an image.
        attention_scale: factor before the softmax; ``None`` is 1/sqrt(p) (published code; the paper has 1).
        attention_output: ``learned`` map W (published), ``tied`` to the bases U (paper, Eq. 12), ``none``.
        attention_output_bias: bias of the learned map.
        dropout: in training, share of the attention maps' entries and of the MSSA output's that is set to zero; of the
            embedding's too in a text model.
        compression_kappa: ``None``: Z + MSSA (published code). A number: the paper's gradient step
            (1 - kappa gamma) Z + kappa gamma MSSA [2306.01129, Eq. 61], gamma = p/(N eps^2); a tied output is then
            multiplied by gamma, a learned one has absorbed it (Eq. 115).
        compression_eps: epsilon inside that gamma.
        compression_guard: ``none`` (published); ``length``: Z^{l+1/2} has the length of Z^l (all tokens of an input
            together), and what would raise R^c of the learned bases is taken back, so that R^c falls on every input
            (:class:`~opencrate.guard.GuardedStep`); not in a causal model.
        ista_step_size: step size eta.
        ista_step: ``fixed``: eta is ``ista_step_size``; ``bounded``: eta is ``ista_step_size``/b with b >= ||D||^2, so
            that below 2 every step from a feasible start lowers the LASSO objective, whatever D becomes.
        ista_lambda: sparsity weight lambda.
        ista_lambda_last: lambda of the last layer, those between lie on a line from ``ista_lambda``; ``None``: one for
            all layers.
        learned_steps: ``layer``: eta, lambda and (where it is a number) kappa are learned in each layer, from what the
            configuration says, and stay positive; ``atom``: as well, with a lambda for each atom; ``none`` (published).
        ista_num_steps: steps T.
        ista_start: ``input`` (complete dictionary only), ``zero``, or ``positive``: the input's positive part (complete
            only), where ``input`` is no code that ``relu`` allows; ``None`` picks ``input`` when it can.
        ista_threshold: ``relu`` (non-negative codes) or ``soft`` (signed soft-threshold).
        ista_residual: add the input of the sparsification step to its output.
        dictionary_expansion: atoms per width, m/d.
        dictionary_decode: what follows the code: ``none``, ``tied`` (A D^T) or ``untied`` (a second dictionary).
        operator_imports: by step, the Python module of an operator that is not OpenCRATE's. Filled in when a model
            is saved, for the error where the operator is not registered, and never imported.
        compression: ``mssa``, or for ablations ``attention``: separate query, key and value projections; or the name of
            an operator that :func:`~opencrate.registry.register_operator` made known.
        compression_options: of such an operator.
        sparsification: ``ista``, or for ablations ``mlp`` (with a residual) or ``none`` (Z^{l+1} = Z^{l+1/2}); or the
            name of a registered operator.
        sparsification_options: of such an operator.
        mlp_ratio: hidden units of the MLP per width; their number is rounded.
        subspace_constraint: ``none``; ``each``: every U_k orthonormal; ``joint``: [U_1 ... U_K] orthonormal.
        dictionary_constraint: ``none`` or ``orthonormal`` (rows of D; D^T D = D D^T = I when square).
        subspace_penalty: weight of ||U^T U - I||_F^2 (all subspaces jointly) in the training loss.
        dictionary_penalty: weight of ||D D^T - I||_F^2 in the training loss.
        residual_in_fp32: under autocast, layers hand their tokens on in float32; ``False``: in autocast's type, which
            is faster on a GPU, at two to three times the rounding error. Without autocast it has no effect.
        initializer: ``official`` (the published code's) or ``normal`` (std ``initializer_range``, small tokens).
        initializer_range: standard deviation for ``normal``.
    """

    KIND = "a CRATE model"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    if TYPE_CHECKING:  # transformers makes these from what is given, and types them more loosely or not at all
        num_labels: int = 2
        id2label: dict[int, str] = field(default_factory=dict)
        label2id: dict[str, int] = field(default_factory=dict)
        attn_implementation: str | None = None

    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    head_dim: Size | None = None
    layer_norm_eps: NormEps = 1e-5
    head_layer_norm_eps: NormEps | None = None
    position: Literal[
        "absolute", "relative_bias", "rope", "both", "none", "absolute+relative_bias", "absolute+rope", "absolute+both"
    ] = "absolute"
    rotary_base: Positive | None = None
    attention_scale: Amount | None = None
    attention_output: Literal["learned", "tied", "none"] = "learned"
    attention_output_bias: bool = True
    dropout: Share = 0.0
    compression_kappa: Amount | None = None
    compression_eps: Positive = 0.5
    compression_guard: Literal["none", "length"] = "none"
    ista_step_size: Positive = 0.1
    ista_step: Literal["fixed", "bounded"] = "fixed"
    ista_lambda: Amount = 0.1
    ista_lambda_last: Amount | None = None
    learned_steps: Literal["none", "layer", "atom"] = "none"
    ista_num_steps: Annotated[int, Within(1, 1_000)] = 1
    ista_start: Literal["input", "zero", "positive"] | None = None
    ista_threshold: Literal["relu", "soft"] = "relu"
    ista_residual: bool = False
    dictionary_expansion: Annotated[int, Within(1, 1_024)] = 1
    dictionary_decode: Literal["none", "tied", "untied"] = "none"
    operator_imports: dict[str, str] = field(default_factory=dict)  # before the operators, which are checked with it
    compression: str = "mssa"
    compression_options: dict[str, Any] = field(default_factory=dict)
    sparsification: str = "ista"
    sparsification_options: dict[str, Any] = field(default_factory=dict)
    mlp_ratio: Annotated[float, Within(1e-6, 1_024)] = 4
    subspace_constraint: Literal["none", "each", "joint"] = "none"
    dictionary_constraint: Literal["none", "orthonormal"] = "none"
    subspace_penalty: Amount = 0.0
    dictionary_penalty: Amount = 0.0
    residual_in_fp32: bool = True
    initializer: Literal["official", "normal"] = "official"
    initializer_range: Amount = 0.02

    def __post_init__(self, **kwargs):
        if unknown := [name for name in kwargs if name not in _TRANSFORMERS_WORDS]:
            fields = [f for f in self.__dataclass_fields__ if not f.startswith("_")]
            raise ValueError(f"{type(self).__name__}: unknown argument {unknown[0]!r}; {suggest(unknown[0], fields)}")
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}: choose a divisor, or set head_dim (K p may differ from d)"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_layer_norm_eps is None:
            self.head_layer_norm_eps = self.layer_norm_eps
        if self.ista_start is None:
            complete = self.dictionary_expansion == 1 and self.dictionary_decode == "none"
            self.ista_start = "input" if complete else "zero"
        for step in _STEPS:
            options = f"{step}_options"
            completed = self.operator(step).complete(getattr(self, options), f"{type(self).__name__}: {options}")
            setattr(self, options, completed)
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        hint = _field_types(type(self)).get(name)
        if hint is not None:
            self._require(_fits(value, hint), name, allowed(hint), value)
        if name in _STEPS:
            missing = unregistered(name, value, self.operator_imports)
            self._require(missing is None, name, missing or "", value)
        if name == "id2label" and value is not None:
            in_order = set(map(str, value)) == set(map(str, range(len(value))))
            self._require(in_order, name, "a mapping of the class numbers from 0 on, each once, to names", value)
        super().__setattr__(name, value)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """A named size, one of ``SIZES``, with any field overridden."""
        if size not in cls.SIZES:
            raise ValueError(f"unknown {cls.__name__} size {size!r}; {suggest(size, cls.SIZES)}")
        return cls(**{**cls.SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As transformers', but the configuration of another kind of model is refused."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"model_type={kind!r} is not {cls.KIND}: load it with the Auto class of its task, or give a model of "
                f"model_type {cls.model_type!r}"
            )
        return super().from_dict(config_dict, **kwargs)

    def operator(self, step: Step) -> Operator:
        """What is known of the operator of a step, ``compression`` or ``sparsification``."""
        return operator_of(step, getattr(self, step))

    def to_dict(self) -> dict[str, Any]:
        """As transformers'; of operators that are not ours also their options and the modules they come from."""
        found = super().to_dict()
        found["operator_imports"] = imports_of({step: getattr(self, step) for step in _STEPS})
        only_theirs = ("operator_imports", *(f"{step}_options" for step in _STEPS))
        return {name: value for name, value in found.items() if value or name not in only_theirs}

    @property
    def positions(self) -> frozenset[str]:
        """The parts of ``position``: of ``absolute``, ``relative_bias`` and ``rope``."""
        return frozenset(self.position.replace("both", "relative_bias+rope").split("+")) - {"none"}

    @property
    def mlp_size(self) -> int:
        """Hidden units of the MLP where ``sparsification`` is ``mlp``."""
        return round(self.mlp_ratio * self.hidden_size)

    def _require(self, condition: bool, name: str, expected: str, value: Any = ...) -> None:
        if not condition:
            value = getattr(self, name) if value is ... else value
            given = f"{type(self).__name__}: {name}={shown_value(value)}"
            raise ValueError(f"{given} is not allowed; it must be {expected}")

    def _check_blocks(self) -> None:
        """Refuse values that do not fit each other."""
        try:
            self.validate()
        except StrictDataclassError as error:
            raise ValueError(f"{type(self).__name__}: {error.__cause__}") from error
        self._require(self.mlp_size >= 1, "mlp_ratio", "at least one hidden unit for the width")
        assert self.head_dim is not None  # filled in before
        inner = self.num_attention_heads * self.head_dim
        inside = self.positions - {"absolute"}
        reads = not inside or self.operator("compression").relative
        self._require(reads, "position", f"'absolute' or 'none' with compression={self.compression!r}")
        own = self.compression in ("gradient", "symmetric")
        words = f"null with compression={self.compression!r}, which has a step size of its own"
        self._require(not own or self.compression_kappa is None, "compression_kappa", words)
        pairs = 4 if hasattr(self, "grid_size") else 2
        fits = "rope" not in inside or self.head_dim % pairs == 0
        self._require(fits, "position", f"without rope where head_dim={self.head_dim} is not a multiple of {pairs}")
        if self.compression_guard != "none":
            learned = self.operator("compression").subspaces == LEARNED
            self._require(learned, "compression_guard", f"'none' with compression={self.compression!r}")
        if self.attention_output == "none":
            self._require(inner == self.hidden_size, "attention_output", "used with K p = d only")
        if self.subspace_constraint == "each":
            self._require(self.head_dim <= self.hidden_size, "subspace_constraint", "used with p <= d only")
        if self.subspace_constraint == "joint":
            self._require(inner <= self.hidden_size, "subspace_constraint", "used with K p <= d only")
        module = self.operator("sparsification").module
        if module is None or not issubclass(module, ISTA):
            free = self.dictionary_penalty == 0 and self.dictionary_constraint == "none"
            self._require(free, "sparsification", "'ista' when the dictionary has a penalty or a constraint")
        complete = self.dictionary_expansion == 1
        if self.ista_start != "zero":
            self._require(complete, "ista_start", "'zero' when dictionary_expansion > 1")
        if self.ista_step == "bounded":
            self._require(self.ista_step_size < 2, "ista_step_size", "below 2 with ista_step='bounded'")
        if self.learned_steps != "none":
            for name in ("ista_lambda", "ista_lambda_last"):
                self._require(getattr(self, name) != 0, name, "above 0 where it is learned (learned_steps)")
            kappa = self.compression_kappa is None or self.compression_kappa > 0
            self._require(kappa, "compression_kappa", "above 0 where it is learned (learned_steps)")
        if self.dictionary_decode == "none":
            self._require(complete, "dictionary_decode", "'tied' or 'untied' when dictionary_expansion > 1")


@cache
def _field_types(cls: type[CrateBlockConfig]) -> dict[str, Any]:
    """Field -> its type and range, of the fields that our own classes declare, and of some that all have."""
    ours = [base for base in reversed(cls.__mro__) if issubclass(base, CrateBlockConfig)]
    return _COMMON | {
        name: hint for base in ours for name, hint in inspect.get_annotations(base, eval_str=True).items()
    }


def _fits(value: Any, hint: Any) -> bool:
    if type(value).__name__ == "dtype":  # torch's; as a name it is what files hold
        value = str(value).removeprefix("torch.")
    try:
        fitted(value, hint)
        return True
    except ValueError:
        return False


def sized(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
    """An entry of ``SIZES``: d, L, K, and other fields."""
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, **more}
