"""The subspace audit: planted tokens that fit, controls that do not, files, words and bad input."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from opencrate.analysis.audit import fits as audit_measures, tokens as audit_tokens
from opencrate.analysis.audit.audit import TOKEN_MEASURES, Audit, LayerAudit, audit
from opencrate.analysis.audit.fits import FITS
from opencrate.analysis.maths.geometry import orthonormal_bases, subspace_geometry
from opencrate.analysis.record.states import record
from opencrate.reports.audit import audit_report, layer_frame, side_by_side
from opencrate.reports.audit_findings import describe
from opencrate.reports.html import write

from .models import split, tiny_crate, tiny_images
from .test_mixtures import planted

QUICK = {"num_images": 30, "num_tokens": 105, "iterations": 3, "random_draws": 2}


@pytest.fixture(scope="module")
def report():
    model = tiny_crate()
    return audit(model, split(tiny_images(30), 8), untrained=tiny_crate(1), name="tiny", data="noise", **QUICK)


def planted_sample(seed=0, images=60, per_image=40):
    X, bases, _, _ = planted(images * per_image, seed=seed)
    numbers = torch.arange(images).repeat_interleave(per_image)
    return audit_measures.Sample(X.float(), numbers, bases.float())


def planted_layer(sample):
    """A layer whose tokens are what the theory assumes; another model's tokens stand for the untrained one."""
    draws = [audit_measures.random_bases(sample.subspaces, seed) for seed in (101, 102, 103)]
    other = replace(sample, tokens=torch.randn(sample.tokens.shape, generator=torch.Generator().manual_seed(9)))
    conditions = {"trained": sample, "shuffled": audit_measures.shuffled(sample, 0), "untrained": other}
    fits, dimensions = {}, {}
    for name, one in conditions.items():
        fits[name], dimensions[name] = audit_measures.fit_all(one, draws if name == "trained" else [], 20, 0)
    tokens = sample.tokens.view(60, 40, -1)
    mask = torch.ones(60, 40, dtype=torch.bool)
    measures = audit_measures.token_measures(tokens, mask, sample.subspaces)
    measures |= audit_measures.random_measures(sample.tokens, draws)
    return LayerAudit(1, subspace_geometry(sample.subspaces), None, measures, fits, dimensions)


def test_tokens_of_the_assumed_mixture_are_found_to_fit():
    layer = planted_layer(planted_sample())
    assert layer.verdicts() == dict.fromkeys(("gaussian", "random", "shuffled", "untrained"), "above")
    assert float(layer.gain("learned").low) > 1
    assert float(layer.token("outside_nearest").mean) < 0.1 < float(layer.token("outside_nearest_random").mean)
    assert float(layer.token("membership_entropy").mean) < float(layer.token("membership_entropy_random").mean)
    found = Audit((layer,), "planted", "", "learned U", "Z", 60, 1200, 1200)
    text = " ".join(describe(found))
    assert (
        "fits better than the full Gaussian, random subspaces, shuffled tokens and the untrained model at layer 1"
        in text
    )


def test_other_subspaces_are_found_not_to_fit():
    sample = planted_sample()
    layer = planted_layer(replace(sample, subspaces=planted(10, seed=5)[1].float()))
    assert layer.verdicts()["random"] == "undecided" or layer.verdicts()["gaussian"] == "below"
    found = Audit((layer,), "planted", "", "learned U", "Z", 60, 1200, 1200)
    assert "at none of the 1 judged" in " ".join(describe(found))


def test_normalised_tokens_are_what_the_subspaces_see():
    model, batch = tiny_crate(), tiny_images(4)
    list(record(model, [batch]))  # transformers' own hooks are there from now on
    hooks = [len(norm._forward_hooks) for norm in model.modules()]
    with audit_tokens._watched_norms(model) as norms:
        (states,) = record(model, [batch])
        for step in states.steps():
            seen = audit_tokens._matching_output(norms, step.before)
            torch.testing.assert_close(torch.einsum("bnd,kdp->bknp", seen, step.subspaces), step.projected)
    assert [len(norm._forward_hooks) for norm in model.modules()] == hooks


def test_report_of_a_model(report):
    assert [layer.layer for layer in report.layers] == [1, 2, 3]
    assert (report.fit_tokens, report.held_out_tokens, report.num_images) == (105, 105, 30)
    assert report.token_words == "LN(Z^ℓ)" and report.subspace_kind == "learned U"
    for layer in report.layers:
        assert set(layer.fits) == {"trained", "shuffled", "untrained"} and set(layer.fits["trained"]) == set(FITS)
        assert set(layer.tokens) == set(TOKEN_MEASURES) and layer.dimensions["trained"] <= 12
        assert all(len(fit.held_out) == 15 for fits in layer.fits.values() for fit in fits.values())
        assert float(layer.token("outside_joint").mean) == 0  # K p = d
        assert layer.dictionary.step == pytest.approx(0.1 * layer.dictionary.squared_norm)
    rows = report.to_rows()
    assert {row["group"] for row in rows} == {"geometry", "tokens", "mixture"}
    assert all(isinstance(row["value"], float) for row in rows if row["measure"] != "coherence")
    assert len(report.to_frame()) == len(rows)
    gain = next(row for row in rows if row["measure"] == "gain.trained.learned")
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert any("η‖D‖²" in sentence for sentence in describe(report))


def test_layer_norm_takes_one_dimension(report):
    """LN(Z) lies in a plane, so densities live in d - 1 dimensions, and no likelihood is infinite."""
    assert [layer.dimensions["trained"] for layer in report.layers[1:]] == [11, 11]
    raw = audit(tiny_crate(), [tiny_images(30)], tokens="raw", layers=[2], **QUICK)
    assert raw.layers[0].dimensions["trained"] == 12 and raw.token_words == "Z^ℓ, no LayerNorm"
    assert set(raw.layers[0].fits) == {"trained", "shuffled"}
    assert any("untrained model was not measured" in sentence for sentence in describe(raw))


