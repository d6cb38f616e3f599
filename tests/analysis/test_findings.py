"""Sentences follow the numbers, also when a prediction does not hold."""

import pytest
import torch

from opencrate.analysis import findings
from opencrate.analysis.evaluation import Evaluation, wilson_interval

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
    assert findings.describe_trend("R", torch.tensor(values), "nats") == sentence


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([3.0, 3.0], [2.0, 1.0], "in all 2 layers (mean changes from -2.0 to -1.0 nats)."),
        ([3.0, 3.0], [2.0, 3.5], "in 1 of 2 layers (mean changes from -1.0 to +0.5 nats); in layer 2 it is no descent"),
        ([3.0, 3.0], [4.0, 3.5], "in none of the 2 layers (mean changes from +0.5 to +1.0 nats): it is no descent"),
    ],
)
def test_compression_step(before, after, words):
    measures = made_up_measures(subspace_rate_before=before, subspace_rate=after)
    assert words in findings.describe_compression(measures)


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
    assert (findings.duration(31.4), findings.duration(150)) == ("31 seconds", "2.5 minutes")
