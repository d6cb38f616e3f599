"""Sentences follow the numbers, also when a prediction does not hold."""

import pytest
import torch

from opencrate.analysis.layers.result import LayerMeasures
from opencrate.evaluation.classifier import Evaluation, wilson_interval
from opencrate.reports import findings
from opencrate.stats import words

from .models import made_up_measures


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
    ("before", "after", "words"),
    [
        ([3.0, 3.0], [2.0, 1.0], "lowers R^c( · | U^ℓ) in all 2 layers (mean changes from -2.0 to -1.0 nats; every"),
        ([3.0, 3.0], [2.0, 3.5], "in 1 of 2 layers (mean changes from -1.0 to +0.5 nats); in layer 2 it raises it."),
        ([3.0, 3.0], [4.0, 3.5], "raises R^c( · | U^ℓ) in all 2 layers (mean changes from +0.5 to +1.0 nats; every"),
        ([3.0, 3.0], [3.0, 2.5], "in layer 1 the 95 % interval holds 0, so it cannot be told."),
    ],
)
def test_compression_step(before, after, words):
    measures = made_up_measures(subspace_rate_before=before, subspace_rate=after)
    assert words in findings.describe_compression(measures)
    changed = findings.describe_compression(measures, "value projections per head")
    assert "R^c( · | value projections)" in changed and "U^ℓ" not in changed


def test_verdicts_need_the_interval_on_one_side_of_zero():
    before = torch.zeros(4, 3).double()
    after = torch.tensor([[-1.0, 1.0, -2.0], [-2.0, 2.0, 2.5], [-1.5, 1.5, -2.5], [-1.0, 1.0, 2.0]]).double()
    measures = LayerMeasures(0.5, {"subspace_rate_before": before, "subspace_rate": after}, layers=(2, 4, 6))
    changes = findings.compression_changes(measures)
    assert [(change.layer, change.verdict) for change in changes] == [(2, "falls"), (4, "rises"), (6, "cannot tell")]
    single = LayerMeasures(0.5, {"subspace_rate_before": before[:1], "subspace_rate": after[:1]})
    assert {change.verdict for change in findings.compression_changes(single)} == {"cannot tell"}
    assert "by the mean alone in 2 of 3 layers" in findings.describe_compression(single)


def test_claims_are_checked_one_by_one():
    numbers = {"subspace_rate_before": [9.0, 9.0], "subspace_rate": [5.0, 4.0]}
    good = made_up_measures(**numbers, rate_reduction=[1.0, 2.0], nonzero_fraction=[0.5, 0.4])
    start = made_up_measures(subspace_rate=[6.0, 6.0])
    found = findings.claims({"trained": good, "initialisation": start})
    assert [claim.held for claim in found] == [True] * 5
    assert findings.describe_claims(found).startswith("Of 5 predictions of the theory, 5 held on these inputs. Held: ")
    bad = made_up_measures(subspace_rate_before=[5.0, 9.0], subspace_rate=[5.0, 6.0], rate_reduction=[2.0, 1.0])
    held = [claim.held for claim in findings.claims({"trained": bad, "initialisation": start})]
    assert held == [None, False, False, False, False]
    assert "Cannot be told: attention lowers R^c inside every layer." in findings.describe_claims(
        findings.claims({"trained": bad})
    )


def test_against_initialisation():
    trained, initial = torch.tensor([3.0, 1.0]), torch.tensor([3.0, 2.0])
    assert "from 3.0 to 2.0 nats (falling at 1 of 1 steps); after training the last layer is below that." in (
        findings.describe_against_start("it", trained, initial, "nats")
    )
    assert "is not below that" in findings.describe_against_start("it", initial, trained, "nats")


def evaluation(correct: int, total: int) -> Evaluation:
    confusion = torch.tensor([[correct, total - correct], [0, 0]])
    interval = wilson_interval(correct, total)
    return Evaluation(total, correct / total, None, interval, 0.1, confusion, ("a", "b"), 10.0)


def test_difference_says_what_the_intervals_allow():
    good, close, bad = evaluation(98, 100), evaluation(97, 100), evaluation(50, 100)
    assert "1.0 points above ViT (97.0 %); their 95 % intervals overlap" in (
        findings.describe_difference("CRATE", good, "ViT", close)
    )
    assert "48.0 points below ViT (98.0 %); their 95 % intervals do not overlap" in (
        findings.describe_difference("CRATE", bad, "ViT", good)
    )
    assert "CRATE is level with ViT" in findings.describe_difference("CRATE", good, "ViT", good)


def test_accuracy_and_duration():
    assert findings.describe_accuracy("CRATE", evaluation(98, 100), "test images") == (
        "CRATE names the right class for 98.0 % of 100 test images (98 right; 95 % interval 93.0 % to 99.4 %)."
    )
    assert (words.duration(31.4), words.duration(150)) == ("31 seconds", "2.5 minutes")