def test_the_same_arguments_give_the_same_report(report):
    again = audit(tiny_crate(), [tiny_images(30)], layers=[2], untrained=tiny_crate(1), **QUICK)
    for condition, fits in again.layers[0].fits.items():
        for name, fit in fits.items():
            torch.testing.assert_close(
                fit.held_out, report.layers[1].fits[condition][name].held_out, atol=1e-3, rtol=1e-3
            )


def test_shuffling_keeps_each_coordinate_and_nothing_else():
    sample = planted_sample()
    shuffled = audit_measures.shuffled(sample, 0)
    for half in (0, 1):
        rows = sample.images % 2 == half
        assert torch.equal(sample.tokens[rows].sort(0).values, shuffled.tokens[rows].sort(0).values)
    off = ~torch.eye(16, dtype=torch.bool)
    before, after = (torch.corrcoef(one.tokens.mT)[off].abs().max() for one in (sample, shuffled))
    assert after < 0.1 < before


def test_token_measures_by_hand_and_masked():
    U = torch.stack([torch.eye(4)[:, :2], torch.eye(4)[:, 2:3].repeat(1, 2)])
    bases = orthonormal_bases(U).float()
    tokens = torch.tensor([[[3.0, 0, 4, 0], [0, 1, 0, 0], [9, 9, 9, 9]]])
    found = audit_measures.token_measures(tokens, torch.tensor([[True, True, False]]), bases)
    assert float(found["outside_nearest"]) == pytest.approx(0.36 / 2)
    assert float(found["outside_joint"]) == pytest.approx(0, abs=1e-6)
    p = torch.tensor([0.36, 0.64])
    assert float(found["membership_entropy"]) == pytest.approx(float(-(p * p.log()).sum()) / math.log(2) / 2, rel=1e-5)
    assert float(found["mean_cosine"]) == pytest.approx(0, abs=1e-6)
    assert float(found["uniformity"]) == pytest.approx(-4, rel=1e-5)
    whole = audit_measures.token_measures(tokens[:, :2], torch.ones(1, 2, dtype=torch.bool), bases)
    for name, value in whole.items():
        torch.testing.assert_close(value, found[name])


def test_a_vit_is_audited_against_its_value_projections():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=24, image_size=4, patch_size=2,
        num_channels=1,
    )  # fmt: skip
    images = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = audit(ViTForImageClassification(config), [images], **QUICK)
    assert found.subspace_kind == "value projections per head" and found.token_words == "LN(Z^ℓ)"
    assert found.layers[0].dictionary is None and len(found.layers[0].subspaces.ranks) == 3
    assert any("no dictionary" in sentence for sentence in describe(found))


def test_one_subspace():
    found = audit(tiny_crate(num_attention_heads=1), [tiny_images(30)], layers=[2], **QUICK)
    values = {row["measure"]: row["value"] for row in found.to_rows()}
    assert values["mean_overlap"] is None and values["membership_entropy"] is None
    assert describe(found) and layer_frame(found)["mean overlap"].tolist() == ["–"]


def test_files(report, tmp_path):
    path = write(audit_report([report], [("command", "some words")]), tmp_path / "new" / "audit")
    folder = path.parent
    assert {file.name for file in folder.glob("[!.]*")} == {"audit.html", "audit.csv", "audit.json", "figures"}
    rows = list(csv.DictReader((folder / "audit.csv").open()))
    assert len(rows) == len(report.to_rows()) and {row["model"] for row in rows} == {"tiny"}
    data = json.loads((folder / "audit.json").read_text())
    assert len(data[0]["subspaces"][0]["block_norms"]) == 2 and data[0]["rows"][0]["layer"] == 1
    html = path.read_text()
    assert "some words" in html and all(word not in html for word in ('src="http', 'href="http', "<script"))
    assert {f.suffix for f in (folder / "figures").iterdir()} == {".png", ".svg"}
    with pytest.raises(ValueError, match=r"audit\.html: exists; .*overwrite=True"):
        write(audit_report([report]), folder)
    with pytest.raises(ValueError, match="audits: empty"):
        audit_report([])


def test_side_by_side(report):
    table = side_by_side([report, replace(report, name="other")]).frame
    assert list(table.columns) == ["mean over the layers", "tiny", "other"]
    assert (table["tiny"] == table["other"]).all() and table["tiny"].iloc[-1] == "learned U"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 2}, "num_images=2: must be at least 4"),
        ({"num_images": 31}, "num_inputs=31: only 30 images there"),
        ({"num_tokens": 1}, "num_tokens=1: must be at least 2"),
        ({"num_tokens": 15}, "15 tokens to fit in 12 dimensions.*num_images.*num_tokens"),
        ({"random_draws": 1}, "random_draws=1: must be at least 2"),
        ({"tokens": "both"}, "tokens='both': must be one of normalised, raw"),
        ({"layers": [4]}, r"layers=\[4\]: the model has layers 1 to 3"),
        ({"layers": []}, "empty"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        audit(tiny_crate(), [tiny_images(30)], **(QUICK | options))


def test_bad_states_and_batches():
    model = tiny_crate()
    with torch.no_grad():
        model.crate.layers[1].compress.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="layer 2: its tokens hold NaN"):
        audit(model, [tiny_images(30)], **QUICK)
    with pytest.raises(ValueError, match="read only once"):
        audit(tiny_crate(), iter([tiny_images(30)]), untrained=tiny_crate(1), **QUICK)
    with pytest.raises(ValueError, match="do not vary"):
        audit_measures._support(torch.ones(30, 4).double())
