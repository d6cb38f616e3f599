"""Matrix products in float32 by the library that is faster on this CPU: PyTorch's default one, or oneDNN.

Both are exact to float32's rounding: oneDNN is called for itself, so that ``set_float32_matmul_precision`` keeps its
meaning. On some processors it is twice as fast for large matrices, on others slower for small ones: measurement
decides (:mod:`opencrate.calibration`). In every other type, under autocast and on accelerators these are PyTorch's own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .calibration import choose, plain_work
from .linear_maps import has_plain_weight

ERROR = 2e-6
"""Largest relative rms error of a float32 product against float64; TF32 has 3e-4."""

FEW_ROWS, SAMPLE = 32, 4e8
"""Products of fewer rows are PyTorch's own. FLOPs of the product that is timed."""


def linear(X: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """``X W^T + bias``, as :func:`torch.nn.functional.linear`; ``X (..., n)``, ``W (m, n)`` -> ``(..., m)``."""
    if _by_onednn(X, W):
        return OneDNNLinear.apply(X, W, bias)  # pyright: ignore[reportReturnType]
    return F.linear(X, W, bias)


def plus_product(A: Tensor, X: Tensor, D: Tensor, alpha: float) -> Tensor:
    """``A + alpha X D``, as :func:`torch.addmm`; ``A`` a number or ``(N, m)``, ``X (N, n)``, ``D (n, m)``."""
    if _by_onednn(X, D.mT):
        return linear(X if alpha == 1 else alpha * X, D.mT) + A
    return torch.addmm(A, X, D, alpha=alpha)


def apply_linear(module: nn.Module, X: Tensor) -> Tensor:
    """``module(X)`` of a linear map, by :func:`linear` where it is that and nothing more."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if type(module) is nn.Linear and not hooked and has_plain_weight(module) and not _global_hooks():
        return linear(X, module.weight, module.bias)
    return module(X)


def _global_hooks() -> bool:
    """Whether something watches every module of the process."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def _by_onednn(X: Tensor, W: Tensor) -> bool:
    """Whether oneDNN is faster for such a product."""
    if X.dtype != torch.float32 or W.dtype != torch.float32 or not plain_work(X, W):
        return False
    rows, (outputs, inputs) = X.shape[:-1].numel(), W.shape
    if rows < FEW_ROWS or min(inputs, outputs) < 8 or torch.is_autocast_enabled("cpu") or not _has_onednn():
        return False
    columns = X.stride(-1) != 1  # the transposed product of a weight's gradient
    sizes = [2 ** (size - 1).bit_length() for size in (rows, inputs, outputs)]
    work = "product, float32, {} x {} to {}{}".format(*sizes, ", by columns" if columns else "")

    def ways() -> dict[str, Callable[[], Tensor]]:
        return _ways(rows, inputs, outputs, columns)

    return choose(work, "default", ways, ERROR) == "onednn"


def _has_onednn() -> bool:
    """Whether this build has oneDNN, and the user has not switched it off."""
    library = torch.backends.mkldnn
    return library.is_available() and library.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _ways(rows: int, inputs: int, outputs: int, columns: bool) -> dict[str, Callable[[], Tensor]]:
    """For :func:`calibration.choose`: one product of these sizes, of fewer tokens where it would take long."""
    if columns:
        inputs = max(128, min(inputs, int(SAMPLE / (2 * rows * outputs))))
    else:
        rows = max(128, min(rows, int(SAMPLE / (2 * inputs * outputs))))
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(inputs, rows, generator=draw).mT if columns else torch.randn(rows, inputs, generator=draw)
    W = torch.randn(inputs, outputs, generator=draw).mT if columns else torch.randn(outputs, inputs, generator=draw)
    return {
        "exact": lambda: X.double() @ W.double().mT,
        "default": lambda: F.linear(X, W),
        "onednn": lambda: _onednn(X, W, None),
    }


def _onednn(X: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """The product by oneDNN, which PyTorch offers to compiled graphs only."""
    return torch.ops.mkldnn._linear_pointwise(X, W, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """:func:`torch.nn.functional.linear` by oneDNN, differentiable any number of times."""

    @staticmethod
    def forward(ctx, X: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(X, W)
        return _onednn(X, W, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        X, W = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        wanted = ctx.needs_input_grad
        of_X = linear(gradient, W.mT) if wanted[0] else None
        of_W = linear(rows.mT, X.flatten(0, -2).mT) if wanted[1] else None
        return of_X, of_W, rows.sum(0) if wanted[2] else None
