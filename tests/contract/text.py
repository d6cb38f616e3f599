"""Small text models of every kind, shared by the contract tests."""

import torch
from torch import Tensor

from opencrate import CrateForCausalLM, CrateTextConfig

BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 24,
}
VARIANTS = {
    "complete": {},
    "overcomplete": {"dictionary_expansion": 4, "dictionary_decode": "tied", "ista_num_steps": 2, "final_norm": True},
    "alpha": {
        "dictionary_expansion": 4,
        "dictionary_decode": "untied",
        "ista_num_steps": 2,
        "ista_residual": True,
        "attention_output_bias": False,
        "final_norm": True,
    },
    "attention": {"compression": "attention", "sparsification": "mlp", "final_norm": True, "head_dim": 5},
    "relative bias": {"position": "relative_bias", "final_norm": True},
    "rope": {"position": "rope", "learned_steps": "layer", "ista_step": "bounded"},
    "attention, both": {"compression": "attention", "sparsification": "mlp", "position": "absolute+both"},
    "tssa": {"compression": "tssa", "compression_options": {"position_bias": True}, "position": "none"},
    "gradient": {"compression": "gradient", "attention_output": "tied", "learned_steps": "atom"},
}
FORMS = ("complete", "overcomplete", "alpha")
CACHED = (*FORMS, "attention", "relative bias", "rope", "attention, both")
"""Those that keep what they need of earlier tokens; the others read the whole text again."""


def text_config(variant: str = "complete", **changes) -> CrateTextConfig:
    return CrateTextConfig(**{**BASE, **VARIANTS[variant], **changes})


def text_model(variant: str = "complete", cls=CrateForCausalLM, seed: int = 0, dtype=torch.float32, **changes):
    """A model in evaluation mode, all parameters moved off their initial values, far enough to have opinions."""
    torch.manual_seed(seed)
    model = cls(text_config(variant, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def ids_of(*shape: int, seed: int = 1, vocab_size: int = 32) -> Tensor:
    return torch.randint(2, vocab_size, shape, generator=torch.Generator().manual_seed(seed))
