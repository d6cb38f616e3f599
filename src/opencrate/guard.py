"""A guard for the compression step: the tokens keep their length, and what would raise R^c is taken back.

Shapes: B batch, N tokens, d width, K subspaces of dimension p; U ``(d, K p)`` is [U_1 ... U_K], of any columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._graph import in_full, traced
from .operators import squared_norm_bound
from .rate_gradient import plus_identity, positive_inverse, whitened

ROUNDING = 64
"""Spacings of float32, relative to R^c, by which R^c must fall at least: more than rounding moves it."""

LONGEST_SEARCH = 30
"""Steps of the line search at most; it ends as soon as all inputs are within rounding of the limit, after some five."""

SEARCH_IN_A_GRAPH = 12
"""Its steps where a graph is recorded, which has no early end."""


@dataclass
class GuardedStep:
    """A step from Z to the proposed tokens; ``taken`` of it is what lowers R^c at the length of Z.

    With ``l(Y) = ||Z||_F/||Y||_F Y``: l(proposed) where it lowers R^c, else ``l(Y_0 + t (proposed - Y_0))`` with the t
    in [0, 1] at which R^c no longer falls, from the gradient step ``Y_0 = Z - grad R^c/(gamma ||U||^2)`` on.

    Why R^c(l(Y_0)) <= R^c(Z): R^c is concave in Z^T Z, so its tangent bounds the change by ``gamma/2 (tr(Y M Y^T) -
    tr(Z M Z^T))``, ``M = sum_k U_k (I + gamma V_k^T V_k)^-1 U_k^T``. ``Y_0 = Z (I - M/||U||^2)`` shortens the
    eigenvectors of M the more, the larger their eigenvalues are, so that at equal length its form is no larger.

    Attributes:
        Z, proposed: ``(B, N, d)``, float32 or wider: before the step, and what a layer makes of it.
        U, K: bases, and their number.
        g: gamma, a number or ``(B, 1, 1, 1)``.
        kept: ``(B, N, 1)``, False for padding, which counts neither as length nor in R^c.
    """

    Z: Tensor
    proposed: Tensor
    U: Tensor
    K: int
    g: Any
    kept: Tensor | None = None

    def taken(self) -> Tensor:
        """Tokens ``(B, N, d)``. R^c is computed in float64; the gradient is exact, t's as an implicit function's."""
        with in_full(self.Z.device.type):
            whole = self._at_length(self.proposed)
            with torch.no_grad():
                limit = _share() * _rate(self._moments(self._heads(self.Z)))
                rises = _rate(self._moments(self._heads(whole))) > limit
            if traced():
                return torch.where(rises[:, None, None], self._part(limit), whole)
            if not rises.any():
                return whole
            chosen = rises.nonzero().squeeze(-1)
            return whole.index_copy(0, chosen, self._of(chosen)._part(limit[chosen]))

    def _of(self, chosen: Tensor) -> "GuardedStep":
        """Some inputs of the batch."""
        g, kept = (one[chosen] if isinstance(one, Tensor) else one for one in (self.g, self.kept))
        return GuardedStep(self.Z[chosen], self.proposed[chosen], self.U, self.K, g, kept)

    def _part(self, limit: Tensor) -> Tensor:
        """``l(Y_0 + t (proposed - Y_0))``."""
        V = self._heads(self.Z)
        heads = whitened(V, self.g)
        start = self.Z - heads.transpose(-3, -2).flatten(-2) @ (self.U.mT / squared_norm_bound(self.U))
        with torch.no_grad():
            line = self._line_from(start)
            t = _crossing(lambda t: line.rate(t) - limit, limit)
        part = t.to(start.dtype)[:, None, None]
        tokens = torch.lerp(start, self.proposed, part)
        if torch.is_grad_enabled():
            change = self._rate_change(line, t, tokens, _form(V, self.g * heads))
            tokens = torch.lerp(start, self.proposed, part - change.to(part.dtype)[:, None, None])
        return self._at_length(tokens)

    def _line_from(self, start: Tensor) -> "_Line":
        """What R^c along it needs."""
        A, W = self._heads(start), self._heads(self.proposed)
        mixed = self._moments(A, W)
        moments = torch.stack((self._moments(A), mixed + mixed.mT, self._moments(W)), dim=1)
        squares = (self._squares(start), 2 * self._squares(start, self.proposed), self._squares(self.proposed))
        return _Line(moments, torch.stack(squares, dim=1), self._squares(self.Z))

    def _rate_change(self, line: "_Line", t: Tensor, tokens: Tensor, before: Tensor) -> Tensor:
        """0, with the gradient of -t: R^c(l(Y_t)) stays at its limit, a share of what `before` has the gradient of."""
        with torch.no_grad():
            gradient = positive_inverse(plus_identity(line.moments_at(t))) / 2
            slope = line.slope(t, gradient)
            inside = (t > 0) & (slope > 0)
        ratio = self._squares(self.Z) / self._squares(tokens).clamp(min=_tiny(tokens))
        at_limit = ratio * (gradient * self._moments(self._heads(tokens))).sum((-1, -2, -3))
        value = (at_limit - _share() * before) / torch.where(inside, slope, 1)
        return torch.where(inside, value - value.detach(), 0)

    def _heads(self, tokens: Tensor) -> Tensor:
        """``(B, N, d)`` -> ``(B, K, N, p)``, 0 for padding."""
        counted = tokens if self.kept is None else tokens * self.kept
        return (counted @ self.U).unflatten(-1, (self.K, -1)).transpose(-3, -2).contiguous()

    def _moments(self, V: Tensor, W: Tensor | None = None) -> Tensor:
        """``gamma V^T W (B, K, p, p)``, float64 where the device has it."""
        exact = torch.float32 if V.device.type == "mps" else torch.float64
        V = V.to(exact)
        return self.g * (V.mT @ (V if W is None else W.to(exact)))

    def _squares(self, tokens: Tensor, others: Tensor | None = None) -> Tensor:
        """``<tokens, others>_F (B)``; of one, the square of its length."""
        products = tokens * (tokens if others is None else others)
        return (products if self.kept is None else products * self.kept).sum((-1, -2))

    def _at_length(self, tokens: Tensor) -> Tensor:
        """l(tokens), of the length of Z; 0 where Z is 0."""
        own = self._length(tokens).clamp(min=_tiny(tokens) ** 0.5)
        return tokens * (self._length(self.Z) / own)[:, None, None]

    def _length(self, tokens: Tensor) -> Tensor:
        """``||tokens||_F (B)``, whose gradient at 0 is 0."""
        return torch.linalg.vector_norm(tokens if self.kept is None else tokens * self.kept, dim=(-1, -2))


@dataclass
class _Line:
    """R^c of ``l(Y_0 + t (proposed - Y_0))`` as a function of t ``(B)``.

    Attributes:
        moments: ``(B, 3, K, p, p)``, gamma V^T V of Y_0, of it and the proposed tokens (both orders), of these.
        squares: ``(B, 3)``, squared lengths likewise.
        length: ``(B)``, the squared length of all tokens of the line.
    """

    moments: Tensor
    squares: Tensor
    length: Tensor

    def rate(self, t: Tensor) -> Tensor:
        """R^c ``(B)``."""
        return _rate(self.moments_at(t))

    def moments_at(self, t: Tensor) -> Tensor:
        """``(B, K, p, p)``."""
        weights = _weights(t)
        return self._mixed(weights, self._squared_length(weights))

    def slope(self, t: Tensor, gradient: Tensor) -> Tensor:
        """dR^c/dt ``(B)``, given R^c's gradient in the moments ``(B, K, p, p)``."""
        weights, change = _weights(t), torch.stack((2 * t - 2, 1 - 2 * t, 2 * t), dim=1)
        own = self._squared_length(weights)
        change = change - ((change * self.squares).sum(1) / own)[:, None] * weights
        return (gradient * self._mixed(change, own)).sum((-1, -2, -3))

    def _squared_length(self, weights: Tensor) -> Tensor:
        """Before it is made that of all others."""
        return (weights * self.squares).sum(1).clamp(min=_tiny(self.squares))

    def _mixed(self, weights: Tensor, own: Tensor) -> Tensor:
        scaled = ((self.length / own)[:, None] * weights).to(self.moments.dtype)
        return (scaled[:, None] @ self.moments.flatten(2)).reshape(self.moments[:, 0].shape)


