"""Recorded states are those the model goes on with, whatever hooks it has and whenever they were set.

Each module between two states is given a hook that changes what it reads or returns, before the first recording or
after it. The states must then be those that a model computes by hand from the changed ones.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from .wrapped import exchange, inputs_of, model_of

STATES = ("hidden_states", "compressed_states", "projected_states", "sparse_codes", "attentions")
QUICK = ("complete", "mlp", "autoencoder", "masked")
SLOW = ("alpha", "overcomplete", "tied kappa", "joint tied", "attention", "causal")
every_form = pytest.mark.parametrize("form", [*QUICK, *(pytest.param(form, marks=pytest.mark.slow) for form in SLOW)])


def states_of(model: nn.Module, form: str) -> dict[str, tuple[Tensor, ...]]:
    inputs = inputs_of(form, batch=2)
    asked = {f"output_{name}": True for name in STATES}
    with torch.no_grad():
        outputs = model.model(*inputs, **asked)
    return {name: outputs[name] for name in outputs if any(name.endswith(state) for state in STATES)} | {
        "logits": (outputs.logits,)
    }


def places(model: nn.Module) -> list[str]:
    """Every module of the second layer of each stack, and what is around the layers."""
    inside = ("layers.1", "embeddings", "norm", "classifier", "lm_head", "predict")
    return [
        name for name, _ in model.named_modules() if name.startswith("model.") and any(part in name for part in inside)
    ]


def doubled(output):
    """Changed, whatever it is."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return 2 * output + 0.1
    if isinstance(output, tuple):
        return tuple(doubled(one) for one in output)
    return output


def set_hook(module: nn.Module, kind: str) -> None:
    if kind == "output":
        module.register_forward_hook(lambda _, args, output: doubled(output))
    else:
        module.register_forward_pre_hook(lambda _, args: (doubled(args[0]), *args[1:]))


def agree(first: dict, second: dict, name: str) -> None:
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(
            first[key], second[key], rtol=0, atol=0, msg=lambda text, key=key: f"{name}, {key}: {text}"
        )


@pytest.mark.parametrize("kind", ["output", "input"])
@every_form
def test_order_of_hook_and_recording_does_not_matter(form, kind):
    plain = model_of(form)
    before = states_of(plain, form)
    for name in places(plain):
        first, then = model_of(form), copy.deepcopy(plain)  # of which the second has been recorded already
        for model in (first, then):
            set_hook(model.get_submodule(name), kind)
        found = states_of(first, form)
        agree(found, states_of(then, form), name)
        ids = kind == "input" and isinstance(plain.get_submodule(name), nn.Embedding)  # which the hook leaves alone
        assert torch.equal(found["logits"][0], before["logits"][0]) == ids, name


def layers_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    decoder = [(layer, "decoder_") for layer in model.model.decoder.layers] if hasattr(model.model, "decoder") else []
    return [(layer, "") for layer in model.model.crate.layers] + decoder


def flow(model: nn.Module, form: str) -> dict[str, list[Tensor]]:
    """What the modules between the states really read, by hooks of the test's own, set last of all."""
    seen: dict[str, list[Tensor]] = {}
    handles = []

    def read(module: nn.Module, key: str) -> None:
        def hook(_, args):
            seen.setdefault(key, []).append(args[0])

        handles.append(module.register_forward_pre_hook(hook))

    for layer, prefix in layers_of(model):
        if prefix:
            read(layer.synthesize, "decoder_hidden_states")
            read(layer.expand, "decoder_compressed_states")
        else:
            read(layer.compress, "hidden_states")
            read(layer.sparsify, "compressed_states")
            if hasattr(layer.sparsify, "mlp"):
                read(layer.sparsify.mlp.down, "sparse_codes")
    with torch.no_grad():
        model(*inputs_of(form, batch=2))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["output", "input"])
@every_form
def test_recorded_is_what_the_next_module_reads(form, kind):
    plain = model_of(form)
    states_of(plain, form)
    for name in places(plain):
        model = copy.deepcopy(plain)
        set_hook(model.get_submodule(name), kind)
        found, read = states_of(model, form), flow(model, form)
        for key, tensors in read.items():
            recorded = found[key][: len(tensors)]
            torch.testing.assert_close(
                recorded, tuple(tensors), rtol=0, atol=0, msg=lambda text, name=name, key=key: f"{name}, {key}: {text}"
            )


class Doubled(nn.Module):
    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, *args, **kwargs):
        return doubled(self.base(*args, **kwargs))


@every_form
def test_modules_wrapped_after_a_recording(form):
    plain = model_of(form)
    states_of(plain, form)
    for name in ("compress", "compress.norm", "sparsify", "sparsify.norm", "sparsify.ista", "sparsify.mlp.down"):
        layer = "model.crate.layers.1"
        wrapped, hooked = copy.deepcopy(plain), copy.deepcopy(plain)
        if name not in dict(wrapped.get_submodule(layer).named_modules()):
            continue
        exchange(wrapped, f"{layer}.{name}", Doubled(wrapped.get_submodule(f"{layer}.{name}")))
        set_hook(hooked.get_submodule(f"{layer}.{name}"), "output")
        agree(states_of(wrapped, form), states_of(hooked, form), name)
