"""The operators that the two steps of a layer can be made of. One entry is all that a new one needs:

    class Mine(nn.Module):
        def __init__(self, config, layer_idx, width=4): ...
        def forward(self, tokens, attention_mask=None, **kwargs): ...  # (B, N, d) -> the update (B, N, d), None

    register_operator("mine", Operator("compression", Mine, options={"width": (int, 4)}))
    CrateConfig.from_size("digits", compression="mine", compression_options={"width": 2})

Training, saving, loading, analysis, ablations and reports ask the entry what the operator has, never its name. For the
command line, a package that you install names its module as an entry point `mine = "your_module"` of the group
`opencrate.operators`; it is imported when a configuration asks for the operator.
"""

import importlib.metadata as metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import nn

from ._suggest import suggest
from ._values import Within, allowed, field_error, fitted
from .compression import MSSA, Attention
from .rate_gradient import LARGEST_STEP, RateGradient
from .representatives import CBSA
from .sparsification import ISTA, MLP
from .symmetric_attention import SymmetricMSSA
from .token_statistics import TSSA

Step = Literal["compression", "sparsification"]
ENTRY_POINTS = "opencrate.operators"
LEARNED = "learned U"
RECORDABLE: dict[str, tuple[str, ...]] = {
    "compression": ("projected_states", "attentions"),
    "sparsification": ("sparse_codes",),
}
"""What the operators of each step may record beside the states of the layer itself."""


