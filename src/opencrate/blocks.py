"""The layers that every CRATE model is made of; variants are values of the configuration.

    Z -> Compression -> Z^{l+1/2} -> Sparsification -> Z^{l+1}

Shapes: B batch, N tokens, d width. The operators inside are in compression.py and sparsification.py.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ._hf import GradientCheckpointingLayer, init
from .compression import MSSA, Attention, Subspaces
from .guard import GuardedStep
from .norms import TokenLayerNorm
from .operators import gamma, orthogonality_penalty
from .recording import read_by, record
from .registry import Operator, operator_of
from .sparsification import ISTA, MLP, Synthesis

if TYPE_CHECKING:
    Layer = TypeVar("Layer", bound=nn.Module)

    class LayerList(nn.ModuleList, Generic[Layer]):
        """An `nn.ModuleList` whose items have a known type."""

        def __iter__(self) -> Iterator[Layer]: ...
        def __getitem__(self, idx: int) -> Layer: ...

else:
    LayerList = nn.ModuleList


class Compression(nn.Module):
    """A step down R^c: ``Z^{l+1/2} = Z + MSSA(LN(Z))``, or the paper's (1 - kappa gamma) Z + kappa gamma MSSA.

    ``config.compression`` names the operator. With another one than MSSA, no theory predicts that R^c falls.
    ``direction=-1`` is the same step backwards, up R^c, as the decoder takes it: ``Z - MSSA(LN(Z))``.
    """

    mssa: MSSA
    attention: Attention  # the one that is in use is there
    guard_waits = False
    """Whether the guard is left out in training mode; see ``optimiser.guard_from`` of a recipe."""

    def __init__(self, config, direction: int = 1, layer_idx: int = 0):
        super().__init__()
        self.config, self.direction, self.kind = config, direction, config.compression
        normalised = self.entry.normalised
        self.norm = TokenLayerNorm(config.hidden_size, eps=config.layer_norm_eps) if normalised else nn.Identity()
        self.add_module(self.kind, self.entry.build(config, layer_idx))
        if config.learned_steps != "none" and config.compression_kappa is not None:
            self.log_kappa = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_own(self) -> None:
        """The step size as the configuration says, where it is learned."""
        if hasattr(self, "log_kappa"):
            init.constant_(self.log_kappa, math.log(self.config.compression_kappa))

    @property
    def entry(self) -> Operator:
        """What is known of the operator."""
        return operator_of("compression", self.kind)

    @property
    def guarded(self) -> bool:
        """Whether R^c cannot rise: the configuration's guard; steps backwards have none."""
        return self.config.compression_guard != "none" and self.direction == 1

    @property
    def operator(self) -> Any:
        """The module that makes the update."""
        return getattr(self, self.kind)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, padding: Tensor | None = None, **kwargs
    ) -> Tensor:
        update, maps = self.operator(self.norm(tokens), attention_mask, **kwargs)
        record("attentions", maps)
        return self._guarded(tokens, self._stepped(tokens, update), padding)

    def _stepped(self, tokens: Tensor, update: Tensor) -> Tensor:
        kappa = self.log_kappa.exp() if hasattr(self, "log_kappa") else self.config.compression_kappa
        if kappa is None:
            return torch.add(tokens, update, alpha=self.direction)
        step = self.direction * kappa * gamma(tokens.shape[-2], self.config.head_dim, self.config.compression_eps)
        return (1 - step) * tokens + step * update

    def _guarded(self, tokens: Tensor, half: Tensor, padding: Tensor | None) -> Tensor:
        """Z^{l+1/2}, taken back as far as the configuration's guard asks for; padding ``(B, N)`` is 0 in the mask."""
        if not self.guarded or (self.training and self.guard_waits):
            return half
        kept = None if padding is None else padding.bool().unsqueeze(-1)
        number = tokens.shape[-2] if kept is None else kept.sum(-2, keepdim=True).clamp(min=1).unsqueeze(-1)
        wide = torch.promote_types(half.dtype, torch.float32)
        U = self.operator.bases().to(wide)
        g = gamma(number, self.config.head_dim, self.config.compression_eps)
        step = GuardedStep(tokens.to(wide), half.to(wide), U.movedim(0, 1).flatten(1), len(U), g, kept)
        return step.taken().to(half.dtype)


