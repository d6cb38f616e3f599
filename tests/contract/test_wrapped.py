"""What is done to a model's modules and weights from outside counts: adapters, hooks, pruning, quantisation, offload.

Each of them replaces, wraps or hooks a module, or exchanges a tensor, and relies on the module's own forward being all
that uses its weight.
"""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

import opencrate as oc

from .wrapped import BLOCKS, FORMS, VISIBLE, exchange, inputs_of, linear_maps, model_of

every_form = pytest.mark.parametrize("form", FORMS)


class Adapted(nn.Module):
    """``base(x) + up(down(x))`` with nothing of the base but its forward: what LoRA puts around a linear map."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        outputs, inputs = base.weight.shape[0], base.weight[0].numel()
        self.down = nn.Parameter(0.3 * torch.randn(2, inputs))
        self.up = nn.Parameter(0.3 * torch.randn(outputs, 2))

    @property
    def added(self) -> Tensor:
        return (self.up @ self.down).view_as(self.base.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.base, nn.Conv2d):
            return self.base(inputs) + nn.functional.conv2d(inputs, self.added, stride=self.base.stride)
        return self.base(inputs) + nn.functional.linear(inputs, self.added)


def set_weight(model: nn.Module, name: str, weight: Tensor) -> None:
    """Of this module alone, not of those that its weight was tied to."""
    model.get_submodule(name).weight = nn.Parameter(weight.detach().clone())


@every_form
def test_an_adapter_is_the_weight_it_adds(form):
    """Around each linear map: the logits are those of the model whose weight has it added; each of its weights learns."""
    plain, inputs = model_of(form), inputs_of(form)
    with torch.no_grad():
        before = plain(*inputs)
    for name in linear_maps(plain):
        adapted, merged = copy.deepcopy(plain), copy.deepcopy(plain)
        wrapper = Adapted(adapted.get_submodule(name))
        exchange(adapted, name, wrapper)
        with torch.no_grad():
            set_weight(merged, name, wrapper.base.weight + wrapper.added)
            expected = merged(*inputs)
        logits = adapted(*inputs)
        torch.testing.assert_close(
            logits, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert (logits - before).abs().max() > 1e-3, name
        logits.square().sum().backward()
        assert wrapper.up.grad.any() and wrapper.down.grad.any(), name


def test_bases_are_those_in_use():
    """Under an adapter too; the analysis reads them."""
    for form in BLOCKS:
        model = model_of(form).model
        layer = model.crate.layers[0].compress
        operator = layer.operator
        operator.subspaces = Adapted(operator.subspaces)
        with torch.no_grad():
            recorded = model.crate(inputs_of(form)[0], output_projected_states=True, output_hidden_states=True)
            expected = layer.norm(recorded.hidden_states[0]).unsqueeze(1) @ operator.bases()
            if hasattr(operator, "projection_bias"):
                expected = expected + operator.projection_bias.unflatten(0, (2, 1, 8))
        torch.testing.assert_close(recorded.projected_states[0], expected, rtol=1e-4, atol=1e-5)


@every_form
def test_functional_call_and_changes_in_place_reach_every_parameter(form):
    """One parameter after the other exchanged for a call, which leaves nothing behind, then changed in place."""
    model, inputs = model_of(form, num_hidden_layers=1), inputs_of(form)
    with torch.no_grad():
        previous = model(*inputs)
        for name, parameter in model.named_parameters():
            changed = parameter.roll(1) + 0.1
            called = functional_call(model, {name: changed}, inputs)
            assert torch.equal(model(*inputs), previous), name
            parameter.copy_(changed)
            new = model(*inputs)
            torch.testing.assert_close(called, new, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
            used = "mask_token" not in name or form != "whole autoencoder"
            assert ((new - previous).abs().max() > 0) == used, name
            previous = new


class Rolled(nn.Module):
    """A parametrization: the weight in use is another one than the parameter."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.roll(1) + 0.1


@pytest.mark.parametrize("form", [form for form in FORMS if form != "tied autoencoder"])
def test_parametrizations_reach_every_parameter(form):
    model, changed, inputs = model_of(form), model_of(form), inputs_of(form)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "token_embeddings" not in name:  # which the unembedding shares
                parameter.copy_(Rolled()(parameter))
                owner, _, own = name.rpartition(".")
                parametrize.register_parametrization(model.get_submodule(owner), own, Rolled())
        for _ in range(2):
            torch.testing.assert_close(model(*inputs), changed(*inputs), rtol=1e-4, atol=1e-4)


@every_form
def test_pruning_and_hooks_on_every_linear_map(form):
    plain, inputs = model_of(form), inputs_of(form)
    with torch.no_grad():
        before = plain(*inputs)
    for name in linear_maps(plain):
        pruned, hooked = copy.deepcopy(plain), copy.deepcopy(plain)
        module, expected = pruned.get_submodule(name), copy.deepcopy(plain)
        prune.l1_unstructured(module, "weight", 0.5)
        set_weight(expected, name, 1.5 * module.weight)
        module.weight_orig = nn.Parameter(1.5 * module.weight_orig.detach())  # as an optimizer step changes it
        with torch.no_grad():
            torch.testing.assert_close(pruned(*inputs), expected(*inputs), rtol=1e-4, atol=1e-4)
            hooked.get_submodule(name).register_forward_hook(lambda module, args, output: output.roll(1, -1))
            assert (hooked(*inputs) - before).abs().max() > 1e-3, name


