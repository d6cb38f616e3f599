"""The textbook form of CRATE's layers, written from the formulas on the library's parameters, and timing helpers."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencrate.blocks import Compression, CrateDecoderLayer, CrateLayer
from opencrate.configuration_crate_blocks import CrateBlockConfig


def textbook_mssa(step: Compression, tokens: Tensor, config: CrateBlockConfig) -> Tensor:
    """MSSA(LN(Z)): one linear map for U, softmax attention as two batched products, a linear output map."""
    V = F.linear(step.norm(tokens), step.mssa.subspaces.weight)
    V = V.unflatten(-1, (config.num_attention_heads, config.head_dim)).transpose(1, 2)
    scores = V @ V.transpose(-1, -2) * config.head_dim**-0.5
    if getattr(config, "is_causal", False):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return step.mssa.output((torch.softmax(scores, dim=-1) @ V).transpose(1, 2).flatten(-2))


def textbook_ista(X: Tensor, ista: nn.Module, config: CrateBlockConfig) -> Tensor:
    """The step as products with D^T X and D^T D A, three for each, and the decode where there is one."""
    D, eta, lam = ista.dictionary, config.ista_step_size, config.ista_lambda
    A, steps = X, config.ista_num_steps
    if config.ista_start == "zero":
        A, steps = F.relu(eta * F.linear(X, D.T) - eta * lam), steps - 1
    for _ in range(steps):
        DtDA = F.linear(F.linear(A, D), D.T)
        DtX = F.linear(X, D.T)
        A = F.relu(A + eta * (DtX - DtDA) - eta * lam)
    if config.dictionary_decode == "none":
        return A
    return F.linear(A, D if config.dictionary_decode == "tied" else ista.decoder_dictionary)


class TextbookLayer(nn.Module):
    """A CRATE layer as the formulas read, on the parameters of a ``CrateLayer``; causal where the configuration is."""

    def __init__(self, layer: CrateLayer, config: CrateBlockConfig):
        super().__init__()
        self.layer, self.config = layer, config

    def forward(self, tokens: Tensor, *args, **kwargs) -> Tensor:
        config, sparsify = self.config, self.layer.sparsify
        half = tokens + textbook_mssa(self.layer.compress, tokens, config)
        out = textbook_ista(sparsify.norm(half), sparsify.ista, config)
        return half + out if config.ista_residual else out


class TextbookDecoderLayer(nn.Module):
    """A decoder layer as the formulas read, on the parameters of a ``CrateDecoderLayer``."""

    def __init__(self, layer: CrateDecoderLayer, config: CrateBlockConfig):
        super().__init__()
        self.layer, self.config = layer, config

    def forward(self, tokens: Tensor, *args, **kwargs) -> Tensor:
        synthesize = self.layer.synthesize
        estimate = F.linear(synthesize.norm(tokens), synthesize.dictionary)
        return estimate - textbook_mssa(self.layer.expand, estimate, self.config)


def gemm_rate(rows: int, width: int, dtype: torch.dtype, repeats: int) -> float:
    """Measured FLOP/s of a linear map of ``(rows, width)`` by ``(width, width)``, the model's main product."""
    a, b = torch.randn(rows, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    return 2 * rows * width**2 / statistics.median(times_of([lambda: F.linear(a, b)], repeats)[0])


def times_of(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Wall-clock seconds of each function, interleaved, after one warm-up call of each."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(repeats):
        for function, record in zip(functions, times):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return times