@dataclass(frozen=True)
class Operator:
    """What the library has to know of an operator.

    A compression module is made as ``module(config, layer_idx, **options)``. It takes ``(tokens (B, N, d),
    attention_mask, **kwargs)``, the tokens normalised and the mask in the attention backend's form (see
    ``attention.dense_mask``), and returns the update ``(B, N, d)`` and the maps ``(B, K, N, N)`` or ``None``; among
    ``kwargs`` are ``output_attentions`` and, in a causal model, the cache. A sparsification module is made as
    ``module(config, **options)``. It takes the normalised tokens and returns the output ``(B, N, d)`` and the code
    ``(B, N, m)`` or ``None``.

    Attributes:
        step: which of a layer's steps it takes.
        module: its class; with ``None`` the step passes tokens on as they are.
        options: what ``compression_options`` or ``sparsification_options`` may hold: name -> (type and range as in
            ``_values``, default).
        states: which of ``RECORDABLE`` it records. Without ``"attentions"`` it has no N x N maps, and
            ``output_attentions=True`` gives none; reports leave them out.
        subspaces: what its ``bases()``, U ``(K, d, p)``, are: ``LEARNED``, or other words. R^c is then measured
            against them; ``None`` has no ``bases()``, and principal directions of the tokens take their place.
        symbol: its name in formulas; by default the one it is registered under.
        causal: no token sees later ones where ``config.is_causal`` is true, so that causal models may use it.
        cached: it uses the cache that it is given; others read the whole text again for each generated token.
        relative: it reads ``places`` among its ``kwargs`` (see ``positions.Places``): ``config.position`` may be inside
            the attention.
        grid: it reads the patch grid of an image from ``places`` whatever ``config.position`` is.
        padding_only: it is given the mask of padding alone, ``(B, N)`` with 0 for padding, whatever the backend; packed
            documents, which it could not keep apart, are refused.
        normalised: a compression is given LN(Z); ``False``: Z itself, and the layer has no norm before it.
        residual: the input is added to the output of a sparsification, whatever ``ista_residual`` says.
    """

    step: Step
    module: type[nn.Module] | None
    options: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    states: tuple[str, ...] = ()
    subspaces: str | None = None
    symbol: str = ""
    causal: bool = False
    cached: bool = False
    relative: bool = False
    grid: bool = False
    padding_only: bool = False
    normalised: bool = True
    residual: bool = False

    def half_step(self, config: Any) -> str:
        """What Z^{l+1/2} is, in symbols, of the compression of a configuration."""
        symbol = f"{self.symbol or config.compression}({'LN(Z)' if self.normalised else 'Z'})"
        guard = "" if config.compression_guard == "none" else ", guarded"
        if not symbol.startswith("−"):
            return f"Z + {symbol}{guard}"
        return f"Z − {symbol[1:]}" + ("" if config.attention_output == "tied" else ", W in place of Uᵀ") + guard

    def build(self, config: Any, *arguments: Any) -> nn.Module:
        """The module of one layer, with the options of the configuration."""
        assert self.module is not None
        return self.module(config, *arguments, **getattr(config, f"{self.step}_options"))

    def complete(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values of all options: the given ones, else their defaults.

        Raises:
            ValueError: an option that the operator does not have, or a value that does not fit; names it after `where`.
        """
        for name, value in given.items():
            if name not in self.options:
                known = suggest(name, self.options) if self.options else "it has no options"
                raise ValueError(f"{where}: unknown option {name!r}; {known}")
            try:
                fitted(value, self.options[name][0])
            except ValueError:
                raise field_error(f"{where}.{name}", value, allowed(self.options[name][0])) from None
        return {name: given.get(name, default) for name, (_, default) in self.options.items()}


_ATTENTION: dict[str, Any] = {"states": RECORDABLE["compression"], "causal": True, "cached": True, "relative": True}
_SHARE = Annotated[float, Within(1e-6, 1 - 1e-6)]
_LINEAR: dict[str, Any] = {"states": ("projected_states",), "subspaces": LEARNED, "padding_only": True}
_OPERATORS: dict[str, dict[str, Operator]] = {
    "compression": {
        "mssa": Operator("compression", MSSA, subspaces=LEARNED, symbol="MSSA", **_ATTENTION),
        "attention": Operator(
            "compression", Attention, subspaces="value projections per head", symbol="Attention", **_ATTENTION
        ),
        "tssa": Operator(
            "compression",
            TSSA,
            options={"projection_bias": (bool, False), "position_bias": (bool, False)},
            symbol="TSSA",
            causal=True,
            **_LINEAR,
        ),
        "cbsa": Operator(
            "compression",
            CBSA,
            options={
                "num_representatives": (Annotated[int, Within(1, 2**16)], 64),
                "pool": (Literal["patches", "published"], "patches"),
            },
            symbol="CBSA",
            grid=True,
            **_LINEAR,
        ),
        "gradient": Operator(
            "compression",
            RateGradient,
            options={"max_step": (Annotated[float, Within(1e-6, LARGEST_STEP)], 1.0), "start": (_SHARE, 0.5)},
            symbol="−κ∇R^c",
            causal=True,
            normalised=False,
            **_LINEAR,
        ),
        "symmetric": Operator(
            "compression",
            SymmetricMSSA,
            options={"start": (_SHARE, 0.5)},
            states=RECORDABLE["compression"],
            subspaces=LEARNED,
            symbol="SMSSA",
            relative=True,
            padding_only=True,
            normalised=False,
        ),
    },
    "sparsification": {
        "ista": Operator("sparsification", ISTA, states=("sparse_codes",), symbol="ISTA"),
        "mlp": Operator("sparsification", MLP, states=("sparse_codes",), symbol="MLP", residual=True),
        "none": Operator("sparsification", None),
    },
}
_OURS = {step: frozenset(operators) for step, operators in _OPERATORS.items()}


def register_operator(name: str, operator: Operator) -> None:
    """Make an operator a value of ``config.compression`` or ``config.sparsification``.

    Registering again replaces what the name stood for, so that a notebook cell can be run twice; OpenCRATE's own
    cannot be replaced.

    The name is a Python identifier; the module's parameters are saved under it.

    Raises:
        ValueError: a name of OpenCRATE's own or not an identifier; an unknown step or state; not a module class.
    """
    if operator.step not in _OPERATORS:
        raise ValueError(f"operator {name!r}: step={operator.step!r} must be one of {', '.join(_OPERATORS)}")
    if not name.isidentifier() or hasattr(nn.Module, name) or name in ("norm", "config", "kind", "direction"):
        raise ValueError(f"operator {name!r}: must be an identifier that no layer uses; choose another name")
    if name in _OURS[operator.step]:
        raise ValueError(f"operator {name!r}: is one of OpenCRATE's; choose another name")
    if not (isinstance(operator.module, type) and issubclass(operator.module, nn.Module)):
        raise ValueError(f"operator {name!r}: module={operator.module!r} must be a class of nn.Module")
    if wrong := [state for state in operator.states if state not in RECORDABLE[operator.step]]:
        raise ValueError(
            f"operator {name!r}: states={wrong[0]!r} must be among {', '.join(RECORDABLE[operator.step])} for a "
            f"{operator.step}"
        )
    _OPERATORS[operator.step][name] = operator


def operator_of(step: Step, name: str) -> Operator:
    """A registered operator; one that is not is a `KeyError`."""
    return _OPERATORS[step][name]


def unregistered(step: Step, name: Any, imports: Mapping[str, str]) -> str | None:
    """What a step must be in place of a name that is not registered, in words; ``None`` where it is.

    ``imports`` are the modules that registered operators when a model was saved, by step.
    """
    if not isinstance(name, str):
        return "a name"
    if name not in _OPERATORS[step]:
        for entry_point in metadata.entry_points(group=ENTRY_POINTS, name=name):
            entry_point.load()
    if name in _OPERATORS[step]:
        return None
    words = f"one of {', '.join(_OPERATORS[step])}"
    if step in imports:
        return f"registered first: import {imports[step]} (or call opencrate.register_operator); now it is {words}"
    return f"{words}, or another that opencrate.register_operator has registered; import the module that does so"


def imports_of(names: Mapping[Step, str]) -> dict[str, str]:
    """By step, the modules that its operator comes from, of operators that are not ours."""
    others = {step: _OPERATORS[step][name].module for step, name in names.items() if name not in _OURS[step]}
    return {step: module.__module__ for step, module in others.items()}
