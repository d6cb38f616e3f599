"""Small models of every kind, shared by the contract tests."""

import torch
from torch import Tensor

from opencrate import CrateConfig, CrateForImageClassification

BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
VARIANTS = {
    "complete": {},
    "alpha": {
        "patch_embedding": "conv",
        "attention_output_bias": False,
        "ista_num_steps": 2,
        "ista_residual": True,
        "dictionary_expansion": 4,
        "dictionary_decode": "untied",
        "layer_norm_eps": 1e-6,
        "head_layer_norm_eps": 1e-5,
    },
    "tied overcomplete": {"dictionary_expansion": 2, "dictionary_decode": "tied", "ista_num_steps": 2},
    "soft threshold": {"ista_threshold": "soft"},
    "kappa": {"compression_kappa": 0.5},
    "tied output": {"attention_output": "tied", "compression_kappa": 1, "compression_eps": 1.0},
    "no output": {"attention_output": "none"},
    "each orthonormal": {"subspace_constraint": "each", "dictionary_constraint": "orthonormal", "head_dim": 10},
    "joint orthonormal": {"subspace_constraint": "joint", "dictionary_constraint": "orthonormal"},
    "conv embedding": {"patch_embedding": "conv"},
    "rectangular": {"image_size": [8, 12], "patch_size": (2, 4), "num_channels": 1, "head_dim": 5},
    "relative bias": {"position": "relative_bias", "pool": "mean"},
    "rope": {"position": "rope"},
    "absolute, bias and rope": {"position": "absolute+both", "rotary_base": 50, "pool": "mean"},
    "tssa": {"compression": "tssa", "compression_options": {"projection_bias": True}},
    "cbsa": {"compression": "cbsa", "compression_options": {"num_representatives": 4}, "position": "none"},
    "gradient": {
        "compression": "gradient",
        "attention_output": "tied",
        "ista_start": "positive",
        "ista_step": "bounded",
    },
    "symmetric": {
        **{"compression": "symmetric", "attention_output": "tied", "subspace_constraint": "joint"},
        **{"position": "absolute+both", "head_dim": 4, "ista_start": "positive", "ista_step": "bounded"},
    },
    "learned steps": {"learned_steps": "layer", "compression_kappa": 0.5},
    "learned atoms": {"learned_steps": "atom", "ista_step": "bounded", "ista_threshold": "soft"},
    "mean pool": {"pool": "mean", "attention_scale": 1, "initializer": "normal"},
}
STATES = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")
ALL_STATES = {f"output_{name}": True for name in STATES}


def config_of(variant: str = "complete", **changes) -> CrateConfig:
    return CrateConfig(**{**BASE, **VARIANTS[variant], **changes})


def model_of(variant: str = "complete", seed: int = 0, **changes) -> CrateForImageClassification:
    """A model in evaluation mode; norms, biases and penalties moved off their trivial initial values."""
    torch.manual_seed(seed)
    model = CrateForImageClassification(config_of(variant, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_of(model, batch: int = 2, size: tuple[int, int] | None = None, seed: int = 1) -> Tensor:
    config = model.config
    native = (config.image_size,) * 2 if isinstance(config.image_size, int) else tuple(config.image_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.num_channels, *(size or native), generator=generator).to(model.dtype)


def checkpoint_activations(model) -> None:
    """Turn activation checkpointing on, by the name that the installed transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def gradients_of(model, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(images, labels=torch.arange(len(images)) % 3).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
