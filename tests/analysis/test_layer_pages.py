"""The page of measured layers: its sentences follow the numbers, for none, one, all and undecided."""

import re
from dataclasses import replace

import pytest
import torch

from opencrate.analysis.layers.analyze import LayerAnalysis
from opencrate.analysis.layers.claims import claims
from opencrate.analysis.layers.result import LayerMeasures
from opencrate.evaluation.classifier import Evaluation, wilson_interval
from opencrate.reports import classifier, html
from opencrate.reports.layers import describe_compression, layer_table
from opencrate.reports.whitebox import RunRecord, Subject, model_page, page
from opencrate.stats import words

from .models import made_up_measures

NUMBERS = {"subspace_rate_before": [9.0, 9.0], "subspace_rate": [5.0, 4.0]}


def box(model_type: str = "crate", initial: dict | None = None, **means) -> LayerAnalysis:
    series = {"trained": made_up_measures(**means)}
    if initial:
        series["initialisation"] = made_up_measures(**initial)
    return LayerAnalysis("CRATE", model_type, series)


def mixed(num_inputs: int = 4) -> LayerMeasures:
    """Layers 2, 4 and 6: R^c falls, rises, and is undecided."""
    after = torch.tensor([[-1.0, 1.0, -2.0], [-2.0, 2.0, 2.5], [-1.5, 1.5, -2.5], [-1.0, 1.0, 2.0]]).double()
    values = {"subspace_rate_before": torch.zeros(4, 3).double(), "subspace_rate": after}
    return LayerMeasures(0.5, {key: value[:num_inputs] for key, value in values.items()}, layers=(2, 4, 6))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([3.0, 2.0, 1.0], "R falls from 3.0 to 1.0 nats, at all 2 steps from layer to layer."),
        ([3.0, 3.5, 1.0], "R falls from 3.0 to 1.0 nats overall, at 1 of 2 steps from layer to layer, not at layer 2."),
        (
            [1.0, 2.0, 1.5, 4.0],
            "R does not fall overall: it goes from 1.0 to 4.0 nats. It falls at 1 of 3 steps from layer to layer, "
            "not at layers 2 and 4.",
        ),
        (
            [1.0, 1.0, 1.0, 1.0],
            "R does not fall overall: it goes from 1.0 to 1.0 nats. It falls at 0 of 3 steps from layer to layer, "
            "not at layers 2, 3 and 4.",
        ),
        ([2.0], "R is 2.0 nats at the only layer."),
    ],
)
def test_trend(values, sentence):
    assert words.describe_trend("R", torch.tensor(values), "nats") == sentence


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([3.0, 3.0], [2.0, 1.0], "lowers R^c( · | U^ℓ) in all 2 layers (mean changes -2.0 to -1.0 nats; every 95 %"),
        (
            [3.0],
            [2.0],
            "lowers R^c( · | U^ℓ) in the only layer (mean changes -1.0 nats; every 95 % interval lies below",
        ),
        ([3.0, 3.0], [2.0, 3.5], "in 1 of 2 layers (mean changes -1.0 to +0.5 nats) and raises it in layer 2."),
        ([3.0, 3.0], [4.0, 3.5], "raises R^c( · | U^ℓ) in all 2 layers (mean changes +0.5 to +1.0 nats; every 95 %"),
        ([3.0, 3.0], [3.0, 2.5], "and is undecided in layer 1, where the 95 % interval contains 0."),
        ([3.0, 3.0], [3.0, 4.0], "lowers R^c( · | U^ℓ) in none of 2 layers"),
    ],
)
def test_compression_step(before, after, said):
    measures = made_up_measures(subspace_rate_before=before, subspace_rate=after)
    assert said in describe_compression(measures)
    changed = describe_compression(measures, "value projections per head")
    assert "R^c( · | value projections)" in changed and "U^ℓ" not in changed


def test_signs_need_the_interval_on_one_side_of_zero():
    assert mixed().compression_changes().signs == ["below", "above", "undecided"]
    assert mixed(1).compression_changes().signs == ["undecided"] * 3
    assert "in 2 of 3 (mean changes" in describe_compression(mixed(1)) and "one input" in describe_compression(mixed(1))
    assert "raises it in layer 4 and is undecided in layer 6" in describe_compression(mixed())