def _weights(t: Tensor) -> Tensor:
    """Of ``(1 - t) A + t W`` squared: of A A, of A W + W A, of W W ``(B, 3)``."""
    return torch.stack(((1 - t).square(), t * (1 - t), t.square()), dim=1)


def _crossing(excess: Callable[[Tensor], Tensor], limit: Tensor) -> Tensor:
    """The t in [0, 1] up to which the excess stays below 0, 0 where it starts above: regula falsi (Illinois)."""
    low, high = torch.zeros_like(limit), torch.ones_like(limit)
    of_low, of_high = excess(low), excess(high)
    none, reached, last = of_low > 0, of_low, torch.zeros_like(limit)
    near = 2 * ROUNDING * torch.finfo(torch.float32).eps * limit
    for _ in range(SEARCH_IN_A_GRAPH if traced() else LONGEST_SEARCH):
        done = none | (reached > -near)  # these stay where they are, whatever the others of the batch need
        if not traced() and bool(done.all()):
            break
        t = low - of_low * (high - low) / (of_high - of_low)
        t = torch.where(done, low, torch.where((low < t) & (t < high), t, (low + high) / 2))
        value = excess(t)
        below = value <= 0
        kept_twice = last == torch.where(below, 1, -1)  # the other end, whose value then counts half
        reached = torch.where(below, value, reached)
        low, of_low = torch.where(below, t, low), torch.where(below, value, of_low / torch.where(kept_twice, 2, 1))
        high, of_high = torch.where(below, high, t), torch.where(below, of_high / torch.where(kept_twice, 2, 1), value)
        last = torch.where(below, 1.0, -1.0).to(limit)
    return torch.where(none, 0, low)


def _rate(moments: Tensor) -> Tensor:
    """``sum_k 1/2 logdet(I + C_k) (B)`` of C ``(B, K, p, p)``."""
    return torch.linalg.cholesky_ex(plus_identity(moments))[0].diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))


def _form(V: Tensor, gradient: Tensor) -> Tensor:
    """``<gradient, V> (B)``, which has this gradient in V."""
    return (gradient.detach() * V).sum((-1, -2, -3))


def _share() -> float:
    return 1 - ROUNDING * torch.finfo(torch.float32).eps


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
