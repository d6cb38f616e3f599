"""Probes: features are the model's own recorded states, and the classifiers find what is there."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig

from opencrate import CrateConfig, CrateForImageClassification, CrateMAEConfig
from opencrate.evaluation.classifier import wilson_interval
from opencrate.evaluation.probe import (
    NEIGHBOURS,
    REGULARISATIONS,
    Features,
    choose_regularisation,
    features,
    last_layer,
    probe,
)
from opencrate.store.build import initialise


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CrateConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4, num_labels=3
    )
    return CrateForImageClassification(config)


def batch(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "labels": torch.arange(count) % 3}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("token", ["cls", "mean"])
def test_features_are_the_recorded_tokens(model, layer, token):
    batches = [batch(4), batch(3, seed=1)]
    found = features(model, batches, layer, token)
    with torch.no_grad():
        states = [model(one["pixel_values"], output_hidden_states=True).hidden_states[layer] for one in batches]
    tokens = torch.cat(states)
    expected = tokens[:, 0] if token == "cls" else tokens.mean(1)
    assert found.values.shape == (7, 24) and np.allclose(found.values, expected.numpy(), atol=1e-6)
    assert found.labels.tolist() == [0, 1, 2, 0, 0, 1, 2]


def test_last_layer_is_what_the_head_reads(model):
    one = batch(4)
    found = features(model, [one], last_layer(model), "cls")
    with torch.no_grad():
        logits = model.classifier(model.norm(torch.from_numpy(found.values)))
        assert torch.allclose(logits, model(one["pixel_values"]).logits, atol=1e-5)


AUTOENCODERS = {
    "mask-tokens": CrateMAEConfig,
    "visible-only": lambda **fields: CrateMAEConfig(**fields, mask_tokens_in_encoder=False),
    "vit": lambda **fields: ViTMAEConfig(
        **fields,
        intermediate_size=48,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
    ),
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_an_autoencoder_is_shown_whole_images(kind):
    """Every patch is visible, in order, and no random number is drawn."""
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    model = initialise(AUTOENCODERS[kind](**size), 0, "masked-autoencoding")
    model.config.mask_ratio = 0.75
    before = torch.get_rng_state()
    found = features(model, [batch(4), batch(3, seed=1)], 2, "mean")
    assert torch.equal(torch.get_rng_state(), before) and model.config.mask_ratio == 0.75
    model.config.mask_ratio = 0.0
    pixels = torch.cat([batch(4)["pixel_values"], batch(3, seed=1)["pixel_values"]])
    with torch.no_grad():
        noise = torch.arange(16.0).expand(7, 16)
        states = model.eval().base_model(pixels, noise=noise, output_hidden_states=True).hidden_states[2]
    assert states.shape == (7, 17, 24) and np.allclose(found.values, states.mean(1).numpy(), atol=1e-6)


def test_layer_that_is_not_there(model):
    with pytest.raises(ValueError, match="layer=3: the model has the layers 1 to 2"):
        features(model, [batch(2)], 3, "cls")


def blobs(count, spread, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    return Features((3 * np.eye(4, 6)[labels] + spread * rng.standard_normal((count, 6))).astype(np.float32), labels)


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_separable_classes_are_found_and_noise_is_not(method):
    easy = probe(blobs(200, 0.2, 0), blobs(100, 0.2, 1), method, 2, "cls")
    assert easy.accuracy == 1 and easy.interval == wilson_interval(100, 100)
    assert (easy.train_images, easy.test_images, easy.width) == (200, 100, 6)
    noise = probe(blobs(200, 1000, 0), blobs(100, 1000, 1), method, 2, "cls")
    assert noise.accuracy < 0.5 and noise.to_dict()["method"] == method


def test_neighbours_are_counted_by_cosine():
    """Against a plain count of the 20 largest cosines."""
    train, test = blobs(120, 1.5, 2), blobs(60, 1.5, 3)
    unit = [one.values / np.linalg.norm(one.values, axis=1, keepdims=True) for one in (train, test)]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1)[:, :NEIGHBOURS]
    votes = np.stack([np.bincount(train.labels[row], minlength=4) for row in nearest])
    expected = (votes.argmax(1) == test.labels).mean()
    assert probe(train, test, "knn", 1, "mean").accuracy == pytest.approx(expected)


def test_scale_of_the_features_does_not_matter_to_the_linear_probe():
    train, test = blobs(80, 2.0, 4), blobs(40, 2.0, 5)
    scaled = [Features(1000 * one.values + 7, one.labels) for one in (train, test)]
    assert probe(train, test, "linear", 1, "cls").accuracy == probe(*scaled, "linear", 1, "cls").accuracy


def test_regularisation_is_chosen_on_training_images():
    """More numbers than images and labels that one of them gives: little weight decay fits the others' noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    values = rng.standard_normal((120, 200))
    values[:, 0] += 3 * labels
    noisy = Features(values.astype(np.float32), labels)
    assert choose_regularisation(noisy) < REGULARISATIONS[-1]
    found = probe(noisy, noisy, "linear", 1, "cls")
    assert found.regularisation == choose_regularisation(noisy)
    assert probe(noisy, noisy, "linear", 1, "cls", regularisation=0.1).regularisation == 0.1
    assert probe(noisy, noisy, "knn", 1, "cls").regularisation is None
    alone = Features(values[:3].astype(np.float32), labels[:3])
    assert choose_regularisation(alone) == REGULARISATIONS[-1], "a class of one image cannot be held out"


def test_too_few_images():
    with pytest.raises(ValueError, match=r"needs 20 training images, got 12"):
        probe(blobs(12, 1, 0), blobs(4, 1, 1), "knn", 1, "cls")
    one_class = Features(np.ones((30, 2), np.float32), np.zeros(30, np.int64))
    with pytest.raises(ValueError, match=r"at least two classes"):
        probe(one_class, one_class, "linear", 1, "cls")


def test_near_neighbours_outvote_a_majority():
    """Three of 20 neighbours are at the test image, the others nearly at a right angle to it."""
    near, far = np.tile([1.0, 0.0], (3, 1)), np.tile([0.1, 1.0], (17, 1))
    train = Features(np.concatenate([near, far]).astype(np.float32), np.array([1] * 3 + [0] * 17))
    test = Features(np.array([[1.0, 0.01]], np.float32), np.array([1]))
    assert probe(train, test, "knn", 1, "cls").accuracy == 0
    found = probe(train, test, "knn", 1, "cls", weights="exp")
    assert found.accuracy == 1 and found.weights == "exp"
    assert probe(train, test, "linear", 1, "cls", 1.0).weights is None


def test_weights_are_exponentials_of_the_cosine():
    """At temperature 0.07, two neighbours of cosine 1 weigh as much as 2 exp(0.3/0.07) = 145 of cosine 0.7."""
    cosine = np.array([0.7, np.sqrt(1 - 0.49)])
    train = Features(np.stack([[1.0, 0.0]] * 2 + [cosine] * 18).astype(np.float32), np.array([1] * 2 + [0] * 18))
    test = Features(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert probe(train, test, "knn", 1, "cls", weights="exp").accuracy == 1
    nearer = np.array([0.9, np.sqrt(1 - 0.81)])  # 18 exp(-0.1/0.07) = 4.3 > 2
    train = Features(np.stack([[1.0, 0.0]] * 2 + [nearer] * 18).astype(np.float32), train.labels)
    assert probe(train, test, "knn", 1, "cls", weights="exp").accuracy == 0
