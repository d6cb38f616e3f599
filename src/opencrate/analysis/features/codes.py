"""Where a model's code is made and read: the directions that features write, and features set to a value.

A feature is one entry of a layer's code: of a CRATE what its ISTA step gives after the ReLU, of another model its MLP's
hidden activation. It adds its column of the decoding dictionary (of the MLP's second matrix) to the layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...blocks import sparsifications
from ..record import hooks as foreign

_NORMS = ("norm", "final_norm", "ln_f")


def codes_kind(model: nn.Module) -> str:
    """What the features of a model are, in words."""
    sparse = any(hasattr(step.operator, "directions") for step in sparsifications(model))
    return "sparse codes" if sparse else "MLP neurons"


def code_modules(model: nn.Module) -> list[Any]:
    """Per layer the module that makes the code, or of an MLP the linear map that reads it."""
    own = [step.operator for step in sparsifications(model) if step.operator is not None]
    for module in own:
        if not hasattr(module, "directions") and not hasattr(module, "down"):
            raise ValueError(
                f"{type(module).__name__}: has no `directions()`, (d, m), what one unit of each code adds; "
                "give the operator such a method"
            )
    if own:
        return [module if hasattr(module, "directions") else module.down for module in own]
    hooks = foreign.hooks_of(model)
    return [foreign.codes_reader(block, hooks) for block in foreign.blocks_of(model, hooks)]


def directions(model: nn.Module, layer: int, features: Tensor | None = None) -> Tensor:
    """What one unit of each feature of a layer (from 1) adds to its output, `(d, features)`; of all by default."""
    module = code_modules(model)[layer - 1]
    D = module.directions() if hasattr(module, "directions") else foreign.affine_in_use(module)[0].mT
    return (D if features is None else D[:, features]).detach()


def promoted_logits(model: PreTrainedModel, written: Tensor) -> Tensor:
    """What directions `(d, n)` do to the logits through the final norm and the unembedding alone: `(vocabulary, n)`.

    The norm is linear but for its division by the token's standard deviation, which is left out: `W (g (v - mean v))`,
    g the norm's weights. Later layers are passed over, so that this is exact for the last layer only, up to that
    factor. A model without an unembedding is a `ValueError`.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__}: has no unembedding")
    base = model.base_model
    norm = next((module for name in _NORMS if (module := getattr(base, name, None)) is not None), None)
    if isinstance(norm, nn.LayerNorm):
        written = written - written.mean(0)
    if norm is not None:
        written = norm.weight.detach()[:, None] * written
    return foreign.affine_in_use(head)[0].mT @ written


@contextmanager
def feature_set_to(model: nn.Module, layer: int, feature: int, value: float) -> Iterator[None]:
    """While inside, one feature (from 0) of a layer (from 1) has this value at every token."""
    modules = code_modules(model)
    if not 1 <= layer <= len(modules):
        raise ValueError(f"layer={layer}: the model has layers 1 to {len(modules)}")
    module, every = modules[layer - 1], directions(model, layer)
    if not 0 <= feature < every.shape[1]:
        raise ValueError(f"feature={feature}: layer {layer} has features 0 to {every.shape[1] - 1}")
    direction = every[:, feature]

    def changed(code: Tensor) -> Tensor:
        code = code.clone()
        code[..., feature] = value
        return code

    def change_output(_, arguments: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out, code = output
        return out + (value - code[..., feature : feature + 1]) * direction, changed(code)

    def change_input(_, arguments: tuple) -> tuple:
        return (changed(arguments[0]), *arguments[1:])

    makes = hasattr(module, "directions")
    handle = module.register_forward_hook(change_output) if makes else module.register_forward_pre_hook(change_input)
    try:
        yield
    finally:
        handle.remove()
