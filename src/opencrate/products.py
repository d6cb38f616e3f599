"""Matrix products by the way that is fastest on this CPU: PyTorch's own, oneDNN's, or in parts.

Large products in float32: PyTorch's default library or oneDNN. Both are exact to float32's rounding: oneDNN is called
for itself, so that ``set_float32_matmul_precision`` keeps its meaning. On some processors it is twice as fast for large
matrices, on others slower for small ones.

Few rows, as in generation: the library's product can leave threads idle; one product for each of 8 parts of the matrix
uses all of them.

Measurement decides (:mod:`opencrate.calibration`). Autocast and accelerators have PyTorch's own product.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._graph import autocasts
from .calibration import choose, plain_work
from .linear_maps import has_plain_weight

ERROR, HALF_ERROR = 2e-6, 2**-7
"""Largest relative rms error of a product against float64: in float32 (TF32 has 3e-4), and in bfloat16."""

_PLAIN = {"dtype": torch.float32, "device": "cpu"}
"""Of samples, whatever the caller has made the default."""

_TYPES = (torch.float32, torch.float64, torch.bfloat16)
FEW_ROWS, SMALL, SAMPLE = 16, 2**14, 4e8
"""Fewer rows may be multiplied in parts. Entries of a matrix, and FLOPs, below which nothing is chosen; FLOPs of the
product that is timed."""

PARTS, LARGE, WIDE = 8, 2**22, 512
"""Without a measurement, matrices of at least so many entries and columns are taken in parts."""

COLD = 48 << 20
"""Bytes of the matrices that a product of few rows is timed on: more than a cache holds, as the layers of a model."""


def linear(X: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """``X W^T + bias``, as :func:`torch.nn.functional.linear`; ``X (..., n)``, ``W (m, n)`` -> ``(..., m)``."""
    way = _way(X, W)
    if way == "onednn":
        return OneDNNLinear.apply(X, W, bias)  # pyright: ignore[reportReturnType]
    if way == "parts":
        product = in_parts(X.flatten(0, -2), W).reshape(*X.shape[:-1], -1)
        return product if bias is None else product + bias
    return F.linear(X, W, bias)


def plus_product(A: Tensor, X: Tensor, D: Tensor, alpha: float) -> Tensor:
    """``A + alpha X D``, as :func:`torch.addmm`; ``A`` a number or ``(N, m)``, ``X (N, n)``, ``D (n, m)``."""
    if _way(X, D.mT) == "default":
        return torch.addmm(A, X, D, alpha=alpha)
    return linear(X if alpha == 1 else alpha * X, D.mT) + A


def apply_linear(module: nn.Module, X: Tensor) -> Tensor:
    """``module(X)`` of a linear map, by :func:`linear` where it is that and nothing more."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if type(module) is nn.Linear and not hooked and has_plain_weight(module) and not _global_hooks():
        return linear(X, module.weight, module.bias)
    return module(X)


