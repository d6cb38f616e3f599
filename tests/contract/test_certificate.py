"""The certificate of a model: what it measures, what it guarantees, and that the guarantee holds."""

import pytest
import torch

from opencrate import CrateForCausalLM, CrateForMaskedLM, CrateMAEConfig, CrateMAEForPreTraining, CrateTextConfig
from opencrate.blocks import release_constraints
from opencrate.certificate import joined
from opencrate.objective import subspace_coding_rate
from opencrate.operators import ista, lasso_objective

from .common import BASE, images_of, model_of
from .text import ids_of, text_config

CERTIFIED = {"compression": "gradient", "attention_output": "tied", "ista_step": "bounded", "ista_step_size": 1.0}
GUARDED = {"compression_guard": "length", "ista_step": "bounded", "ista_step_size": 1.0}
FORMS = {
    "positive start": {**CERTIFIED, "ista_start": "positive"},
    "soft threshold": {**CERTIFIED, "ista_threshold": "soft", "learned_steps": "atom"},
    "overcomplete": {**CERTIFIED, "dictionary_expansion": 3, "dictionary_decode": "tied", "ista_num_steps": 3},
    "orthonormal": {
        **CERTIFIED,
        "subspace_constraint": "joint",
        "dictionary_constraint": "orthonormal",
        "ista_start": "positive",
    },
    "guarded": {**GUARDED, "ista_start": "positive", "position": "absolute+both", "head_dim": 4},
    "guarded alpha": {
        **{**GUARDED, "dictionary_expansion": 3, "dictionary_decode": "untied", "ista_residual": True},
        "ista_num_steps": 2,
    },
    "guarded statistics": {**GUARDED, "compression": "tssa", "ista_threshold": "soft"},
    "guarded representatives": {**GUARDED, "compression": "cbsa", "ista_start": "positive"},
    "guarded paper step": {
        **{**GUARDED, "compression_kappa": 0.3, "attention_output": "tied", "subspace_constraint": "each"},
        "ista_start": "positive",
    },
    "symmetric": {
        **{**CERTIFIED, "compression": "symmetric", "subspace_constraint": "joint"},
        **{"ista_start": "positive", "position": "absolute+both", "head_dim": 4},
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_guaranteed_forms_descend_whatever_the_weights_are(form, scale):
    model = model_of(**FORMS[form])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "raw" not in name and "log" not in name:
                parameter.mul_(scale)
    found = model.double().certificate(images_of(model, batch=4).double())
    assert found.guaranteed
    assert found.holds.all(), str(found)
    assert ((found.rate_change < 0) | (found.rates[:, 0] < 1e-12)).all()  # no rate is left where all codes are 0


def test_numbers_are_those_of_the_states():
    model, images = model_of("complete"), images_of(model_of("complete"), batch=3)
    found = model.certificate(images)
    states = model(images, output_hidden_states=True, output_compressed_states=True, output_sparse_codes=True)
    assert found.rates.shape == (2, 2, 3)
    assert found.lasso.shape == (2, 2, 3)
    for number, layer in enumerate(model.crate.layers):
        U, D = layer.compress.mssa.bases().double(), layer.sparsify.ista.dictionary.double()
        for place, state in enumerate((states.hidden_states[number], states.compressed_states[number])):
            torch.testing.assert_close(found.rates[number, place], subspace_coding_rate(state.double(), U, 0.5))
        before, half = states.hidden_states[number].double(), states.compressed_states[number].double()
        scaled = half * (before.norm(dim=(1, 2)) / half.norm(dim=(1, 2)))[:, None, None]
        torch.testing.assert_close(found.rates_at_length[number], subspace_coding_rate(scaled, U, 0.5))
        change = found.rates_at_length[number] - found.rates[number, 0]
        assert found.to_rows()[2 * number]["change_at_length"] == pytest.approx(change.mean().item())
        X = layer.sparsify.norm(states.compressed_states[number]).double()
        for place, code in enumerate((X.clamp(min=0), states.sparse_codes[number].double())):
            expected = lasso_objective(code, X, D, model.config.ista_lambda)
            torch.testing.assert_close(found.lasso[number, place], expected, rtol=1e-5, atol=1e-5)
    assert not found.guaranteed
    assert found.rate_guaranteed == found.lasso_guaranteed == (False, False)
    assert not model.training


def test_sabotage_is_seen():
    """Steps beyond the bound, and a start that the problem does not allow, are not called guaranteed."""
    model = model_of(**FORMS["positive start"])
    images = images_of(model)
    assert model.certificate(images).guaranteed
    model.crate.layers[1].sparsify.ista.bounded = False
    model.config.ista_step_size = 50.0
    found = model.certificate(images)
    assert found.lasso_guaranteed == (True, True) or not found.guaranteed
    assert not found.lasso_guaranteed[1]
    assert (found.margin < 0).all()
    assert not found.holds.any()
    learned_map = model_of(**{**FORMS["positive start"], "attention_output": "learned"})
    assert learned_map.certificate(images).rate_guaranteed == (False, False)


def test_every_step_counts():
    model = model_of(**FORMS["overcomplete"])
    images = images_of(model)
    found = model.certificate(images)
    assert found.lasso.shape == (2, 4, 2)
    step = model.crate.layers[0].sparsify
    half = model(images, output_compressed_states=True).compressed_states[0]
    X, D = step.norm(half).double(), step.ista.dictionary.double()
    for number in range(1, 4):
        code = ista(X, D, step.ista.step_size(D).double(), model.config.ista_lambda, number)
        torch.testing.assert_close(found.lasso[0, number], lasso_objective(code, X, D, model.config.ista_lambda))


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("guarded")])
def test_a_guard_is_what_makes_them_descend(form):
    """And it keeps the length of an input's tokens."""
    model = model_of(**FORMS[form])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    images = images_of(model, batch=8)
    assert model.certificate(images).guaranteed
    compress = model.crate.layers[0].compress
    assert compress.entry.half_step(model.config).endswith(", guarded")
    states = model(images, output_hidden_states=True, output_compressed_states=True)
    for before, half in zip(states.hidden_states, states.compressed_states):
        torch.testing.assert_close(half.norm(dim=(1, 2)), before.norm(dim=(1, 2)))
    model.config.compression_guard = "none"
    free = model.certificate(images)
    assert not any(free.rate_guaranteed)
    assert (free.rate_margin < -free.rounding).any()
    model.config.compression_guard = "length"
    for layer in model.crate.layers:
        layer.compress.guard_waits = True
    torch.testing.assert_close(model.certificate(images).rates, model.certificate(images).rates)
    assert model.certificate(images).holds.all()  # a guard waits in training alone
    one = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(model(images).logits, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_released_constraints_leave_the_guarantee(form):
    """Export and libraries that read the weights themselves want them as they are used."""
    model = model_of(**FORMS[form])
    images = images_of(model, batch=4)
    before = model.certificate(images)
    release_constraints(model)
    found = model.certificate(images)
    assert found.guaranteed
    torch.testing.assert_close(found.rates, before.rates, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.crate.layers[0].compress.operator.subspaces.weight.mul_(1.01)
    if form == "symmetric":
        assert model.certificate(images).rate_guaranteed == (False, True)


def test_guards_are_refused_where_they_cannot_hold():
    for wrong in ({"compression": "attention"}, {"compression_guard": "shorten"}):
        with pytest.raises(ValueError, match="compression"):
            model_of(**{**GUARDED, **wrong})
    with pytest.raises(ValueError, match="compression_guard='length' is not allowed; it must be 'none' in a causal"):
        text_config(is_causal=True, **GUARDED)
    with pytest.raises(ValueError, match="'none' in a causal model"):
        CrateForCausalLM(text_config(is_causal=None, **GUARDED))
    model = CrateForMaskedLM(text_config(is_causal=False, **GUARDED)).eval()
    with pytest.raises(ValueError, match="compression_guard='length' takes padding only"):
        model(ids_of(2, 6), attention_mask=torch.ones(2, 1, 6, 6, dtype=torch.bool))


def test_other_models():
    autoencoder = CrateMAEForPreTraining(CrateMAEConfig(**BASE, compression="gradient", attention_output="tied"))
    found = autoencoder.certificate(images_of(autoencoder), noise=torch.arange(4.0).expand(2, -1))
    assert found.rates.shape == (2, 2, 2)
    assert found.rate_guaranteed == (True, True)
    other = model_of(sparsification="mlp", compression="attention").certificate(images_of(autoencoder))
    assert other.lasso.isnan().all()
    assert "layer 1: R^c" in str(other)
    assert "LASSO" not in str(other)


@pytest.mark.parametrize("form", [{"compression": "gradient", "attention_output": "tied"}, GUARDED])
def test_padding_of_texts_does_not_count(form):
    config = text_config(is_causal=False, **form)
    assert isinstance(config, CrateTextConfig)
    model = CrateForMaskedLM(config).eval()
    ids = ids_of(2, 6)
    padded, mask = torch.cat((ids, ids_of(2, 3)), 1), torch.ones(2, 9, dtype=torch.long)
    mask[:, 6:] = 0
    found, alone = model.certificate(padded, attention_mask=mask), model.certificate(ids)
    assert all(found.rate_guaranteed)
    torch.testing.assert_close(found.rates, alone.rates, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.rates_at_length, alone.rates_at_length, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.lasso, alone.lasso, rtol=1e-4, atol=1e-5)


def test_the_guarantee_is_for_the_models_own_eps():
    model = model_of(**FORMS["positive start"])
    images = images_of(model)
    assert model.certificate(images, eps=model.config.compression_eps).guaranteed
    other = model.certificate(images, eps=0.1)
    assert other.rate_guaranteed == (False, False)
    assert other.lasso_guaranteed == (True, True)
    symmetric = model_of(**FORMS["symmetric"]).certificate(images, eps=0.1)
    assert symmetric.guaranteed and symmetric.holds.all()


@pytest.mark.parametrize("form", FORMS)
def test_float32_is_within_rounding(form):
    """States and codes of the type that models are used in; no step may seem to rise."""
    model = model_of(**FORMS[form])
    found = model.certificate(images_of(model, batch=16))
    assert 0 < found.rounding < 1e-5
    assert found.holds.all(), str(found)
    assert found.broken == []


def test_joined_certificates_are_those_of_one_batch():
    model = model_of(**FORMS["overcomplete"])
    images = images_of(model, batch=5)
    whole, parts = model.certificate(images), joined([model.certificate(part) for part in images.split(2)])
    torch.testing.assert_close(parts.rates, whole.rates, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.lasso, whole.lasso, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.rates_at_length, whole.rates_at_length, rtol=1e-5, atol=1e-6)
    assert parts.num_inputs == 5
    assert parts.guaranteed


def test_rows_say_what_the_tensors_hold():
    model = model_of("complete")
    found = model.certificate(images_of(model, batch=3))
    rows = found.to_rows()
    assert [(row["layer"], row["objective"]) for row in rows] == [(1, "R^c"), (1, "LASSO"), (2, "R^c"), (2, "LASSO")]
    last, change = rows[2], found.rate_change[1]
    assert last["change"] == pytest.approx(change.mean().item())
    assert (last["change_smallest"], last["change_largest"]) == (change.min().item(), change.max().item())
    relative = change / found.rates[1, 0]
    assert last["relative_largest"] == pytest.approx(relative.max().item())
    assert last["margin"] == pytest.approx(-relative.max().item())
    assert last["descends_on"] == int((change <= 0).sum())


def test_states_that_are_not_numbers_are_refused():
    """A model of NaN lowers nothing: it must not look as if it had nothing to lower."""
    model = model_of(**FORMS["positive start"])
    with torch.no_grad():
        model.crate.layers[1].compress.gradient.raw_step.fill_(torch.nan)
    with pytest.raises(ValueError, match="layer 2: a state holds NaN"):
        model.certificate(images_of(model))
