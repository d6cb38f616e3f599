"""The published form: CRATE's layers computed as the published code computes them, on the library's parameters.

MSSA with a softmax of its own between two batched products; ISTA in three products, with D^T X and D^T D A. The
parameters are the library's, and so is the function: `check_same` compares the two before anything is timed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PUBLISHED = {
    "compression": ("mssa",),
    "sparsification": ("ista",),
    "position": ("absolute", "none"),
    "ista_step": ("fixed",),
    "learned_steps": ("none",),
    "attention_output": ("learned",),
}
"""Fields of the configuration, and the values that the published code knows."""


def published_mssa(step: Any, tokens: Tensor, config: Any) -> Tensor:
    """``MSSA(LN(Z))``: a linear map for U, softmax attention as two batched products, a linear output map.

    ``step`` is a `Compression`; ``tokens (B, N, d)`` -> ``(B, N, d)``. [2306.01129, Eq. 115]
    """
    V = F.linear(step.norm(tokens), step.mssa.subspaces.weight)
    V = V.unflatten(-1, (config.num_attention_heads, config.head_dim)).transpose(1, 2)
    scores = V @ V.transpose(-1, -2) * config.head_dim**-0.5
    if getattr(config, "is_causal", False):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return step.mssa.output((torch.softmax(scores, dim=-1) @ V).transpose(1, 2).flatten(-2))


def published_ista(X: Tensor, ista: Any, config: Any) -> Tensor:
    """The steps as products with D^T X and D^T D A, three for each, and the decode where there is one.

    ``X (B, N, d)`` -> ``(B, N, d)``, or the code where it is not decoded. [2306.01129, Eq. 17]
    """
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


class PublishedLayer(nn.Module):
    """A CRATE layer in the published form, on the parameters of a `CrateLayer`; causal where the configuration is."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        self.layer: Any = layer
        self.config = config

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, N, d)`` -> ``(B, N, d)``; masks and caches are not looked at."""
        config, sparsify = self.config, self.layer.sparsify
        half = tokens + published_mssa(self.layer.compress, tokens, config)
        out = published_ista(sparsify.norm(half), sparsify.ista, config)
        return half + out if config.ista_residual else out


class PublishedDecoderLayer(nn.Module):
    """An autoencoder's decoder layer in the published form, on the parameters of a `CrateDecoderLayer`."""

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        self.layer: Any = layer
        self.config = config

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, N, d)`` -> ``(B, N, d)``."""
        synthesize = self.layer.synthesize
        estimate = F.linear(synthesize.norm(tokens), synthesize.dictionary)
        return estimate - published_mssa(self.layer.expand, estimate, self.config)


def unpublished(config: Any) -> str:
    """The first field whose value the published code does not know, as ``name='value'``; empty where there is none."""
    given = {name: getattr(config, name, values[0]) for name, values in _PUBLISHED.items()}
    return next((f"{name}={value!r}" for name, value in given.items() if value not in _PUBLISHED[name]), "")


def published_form(model: Any) -> Any:
    """A model like this one, with the same parameters (shared, not copied), whose layers are in the published form.

    Raises:
        ValueError: the layers have what the published code does not have, whatever their weights are.
    """
    if new := unpublished(model.config):
        name = new.partition("=")[0]
        raise ValueError(
            f"against=published: there is no published form of {new}; leave 'published' out, or set "
            f"{name}={_PUBLISHED[name][0]}"
        )
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.crate = copy.copy(model.crate)
    twin.crate._modules = dict(model.crate._modules)
    twin.crate.layers = nn.ModuleList([PublishedLayer(layer, model.config) for layer in model.crate.layers])
    if hasattr(model, "decoder"):
        twin.decoder = copy.copy(model.decoder)
        twin.decoder._modules = dict(model.decoder._modules)
        config = model.decoder.config
        twin.decoder.layers = nn.ModuleList([PublishedDecoderLayer(layer, config) for layer in model.decoder.layers])
    return twin


def check_same(ours: Tensor, other: Tensor) -> None:
    """Refuse to compare the speed of two different functions: their outputs, in float32, must agree.

    Raises:
        ValueError: the largest difference is above 1e-4 of the largest value.
    """
    difference = ((ours - other).abs().max() / other.abs().max()).item()
    if not difference < 1e-4:
        raise ValueError(
            f"against=published: the published form differs from this configuration by {difference:.1e} of the largest "
            "output, so the two are not one function; leave it out, or take a size with MSSA, a learned output and ISTA"
        )
