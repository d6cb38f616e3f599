"""Which parameters decay, and the optimizer that a recipe names."""

from __future__ import annotations

import re

import torch
from torch import nn

from ..recipe.schema import Recipe
from .muon import MuonAdamW

UNDECAYED_NAMES = frozenset(
    {
        *("cls_token", "mask_token", "distillation_token", "register_tokens", "position_embeddings", "pos_embed"),
        *("position_bias", "cls_position_bias", "temperature", "contraction_step", "broadcast_step"),
    }
)
"""Parameters of two or more dimensions that are tokens or positions, by the last part of their name."""

LION_BETAS = (0.9, 0.99)
"""Of the paper and of the published CRATE runs; `training.adam_beta1` and `adam_beta2` are Adam's alone."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels; not to biases, norms, tokens and positions."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED_NAMES


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of an optimizer, decayed and not; every trainable parameter stands in exactly one."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if decays(name, parameter)]
    plain = [parameter for name, parameter in trainable if not decays(name, parameter)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """`parameter_groups` with the matrices of the layers apart, marked `orthogonal`.

    A layer is a member of a ModuleList, so its parameters have a number in their names; patch embedding and head
    have none and stay with AdamW [K. Jordan et al. 2024].
    """
    numbered = {id(value) for name, value in model.named_parameters() if re.search(r"\.\d+\.", f".{name}")}
    decayed, plain = parameter_groups(model, weight_decay)
    orthogonal = [value.ndim == 2 and id(value) in numbered for value in decayed["params"]]
    inside = [value for value, chosen in zip(decayed["params"], orthogonal) if chosen]
    outside = [value for value, chosen in zip(decayed["params"], orthogonal) if not chosen]
    return [{**decayed, "params": inside, "orthogonal": True}, {**decayed, "params": outside}, plain]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer `optimiser.optim`, on `parameter_groups`.

    AdamW and Lion take weight decay times the learning rate from a weight before the step, SGD adds it to the
    gradient. Lion [arXiv 2302.06675, Alg. 2], with gradient g, momentum m (0 at the start) and decay w:

        theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + w theta);   m <- beta2 m + (1 - beta2) g

    Muon: see `MuonAdamW`.
    """
    training, name = recipe.training, recipe.optimiser.optim
    groups = parameter_groups(model, training.weight_decay)
    if name == "lion":
        from optimi import Lion

        return Lion(groups, lr=training.learning_rate, betas=LION_BETAS, decouple_lr=False)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate)
    betas = (training.adam_beta1, training.adam_beta2)
    if name == "muon":
        groups = muon_groups(model, training.weight_decay)
        return MuonAdamW(groups, lr=training.learning_rate, betas=betas, half=training.bf16 is True)
    fused = True if name == "adamw_torch_fused" else None
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=fused)