@pytest.mark.parametrize("form", [form for form in FORMS if form not in VISIBLE])  # see `restore`
def test_offloaded_weights(form, tmp_path):
    """accelerate keeps the weights elsewhere and brings a module's in for its own forward alone."""
    model, inputs = model_of(form), inputs_of(form)
    with torch.no_grad():
        expected = model(*inputs)
        bases = [module.bases() for module in model.modules() if isinstance(module, oc.compression.Subspaces)]
    on_disk = copy.deepcopy(model)
    cpu_offload(model, execution_device="cpu")
    disk_offload(on_disk, str(tmp_path), execution_device="cpu")
    for offloaded in (model, on_disk):
        assert all(parameter.is_meta for parameter in offloaded.parameters())
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(offloaded(*inputs), expected, rtol=1e-5, atol=1e-5)
            found = [module.bases() for module in offloaded.modules() if isinstance(module, oc.compression.Subspaces)]
        torch.testing.assert_close(found, bases, rtol=0, atol=0)


class Rounded(nn.Module):
    """A linear map whose weight is there in eight bits only, as the libraries for quantisation leave it."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.scale = base.weight.detach().abs().max() / 127
        self.register_buffer("codes", (base.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = base.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.codes * self.scale, self.bias)


@every_form
def test_quantised_linear_maps(form):
    """All at once, in place of the modules; torch's own dynamic quantisation finds each of them too, by its type."""
    model, rounded, inputs = model_of(form), model_of(form), inputs_of(form)
    maps = {name: one for name, one in linear_maps(model).items() if isinstance(one, nn.Linear)}
    assert all(type(one) is nn.Linear for one in maps.values())
    with torch.no_grad():
        for name, module in maps.items():
            if not name.endswith("lm_head"):  # its weight is the token table's
                new = Rounded(module)
                exchange(rounded, name, new)
                module.weight.copy_(new.codes * new.scale)
        torch.testing.assert_close(rounded(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


# --- what is kept between calls ---------------------------------------------------------------------------------


def _fresh(ista: oc.sparsification.ISTA, tokens: Tensor) -> Tensor:
    """What the step gives now, without anything kept."""
    return copy.deepcopy(ista)(tokens)[0]


CHANGES = {
    "value": lambda ista: ista.dictionary.add_(0.01),
    "one entry": lambda ista: ista.dictionary[3, 2].add_(0.5),
    "data": lambda ista: setattr(ista.dictionary, "data", ista.dictionary.data + 0.1),
    "new parameter": lambda ista: setattr(ista, "dictionary", nn.Parameter(ista.dictionary.detach() + 0.1)),
    "loaded": lambda ista: ista.load_state_dict({"dictionary": ista.dictionary + 0.1}),
    "assigned": lambda ista: ista.load_state_dict({"dictionary": ista.dictionary + 0.1}, assign=True),
    "step size": lambda ista: setattr(ista.config, "ista_step_size", 0.3),
    "lambda": lambda ista: setattr(ista.config, "ista_lambda", 0.7),
    "steps": lambda ista: setattr(ista.config, "ista_num_steps", 2),
    "dtype": lambda ista: ista.double(),
    "pruned": lambda ista: prune.custom_from_mask(ista, "dictionary", torch.ones_like(ista.dictionary).tril()),
    "parametrized": lambda ista: parametrize.register_parametrization(ista, "dictionary", Rolled()),
}


@pytest.mark.parametrize("constraint", ["none", "orthonormal"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_kept_matrix_follows(change, constraint, mode):
    ista = model_of("complete", dictionary_constraint=constraint).model.crate.layers[0].sparsify.ista
    tokens = torch.randn(3, 9, 16)
    with mode():
        before = ista(tokens)[0]
        assert ista._kept._made
        CHANGES[change](ista)
        tokens = tokens.to(ista.dictionary.dtype)
        after = ista(tokens)[0]
        torch.testing.assert_close(after, _fresh(ista, tokens), rtol=0, atol=0)
        torch.testing.assert_close(ista(tokens)[0], after, rtol=0, atol=0)
    assert after.dtype != before.dtype or (after - before).abs().max() > 1e-4
    if mode is torch.no_grad:
        torch.testing.assert_close(ista(tokens)[0], after, rtol=1e-4, atol=1e-5)  # with gradients


def test_the_kept_matrix_in_autocast_in_copies_and_in_transforms():
    ista = model_of("complete").model.crate.layers[0].sparsify.ista
    tokens, D = torch.randn(3, 9, 16), ista.dictionary.detach().clone()
    with torch.no_grad():
        plain = ista(tokens)[0]
        kept = ista._kept._made[None]
        with torch.autocast("cpu", torch.bfloat16):
            half = ista(tokens)[0]
        assert half.dtype == torch.float32 and 0 < (half - plain).abs().max() < 0.01
        assert torch.equal(ista(tokens)[0], plain)
        assert ista._kept._made[None] is kept and len(ista._kept._made) == 2, "each is built once"
        for twin in (copy.deepcopy(ista), *_pickled(ista)):
            assert not twin._kept._made and torch.equal(twin(tokens)[0], plain)

        several = torch.stack((D, D + 0.1, 2 * D))  # one model per row
        each = torch.vmap(lambda one: functional_call(ista, {"dictionary": one}, (tokens,))[0])(several)
        one_by_one = [functional_call(ista, {"dictionary": one}, (tokens,))[0] for one in several]
        torch.testing.assert_close(each, torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
        _, slope = torch.func.jvp(
            lambda one: functional_call(ista, {"dictionary": one}, (tokens,))[0], (D,), (torch.ones_like(D),)
        )
        assert slope.abs().max() > 0


def _pickled(module: nn.Module) -> list[nn.Module]:
    return [pickle.loads(pickle.dumps(module))]
