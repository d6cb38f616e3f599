"""The sparse rate reduction of a CRATE's own layers, as a term of its training loss. [after 2411.17182]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..blocks import compressions
from ..modeling_crate import CrateImageClassifierOutput
from ..objective import coding_rate, subspace_coding_rate
from ..recipe.schema import RegulariserRecipe

OUTPUTS = {"output_hidden_states": True, "output_compressed_states": True}
"""What the model's forward has to record."""


def check_regulariser(config: PretrainedConfig, regulariser: RegulariserRecipe) -> None:
    """Refuse, by `ValueError`, a regulariser of a model that is not a CRATE, or has no such layer."""
    if not regulariser.weight:
        return
    given = f"regulariser.weight={regulariser.weight}: the rates need"
    if config.model_type != "crate":
        raise ValueError(f"{given} the subspaces of a CRATE, and model.type is {config.model_type}; set it to 0")
    if config.operator("compression").subspaces is None:
        found = f"model.config.compression={config.compression!r}"
        raise ValueError(f"{given} subspaces, and {found} has none; set it to 0")
    total = config.num_hidden_layers
    chosen = regulariser.layers if isinstance(regulariser.layers, list) else []
    if any(layer > total for layer in chosen):
        raise ValueError(f"regulariser.layers={chosen}: the model has the layers 1 to {total}")


def regularised_layers(
    layers: Literal["all", "random"] | list[int], num_layers: int, seed: int, step: int
) -> list[int]:
    """The layers (from 1) that count in an optimizer step: all, those listed, or one drawn by (seed, step) alone."""
    if layers == "all":
        return list(range(1, num_layers + 1))
    if layers == "random":
        return [1 + int(np.random.default_rng([seed, step]).integers(num_layers))]
    return sorted(set(layers))


def negative_sparse_rate_reduction(
    half: Tensor, after: Tensor, bases: Tensor, parts: Sequence[str], lam: float, eps: float
) -> Tensor:
    """``R^c(Z^{l+1/2} | U) - R(Z^{l+1/2}) + lam ||Z^{l+1}||_1`` of one layer, per token: to be minimised.

    The objective of CRATE [2306.01129, Eq. 1] with the sign turned and the l1 norm, which has a gradient, in place of
    l0. States are taken raw, as in the reports; the division by N makes images of any size alike.

    Args:
        half: Z^{l+1/2} ``(B, N, d)``.
        after: Z^{l+1} ``(B, N, d)``.
        bases: U ``(K, d, p)``.
        parts: which of "subspace_rate", "rate" and "l1" to add up.
        lam: weight of the l1 norm.
        eps: quantisation error of the rates.

    Returns:
        ``(B)``, nats per token.
    """
    total = torch.zeros(len(half), device=half.device)
    if "subspace_rate" in parts:
        total = total + subspace_coding_rate(half, bases, eps)
    if "rate" in parts:
        total = total - coding_rate(half, eps)
    if "l1" in parts:
        total = total + lam * after.to(torch.promote_types(after.dtype, torch.float32)).abs().sum((-2, -1))
    return total / half.shape[1]


def regulariser_sum(
    model: PreTrainedModel, outputs: CrateImageClassifierOutput, regulariser: RegulariserRecipe, seed: int, step: int
) -> Tensor:
    """`negative_sparse_rate_reduction`, mean over the step's layers and summed over the images; a scalar.

    Gradients reach the model's bases as well as the states, which its forward recorded by `OUTPUTS`. The layers are
    drawn by the run's seed and the optimizer steps done.
    """
    halves, states = outputs.compressed_states, outputs.hidden_states
    assert halves is not None and states is not None
    steps = compressions(model)
    layers = regularised_layers(regulariser.layers, len(steps), seed, step)
    parts, lam, eps = regulariser.parts, regulariser.sparsity, regulariser.eps
    bases = {layer: steps[layer - 1].operator.bases() for layer in layers}
    values = [
        negative_sparse_rate_reduction(halves[layer - 1], states[layer], bases[layer], parts, lam, eps)
        for layer in layers
    ]
    return torch.stack(values).mean(0).sum()
