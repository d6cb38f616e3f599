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
from .rate_gradient import whitened

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
        start = self.Z - heads.transpose(-3, -2).flatten(-2) @ self.U.mT / squared_norm_bound(self.U)
        ends = self._heads(start), self._heads(self.proposed)
        with torch.no_grad():
            t = self._search(start, *ends, limit)[:, None, None]
        if torch.is_grad_enabled():
            t = t - self._implicit(t, _form(V, self.g * heads), start, *ends)
        return self._at_length(torch.lerp(start, self.proposed, t))

    def _search(self, start: Tensor, A: Tensor, W: Tensor, limit: Tensor) -> Tensor:
        """t ``(B)``; A and W are the heads of both ends."""
        mixed = self._moments(A, W)
        moments = torch.stack((self._moments(A), mixed + mixed.mT, self._moments(W)), dim=1)
        squares = torch.stack(
            (self._squares(start), 2 * self._squares(start, self.proposed), self._squares(self.proposed)), dim=1
        )
        length = self._squares(self.Z)

        def excess(t: Tensor) -> Tensor:
            weights = torch.stack(((1 - t).square(), t * (1 - t), t.square()), dim=1)
            ratio = length / (weights * squares).sum(1).clamp(min=_tiny(length))
            scaled = (ratio[:, None] * weights).to(moments.dtype)
            return _rate((scaled[:, None] @ moments.flatten(2)).reshape(moments[:, 0].shape)) - limit

        return _crossing(excess, limit).to(A.dtype)

    def _implicit(self, t: Tensor, before: Tensor, start: Tensor, A: Tensor, W: Tensor) -> Tensor:
        """0, with the gradient of -t: R^c(l(Y_t)) stays at its limit, a share of what `before` has the gradient of."""
        S, Y = torch.lerp(A, W, t[..., None]), torch.lerp(start, self.proposed, t)
        at_limit = self._at_length(S, Y)
        gradient = self.g * whitened(at_limit.detach(), self.g)
        with torch.no_grad():
            along = W - A - S * (self._squares(Y, self.proposed - start) / self._squares(Y))[:, None, None, None]
            slope = _form(self._at_length(along, Y), gradient)
            inside = (t.flatten() > 0) & (slope > 0)
        value = (_form(at_limit, gradient) - _share() * before) / torch.where(inside, slope, 1)
        return torch.where(inside, value - value.detach(), 0)[:, None, None]

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

    def _at_length(self, X: Tensor, tokens: Tensor | None = None) -> Tensor:
        """X ``(B, ...)`` times ||Z||_F/||tokens||_F, by default of X itself; 0 where Z is 0."""
        own = self._length(X if tokens is None else tokens).clamp(min=_tiny(X) ** 0.5)
        return X * (self._length(self.Z) / own).reshape(-1, *[1] * (X.ndim - 1))

    def _length(self, tokens: Tensor) -> Tensor:
        """``||tokens||_F (B)``, whose gradient at 0 is 0."""
        return torch.linalg.vector_norm(tokens if self.kept is None else tokens * self.kept, dim=(-1, -2))


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
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return torch.linalg.cholesky_ex(moments + eye)[0].diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))


def _form(V: Tensor, gradient: Tensor) -> Tensor:
    """``<gradient, V> (B)``, which has this gradient in V."""
    return (gradient.detach() * V).sum((-1, -2, -3))


def _share() -> float:
    return 1 - ROUNDING * torch.finfo(torch.float32).eps


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
