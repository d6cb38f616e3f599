"""What is timed: the task, the model's size, the batch; and one case of it: form, data type, mode."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

TASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {"against": ("published", "vit"), "modes": ("forward", "step", "layers")},
    "mae": {"against": ("published", "vitmae", "visible"), "modes": ("forward", "step", "layers")},
    "text": {"against": ("published", "gpt2"), "modes": ("forward", "step", "layers")},
    "decode": {"against": ("gpt2", "equal", "narrow", "published"), "modes": ("generate",)},
}
"""Task -> the forms that ours can be set against, and the modes; the first two of each are the defaults."""

OURS = "ours"
NAMES = {
    OURS: "ours",
    "published": "published form",
    "vit": "ViT",
    "vitmae": "ViTMAE",
    "visible": "ours, encoder of visible tokens",
    "gpt2": "GPT-2",
    "equal": "ours at GPT-2's parameters",
    "narrow": "GPT-2 at our parameters",
}
"""Form -> its name in tables."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
DTYPES = ("float32", "bfloat16")
SIZES = {"image": "base", "mae": "base", "text": "gpt-base", "decode": "gpt-base"}
BATCHES = {"image": 8, "mae": 8, "text": 4, "decode": 1}
_TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_IMAGE = {**_TINY, "image_size": 16, "patch_size": 8}
SMOKE: dict[str, dict[str, Any]] = {
    "image": {**_TINY_IMAGE, "num_labels": 10},
    "mae": _TINY_IMAGE,
    "text": {**_TINY, "vocab_size": 64, "max_position_embeddings": 64},
    "decode": {**_TINY, "vocab_size": 64, "max_position_embeddings": 64},
}
"""Fields of the configuration for a run of seconds, by task."""


@dataclass(frozen=True)
class Settings:
    """What all forms of a run have in common; plain values, because other processes are told them as JSON.

    Args:
        task: a key of `TASKS`.
        size: a named size of the CRATE configuration (`opencrate.list_sizes()`).
        batch: images or sequences at once.
        config: fields of the configuration that are changed.
        block: tokens of a sequence (`text`).
        prompt, new: tokens of the prompt, and tokens generated after it (`decode`).
    """

    task: str
    size: str
    batch: int
    config: dict[str, Any] = field(default_factory=dict)
    block: int = 256
    prompt: int = 256
    new: int = 256

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def tiny(self) -> Settings:
        """The same task, done in milliseconds."""
        return replace(self, batch=2, config={**self.config, **SMOKE[self.task]}, block=16, prompt=8, new=4)


@dataclass(frozen=True)
class Case:
    """One function to time.

    Args:
        form: `"ours"` or what it is set against.
        mode: `forward` (without gradients), `step` (forward, backward and an SGD update), `layers` (forward and
            backward of the encoder's layers alone, on random tokens), `generate`.
        dtype: `float32`, or `bfloat16`: autocast; in `generate` weights of that type.
        compiled: a mode of `torch.compile`; `None` is eager.
    """

    form: str
    mode: str
    dtype: str = "float32"
    compiled: str | None = None