def test_claims_are_checked_one_by_one():
    good = box(initial={"subspace_rate": [6.0, 6.0]}, **NUMBERS, rate_reduction=[1.0, 2.0], nonzero_fraction=[0.5, 0.4])
    found = claims(good.series)
    assert [claim.held for claim in found] == [True] * 5
    assert [claim.measured for claim in found] == [
        "lowered in 2 of 2 layers",
        "5.0 to 4.0 nats, at 1 of 1 step",
        "1.0 to 2.0 nats, at 1 of 1 step",
        "0.500 to 0.400, at 1 of 1 step",
        "4.0 nats, 6.0 before training",
    ]
    bad = box(
        initial={"subspace_rate": [6.0, 6.0]},
        subspace_rate_before=[5.0, 9.0],
        subspace_rate=[5.0, 6.0],
        rate_reduction=[2.0, 1.0],
    )
    assert [claim.held for claim in claims(bad.series)] == [False] * 5
    assert claims(bad.series)[0].measured == "lowered in 1, unchanged in 1 of 2 layers"
    assert claims({"trained": mixed()})[0].held is False and claims({"trained": mixed(1)})[0].held is None


def test_an_undecided_claim_on_top():
    analysis = box(**NUMBERS, rate_reduction=[1.0, 2.0], nonzero_fraction=[0.5, 0.4])
    analysis.measures.values["subspace_rate_before"][:, 0] = torch.tensor([4.0, 5.0, 6.0])
    top = sentences_on_top(analysis)
    assert top[1] == "Of the 4 predictions of the theory, 3 held on these inputs, and 1 is undecided."
    assert "it is undecided that attention lowers Rc in every layer" in top[2]


