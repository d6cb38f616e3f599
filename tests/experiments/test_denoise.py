"""The denoise experiment: what it says is computed, its truths hold, its settings are checked."""

import pytest
import torch

from opencrate.analysis.maths.denoising import posterior_mean
from opencrate.reports.experiments.denoise import describe, figures, table
from opencrate.studies.experiments.denoise import FORMS, MEASURES, SAMPLERS, DenoiseSettings, draw, run


@pytest.fixture(scope="module")
def found():
    return run(DenoiseSettings(seeds=2, tokens=64, ambient=16, dim=3, noise=(0.1, 1.0), steps=8))


def value(found, **wanted):
    (row,) = (row for row in found.rows if all(row[key] == one for key, one in wanted.items()))
    return row["mean"]


def test_the_posterior_mean_has_the_least_error(found):
    for level in (0.1, 1.0):
        errors = {form: value(found, what="denoising", form=form, noise=level) for form in FORMS}
        assert min(errors, key=errors.get) in ("exact", "one_token")
        assert errors["noisy"] == pytest.approx(level**2, rel=0.2)
        assert errors["mssa_lengths"] < errors["linear"] < errors["noisy"] < errors["mssa"]
        assert all(errors[form] < errors["noisy"] for form in FORMS if form.endswith("fitted"))


def test_only_the_posterior_mean_samples_the_mixture(found):
    measured = {form: value(found, form=form, measure="distance") for form in SAMPLERS}
    assert measured["exact"] < 1.6 and min(measured[form] for form in ("one_token", "mssa", "mssa_lengths")) > 3
    inside = {form: value(found, form=form, measure="in_subspace") for form in SAMPLERS}
    assert inside["exact"] > 0.99 and max(inside[form] for form in ("linear", "mssa", "mssa_lengths")) < 0.9


def test_rows_words_and_figures(found):
    kinds = {(row["what"], row["form"]) for row in found.rows}
    assert kinds == {("denoising", form) for form in FORMS} | {("sampling", form) for form in SAMPLERS}
    assert all(row["seeds"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in found.rows)
    assert {row["measure"] for row in found.rows} >= set(MEASURES)
    assert table(found).shape == (len(FORMS), 3) and set(figures(found)) == {"denoise", "denoise_samples"}
    text = "\n".join(describe(found))
    assert (
        "MSSA, scale 1/σ²:" in text and "better than doing nothing at 0, better than best linear map at 0 of 2" in text
    )
    assert all(f"Sampling by {FORMS[form]}:" in text for form in SAMPLERS)


def test_weights_are_fitted_on_other_tokens():
    tokens = draw(DenoiseSettings(tokens=32), seed=0)
    assert not torch.equal(tokens.clean, tokens.fit_clean) and not torch.equal(tokens.noise, tokens.fit_noise)
    fitted, sigma = tokens.denoisers()["published_fitted"], 0.1
    noisy = tokens.fit_clean + sigma * tokens.fit_noise
    wrong = fitted(noisy, sigma) - tokens.fit_clean
    assert abs(float((wrong * noisy).sum())) < 1e-9 * float(noisy.square().sum())  # the residual of least squares
    exact = tokens.denoisers()["exact"](noisy, sigma)
    assert torch.equal(exact, posterior_mean(tokens.mixture, noisy, sigma))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": (0.0,)}, "noise=0.0: must be a number of at least 1e-12"),
        ({"subspaces": 1}, "subspaces=1: must be a whole number of at least 2"),
        ({"ambient": 8}, "need 16 dimensions"),
        ({"smallest": 0.0}, "smallest=0.0: must be a number of at least 1e-12"),
        ({"smallest": 11.0}, "need largest > smallest > 0"),
        ({"steps": 1}, "at least 2 steps"),
        ({"seeds": 1}, "seeds=1"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        DenoiseSettings(**changes)
