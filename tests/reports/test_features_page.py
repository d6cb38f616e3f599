"""The features page from results made by hand: none, one and many features, with and without scores."""

import math

import numpy as np
import pytest

from opencrate.analysis.features.find import SCORES, Context, Feature, Features
from opencrate.analysis.features.steer import Steering
from opencrate.reports.features import describe, features_report, plot_scores, score_table
from opencrate.reports.html import write


def feature(index: int, score: float, fires: bool = True, layer: int = 1) -> Feature:
    context = Context(("a", "<b>", "c"), (0.0, 2.0, 1.0), 1)
    rate = 0.25 * fires
    found = (context,) if fires else ()
    return Feature(layer, index, rate, rate, 2.0 * fires, (("x", 1.5),), found, dict.fromkeys(SCORES, score))


def features(*scores: float, name: str = "tiny", silent: int = 0, layers: int = 1) -> Features:
    drawn = [feature(index, score, layer=1 + index % layers) for index, score in enumerate(scores)]
    drawn += [feature(90 + index, math.nan, fires=False) for index in range(silent)]
    widths = {layer: 100 for layer in range(1, layers + 1)}
    rates = {layer: np.full(100, 0.25) for layer in widths}
    return Features(name, "sparse codes", tuple(drawn), widths, rates, 1000, 32, 0, "a text")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            features(0.5, 0.6, 0.7),
            "3 features drawn at random (seed 0) from 100 in 1 layer, on 1,000 tokens; all fire. Explained",
        ),
        (features(0.5, 0.6, silent=1), "; 1 never fires. Explained by the current and the previous token"),
        (features(silent=2), "; 2 never fire. Too few of them fire to score explanations."),
        (features(0.5, silent=2), "Too few of them fire to score explanations."),
        (features(0.5), "1 feature drawn at random"),
    ],
)
def test_what_was_found(found, words):
    (line,) = describe([found])
    assert words in line and "nan" not in line


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ((0.1, 0.11, 0.12), "lower"),
        ((0.9, 0.91, 0.92), "higher"),
        ((0.3, 0.5, 0.71), "undecided"),
        ((0.5,), "too few features with a score"),
    ],
)
def test_models_are_compared(other, words):
    first, second = features(*other, name="one"), features(0.48, 0.5, 0.52, name="two")
    line = describe([first, second])[-1]
    assert line.startswith("one against two") and words in line


def test_steering_is_said():
    steered = [Steering(1, 2, 3.0, kl, (("a", 1.0),), (("b", -1.0),), "p", "before", "after") for kl in (0.1, 0.2)]
    assert "(1 feature, one at a time) changes" in describe([features(0.5)], steered[:1])[-1]
    assert "(2 features, one at a time) changes" in describe([features(0.5)], steered)[-1]
    assert "by 0.1 to 0.2 nats" in describe([features(0.5)], steered)[-1]


def test_table_and_figure():
    found = features(0.5, 0.6, 0.7, 0.8, layers=2)
    table = score_table([found, features(0.5, name="lone")]).frame
    assert table[""].tolist() == ["tiny, all layers", "tiny, layer 1", "tiny, layer 2", "lone, all layers"]
    assert table["correlation"].tolist()[-1] == "–" and table["scored"].tolist() == ["4", "2", "2", "1"]
    figure = plot_scores([found, features(name="none")])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["tiny"]


def test_the_page(tmp_path):
    report = features_report([features(0.5, 0.6, silent=1)], record=[("command", "some words")])
    assert "Of 3 features drawn at random from tiny, 2 fire" in report.summary[0] and "correlation" in report.summary[1]
    page = write(report, tmp_path).read_text()
    assert page.count("<article") == 3 and "&lt;b&gt;" in page and "some words" in page
    assert "It does not fire in the explaining half of the text." in page
    assert (tmp_path / "features.csv").read_text().splitlines()[0].startswith("model,layer,index,firing_rate")
    empty = features_report([features(silent=1)])
    assert "none fire on this text" in empty.summary[0] and "Too few" in empty.summary[1]
    write(empty, tmp_path / "empty")
