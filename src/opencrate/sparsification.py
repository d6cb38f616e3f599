"""Sparsification operators: from tokens to a sparse code, and back to tokens. Formulas: see operators.py.

Shapes: B batch, N tokens, d width, m atoms.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import autocasts, traced
from ._hf import init
from .norms import TokenLayerNorm
from .operators import complete_ista_matrix, in_half, ista, ista_complete, orthonormalize, squared_norm_bound
from .products import linear
from .recording import read_by

FEW_TOKENS = 16
"""Below it, on a CPU, reading a matrix costs more than multiplying by it."""


def effective_dictionary(dictionary: Tensor, constraint: str) -> Tensor:
    """D ``(d, m)`` in use: the parameter, or its orthonormalisation under a constraint."""
    return dictionary if constraint == "none" else orthonormalize(dictionary.mT).mT


class KeptStepMatrix:
    """The matrix of a complete ISTA step, and a bound of ||D||^2, kept while the dictionary and the step size last.

    Comparing reads D once (d^2 numbers, against 2 d^3 FLOPs to rebuild): in full precision its product with a fixed
    random vector, which any change of D above rounding changes. So no way of changing the weights can leave a stale
    matrix behind. It keeps d^2 numbers per layer and type (28 MB for CRATE-base in float32), which copies and files do
    not take along.
    """

    def __init__(self):
        self._made: dict[Any, tuple[Tensor, tuple, Tensor]] = {}

    def __reduce__(self) -> tuple:
        return KeptStepMatrix, ()

    def of(self, D: Tensor, eta: float, half: torch.dtype | None) -> Tensor:
        """``(d, d)``, without the identity in a half type; its transpose is contiguous, as ``F.linear`` is fastest."""

        def make() -> Tensor:
            return complete_ista_matrix(D, eta, half is None).mT.contiguous().to(half or D.dtype)

        return self._kept_or_made(D, half, (eta, D.dtype), make).mT

    def bound(self, D: Tensor) -> Tensor:
        """:func:`squared_norm_bound`, which costs four products of d^3."""
        return self._kept_or_made(D, "bound", (D.dtype,), lambda: squared_norm_bound(D))

    def _kept_or_made(self, D: Tensor, name: Any, setting: tuple, make: Callable[[], Tensor]) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            mark = D @ _probe(D.shape[1], D.dtype) if D.dtype in (torch.float32, torch.float64) else D
            made = self._made.get(name)
            if made is None or made[1] != setting or not torch.equal(made[0], mark):
                self._made[name] = made = mark.detach().clone(), setting, make()
        return made[2]


@cache
def _probe(size: int, dtype: torch.dtype) -> Tensor:
    """A fixed random vector."""
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(0))


class ISTA(nn.Module):
    """T proximal steps of a LASSO over the dictionary D, then the chosen decode. [2306.01129, Eq. 17]"""

    def __init__(self, config, layer_idx: int = 0):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        shape = config.hidden_size, config.hidden_size * config.dictionary_expansion
        self.dictionary = nn.Parameter(torch.empty(shape))
        if config.dictionary_decode == "untied":
            self.decoder_dictionary = nn.Parameter(torch.empty(shape))
        # What the parameters are made for is read once; eta, lambda and T follow the configuration.
        self.constraint, self.decode = config.dictionary_constraint, config.dictionary_decode
        self.from_input, self.signed = config.ista_start == "input", config.ista_threshold == "soft"
        self.bounded = config.ista_step == "bounded"
        if config.learned_steps != "none":
            self.raw_step_size = nn.Parameter(torch.empty(1))
            self.log_lambda = nn.Parameter(torch.empty(shape[1] if config.learned_steps == "atom" else 1))
        self._kept = KeptStepMatrix()

    def dictionaries(self) -> list[nn.Parameter]:
        """D and, where there is one, the second dictionary."""
        return [self.dictionary, *([self.decoder_dictionary] if self.decode == "untied" else [])]

    @torch.no_grad()
    def reset_own(self) -> None:
        """Step size and sparsity weight as the configuration says, where they are learned."""
        if hasattr(self, "log_lambda"):
            c = self.config
            init.constant_(self.log_lambda, math.log(self._given_weight()))
            init.constant_(self.raw_step_size, _raw(c.ista_step_size, self.bounded))

    @torch.no_grad()
    def release_constraint(self) -> None:
        """Put the orthonormal D in the place of the parameter, and the step size that its norm of 1 allowed."""
        self.dictionary.copy_(self.effective_dictionary())
        if self.bounded and hasattr(self, "raw_step_size"):
            self.raw_step_size.copy_((2 * self.raw_step_size.sigmoid()).log())
        self.constraint, self.bounded = "none", False

    def step_size(self, D: Tensor) -> float | Tensor:
        """eta, or with a bounded step ``eta / b`` with ``b >= ||D||^2``; ``(1,)`` where weights decide."""
        eta: float | Tensor = self.config.ista_step_size
        if hasattr(self, "raw_step_size"):
            raw = self.raw_step_size.float()
            eta = 2 * raw.sigmoid() if self.bounded else raw.exp()
        if not self.bounded:
            return eta
        if self.constraint == "orthonormal":  # ||D|| = 1
            return eta
        bound = self._kept.bound(D) if self._keeps() else squared_norm_bound(D)
        return eta / bound.unsqueeze(0)

    def sparsity_weight(self) -> float | Tensor:
        """lambda: a number, ``(1,)`` or ``(m,)``."""
        return self.log_lambda.float().exp() if hasattr(self, "log_lambda") else self._given_weight()

    def _given_weight(self) -> float:
        """lambda of this layer, as the configuration says: on the line from the first layer's to the last one's."""
        c = self.config
        if c.ista_lambda_last is None or c.num_hidden_layers == 1:
            return c.ista_lambda
        return c.ista_lambda + self.layer_idx / (c.num_hidden_layers - 1) * (c.ista_lambda_last - c.ista_lambda)

    def start(self, tokens: Tensor) -> Tensor | None:
        """The code that the steps start from; ``None`` is zero."""
        if self.config.ista_start == "positive":
            return F.relu(tokens)
        return tokens if self.from_input else None

    def effective_dictionary(self) -> Tensor:
        """D ``(d, m)`` in use."""
        return effective_dictionary(self.dictionary, self.constraint)

    def directions(self) -> Tensor:
        """What one unit of each code adds to the output, ``(d, m)``."""
        if self.decode == "untied":
            return self.decoder_dictionary
        D = self.effective_dictionary()
        return D if self.decode == "tied" else torch.eye(D.shape[1], dtype=D.dtype, device=D.device)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, N, d)`` -> the output ``(B, N, d)`` and the sparse code ``(B, N, m)`` (the same when not decoded)."""
        D = self.effective_dictionary()
        code = self.encode(tokens, D)
        if self.decode == "none":
            return code, code
        return linear(code, D if self.decode == "tied" else self.decoder_dictionary), code

    def encode(self, tokens: Tensor, D: Tensor) -> Tensor:
        """The code ``(B, N, m)``: one affine product where that is the faster form, else T general steps."""
        steps, eta, lam = self.config.ista_num_steps, self.step_size(D), self.sparsity_weight()
        if self.from_input and steps == 1 and self._in_one_product(tokens):
            matrix = self._kept_matrix(tokens, D, float(eta)) if self._keeps() else None
            return ista_complete(tokens, D, eta, lam, self.signed, matrix)
        return ista(tokens, D, eta, lam, steps, self.start(tokens), self.signed)

    def _in_one_product(self, tokens: Tensor) -> bool:
        """Whether the matrix of the affine step ``(d, d)`` is worth it: it costs d^3, against d^2 for each token."""
        if traced():  # a graph serves any number of tokens: training has many
            return self.training
        return tokens.shape[:-1].numel() >= (FEW_TOKENS if self._keeps() else tokens.shape[-1])

    def _keeps(self) -> bool:
        """Whether the matrix is kept: in inference on a CPU (an accelerator multiplies faster than it compares).

        Not where the dictionary is another one each time: transformed, quantised or offloaded.
        """
        own = type(self.dictionary) is nn.Parameter and "forward" not in vars(self)
        return own and self.dictionary.device.type == "cpu" and not torch.is_grad_enabled() and not traced()

    def _kept_matrix(self, tokens: Tensor, D: Tensor, eta: float) -> Tensor:
        half = torch.get_autocast_dtype("cpu") if autocasts("cpu") else tokens.dtype
        return self._kept.of(D, eta, half if in_half(tokens) else None)


