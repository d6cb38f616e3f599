"""Figures and sentences of the experiments from rows made by hand."""

import pytest

from opencrate.reports.experiments import compress, denoise, reconstruct, sparsify, write
from opencrate.studies.experiments import (
    compress as compress_study,
    denoise as denoise_study,
    reconstruct as reconstruct_study,
    sparsify as sparsify_study,
)
from opencrate.studies.experiments.base import Experiment


def number(mean: float) -> dict:
    return {"mean": mean, "low": 0.9 * mean, "high": 1.1 * mean, "smallest": mean, "largest": mean, "seeds": 2}


def experiment(name: str, settings, rows, **facts) -> Experiment:
    return Experiment(name, "?", settings, tuple(rows), facts)


@pytest.fixture
def denoised() -> Experiment:
    """Errors of 0.1 of every form at noise 0.1 and of 0.5 at noise 1."""
    forms = denoise_study.FORMS
    rows = [
        {"what": "denoising", "form": form, "measure": "relative error", "noise": level, **number(error)}
        for form in forms
        for level, error in ((0.1, 0.1), (1.0, 0.5))
    ]
    rows += [
        {"what": "sampling", "form": form, "measure": measure, "noise": "", **number(1.0)}
        for form in denoise_study.SAMPLERS
        for measure in denoise_study.MEASURES
    ]
    better = {(form, other): 2 * (other == "noisy") for form in forms for other in ("noisy", "linear")}
    settings = denoise_study.DenoiseSettings(seeds=2, noise=(0.1, 1.0))
    return experiment("denoise", settings, rows, better=better, refused=dict.fromkeys(denoise_study.SAMPLERS, 1))


def test_denoise(denoised):
    errors, samples = denoise.plot_errors(denoised), denoise.plot_samples(denoised)
    lines = [line for line in errors.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == list(denoise_study.FORMS.values())
    assert list(lines[0].get_xdata()) == [0.1, 1.0] and errors.axes[0].get_yscale() == "log"
    assert len(samples.axes) == len(denoise_study.MEASURES)
    assert samples.axes[0].get_yticklabels()[0].get_text() == "posterior mean (exact)"
    text = " ".join(denoise.describe(denoised))
    assert "by noise level: 0.1: 10 %, 1: 50 %." in text and "refused (p < 0.05) on 1 of 2 seeds" in text
    assert "better than doing nothing at 2, better than best linear map at 0 of 2 noise levels" in text
    assert denoise.table(denoised).iloc[0].tolist() == ["noisy tokens as they are", "10 %", "50 %"]


@pytest.fixture
def reconstructed() -> Experiment:
    """One layer loses a tenth and two layers three tenths; the bound is ten times that; LayerNorm has none."""
    rows = []
    for case in reconstruct_study.CASES:
        for what, factor in (("error", 1.0), *((("bound", 10.0),) if case != "layernorm" else ())):
            for depth, error in ((1, 0.1), (2, 0.3)):
                at = {"sweep": "depth", "value": float(depth), "case": case, "what": what}
                rows += [at | {"of": of} | number(error * factor) for of in ("layer ℓ", "first ℓ layers")]
            for sweep in reconstruct_study.SWEEPS if case == "soft" else ():
                at = {"sweep": sweep, "case": case, "of": reconstruct_study.NETWORK, "what": what}
                rows += [at | {"value": value} | number(value * factor) for value in (0.5, 1.0)]
    bound = {"points": 4, "broken": 0, "useful": 1}
    return experiment("reconstruct", reconstruct_study.ReconstructSettings(seeds=2, layers=2), rows, bound=bound)


def test_reconstruct(reconstructed):
    depth, sweeps = reconstruct.plot_depth(reconstructed), reconstruct.plot_sweeps(reconstructed)
    drawn = [line for line in depth.axes[0].lines if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 2]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 3 + ["-"]
    assert [axes.axison for axes in sweeps.axes] == [True] * 5 + [False]
    assert sweeps.axes[2].get_xscale() == "log" and sweeps.axes[3].get_xscale() == "symlog"
    text = " ".join(reconstruct.describe(reconstructed))
    assert "The bound holds at all 4 points" in text and "one layer is undone up to 10 % (9 to 11), 2 layers" in text
    reconstructed.facts["bound"]["broken"] = 1
    assert "is broken at 1 of 4 points" in reconstruct.describe(reconstructed)[1]
    shown = reconstruct.table(reconstructed)
    assert shown["over half lost"].tolist() == ["no"] * 4 and shown["its bound"].tolist()[-1] == "–"


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (("descends", "descends"), "descends at 2 of 2 points (mean"),
        (("ascends", "ascends"), "descends at 0 of 2 points, ascends at 2 (mean"),
        (("descends", "cannot tell"), "descends at 1 of 2 points, cannot tell at 1 (mean"),
    ],
)
def test_compress_counts_every_verdict(verdicts, words):
    rows = [{"verdict": verdict, "mean": -1.0} for verdict in verdicts]
    assert words in compress._count(rows)
    settings = compress_study.CompressSettings(seeds=2)
    rows = [
        {"sweep": sweep, "value": value, "form": form, "tokens": tokens, "verdict": verdict, **number(-1.0)}
        for sweep, value in (("step_size", 0.5), ("step_size", 2.5), ("repeated", 0.0), ("all steps", 20.0))
        for form in compress_study.TESTED
        for tokens in compress_study.MEASURES
        for verdict in verdicts[-1:]
    ]
    said = compress.describe(experiment("compress", settings, rows))[-1]
    end = "it still descends at every one tried." if verdicts[-1] == "descends" else "no longer descends at κL = 2.5."
    assert said.endswith(end)


@pytest.mark.parametrize(
    ("rises", "pairs", "words"), [(0, 0, "One λ only"), (0, 4, "in all 4 comparisons"), (1, 4, "in 1 of 4 comparisons")]
)
def test_sparsify_says_how_l1_moves(rises, pairs, words):
    assert words in sparsify._l1_sentence(rises, pairs)


@pytest.mark.parametrize(
    ("raising", "words"),
    [
        ((), "never raises the objective (first 3 steps); nor does a larger one."),
        (
            (2.0,),
            "never raises the objective (first 3 steps); the smallest step size that ever raised it is η‖D‖² = 2.",
        ),
        ((1.0, 2.0), "raises the objective at 1 points, against the theorem"),
    ],
)
def test_sparsify_says_which_steps_descend(raising, words):
    settings = sparsify_study.SparsifySettings(seeds=2, steps=(1, 3))
    rows = [
        {"quantity": "steps that raise the objective", "step_size": size, "largest": float(size in raising)}
        for size in (0.5, 1.0, 2.0)
    ]
    assert words in sparsify._descent_sentence(experiment("sparsify", settings, rows))


def test_an_undefined_number_is_nan_in_csv_and_null_in_json(denoised, tmp_path):
    denoised.rows[0]["low"] = float("nan")
    paths = write.write_experiment(denoised, tmp_path, "words")
    assert [path.name for path in paths[-2:]] == ["denoise.csv", "denoise.json"]
    assert ",nan," in paths[-2].read_text().splitlines()[1] and '"low": null' in paths[-1].read_text()
