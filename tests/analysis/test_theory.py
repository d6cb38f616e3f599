"""Theory against practice: the verdicts, the forms against their formulas, and the theory check of a model."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from opencrate import coding_rate, subspace_coding_rate
from opencrate.analysis.maths.steps import FORMS, best_gradient_step, coherence, gradient_lipschitz, step_directions
from opencrate.analysis.theory.check import TheoryCheck, theory_check, verdict
from opencrate.analysis.theory.layers import QUANTITIES, STATES, Key
from opencrate.operators import coding_rate_gradient, gamma, lasso_objective, mssa, project
from opencrate.reports.html import HOW
from opencrate.reports.theory import describe_compression_step, describe_cosine, page, theory_part
from opencrate.stats.intervals import bootstrap_mean
from opencrate.studies.experiments.synthetic import bases_at_angle, union_of_subspaces

from .models import split, tiny_crate, tiny_images

close = torch.testing.assert_close
LAYERS = 3


@given(low=st.floats(-1e3, 1e3), width=st.floats(0, 1e3))
def test_verdict(low, width):
    expected = "descends" if low + width < 0 else "ascends" if low > 0 else "cannot tell"
    assert verdict(low, low + width) == expected


def test_verdict_at_the_edges():
    assert verdict(-1.0, 0.0) == verdict(0.0, 1.0) == verdict(math.nan, math.nan) == "cannot tell"


# --- the forms ----------------------------------------------------------------------------------------------------


def test_the_forms_are_their_formulas():
    data = union_of_subspaces(2, 3, 8, 6, 0.3, 90.0, 1)
    Z, U, eps = data.tokens, data.bases, 0.7
    g, found = gamma(6, 3, eps), step_directions(Z, U, eps)
    attended = sum(torch.softmax(Z @ u @ u.T @ Z.T, -1) @ Z @ u @ u.T for u in U)
    close(found["plus"], g * attended)
    close(found["minus"], -g * attended)
    close(found["paper"], g * (g * attended - Z))
    close(found["softmax"], -g * sum((Z @ u - g * torch.softmax(Z @ u @ u.T @ Z.T, -1) @ Z @ u) @ u.T for u in U))
    close(found["neumann"], -g * sum((Z @ u - g * Z @ u @ (Z @ u).T @ (Z @ u)) @ u.T for u in U))
    close(found["exact"], -coding_rate_gradient(Z, U, eps))
    assert found.keys() < FORMS.keys()


def test_complete_incoherent_bases_make_the_softmax_form_the_papers():
    data = union_of_subspaces(4, 2, 8, 6, 0.3, 90.0, 1)
    found = step_directions(data.tokens, data.bases, 0.5)
    close(found["softmax"], found["paper"])


@pytest.mark.parametrize("angle", [0.0, 50.0, 90.0])
def test_coherence_is_the_cosine_of_the_angle(angle):
    U = bases_at_angle(3, 2, 8, angle, 0)
    assert coherence(U) == pytest.approx(math.cos(math.radians(angle)), abs=1e-12)
    assert coherence(U[:1]) == 0


def test_the_best_gradient_step_is_no_worse_than_any_tried():
    data = union_of_subspaces(2, 3, 8, 12, 0.2, 90.0, 3)
    Z, U, eps = data.tokens[None], data.bases, 0.5
    V, H = project(Z, U), project(step_directions(Z, U, eps)["exact"], U)
    L = gradient_lipschitz(U, 12, eps)
    size, change = best_gradient_step(V, H, eps, L)
    start = coding_rate(V, eps).sum(-1)
    close(coding_rate(V + size / L * H, eps).sum(-1) - start, change)
    for other in (0.1, 0.5, 1.0, 2.0, 5.0):
        assert change <= coding_rate(V + other / L * H, eps).sum(-1) - start + 1e-3 * change.abs()


# --- a model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_crate().eval()


@pytest.fixture(scope="module")
def report(model):
    return theory_check(model, [tiny_images()])


def test_changes_are_those_of_the_models_own_states(model, report):
    """The change by the model's step is R^c(Z^{l+1/2} | U) - R^c(Z^l | U), on the model's own outputs."""
    with torch.no_grad():
        out = model(tiny_images()["pixel_values"], output_hidden_states=True, output_compressed_states=True)
    for layer, (block, before, after) in enumerate(zip(_blocks(model), out.hidden_states, out.compressed_states)):
        U = block.compress.mssa.bases().detach().double()
        rates = [subspace_coding_rate(Z.double(), U, 0.5) for Z in (before, after, 2 * before.double() - after)]
        close(report.per_image[Key("rate", "raw")][:, layer], rates[0])
        close(report.per_image[Key("change", "raw", "model")][:, layer], rates[1] - rates[0], atol=1e-5, rtol=1e-4)
        minus = report.per_image[Key("change", "raw", "model_minus")][:, layer]
        close(minus, rates[2] - rates[0], atol=1e-5, rtol=1e-4)


def _blocks(model):
    from opencrate.blocks import CrateLayer

    return [module for module in model.modules() if isinstance(module, CrateLayer)]


def test_the_models_step_on_normalised_tokens_skips_its_layer_norm(model, report):
    block = _blocks(model)[1]
    with torch.no_grad():
        before = model(tiny_images()["pixel_values"], output_hidden_states=True).hidden_states[1]
        normed = block.compress.norm(before)
        update = block.compress.mssa(normed)[0].double()
    U = block.compress.mssa.bases().detach().double()
    change = subspace_coding_rate(normed.double() + update, U, 0.5) - subspace_coding_rate(normed.double(), U, 0.5)
    close(report.per_image[Key("change", "layernorm", "model")][:, 1], change, atol=1e-5, rtol=1e-4)
    assert not block.compress.norm._forward_hooks


def test_tied_forms_use_the_models_bases(model, report):
    block = _blocks(model)[0]
    with torch.no_grad():
        Z = model(tiny_images()["pixel_values"], output_hidden_states=True).hidden_states[0].double()
        U = block.compress.mssa.bases().double()
        g = gamma(Z.shape[1], U.shape[-1], 0.5)
        moved = Z + mssa(Z, U, scale=1.0, factor=g)
    change = subspace_coding_rate(moved, U, 0.5) - subspace_coding_rate(Z, U, 0.5)
    close(report.per_image[Key("change", "raw", "plus")][:, 0], change)


def test_the_exact_gradient_descends_everywhere(report):
    for state in STATES:
        for step in ("0.1", "0.5", "1", "best"):
            assert (report.per_image[Key("change", state, "exact", step)] < 0).all()
        assert report.verdicts("change", state, "exact", "1") == ["descends"] * LAYERS
        close(report.per_image[Key("cosine", state, "exact")], torch.ones(7, LAYERS).double())


def test_the_lasso_is_the_layers_own(model, report):
    block = _blocks(model)[2]
    with torch.no_grad():
        out = model(tiny_images()["pixel_values"], output_hidden_states=True, output_compressed_states=True)
        X = block.sparsify.norm(out.compressed_states[2]).double()
    D = block.sparsify.ista.effective_dictionary().detach().double()
    after = lasso_objective(out.hidden_states[3].double(), X, D, 0.1)
    close(report.per_image[Key("lasso_after")][:, 2], after, atol=1e-4, rtol=1e-5)
    start = report.per_image[Key("lasso_allowed")][:, 2]
    close(start, lasso_objective(X.clamp_min(0), X, D, 0.1), atol=1e-4, rtol=1e-5)
    assert (report.per_image[Key("lasso_gap")] >= -1e-9).all() and report.unconverged == ()


def test_batches_and_chunks_do_not_change_the_numbers(model, report):
    again = theory_check(model, split(tiny_images(), 3), chunk_images=2)
    assert again.per_image.keys() == report.per_image.keys()
    for key, values in report.per_image.items():
        close(again.per_image[key], values, atol=2e-3 if key.quantity == "best_step" else 1e-5, rtol=1e-3)


def test_rows(report):
    rows = report.to_rows()
    assert len(rows) == LAYERS * (len(report.per_image) + len(report.per_layer))
    assert {row["quantity"] for row in rows} == set(QUANTITIES)
    for row in rows:
        if row["verdict"]:
            assert row["verdict"] == verdict(row["low"], row["high"])
    interval = bootstrap_mean(report.per_image[Key("change", "raw", "model")])
    (row,) = [r for r in rows if (r["layer"], r["quantity"], r["state"], r["form"]) == (2, "change", "raw", "model")]
    assert row["mean"] == pytest.approx(interval.mean[1].item()) and row["low"] == pytest.approx(interval.low[1].item())


def test_one_image_gives_no_verdict(model):
    single = theory_check(model, [tiny_images()], num_images=1)
    assert single.verdicts("change", "raw", "exact", "1") == ["cannot tell"] * LAYERS
    assert single.to_rows()[0]["low"] is None
    theory_part(single)


def test_page(report):
    part = theory_part(report, "m")
    assert "Exact gradient step (Z − κ ∇R^c, κ = 1/L) lowers R^c in 3 of 3 layers" in part.sentences[0]
    assert len({figure.name for figure in part.figures}) == len(part.figures) == 5
    assert all(figure.notes[HOW] and figure.alt for figure in part.figures) and len(part.figures[0].folded) == 2
    (table,) = part.tables
    assert len(table.frame) == 10 and (table.frame["smallest layer"] <= table.frame["largest layer"]).all()
    assert {"theory.csv", "theory.json", "certificate.csv"} == page(report).files.keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([-1.0, -1.0], "lowers R^c in 2 of 2 layers (mean changes -1 nats per image)."),
        ([1.0, 1.0], "lowers R^c in none of 2 layers and raises it in 2 "),
        ([-1.0, 1.0], "lowers R^c in 1 of 2 layers and raises it in 1 (mean changes -1 to +1 nats per image)."),
        ([0.0, 0.0], "lowers R^c in none of 2 layers and is undecided in 2 "),
        ([-1.0], "lowers R^c in 1 of 1 layer (mean change -1 nats per image)."),
    ],
)
def test_sentences_follow_the_numbers(report, changes, said):
    values = torch.tensor(changes).double() + torch.tensor([[-0.1], [0.1]]).double() * (torch.tensor(changes) == 0)
    keys = {
        key: values if key.quantity.startswith(("change", "cosine")) else one[:2, : len(changes)]
        for key, one in report.per_image.items()
    }
    made_up = TheoryCheck(0.5, keys, {}, (), False)
    assert said in describe_compression_step(made_up)[3]
    up = sum(value > 0 for value in changes)
    assert f"points down R^c in {up or 'none'} of" in describe_cosine(made_up)


@pytest.mark.parametrize(
    "overrides",
    [
        {"ista_start": "zero", "ista_num_steps": 2, "dictionary_expansion": 4, "dictionary_decode": "tied"},
        {"ista_threshold": "soft", "attention_output": "tied", "compression_kappa": 0.5},
        {"ista_lambda": 0.0},
    ],
    ids=["overcomplete", "the paper's step", "no penalty"],
)
def test_variants(overrides):
    found = theory_check(tiny_crate(**overrides), [tiny_images(3)], step_sizes=[1.0])
    theory_part(found)
    assert all(torch.isfinite(values).all() for values in found.per_image.values())
    if "compression_kappa" not in overrides:
        assert (found.per_image[Key("lasso_change_allowed")] <= 1e-9).all() or found.mean("step_size").max() > 1
    assert (Key("lasso_gap") in found.per_image) == (overrides.get("ista_lambda") != 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.0}, "eps=0.0: must be a finite number > 0"),
        ({"step_sizes": [0.5, -1]}, "step_sizes=-1.0"),
        ({"tokens_per_image": 0}, "tokens_per_image=0"),
        ({"num_images": 9}, "only 7 images"),
    ],
)
def test_bad_input(model, options, words):
    with pytest.raises(ValueError, match=words):
        theory_check(model, [tiny_images()], **options)


@pytest.mark.parametrize("changes", [{"sparsification": "mlp"}, {"compression": "attention"}])
def test_models_with_replaced_parts_are_refused(changes):
    with pytest.raises(ValueError, match="its layers are not a compression with learned subspaces"):
        theory_check(tiny_crate(**changes), [tiny_images()])


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="model=Linear: its layers are not"):
        theory_check(torch.nn.Linear(2, 2), [tiny_images()])


def test_a_damaged_model_names_its_layer():
    broken = tiny_crate()
    with torch.no_grad():
        _blocks(broken)[1].sparsify.ista.dictionary[0, 0] = math.nan
    with pytest.raises(ValueError, match="layer 2: the state 'after'"):
        theory_check(broken, [tiny_images()])