def _global_hooks() -> bool:
    """Whether something watches every module of the process."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def in_parts(X: Tensor, W: Tensor) -> Tensor:
    """``X W^T (rows, m)`` as 8 products at once, each with rows of memory; ``X (rows, n)``, ``W (m, n)``."""
    outputs, inputs = W.shape
    if W.stride(-1) != 1 and inputs % PARTS == 0:  # transposed: each has a part of the sum
        parts = X.unflatten(1, (PARTS, -1)).transpose(0, 1)
        return torch.bmm(parts, W.mT.unflatten(0, (PARTS, -1))).sum(0)
    whole = outputs // PARTS * PARTS  # each has a part of the result
    products = torch.bmm(W[:whole].unflatten(0, (PARTS, -1)), X.mT.expand(PARTS, -1, -1)).flatten(0, 1)
    if outputs > whole:
        products = torch.cat((products, W[whole:] @ X.mT))
    return products.mT


# --- The choice ---------------------------------------------------------------------------------------------------


def _way(X: Tensor, W: Tensor) -> str:
    """How to compute ``X W^T``: ``default``, ``onednn`` or ``parts``."""
    if X.dtype != W.dtype or X.dtype not in _TYPES or not plain_work(X, W):
        return "default"
    rows, (outputs, inputs) = X.shape[:-1].numel(), W.shape
    few = rows < FEW_ROWS
    refused = few and (rows == 0 or outputs < PARTS or torch.is_grad_enabled())
    if refused or autocasts("cpu"):
        return "default"
    half = X.dtype == torch.bfloat16
    rule = "parts" if few and outputs * inputs >= LARGE and inputs >= WIDE and not half else "default"
    small = outputs * inputs < SMALL if few else 2 * rows * outputs * inputs < 64 * SMALL
    if small or (not few and (X.dtype != torch.float32 or not _has_onednn())):
        return rule
    columns = (W if few else X).stride(-1) != 1  # of a transposed matrix; the product of a weight's gradient
    work = _words(X.dtype, rows, inputs, outputs, columns)

    def ways() -> dict[str, Callable[[], Tensor]]:
        return _few_rows(X.dtype, rows, inputs, outputs, columns) if few else _many_rows(rows, inputs, outputs, columns)

    return choose(work, rule, ways, HALF_ERROR if half else ERROR)


@cache
def _words(dtype: torch.dtype, rows: int, inputs: int, outputs: int, columns: bool) -> str:
    """The class of shapes of a product."""
    sizes = [2 ** (size - 1).bit_length() for size in (rows, inputs, outputs)]
    return "product, {}, {} x {} to {}{}".format(str(dtype)[6:], *sizes, ", by columns" if columns else "")


def _has_onednn() -> bool:
    """Whether this build has oneDNN, and the user has not switched it off."""
    library = torch.backends.mkldnn
    return library.is_available() and library.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _many_rows(rows: int, inputs: int, outputs: int, columns: bool) -> dict[str, Callable[[], Tensor]]:
    """For :func:`calibration.choose`: one product of these sizes, of fewer tokens where it would take long."""
    if columns:
        inputs = max(128, min(inputs, int(SAMPLE / (2 * rows * outputs))))
    else:
        rows = max(128, min(rows, int(SAMPLE / (2 * inputs * outputs))))
    draw = torch.Generator().manual_seed(0)
    X = (
        torch.randn(inputs, rows, generator=draw, **_PLAIN).mT
        if columns
        else torch.randn(rows, inputs, generator=draw, **_PLAIN)
    )
    W = (
        torch.randn(inputs, outputs, generator=draw, **_PLAIN).mT
        if columns
        else torch.randn(outputs, inputs, generator=draw, **_PLAIN)
    )
    return {
        "exact": lambda: X.double() @ W.double().mT,
        "default": lambda: F.linear(X, W),
        "onednn": lambda: _onednn(X, W, None),
    }


def _few_rows(dtype: torch.dtype, rows: int, inputs: int, outputs: int, columns: bool) -> dict[str, Callable]:
    """The same for a product of few rows with one matrix after the other."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(rows, inputs, generator=draw, **_PLAIN).to(dtype)
    first = torch.randn(min(outputs, 4096), inputs, generator=draw, **_PLAIN).to(dtype)
    first = first.repeat(-(-outputs // len(first)), 1)[:outputs]
    first = first.mT.contiguous().mT if columns else first
    matrices = [first] + [first.clone() for _ in range(COLD // (first.numel() * first.element_size()))]

    def with_each(multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        for W in matrices[1:]:
            multiply(X, W)
        return multiply(X, first)

    return {
        "exact": lambda: X.double() @ first.double().mT,
        "default": lambda: with_each(F.linear),
        "parts": lambda: with_each(in_parts),
    }


def _onednn(X: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """The product by oneDNN, which PyTorch offers to compiled graphs only."""
    bias = None if bias is None else bias.contiguous()  # it reads one after the other, whatever the strides say
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