class Sparsification(nn.Module):
    """``Z^{l+1} = ISTA(LN(Z^{l+1/2}))``, with a residual only in CRATE-alpha.

    For ablations ``Z^{l+1/2} + MLP(LN(Z^{l+1/2}))``, or nothing: ``Z^{l+1} = Z^{l+1/2}``, without norm or parameters.
    """

    ista: ISTA
    mlp: MLP  # the one that is in use is there

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.config, self.kind = config, config.sparsification
        self.residual = config.ista_residual or self.entry.residual
        if self.entry.module is not None:
            self.norm = TokenLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            numbered = (layer_idx,) if issubclass(self.entry.module, ISTA) else ()
            self.add_module(self.kind, self.entry.build(config, *numbered))

    @property
    def entry(self) -> Operator:
        """What is known of the operator."""
        return operator_of("sparsification", self.kind)

    @property
    def operator(self) -> Any:
        """The module that makes the code, if there is one."""
        return getattr(self, self.kind, None)

    def forward(self, tokens: Tensor) -> Tensor:
        operator = self.operator
        if operator is None:
            return tokens
        out, code = operator(self.norm(tokens))
        record("sparse_codes", code)
        return tokens + out if self.residual else out


class CrateLayer(GradientCheckpointingLayer):
    """One step of optimising the sparse rate reduction: compress, then sparsify."""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.compress = Compression(config, layer_idx=layer_idx)
        self.sparsify = Sparsification(config, layer_idx)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        half = read_by(self.compress, "hidden_states", tokens, attention_mask, **kwargs)
        return read_by(self.sparsify, "compressed_states", half)


class CrateDecoderLayer(GradientCheckpointingLayer):
    """A :class:`CrateLayer` backwards: ``Y = D LN(Z)``, then ``Y - MSSA(LN(Y))``; neither with a residual around D.

    Layer l of a decoder is meant to invert layer L + 1 - l of the encoder, and Y corresponds to its ``Z^{l+1/2}``.
    [2311.13110; textbook, chapter 7]
    """

    def __init__(self, config):
        super().__init__()
        self.synthesize = Synthesis(config)
        self.expand = Compression(config, direction=-1)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        half = read_by(self.synthesize, "hidden_states", tokens)
        return read_by(self.expand, "compressed_states", half, attention_mask, **kwargs)


def compressions(model: nn.Module) -> list[Compression]:
    """The compression steps of a model, first layer first; an empty list where it is not a CRATE."""
    return [module for module in model.modules() if isinstance(module, Compression)]


def sparsifications(model: nn.Module) -> list[Sparsification]:
    """The sparsification steps of a model, first layer first; an empty list where it is not a CRATE."""
    return [module for module in model.modules() if isinstance(module, Sparsification)]


@torch.no_grad()
def release_constraints(model: nn.Module) -> None:
    """Put the orthonormal matrices in use in the place of the weights, and lift the constraints: nothing else changes.

    For what reads a weight itself: a file format without a QR factorisation (ONNX), a library that merges or quantises.
    """
    for module in model.modules():
        if isinstance(module, (Subspaces, ISTA, Synthesis)) and module.constraint != "none":
            module.release_constraint()
    configs: dict[int, Any] = {id(one.config): one.config for one in model.modules() if hasattr(one, "constraint")}
    for config in configs.values():
        if config.dictionary_constraint != "none" and config.ista_step == "bounded":
            config.ista_step = "fixed"  # as large as before, see ISTA.release_constraint
        config.subspace_constraint = config.dictionary_constraint = "none"


# --- The training loss's penalties ------------------------------------------------------------------------------


def orthogonality_loss(model: nn.Module, subspace_weight: float, dictionary_weight: float) -> Tensor:
    """Weighted sum over layers of ||U^T U - I||^2 (all subspaces jointly) and ||D D^T - I||^2, a decoder's included.

    D D^T because an overcomplete D can be a tight frame but cannot have orthonormal columns.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for module in model.modules():
        if subspace_weight and isinstance(module, Subspaces):
            total = total + subspace_weight * orthogonality_penalty(module.joined_weight())
        if dictionary_weight and isinstance(module, (ISTA, Synthesis)):
            total = total + dictionary_weight * orthogonality_penalty(module.dictionary.mT)
    return total