def test_every_claim_is_judged_by_its_interval():
    """Means that lie right say nothing where the interval of a change contains 0, or where there is one input."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.arange(3.0).double().flip(0)
    keys = ("subspace_rate_before", "subspace_rate", "rate_reduction", "nonzero_fraction")
    noise = {key: torch.randn(40, 3, generator=generator).double() for key in keys}
    slopes = {"subspace_rate_before": 2 + shape, "subspace_rate": shape, "nonzero_fraction": shape}
    slopes["rate_reduction"] = shape.flip(0)

    def found(spread: float, count: int = 40) -> list[bool | None]:
        series = {
            name: LayerMeasures(0.5, {key: (slopes[key] + lift + spread * noise[key])[:count] for key in keys})
            for name, lift in (("trained", 0.0), ("initialisation", 2.0))
        }
        return [claim.held for claim in claims(series)]

    assert found(0.1) == [True] * 5
    assert found(0.1, count=1) == [None] * 5
    assert None in found(30.0) and False not in found(5.0)[4:]


def test_codes_that_are_decoded_are_what_gets_sparser():
    means = {"nonzero_fraction": [1.0, 1.0], "code_nonzero_fraction": [0.4, 0.2]}
    tokens = claims({"trained": made_up_measures(**means)})[-1]
    codes = claims({"trained": replace(made_up_measures(**means), decoded=True)})[-1]
    assert (tokens.about, tokens.held) == ("nonzero_fraction", False)
    assert (codes.about, codes.held) == ("code_nonzero_fraction", True)
    assert codes.text.startswith("the sparse codes get sparser")


def sentences_on_top(analysis: LayerAnalysis) -> list[str]:
    found = (str(html.formula(sentence)) for sentence in page(analysis).summary)
    return [re.sub(r"<[^>]*>", "", sentence).replace("&nbsp;", " ") for sentence in found]


@pytest.mark.parametrize(
    ("means", "counted", "look"),
    [
        (  # all
            NUMBERS | {"rate_reduction": [1.0, 2.0], "nonzero_fraction": [0.5, 0.4]},
            "Of the 4 predictions of the theory, all held on these inputs.",
            "Look first at “Does attention lower Rc?”: how much attention lowers Rc in each layer.",
        ),
        (  # none
            {"subspace_rate_before": [1.0, 1.0], "subspace_rate": [2.0, 3.0], "rate_reduction": [2.0, 1.0]},
            "Of the 4 predictions of the theory, none held on these inputs.",
            "it did not hold that attention lowers Rc in every layer (raised in 2 of 2 layers).",
        ),
        (  # one layer, one prediction
            {"subspace_rate_before": [2.0], "subspace_rate": [1.0]},
            "The one prediction that was checked held on these inputs.",
            "Look first at",
        ),
    ],
)
def test_the_sentences_on_top(means, counted, look):
    top = sentences_on_top(box(**means))
    assert len(top) == 3 and "how well the model does its task was not measured" in top[0]
    assert top[1] == counted and look in top[2]


def test_pages_read_well_for_one_layer_and_one_input(tmp_path):
    one = LayerMeasures(0.5, {key: value[:1, :1] for key, value in made_up_measures(rate=[1.0]).values.items()})
    for analysis in (
        LayerAnalysis("CRATE", "crate", {"trained": one}),
        box(**NUMBERS),
        LayerAnalysis("v", "vit", {"trained": one}, "pca"),
    ):
        text = re.sub(
            r"data:image[^\"]*|<style>.*?</style>",
            "",
            html.write(page(analysis), tmp_path, overwrite=True).read_text(),
            flags=re.S,
        )
        assert not re.search(r"\bNone\b|\bnan\b|\ball 1\b|\b1 (?:layers|inputs|images|steps|times)\b", text)


def test_what_was_not_measured_is_left_out():
    few = LayerMeasures(0.5, {"rate": torch.ones(3, 2).double()})
    report = page(LayerAnalysis("CRATE", "crate", {"trained": few}))
    assert [part.title for part in report.parts] == ["Every half-step, and further measures", "Layer by layer"]
    assert "No prediction of the theory was checked" in report.summary[1]
    results_only = model_page(
        "t", [Subject("m", None, classifier.TrainedModel("m", 3, evaluation(9, 10)))], RunRecord("images")
    )
    assert results_only.files == {} and "cannot be measured" in results_only.summary[1]


def test_a_table_of_one_input_has_no_interval():
    table = layer_table("t", LayerMeasures(0.5, {"rate": torch.tensor([[1.0, 2.0]]).double()}))
    assert table.frame.iloc[:, 1].tolist() == ["1.00", "2.00"] and table.note.startswith("Mean over 1 input ")


def evaluation(correct: int, total: int) -> Evaluation:
    confusion = torch.tensor([[correct, total - correct], [0, 0]])
    interval = wilson_interval(correct, total)
    return Evaluation(total, correct / total, None, interval, 0.1, confusion, ("a", "b"), 10.0)


def test_difference_says_what_the_intervals_allow():
    good, close, bad = evaluation(98, 100), evaluation(97, 100), evaluation(50, 100)
    assert "1.0 points above ViT (97.0 %); their 95 % intervals overlap" in (
        classifier.describe_difference("CRATE", good, "ViT", close)
    )
    assert "48.0 points below ViT (98.0 %); their 95 % intervals do not overlap" in (
        classifier.describe_difference("CRATE", bad, "ViT", good)
    )
    assert "CRATE is level with ViT" in classifier.describe_difference("CRATE", good, "ViT", good)


@pytest.mark.parametrize(
    ("correct", "said"),
    [
        (10, "0 of 10 images are given a wrong class."),
        (9, "1 of 10 images is given a wrong class. Most often: a taken for b (once)."),
        (7, "a taken for b (3 times)."),
    ],
)
def test_mistakes(correct, said):
    assert said in classifier.confusion_figure(evaluation(correct, 10)).notes[html.MEASURED]


def test_accuracy_and_duration():
    assert classifier.describe_accuracy("CRATE", evaluation(98, 100), "test images") == (
        "CRATE gives the right class for 98.0 % of 100 test images (98 right; 95 % interval 93.0 % to 99.4 %)."
    )
    assert (words.duration(31.4), words.duration(150)) == ("31 seconds", "2.5 minutes")
    assert html.render(classifier.page(evaluation(98, 100)), {"confusion": b""})
