"""A graph traced at one size serves all: torch.export with a dynamic batch, image size and length, and ONNX.

Nothing in the traced path may decide by a size: the graph would be tied to it.
"""

import importlib.util
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import opencrate as oc

from .wrapped import AUTOENCODERS, FORMS, IMAGES, SIZES, TEXTS, Logits, inputs_of, model_of

MASKED = set(AUTOENCODERS) - {"whole autoencoder"}
ENCODERS = {"backbone": oc.CrateBackbone, "encoder": oc.CrateModel}
CHANGES = {"num_hidden_layers": 1}
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Pooled(nn.Module):
    """An encoder's pooled token, or a backbone's last feature map."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        outputs = self.model(pixels)
        return outputs.feature_maps[-1] if hasattr(outputs, "feature_maps") else outputs.pooler_output


def model_to_export(name: str) -> nn.Module:
    if name not in ENCODERS:
        return model_of(name, **CHANGES)
    torch.manual_seed(0)
    return Pooled(ENCODERS[name](oc.CrateConfig(**{**SIZES, **IMAGES, **CHANGES, "pool": "mean"}))).eval()


def inputs_to_export(name: str, resized: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[dict, ...]]:
    """Inputs to trace with, inputs of another size, and which axes are free."""
    if name in TEXTS:
        return inputs_of(name), inputs_of(name, batch=3, tokens=12), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    if not resized:
        free = ({0: Dim.DYNAMIC},) * (1 + (name in MASKED))
        return inputs_of(name), inputs_of(name, batch=3), free
    free = ({0: Dim.DYNAMIC, 2: 4 * Dim("rows"), 3: 4 * Dim("columns")}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    # one visible patch would be a size of its own: a trace never frees an axis of length 1
    return inputs_of(name, size=(16, 16)), inputs_of(name, batch=3, size=(12, 16)), free[: 1 + (name in MASKED)]


def shapes_of(model: nn.Module, free: tuple[dict, ...]) -> tuple:
    return (free,) if isinstance(model, Logits) else free


QUICK = {
    "encoder",
    "complete",
    "alpha",
    "tied kappa",
    "joint tied",
    "attention",
    "mlp",
    "causal",
    "masked",
    "autoencoder",
    "relative bias",
    "gradient",
    "causal relative bias",
}
RESIZED = {"complete", "whole autoencoder"}
CASES = [(name, False) for name in (*ENCODERS, *FORMS)]
CASES += [(name, True) for name in (*ENCODERS, *FORMS) if name not in TEXTS]


@pytest.mark.parametrize(
    "name, resized",
    [pytest.param(*one, marks=() if one[0] in (RESIZED if one[1] else QUICK) else pytest.mark.slow) for one in CASES],
)
def test_exported_program_equals_the_model_at_another_size(name, resized):
    model, (inputs, other, free) = model_to_export(name), inputs_to_export(name, resized)
    with torch.no_grad():
        program = export(model, inputs, dynamic_shapes=shapes_of(model, free)).module()
        for given in (inputs, other):
            torch.testing.assert_close(program(*given), model(*given), rtol=1e-5, atol=1e-5)


def test_images_that_fit_no_model_are_refused_while_tracing():
    with pytest.raises(ValueError, match="1 channels, the model was made for 3"):
        export(model_to_export("encoder"), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARIES),
    reason=f"ONNX needs {', '.join(LIBRARIES)}, which the test environment leaves out (220 MB)",
)
@pytest.mark.parametrize("name, resized", [one for one in CASES if "gradient" not in one[0]])  # ONNX has no inverse
def test_onnx_equals_the_model_at_another_size(name, resized):
    model, (inputs, other, free) = model_to_export(name), inputs_to_export(name, resized)
    oc.blocks.release_constraints(model)  # ONNX has no QR factorisation
    with torch.no_grad():
        program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes_of(model, free))
        for given in (inputs, other):
            torch.testing.assert_close(program(*given)[0], model(*given), rtol=1e-5, atol=1e-5)


STEPS = {"ista_step": "bounded", "ista_step_size": 1.5}
RELEASED = [
    *((form, {}) for form in ("each", "joint", "joint tied", "complete")),
    ("joint", STEPS),
    ("symmetric", {"dictionary_constraint": "orthonormal"}),
    ("joint", {**STEPS, "learned_steps": "atom"}),
    ("gradient", {"subspace_constraint": "joint", "dictionary_constraint": "orthonormal"}),
    ("learned gradient", {"dictionary_constraint": "orthonormal"}),
]


@pytest.mark.parametrize("form, changes", RELEASED, ids=lambda one: str(one)[:40])
def test_constraints_released(form, changes, tmp_path):
    """The same model, whose weights are those that it used, also when it is saved."""
    model, inputs = model_of(form, **changes), inputs_of(form)
    with torch.no_grad():
        before = model(*inputs)
        bases = model.model.crate.layers[0].compress.operator.bases()
        oc.blocks.release_constraints(model)
        torch.testing.assert_close(model(*inputs), before, rtol=1e-5, atol=1e-5)
        model.model.save_pretrained(tmp_path)
        loaded = type(model.model).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(*inputs).logits, before, rtol=1e-5, atol=1e-5)
    config = model.model.config
    assert (config.subspace_constraint, config.dictionary_constraint) == ("none", "none")
    weight = model.model.crate.layers[0].compress.operator.subspaces.weight
    torch.testing.assert_close(weight, bases.movedim(0, 1).flatten(1).mT)


@pytest.mark.parametrize(
    "form", ["causal", *(pytest.param(one, marks=pytest.mark.slow) for one in ("complete", "mlp"))]
)
def test_graphs_of_other_kinds(form):
    """torch.jit.trace, and torch.compile in one graph in bfloat16, where the attention's backend is chosen."""
    model, inputs, other = model_of(form, **CHANGES), inputs_of(form), inputs_of(form, batch=3)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", (torch.jit.TracerWarning, DeprecationWarning))
        traced = torch.jit.trace(model, inputs, check_trace=False)
        for given in (inputs, other):
            torch.testing.assert_close(traced(*given), model(*given), rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            for given in (inputs, other):
                torch.testing.assert_close(compiled(*given), model(*given), rtol=0.05, atol=0.05)
