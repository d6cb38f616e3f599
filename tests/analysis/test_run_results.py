"""What runs without classes came to: sentences and tables for every verdict, curves, samples and reconstructions."""

import copy
import re

import pytest
import torch

from opencrate.reports import html, training
from opencrate.reports.reconstruction import ReconstructedImage
from opencrate.reports.training import RunResults, TrainingHistory, describe_results, results_items, results_table
from opencrate.reports.whitebox import RunRecord, Subject, model_page

TEXT = {"loss": 2.5, "perplexity": 12.18, "accuracy": 0.3171, "bits_per_byte": 3.61, "seconds": 6.5, "part": "test"}
TEXT["history"] = [{"epoch": 1, "train_loss": 3.0, "validation_loss": 2.6}, {"epoch": 2, "train_loss": 2.0}]
WHITE_BOX = {"images": 4, "split": "test", "eps": 0.5, "inputs": "texts"}
WHITE_BOX["history"] = [
    {"epoch": epoch, "subspace_rate": [2.0 - epoch, 1.0], "nonzero_fraction": [0.5, 0.4]} for epoch in (0, 1)
]


def masked(colour=(0.02, 0.04), nearest=(0.2, 0.3), **changes) -> dict:
    """Metrics of an autoencoder; the baselines' errors minus the model's lie in these intervals."""
    test = {"error_model": 0.17, "error_mean_colour": 0.2, "error_nearest_visible": 0.41, "psnr_masked": 14.0}
    test = {key: {"mean": value, "interval": [value - 0.01, value + 0.01]} for key, value in test.items()}
    test |= {"below_mean_colour": {"interval": list(colour)}, "below_nearest_visible": {"interval": list(nearest)}}
    return {"loss": 0.4760, "test": test, "history": [], **changes}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (TEXT, "predicts the next token of held-out text with a loss of 2.500 nats per token: perplexity 12.2, 3.61 bits "
               "per byte; its first guess is right for 31.7 % of tokens."),
        ({key: TEXT[key] for key in ("loss", "perplexity")}, "predicts masked tokens of held-out text with a loss of 2.500 nats per token: perplexity 12.2."),
        (masked(), "squared error of 0.17, below that of copying the mean colour of the visible patches (0.2) and below"),
        (masked(colour=(-0.2, -0.1)), "above that of copying the mean colour"),
        (masked(nearest=(-0.1, 0.1)), "and not significantly different from that of copying the nearest visible patch (0.41)."),
        ({"loss": 0.476, "test": {"psnr": {}}}, "m reconstructs held-out images with a loss of 0.476."),
    ],
)  # fmt: skip
def test_the_sentence_on_top(metrics, said):
    assert said in describe_results(RunResults("m", 10, metrics))


def test_tables_have_a_row_per_run():
    one, two = RunResults("a", 228352, TEXT), RunResults("b", 10, {key: TEXT[key] for key in ("loss", "perplexity")})
    frame = results_table([one, two]).frame
    assert frame["parameters"].tolist() == ["228,352", "10"] and frame["bits per byte"].tolist() == ["3.610", None]
    assert frame["training"].tolist() == ["6 seconds", None]
    (row,) = results_table([RunResults("m", 10, masked())]).frame.to_dict("records")
    assert row["error on masked patches"] == "0.17 (0.16 to 0.18)" and row["PSNR, masked patches (dB)"].startswith(
        "14 ("
    )


def test_the_page_of_a_language_run(tmp_path):
    found = RunResults("lm", 10, TEXT, samples=(("a <b>", " & c"), ("d", "\n e")))
    parts = [training.measures_part(WHITE_BOX, "lm", "lm")]
    report = model_page("t", [Subject("lm", None, results=found)], RunRecord("texts"), parts)
    assert {figure.name for figure in report.figures} == {"training", "training_measures_lm"}
    page = html.write(report, tmp_path).read_text()
    assert "<blockquote><b>a &lt;b&gt;</b> &amp; c</blockquote>" in page and "<b>d</b>\n e</blockquote>" in page
    assert "went from 3.0 to 2.0 nats during training" in page and "<dt>perplexity</dt>" in page
    text = re.sub(r"data:image[^\"]*|<style>.*?</style>", "", page, flags=re.S)
    assert not re.search(r"\bNone\b|\bnan\b", text)


def test_the_page_of_an_autoencoder_run(tmp_path):
    numbers = {"psnr_masked": 12.0}
    images = tuple(ReconstructedImage(f"image {n}", torch.rand(4, 1, 4, 6), numbers) for n in (1, 2))
    both = [RunResults(name, 10, copy.deepcopy(masked()), images=images) for name in ("m", "n")]
    report = model_page("t", [Subject(one.name, None, results=one) for one in both], RunRecord("images"))
    assert [figure.name for figure in report.figures] == ["reconstructions_1", "reconstructions_2"]
    assert "The first 2 test images, not chosen" in html.write(report, tmp_path).read_text()
    assert [type(item).__name__ for item in results_items(both[:1])] == ["Table", "Figure"]


def test_curves_show_what_was_logged():
    history = TrainingHistory.of(TEXT["history"], "nats per token")
    assert history.train_loss == ((1, 3.0), (2, 2.0)) and history.eval_loss == ((1, 2.6),) and not history.eval_accuracy
    (axes,) = training.plot_training({"m": history}).get_axes()
    assert axes.get_ylabel() == "loss (nats per token)" and axes.get_yscale() == "linear"
    steep = TrainingHistory(train_loss=((1, 3.0), (2, 0.1)))
    assert training.plot_training({"m": steep}).get_axes()[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="no measure 'rate' in it"):
        training.plot_training_measures(WHITE_BOX, ["rate"])
