"""A step of several small batches is the step of one large batch, with transformers' own Trainer."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from ..training.heads import PENALTIES, UNCOUNTED, gradient, heads, moved


def assert_same(found, expected):
    assert expected.norm() > 0 and (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "penalties", [pytest.param({}, marks=pytest.mark.slow), PENALTIES], ids=["without penalties", "penalties"]
)
@pytest.mark.parametrize("name", heads())
def test_small_batches_make_the_step_of_one(name, penalties):
    """The last of the four is smaller, and of the words every batch ignores another number."""
    count = 16 if name in UNCOUNTED else 14
    assert_same(moved(name, 4, 4, count, penalties), -gradient(name, count, penalties))


@pytest.mark.parametrize("name", ["image classes", "choices", "token classes", "causal"])
def test_with_label_smoothing(name):
    make, batch = heads()[name]
    torch.manual_seed(0)
    model, labels = make().train(), batch["labels"][:14]
    logits = model(**{key: value[:14] for key, value in batch.items() if key != "labels"}).logits
    if name == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.1).backward()
    expected = torch.cat([value.grad.flatten() for value in model.parameters()])
    assert_same(moved(name, 4, 4, 14, label_smoothing_factor=0.1), -expected)


@pytest.mark.parametrize("name", ["image classes", "sequence classes", "choices", "token classes", "causal", "masked"])
def test_a_trainer_that_takes_the_labels_is_told_of_lost_penalties(name):
    make, batch = heads()[name]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with pytest.warns(UserWarning, match="subspace_penalty and dictionary_penalty are part of the model's own loss"):
        assert make(**PENALTIES)(**inputs, num_items_in_batch=16).loss is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()(**inputs, num_items_in_batch=16)
        make(**PENALTIES)(**inputs)
