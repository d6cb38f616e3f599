"""What is recorded of other transformers is what they go on with: hooks, and adapters, set before or after."""

from functools import partial

import pytest
import torch
from torch import nn

from opencrate.analysis.record.hooks import _descend, _first, _split_part, blocks_of, hooks_of
from opencrate.analysis.record.states import record

from .foreign_models import inputs_for, tiny

TYPES = ("vit", "dinov2", "dinov3_vit", "clip_vision_model", "bert", "distilbert", "gpt2", "qwen3")


def places(model: nn.Module) -> dict[str, nn.Module]:
    """In the second of three blocks, the modules at which states are read; and the block after it."""
    hooks = hooks_of(model)
    blocks = blocks_of(model, hooks)
    return {
        "block": blocks[1],
        "next block": blocks[2],
        "values": _descend(blocks[1], _split_part(hooks.value)[0], "value", "block"),
        "half-step": _descend(blocks[1], hooks.compressed, "compressed", "block"),
        "codes": _first(blocks[1], hooks.codes),
    }


def changed(output):
    return 1.5 * output + 0.1 if isinstance(output, torch.Tensor) else (1.5 * output[0] + 0.1, *output[1:])


def change(module: nn.Module, kind: str) -> None:
    if kind == "output":
        module.register_forward_hook(lambda _, args, output: changed(output))
    else:
        module.register_forward_pre_hook(
            lambda _, args, words: ((changed(args[0]), *args[1:]), words) if args else None, with_kwargs=True
        )


def keep(read: dict, name: str, _, args: tuple, words: dict) -> None:
    read[name] = args[0] if args else next(iter(words.values()))


def steps_of(model: nn.Module, model_type: str):
    (states,) = record(model, [inputs_for(model_type)])
    return states.layers


@pytest.mark.parametrize("kind", ["output", "input"])
@pytest.mark.parametrize("model_type", TYPES)
def test_order_of_hook_and_recording_does_not_matter(model_type, kind):
    for place in places(tiny(model_type)):
        first, then = tiny(model_type), tiny(model_type)
        plain = steps_of(then, model_type)
        for model in (first, then):
            change(places(model)[place], kind)
        found, read = steps_of(first, model_type), {}
        for name, module in places(then).items():  # set last of all, so that they see what the module really reads
            module.register_forward_pre_hook(partial(keep, read, name), with_kwargs=True)
        again = steps_of(then, model_type)
        for a, b in zip(found, again):
            for field in ("before", "projected", "compressed", "after", "codes"):
                assert torch.equal(getattr(a, field), getattr(b, field)), (place, field)
        step = again[1]
        for name, state in {"block": step.before, "half-step": step.compressed, "codes": step.codes}.items():
            assert torch.equal(read[name], state), (place, name)
        assert torch.equal(step.after, read["next block"]), place
        assert torch.equal(step.after, again[2].before)
        assert not torch.equal(again[2].after, plain[2].after), place


class Adapted(nn.Module):
    """What an adapter puts around a linear map, of either kind."""

    def __init__(self, base: nn.Module, width: int):
        super().__init__()
        self.base = base
        self.added = nn.Parameter(0.3 * torch.randn(width, width if base.bias is None else base.bias.numel()))

    weight = property(lambda self: self.base.weight)

    def forward(self, inputs):
        return self.base(inputs) + inputs @ self.added


@pytest.mark.parametrize("which", ["values", "keys"])
@pytest.mark.parametrize("model_type", ["vit", "bert", "gpt2"])
def test_projections_under_an_adapter(model_type, which):
    model = tiny(model_type)
    hooks = hooks_of(model)
    for block in blocks_of(model, hooks):
        name = _split_part(hooks.value if which == "values" else hooks.key)[0]
        parent, _, own = name.rpartition(".")
        setattr(block.get_submodule(parent), own, Adapted(block.get_submodule(name), 16))
    seen = []
    norm = blocks_of(model, hooks)[0].get_submodule(name)
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (states,) = record(model, [inputs_for(model_type)], layers=[1], subspaces=which)
    (step,) = states.layers
    torch.testing.assert_close(
        torch.einsum("bnd,kdp->bknp", seen[-1], step.subspaces), step.projected, rtol=1e-4, atol=1e-5
    )


class Peft(nn.Module):
    """What peft puts around a whole model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.base_model = model
        self.config = model.config

    def get_base_model(self) -> nn.Module:
        return self.base_model


@pytest.mark.parametrize("wrap", [Peft, nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_is_recorded_as_the_model_inside(wrap):
    model = tiny("vit")
    for one, other in zip(steps_of(model, "vit"), steps_of(wrap(model), "vit"), strict=True):
        assert torch.equal(one.after, other.after) and torch.equal(one.projected, other.projected)
