"""The matrix that the ISTA step keeps at inference is never stale; penalties and constraints on U and D hold."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from opencrate import CrateConfig, CrateForCausalLM, CrateForImageClassification, CrateMAEForPreTraining
from opencrate.blocks import orthogonality_loss, sparsifications

from .common import gradients_of, images_of, model_of

close = torch.testing.assert_close


# --- the kept inference matrix ------------------------------------------------------------------------------------


def fresh_logits(model, images: Tensor) -> Tensor:
    """Logits of a copy that has kept nothing."""
    other = CrateForImageClassification(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        return other(images).logits


@pytest.mark.parametrize("variant", ["complete", "soft threshold", "joint orthonormal"])
def test_the_kept_matrix_is_never_stale(variant):
    model = model_of(variant)
    images = images_of(model)

    def check() -> Tensor:
        with torch.no_grad():
            logits = model(images).logits
            assert torch.equal(logits, model(images).logits)
        assert torch.equal(logits, fresh_logits(model, images))
        close(logits, model(images).logits.detach())
        return logits

    seen = [check()]
    dictionary = model.crate.layers[0].sparsify.ista.dictionary
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients_of(model, images)
    optimizer.step()
    seen.append(check())
    dictionary.data[0, 0] += 1
    seen.append(check())
    with torch.no_grad():
        dictionary.add_(torch.eye(16))
    seen.append(check())
    model.load_state_dict(model_of(variant, seed=5).state_dict())
    seen.append(check())
    model.crate.layers[0].sparsify.ista.dictionary = torch.nn.Parameter(torch.randn(16, 16))
    seen.append(check())
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


def test_a_matrix_kept_in_inference_mode_does_not_spoil_what_follows():
    model = model_of()
    images = images_of(model)
    with torch.inference_mode():
        inferred = model(images).logits.clone()
    with torch.no_grad():
        assert torch.equal(model(images).logits, inferred)
    assert gradients_of(model, images).keys() == gradients_of(copy.deepcopy(model), images).keys()
    assert not any("built" in name for name in model.state_dict())
    with torch.no_grad():
        close(model.double()(images.double()).logits.float(), inferred)


# --- penalties and constraints --------------------------------------------------------------------------------------


def test_penalties_add_to_the_loss():
    model = model_of(subspace_penalty=0.5, dictionary_penalty=0.25)
    images, labels = images_of(model), torch.tensor([0, 1])
    outputs = model(images, labels=labels)
    penalty = torch.zeros(())
    for layer in model.crate.layers:
        U, D = layer.compress.mssa.subspaces.weight.T, layer.sparsify.ista.dictionary
        penalty += 0.5 * (U.T @ U - torch.eye(16)).square().sum() + 0.25 * (D @ D.T - torch.eye(16)).square().sum()
    close(outputs.loss - torch.nn.functional.cross_entropy(outputs.logits, labels), penalty, rtol=1e-5, atol=1e-5)
    close(orthogonality_loss(model, 0.5, 0.25), penalty)
    assert gradients_of(model, images)["crate.layers.0.sparsify.ista.dictionary"].isfinite().all()


@pytest.mark.parametrize("variant", ["each orthonormal", "joint orthonormal"])
def test_training_under_a_constraint_keeps_the_bases_orthonormal(variant):
    model = model_of(variant).train()
    images = images_of(model, batch=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    start = model.crate.layers[0].compress.mssa.bases().detach().clone()
    for _ in range(3):
        gradients_of(model, images)
        optimizer.step()
    for layer in model.crate.layers:
        U, D = layer.compress.mssa.bases(), layer.sparsify.ista.effective_dictionary()
        eye = torch.eye(U.shape[-1]).expand(U.shape[0], -1, -1)
        close(U.mT @ U, eye, rtol=0, atol=1e-5)
        close(D @ D.T, torch.eye(16), rtol=0, atol=1e-5)
        if variant == "joint orthonormal":
            joint = U.movedim(0, 1).flatten(1)
            close(joint.T @ joint, torch.eye(16), rtol=0, atol=1e-5)
    assert not torch.allclose(model.crate.layers[0].compress.mssa.bases(), start, atol=1e-3)


# --- lambda over the layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", ["none", "layer", "atom"])
@pytest.mark.parametrize("make", [CrateForImageClassification, CrateMAEForPreTraining, CrateForCausalLM])
def test_lambda_rises_on_a_line_from_layer_to_layer(make, learned, tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "learned_steps": learned}
    config = make.config_class(**size, ista_lambda=0.2, ista_lambda_last=1.0)
    model = make(config)
    model.save_pretrained(tmp_path)
    for one in (model, make.from_pretrained(tmp_path)):
        weights = [
            float(torch.as_tensor(step.operator.sparsity_weight()).detach().mean()) for step in sparsifications(one)
        ]
        assert weights[:3] == pytest.approx([0.2, 0.6, 1.0], rel=1e-6)


def test_lambda_of_the_last_layer_is_one_for_all_unless_given():
    one = CrateConfig.from_size("digits", num_hidden_layers=1, ista_lambda=0.3, ista_lambda_last=2.0)
    assert sparsifications(CrateForImageClassification(one))[0].ista.sparsity_weight() == 0.3
    plain = sparsifications(CrateForImageClassification(CrateConfig.from_size("digits")))
    assert [step.ista.sparsity_weight() for step in plain] == [0.1] * 6
    with pytest.raises(ValueError, match="ista_lambda_last"):
        CrateConfig.from_size("digits", ista_lambda_last=0.0, learned_steps="layer")