def _raw(step: float, bounded: bool) -> float:
    """What a learned step size is stored as: its logarithm, or the argument of the sigmoid that gives half of it."""
    return math.log(step / (2 - step)) if bounded else math.log(step)


class MLP(nn.Module):
    """The two-layer perceptron of ordinary transformers, for ablations; its hidden activations serve as the code."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.mlp_size)
        self.down = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        """``(B, N, d)`` -> the output ``(B, N, d)``; the hidden activations ``(B, N, m)`` are recorded as codes."""
        return read_by(self.down, "sparse_codes", F.gelu(self.up(tokens))), None


class Synthesis(nn.Module):
    """From codes back to tokens, the inverse of :class:`Sparsification` for an orthogonal D: ``LN(Z) D^T`` (rows)."""

    def __init__(self, config):
        super().__init__()
        self.config, self.constraint = config, config.dictionary_constraint
        self.norm = TokenLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dictionary = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))

    @torch.no_grad()
    def release_constraint(self) -> None:
        """Put the orthonormal D in the place of the parameter."""
        self.dictionary.copy_(effective_dictionary(self.dictionary, self.constraint))
        self.constraint = "none"

    def forward(self, tokens: Tensor) -> Tensor:
        return linear(self.norm(tokens), effective_dictionary(self.dictionary, self.constraint))
