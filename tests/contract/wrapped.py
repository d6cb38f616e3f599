"""Every form of block in a small model, with its inputs, for the tests of what is done to a model from outside."""

from typing import Any

import torch
from torch import Tensor, nn

import opencrate as oc

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer": "normal"}
IMAGES = {"image_size": 8, "patch_size": 4}
TEXT = {"vocab_size": 30, "max_position_embeddings": 24}
OVERCOMPLETE = {"dictionary_expansion": 2, "dictionary_decode": "tied", "ista_num_steps": 2}
ALPHA = {"dictionary_expansion": 2, "dictionary_decode": "untied", "ista_num_steps": 2, "ista_residual": True}
GRADIENT = {"compression": "gradient", "ista_step": "bounded", "ista_step_size": 1.0}
SYMMETRIC = {"compression": "symmetric", "position": "absolute+both"}

BLOCKS: dict[str, dict[str, Any]] = {
    "complete": {},
    "soft threshold": {"ista_threshold": "soft"},
    "alpha": {**ALPHA, "patch_embedding": "conv"},
    "overcomplete": OVERCOMPLETE,
    "kappa": {"compression_kappa": 0.5},
    "tied output": {"attention_output": "tied"},
    "tied kappa": {"attention_output": "tied", "compression_kappa": 1, "compression_eps": 1.0},
    "no output": {"attention_output": "none"},
    "each": {"subspace_constraint": "each", "dictionary_constraint": "orthonormal", "head_dim": 10},
    "joint": {"subspace_constraint": "joint", "dictionary_constraint": "orthonormal"},
    "joint tied": {"subspace_constraint": "joint", "attention_output": "tied"},
    "attention": {"compression": "attention"},
    "mlp": {"sparsification": "mlp"},
    "neither": {"sparsification": "none", "pool": "mean"},
    "relative bias": {"position": "relative_bias", "pool": "mean"},
    "rope": {"position": "absolute+rope", "learned_steps": "layer", "compression_kappa": 0.5},
    "tssa": {"compression": "tssa", "compression_options": {"projection_bias": True}, "pool": "mean"},
    "cbsa": {"compression": "cbsa", "compression_options": {"num_representatives": 4}, "pool": "mean"},
    "gradient": {**GRADIENT, "attention_output": "tied", "ista_start": "positive"},
    "symmetric": {**SYMMETRIC, "attention_output": "tied", "subspace_constraint": "joint"},
    "learned gradient": {**GRADIENT, "learned_steps": "atom", "subspace_constraint": "each"},
}
TEXTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "masked": {},
    "overcomplete causal": OVERCOMPLETE,
    "causal relative bias": {"position": "relative_bias"},
    "causal rope": {"position": "rope"},
    "causal gradient": {"compression": "gradient", "attention_output": "tied"},
    "causal tssa": {"compression": "tssa", "compression_options": {"position_bias": True}},
    "masked relative bias": {"position": "both"},
    "masked symmetric": {**SYMMETRIC, "attention_output": "tied", "subspace_constraint": "joint"},
    "masked cbsa": {"compression": "cbsa", "compression_options": {"num_representatives": 4}},
}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "tied autoencoder": {"tie_decoder": True},
    "whole autoencoder": {"mask_ratio": 0.0, "loss_on": "all"},
    "symmetric autoencoder": {**SYMMETRIC, "mask_tokens_in_encoder": False},
    "visible autoencoder": {"mask_tokens_in_encoder": False, "position": "both"},
}
VISIBLE = [form for form, changes in AUTOENCODERS.items() if not changes.get("mask_tokens_in_encoder", True)]
FORMS = (*BLOCKS, *AUTOENCODERS, *TEXTS)


class Logits(nn.Module):
    """A model by its logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs).logits


def model_of(form: str, seed: int = 0, **changes: Any) -> Logits:
    """In evaluation mode, weights moved off their trivial initial values."""
    torch.manual_seed(seed)
    if form in BLOCKS:
        model = oc.CrateForImageClassification(oc.CrateConfig(**{**SIZES, **IMAGES, **BLOCKS[form], **changes}))
    elif form in AUTOENCODERS:
        depth = changes.get("num_hidden_layers", SIZES["num_hidden_layers"])
        more = {"decoder_num_hidden_layers": depth, **AUTOENCODERS[form], **changes}
        model = oc.CrateMAEForPreTraining(oc.CrateMAEConfig(**{**SIZES, **IMAGES, **more}))
    else:
        kind = oc.CrateForMaskedLM if form.startswith("masked") else oc.CrateForCausalLM
        model = kind(oc.CrateTextConfig(**{**SIZES, **TEXT, "use_cache": False, **TEXTS[form], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Logits(model).eval()


def inputs_of(form: str, batch: int = 5, size: tuple[int, int] = (8, 8), tokens: int = 7) -> tuple[Tensor, ...]:
    """More than 16 tokens together, so that one matrix stands for the complete ISTA step where it is kept."""
    generator = torch.Generator().manual_seed(1)
    if form in TEXTS:
        return (torch.randint(0, 30, (batch, tokens), generator=generator),)
    pixels = torch.randn(batch, 3, *size, generator=generator)
    if form in AUTOENCODERS and form != "whole autoencoder":
        return pixels, torch.rand(batch, size[0] * size[1] // 16, generator=generator)
    return (pixels,)


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that a library for adapters, pruning or quantisation may change, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


def exchange(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
