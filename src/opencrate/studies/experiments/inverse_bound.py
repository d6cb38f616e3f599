"""A decoder layer matched to an encoder layer, and the bound on what it fails to undo (derived in docs/theory.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ...analysis.maths.inverse import Step
from ...operators import complete_ista_matrix, ista, mssa, project, shrink


@dataclass(frozen=True)
class MatchedLayer:
    """An encoder layer without LayerNorm and the decoder layer that is meant to undo it.

    f(Z) = ISTA(Z + M(Z)) with one step from its own input, g(A) = A Dᵀ − M(A Dᵀ); D `(d, d)`. M = MSSA with bases U
    `(K, d, p)` and its output tied to U, `factor` in front of it and `scale` inside its softmax.
    """

    bases: Tensor
    dictionary: Tensor
    eta: float
    lam: float
    signed: bool
    factor: float
    scale: float

    @cached_property
    def dictionary_norm(self) -> float:
        """‖D‖."""
        return torch.linalg.matrix_norm(self.dictionary, 2).item()

    @cached_property
    def bases_norm(self) -> float:
        """‖[U_1 … U_K]‖."""
        return torch.linalg.matrix_norm(self.bases.movedim(0, 1).flatten(1), 2).item()

    def attention(self, Z: Tensor) -> Tensor:
        """M(Z)."""
        return mssa(Z, self.bases, scale=self.scale, factor=self.factor)

    def compress(self, Z: Tensor) -> Tensor:
        """Z + M(Z)."""
        return Z + self.attention(Z)

    def encode(self, Z: Tensor) -> Tensor:
        """f(Z)."""
        X = self.compress(Z)
        return ista(X, self.dictionary, self.eta, self.lam, 1, X, self.signed)

    def decode(self, A: Tensor) -> Tensor:
        """g(A)."""
        Y = A @ self.dictionary.mT
        return Y - self.attention(Y)


def with_layer_norm(layer: MatchedLayer) -> tuple[Step, Step]:
    """The layers as CRATE has them, with a LayerNorm (without its affine part) before each step."""

    def norm(Z: Tensor) -> Tensor:
        return layer_norm(Z, Z.shape[-1:])

    def encode(Z: Tensor) -> Tensor:
        X = norm(Z + layer.attention(norm(Z)))
        return ista(X, layer.dictionary, layer.eta, layer.lam, 1, X, layer.signed)

    def decode(A: Tensor) -> Tensor:
        Y = norm(A) @ layer.dictionary.mT
        return Y - layer.attention(norm(Y))

    return encode, decode


def attention_lipschitz(radius: float, num_tokens: int, scale: float) -> float:
    """Lipschitz constant of V -> softmax(s V Vᵀ) V in the Frobenius norm where every token is at most `radius` long.

    √c + s r² (1 + √c) with c = min(N, exp(2 s r²)), the largest column sum that the softmax can have.
    """
    bend = scale * radius**2
    column = math.sqrt(min(num_tokens, math.exp(min(2 * bend, 700.0))))
    return column + bend * (1 + column)


def mssa_lipschitz(layer: MatchedLayer, *points: Tensor) -> float:
    """Lipschitz constant of M on the set spanned by the points `(N, d)`: β ‖[U]‖² times that of its heads."""
    radius = max(float(project(Z, layer.bases).norm(dim=-1).max()) for Z in points)
    return layer.factor * layer.bases_norm**2 * attention_lipschitz(radius, points[0].shape[-2], layer.scale)


def layer_bound(layer: MatchedLayer, Z: Tensor) -> float:
    """Upper bound of ‖g(f(Z)) − Z‖_F: (1 + ℓ) ‖D‖ (‖E‖ + ‖shrink(S, ηλ) − S‖) + ℓ ‖M(Z)‖.

    S is the exact code of X = Z + M(Z), E = X + η (X − X Dᵀ) D − S what one step leaves out, ℓ of
    :func:`mssa_lipschitz`. `D` must be invertible.
    """
    D, X = layer.dictionary, layer.compress(Z)
    S = torch.linalg.solve(D, X.mT).mT
    E = X @ complete_ista_matrix(D, layer.eta) - S
    bias = shrink(S, layer.eta * layer.lam, layer.signed) - S
    lipschitz = mssa_lipschitz(layer, Z, X, layer.encode(Z) @ D.mT)
    undone = layer.dictionary_norm * float(E.norm() + bias.norm())
    return (1 + lipschitz) * undone + lipschitz * float((X - Z).norm())


def network_bounds(
    layers: Sequence[MatchedLayer], Z: Tensor, depths: Sequence[int] | None = None
) -> tuple[list[float], list[float]]:
    """Bounds of `InverseErrors.per_layer` and `.network`, relative to ‖Z‖ as these are.

    The error of a layer passes through the decoders before it, each of which stretches it by at most
    ‖D‖ (1 + ℓ): Y_{ℓ−1} − Z_{ℓ−1} is at most ‖D_ℓ‖ (1 + ℓ_ℓ) ‖Y_ℓ − Z_ℓ‖ + layer_bound.
    """
    states = [Z]
    for layer in layers:
        states.append(layer.encode(states[-1]))
    own = [layer_bound(layer, state) for layer, state in zip(layers, states)]
    network = []
    for depth in depths or range(1, len(layers) + 1):
        back, total = states[depth], 0.0
        for number in reversed(range(depth)):
            layer = layers[number]
            D = layer.dictionary
            lipschitz = mssa_lipschitz(layer, back @ D.mT, states[number + 1] @ D.mT)
            total = layer.dictionary_norm * (1 + lipschitz) * total + own[number]
            back = layer.decode(back)
        network.append(total / float(Z.norm()))
    return [bound / max(float(state.norm()), 1e-300) for bound, state in zip(own, states)], network
