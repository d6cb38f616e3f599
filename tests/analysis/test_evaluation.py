"""Accuracy, confusion and interval against scikit-learn and hand-made numbers."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from transformers import ViTConfig, ViTForImageClassification

from opencrate.evaluation.classifier import evaluate_classifier, wilson_interval

from .models import NAMES, split, tiny_crate, tiny_images


def tiny_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(
        ViTConfig(image_size=(4, 6), patch_size=2, num_channels=1, id2label=NAMES, **sizes)
    )


@pytest.mark.parametrize("build", [tiny_crate, tiny_vit])
def test_numbers_are_scikit_learns(build):
    model, images = build().train(), tiny_images(21)
    found = evaluate_classifier(model, split(images, 8))
    assert model.training
    with torch.no_grad():
        logits = model.eval()(pixel_values=images["pixel_values"]).logits.double()
    true, classes = images["labels"], range(7)
    assert found.confusion.tolist() == confusion_matrix(true, logits.argmax(1), labels=classes).tolist()
    assert found.top1 == pytest.approx((logits.argmax(1) == true).double().mean().item())
    assert found.top5 == pytest.approx(top_k_accuracy_score(true, logits, k=5, labels=classes))
    assert found.loss == pytest.approx(log_loss(true, logits.softmax(1), labels=classes), rel=1e-5)
    assert found.num_images == 21 and found.labels == tuple(NAMES.values()) and found.images_per_second > 0
    assert found.interval == wilson_interval(found.num_correct, 21)
    assert found.to_dict()["confusion"] == found.confusion.tolist()


def test_no_top5_for_few_classes_and_given_names():
    model = tiny_crate(id2label={0: "a", 1: "b"})
    images = tiny_images(2)
    found = evaluate_classifier(model, [images], {0: "cat", 1: "dog"})
    assert found.top5 is None and found.labels == ("cat", "dog")


def test_wilson_interval():
    """356 of 360: the roots of (p - 356/360)^2 = z^2 p (1 - p) / 360."""
    low, high = wilson_interval(356, 360)
    for edge in (low, high):
        assert (edge - 356 / 360) ** 2 == pytest.approx(1.959963984540054**2 * edge * (1 - edge) / 360, rel=1e-9)
    assert low < 356 / 360 < high
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="num_images=0"):
        wilson_interval(0, 0)


def test_a_class_without_images_has_no_recall():
    recall = evaluate_classifier(tiny_crate(), [tiny_images(3)]).recall
    assert torch.isnan(recall[3:]).all() and torch.isfinite(recall[:3]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 7])}, "0 to 7, but the model has 7 classes"),
        ({"labels": torch.tensor([-1, 0])}, "-1 to 0"),
        ({"pixel_values": torch.full((2, 1, 4, 6), float("nan"))}, "not finite"),
    ],
)
def test_bad_data_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_classifier(tiny_crate(), [tiny_images(2) | change])


def test_labels_are_needed():
    with pytest.raises(ValueError, match="no 'labels'"):
        evaluate_classifier(tiny_crate(), [tiny_images(2)["pixel_values"]])
