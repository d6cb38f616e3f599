"""Theory against practice for every compression with bases and every form of ISTA, and the part of the certificate."""

import pytest
import torch

from opencrate import CrateForCausalLM, CrateTextConfig, analyze, subspace_coding_rate
from opencrate.analysis.maths.lasso import fista
from opencrate.analysis.maths.steps import FORMS
from opencrate.analysis.theory.check import theory_check
from opencrate.analysis.theory.layers import Key
from opencrate.blocks import CrateLayer
from opencrate.certificate import Certificate
from opencrate.operators import ista
from opencrate.reports import whitebox
from opencrate.reports.certificate import certificate_part
from opencrate.reports.theory import page, theory_parts

from .models import tiny_autoencoder, tiny_crate, tiny_images

close = torch.testing.assert_close


def blocks_of(model):
    return [module for module in model.modules() if isinstance(module, CrateLayer)]


CERTIFIED = {
    **{"compression": "gradient", "attention_output": "tied"},
    **{"ista_step": "bounded", "ista_step_size": 1.0, "ista_start": "positive"},
}
SIGNED = {"ista_threshold": "soft", "ista_start": "zero", "ista_num_steps": 3}
OVERCOMPLETE = {"dictionary_expansion": 3, "dictionary_decode": "tied", "learned_steps": "atom"}
OTHERS = {
    "gradient": CERTIFIED,
    "gradient, signed and overcomplete": CERTIFIED | SIGNED | OVERCOMPLETE,
    "symmetric": {**CERTIFIED, "compression": "symmetric", "subspace_constraint": "joint", "position": "relative_bias"},
    "gradient, learned map": {"compression": "gradient"},
    "tssa": {"compression": "tssa"},
    "cbsa": {"compression": "cbsa", "compression_options": {"num_representatives": 4}},
    "relative bias": {"position": "relative_bias", "learned_steps": "layer"},
    "rotations": {"position": "both", "head_dim": 4},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_compressions_and_learned_steps(name):
    model = tiny_crate(**OTHERS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # position biases and steps are equal at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = theory_check(model, [tiny_images()], step_sizes=[1.0], chunk_images=3)
    derived = model.config.compression == "mssa"
    assert found.forms == (list(FORMS) if derived else ["exact", "model", "model_minus"])
    assert set(found.states) == {"raw", "unit"} | ({"layernorm"} if found.normalised else set())
    with torch.no_grad():
        out = model(tiny_images()["pixel_values"], output_hidden_states=True, output_compressed_states=True)
    layer, before, after = blocks_of(model)[1], out.hidden_states[1], out.compressed_states[1]
    U = layer.compress.operator.bases().detach().double()
    change = subspace_coding_rate(after.double(), U, 0.5) - subspace_coding_rate(before.double(), U, 0.5)
    close(found.per_image[Key("change", "raw", "model")][:, 1], change, atol=1e-5, rtol=1e-4)
    close(found.certificate.rate_change[1], change, atol=1e-5, rtol=1e-4)
    changes = found.per_image[Key("lasso_change_allowed")]
    close(found.certificate.lasso_change.T, changes, atol=1e-4, rtol=1e-4)
    assert (found.per_image[Key("lasso_gap")] >= -1e-6).all() and found.unconverged == ()
    guaranteed = name in ("gradient", "gradient, signed and overcomplete", "symmetric")
    assert found.certificate.guaranteed == guaranteed
    assert not guaranteed or found.certificate.holds.all()
    report = page(found)
    assert len(report.parts) == 2 and len(report.parts[0].figures) == 4 + derived
    assert found.own in " ".join(report.parts[0].sentences) and "LN Z" not in " ".join(report.parts[0].sentences)
    assert ("as guaranteed by construction" in report.summary[-2]) == guaranteed, report.summary


@pytest.mark.parametrize("name", ["gradient", "gradient, learned map", "symmetric", "tssa"])
def test_the_layers_page_says_what_is_guaranteed(name, tmp_path):
    """Of the ε that the model steps down, and in one sentence of the page; files keep it."""
    model = tiny_crate(**OTHERS[name])
    found = analyze(model, tiny_images()["pixel_values"], name="one")
    said = [str(sentence) for part in whitebox.page(found).parts for sentence in part.sentences]
    always = name in ("gradient", "symmetric")
    assert found.guaranteed == always == any("By construction every layer" in one for one in said)
    other = analyze(model, tiny_images()["pixel_values"], eps=0.3).guaranteed
    assert other == (name == "symmetric")  # whose maps descend for every eps
    assert type(found).load(found.save(tmp_path)).guaranteed == found.guaranteed
    expected = {"gradient": "Z − κ∇R^c(Z)", "gradient, learned map": "Z − κ∇R^c(Z), W in place of Uᵀ"}
    expected |= {"symmetric": "Z + SMSSA(Z)", "tssa": "Z + TSSA(LN(Z))"}
    assert found.half_step == expected[name]


@pytest.mark.parametrize("position", ["relative_bias", "both"])
def test_the_step_on_normalised_tokens_knows_the_places(position):
    """Applied to LN(Z), the model's own step moves R^c as the whole layer does, whose norm is then the identity."""
    model = tiny_crate(position=position, head_dim=4).eval()
    layer = blocks_of(model)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_bias" in name:
                parameter.normal_()
    found = theory_check(model, [tiny_images()], step_sizes=[1.0], chunk_images=3)
    with torch.no_grad():
        states = model(tiny_images()["pixel_values"], output_hidden_states=True, output_compressed_states=True)
        before, after = states.hidden_states[0], states.compressed_states[0]
        normed, U = layer.compress.norm(before).double(), layer.compress.mssa.bases().double()
        change = subspace_coding_rate(normed + (after - before).double(), U, 0.5) - subspace_coding_rate(normed, U, 0.5)
    close(found.per_image[Key("change", "layernorm", "model")][:, 0], change, atol=1e-5, rtol=1e-4)


def test_an_autoencoders_encoder_and_its_places():
    model = tiny_autoencoder(position="both", head_dim=4)
    found = theory_check(model, [tiny_images()], step_sizes=[1.0], chunk_images=3)
    whole = theory_check(model, [tiny_images()], step_sizes=[1.0])
    assert found.num_layers == 2
    for key, values in whole.per_image.items():
        close(found.per_image[key], values, atol=2e-3 if key.quantity == "best_step" else 1e-5, rtol=1e-3)


@pytest.mark.parametrize("compression", ["mssa", "gradient"])
def test_texts(compression):
    """Causal compression has no guarantee, ISTA has; padded texts are left out, and a page of padding is refused."""
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    position = {"position": "relative_bias"} if compression == "mssa" else {}
    ista = {"ista_start": "positive", "ista_step": "bounded", "ista_step_size": 1.0, "attention_output": "tied"}
    torch.manual_seed(0)
    config = CrateTextConfig(vocab_size=20, is_causal=True, compression=compression, **sizes, **position, **ista)
    model = CrateForCausalLM(config).eval()
    ids, mask = torch.randint(20, (4, 8)), torch.ones(4, 8, dtype=torch.long)
    mask[1, 5:] = 0
    found = theory_check(model, [{"input_ids": ids, "attention_mask": mask}], step_sizes=[1.0])
    assert (found.num_images, found.padded, found.kind) == (3, 1, "texts")
    alone = theory_check(model, [ids[[0, 2, 3]]], step_sizes=[1.0])
    close(found.per_image[Key("change", "unit", "model")], alone.per_image[Key("change", "unit", "model")])
    assert found.certificate.rate_guaranteed == (False, False)
    assert found.certificate.lasso_guaranteed == (True, True)
    part, certificate = theory_parts(found)
    assert part.sentences[0] == "Texts that are padded are left out: 1 of 4." and "per text" in part.sentences[1]
    assert certificate.sentences[1].startswith("Guaranteed on any input: the LASSO objective in every ISTA step")
    with pytest.raises(ValueError, match="every text is padded"):
        theory_check(model, [{"input_ids": ids[1:2], "attention_mask": mask[1:2]}])


def certificate_with(rates: list[list[float]], guaranteed: bool) -> Certificate:
    """Of one layer whose ISTA step always descends; R^c before and after, by input."""
    lasso = torch.tensor([[[2.0] * len(rates[0]), [1.0] * len(rates[0])]]).double()
    return Certificate(torch.tensor([rates]).double(), lasso, (guaranteed,), (guaranteed,), 1e-6)


@pytest.mark.parametrize(
    ("rates", "guaranteed", "first", "second"),
    [
        ([[4.0, 4.0], [3.0, 4.0]], True, "on all 2 inputs, as guaranteed by construction.", "Guaranteed on any input"),
        ([[4.0, 4.0], [3.0, 4.0 + 1e-6]], False, "on all 2 inputs.", "Nothing of it is guaranteed"),
        ([[4.0, 4.0], [3.0, 5.0]], False, "on 1 of 2 inputs.", "Nothing of it is guaranteed"),
        ([[4.0, 4.0], [5.0, 6.0]], True, "on none of 2 inputs.", "rises in layer 1 (R^c, by 0.5 of it): the weights"),
        ([[4.0], [3.0]], False, "on the only input.", "Nothing of it"),
    ],
)
def test_the_certificates_sentences(rates, guaranteed, first, second):
    part = certificate_part(certificate_with(rates, guaranteed))
    assert part.sentences[0] == "Every layer lowers R^c and every ISTA step its objective " + first
    assert second in part.sentences[1]
    (table,) = part.tables
    descends = [row for row in table.frame.to_dict("records") if row["objective"] == "R^c"]
    assert descends[0]["guaranteed"] == ("yes" if guaranteed else "no")
    assert descends[0]["mean change"] == f"{sum(rates[1]) / len(rates[1]) - 4:+.3g}"


def test_atoms_with_thresholds_of_their_own():
    """The solver takes one lambda for each atom: its solution is a fixed point of ISTA, and equal ones are one."""
    torch.manual_seed(0)
    X, D = torch.randn(3, 5, 6).double(), torch.randn(6, 9).double()
    lam = torch.linspace(0.05, 2.0, 9).double()
    for signed in (False, True):
        found = fista(X, D, lam, signed=signed, tol=1e-12)
        assert found.converged and (found.gap >= -1e-9).all()
        close(ista(X, D, 0.01, lam, 1, found.code, signed), found.code, atol=1e-6, rtol=0)
        close(fista(X, D, torch.full((9,), 0.3), signed=signed).code, fista(X, D, 0.3, signed=signed).code)
    assert (fista(X, D, lam).code[..., -1] == 0).float().mean() > (fista(X, D, 0.05).code[..., -1] == 0).float().mean()
    with pytest.raises(ValueError, match="must be > 0"):
        fista(X, D, lam - 0.06)
