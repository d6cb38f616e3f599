"""The states that the analysis reads from text models: their own half-steps and subspaces."""

import pytest
import torch
from torch.testing import assert_close

from opencrate import CrateForCausalLM, CrateForMaskedLM, CrateForSequenceClassification, analyze, coding_rate
from opencrate.analysis.record.states import LEARNED, record
from tests.contract.text import FORMS, ids_of, text_model


@pytest.mark.parametrize("cls", [CrateForCausalLM, CrateForMaskedLM, CrateForSequenceClassification])
@pytest.mark.parametrize("variant", FORMS)
def test_states_are_the_models(variant, cls):
    model = text_model(variant, cls)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"input_ids": ids_of(3, 6), "attention_mask": mask}
    (states,) = record(model, [batch], attentions=True)
    assert (states.subspace_kind, states.num_inputs, len(states.layers)) == (LEARNED, 3, 2)
    assert torch.equal(states.mask, mask.bool())
    with torch.no_grad():
        for step, layer in zip(states.steps(), model.crate.layers):
            assert torch.equal(step.subspaces, layer.compress.mssa.bases())
            assert_close(step.projected, layer.compress.norm(step.before).unsqueeze(1) @ step.subspaces)
            assert_close(layer.sparsify(step.compressed), step.after)
            assert step.codes.shape == (3, 6, 16 if variant == "complete" else 64)
    has_classes = cls is CrateForSequenceClassification
    assert (states.logits is not None) == has_classes and states.attentions[0].shape == (3, 2, 6, 6)


@pytest.mark.parametrize("cls", [CrateForCausalLM, CrateForMaskedLM])
def test_analyze_takes_token_ids(cls):
    model = text_model("overcomplete", cls)
    ids = ids_of(6, 8)
    report = analyze(model, [ids[:4], ids[4:]], eps=0.5, initial="untrained")
    assert (report.inputs, report.model_type, report.subspace_kind) == ("texts", "crate_text", LEARNED)
    assert (report.measures.num_inputs, report.measures.num_layers) == (6, 2)
    (states,) = record(model, [ids])
    projected = torch.einsum("bnd,kdp->bknp", states.layers[0].compressed, states.layers[0].subspaces)
    expected = coding_rate(projected.double(), eps=0.5).sum(-1)
    assert_close(report.measures.values["subspace_rate"][:, 0], expected, rtol=1e-5, atol=1e-6)
