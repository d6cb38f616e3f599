"""Every failure signature on a model broken on purpose, and on a healthy one that must stay quiet."""

import json
import math

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from opencrate import CrateConfig, CrateForImageClassification, rate_gradient
from opencrate.analysis.doctor.diagnose import CHECKS, FAIL, FINDING, NOT_CHECKED, OK, WARN, diagnose
from opencrate.analysis.doctor.outputs import Outputs, nearest_class_mean, shuffle_patches
from opencrate.analysis.doctor.patient import CHECKED, Patient
from opencrate.analysis.doctor.vitals import Accuracy, relative_gradients
from opencrate.blocks import Compression
from opencrate.compression import MSSA
from opencrate.operators import squared_norm_bound
from opencrate.sparsification import ISTA

from .foreign_models import inputs_for, tiny
from .models import tiny_crate, tiny_images

NOT_OF_CLASSIFIERS = {"reconstruction", "perplexity", "dead-tokens", "stored-score", "self-supervision"}
"""What is not checked of a classifier without a run around it."""

LOG = [{"loss": 2.0 / step, "step": step} for step in range(1, 9)]


def stripes(count=84, seed=3):
    """Images of two classes that a small model learns in a few steps: rows or columns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = 0.3 * torch.randn(count, 1, 4, 8, generator=generator)
    pixels[labels == 0, :, ::2] += 1
    pixels[labels == 1, :, :, ::2] += 1
    return {"pixel_values": pixels, "labels": labels}


def build(**overrides):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 2, "pool": "mean"}
    shape = {"image_size": (4, 8), "patch_size": 2, "num_channels": 1}
    return CrateForImageClassification(CrateConfig(**(sizes | shape | overrides)))


def train(model, steps=120):
    batch = stripes(seed=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def healthy_weights():
    return train(build()).state_dict()


@pytest.fixture
def model(healthy_weights):
    fresh = build().eval()
    fresh.load_state_dict(healthy_weights)
    return fresh


def found(model, **options):
    batches = options.pop("batches", [stripes()])
    diagnosis = diagnose(model, batches, train_batches=[stripes(seed=4)], **({"log": LOG} | options))
    assert [finding.check for finding in diagnosis.findings] == list(CHECKS)
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    return {finding.check: finding for finding in diagnosis.findings}, diagnosis


def broken(model, kind, change):
    """Change the weights of every module of a kind in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, kind):
                change(module)
    return found(model)[0]


def test_healthy_model_is_quiet(model):
    findings, diagnosis = found(model)
    assert {name for name, one in findings.items() if one.verdict not in (OK, FINDING)} == NOT_OF_CLASSIFIERS
    assert all(one.advice == "" for one in findings.values())
    assert diagnosis.healthy(strict=True) and diagnosis.count(NOT_CHECKED) == len(NOT_OF_CLASSIFIERS)


def test_nan_weights_and_states(model):
    with torch.no_grad():
        model.crate.layers[1].sparsify.ista.dictionary[0, 0] = math.nan
    findings, diagnosis = found(model)
    assert findings["finite"].verdict == FAIL and "layers.1.sparsify.ista.dictionary" in findings["finite"].evidence
    others = [one for name, one in findings.items() if name not in ("finite", "loss-curve")]
    assert {one.verdict for one in others} == {NOT_CHECKED} and "not finite" in others[0].evidence
    assert not diagnosis.healthy()


def test_states_that_overflow(model):
    findings = broken(model, Compression, lambda one: one.norm.weight.fill_(1e38))
    assert findings["finite"].verdict == FAIL and "layer 1" in findings["finite"].evidence


def test_duplicated_subspaces(model):
    def duplicate(one):
        weight = one.subspaces.weight
        weight[8:] = weight[:8]

    findings = broken(model, MSSA, duplicate)
    assert findings["correlated-subspaces"].verdict == FAIL and findings["collapsed-subspaces"].verdict == OK
    assert "largest overlap 1.000" in findings["correlated-subspaces"].evidence


def test_collapsed_subspaces(model):
    def collapse(one):
        weight = one.subspaces.weight
        weight[:8] = weight[:1] + 1e-4 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    assert broken(model, MSSA, collapse)["collapsed-subspaces"].verdict == FAIL


def test_zero_subspaces(model):
    findings = broken(model, MSSA, lambda one: one.subspaces.weight.zero_())
    assert findings["collapsed-subspaces"].verdict == FAIL
    assert findings["rate-trend"].verdict == FINDING  # 0 everywhere: it does not fall


def test_scaled_dictionary(model):
    def scale(one):
        one.dictionary.mul_((25 / 0.1) ** 0.5 / torch.linalg.matrix_norm(one.dictionary, 2))

    findings = broken(model, ISTA, scale)
    assert findings["ista-step"].verdict == FAIL and "25.000" in findings["ista-step"].evidence
    assert broken(model, ISTA, lambda one: one.dictionary.mul_(0.25))["ista-step"].verdict == FINDING
    assert broken(model, ISTA, lambda one: one.dictionary.mul_(0.5))["ista-step"].verdict == OK


def test_ill_conditioned_dictionary(model):
    def flatten(one, value):
        left, _, right = torch.linalg.svd(one.dictionary)
        one.dictionary.copy_(left @ torch.diag(torch.cat([torch.ones(15), torch.tensor([value])])) @ right)

    assert broken(model, ISTA, lambda one: flatten(one, 1e-5))["dictionary-condition"].verdict == FINDING
    findings = broken(model, ISTA, lambda one: one.dictionary[:, 0].zero_())
    assert findings["dictionary-condition"].verdict == FAIL


CERTIFIED = {
    **{"compression": "gradient", "attention_output": "tied"},
    **{"ista_step": "bounded", "ista_step_size": 1.0, "ista_start": "positive", "learned_steps": "layer"},
}


@pytest.fixture(scope="module")
def certified_weights():
    return train(build(**CERTIFIED), steps=20).state_dict()


@pytest.fixture
def certified(certified_weights):
    """A model whose every step must descend."""
    fresh = build(**CERTIFIED).eval()
    fresh.load_state_dict(certified_weights)
    return fresh


def certificate_of(model):
    return {one.check: one for one in diagnose(model, [stripes(20)]).findings}["certificate"]


def swap_bases(model):
    first, second = (layer.compress.gradient.subspaces for layer in model.crate.layers[:2])
    first.weight, second.weight = second.weight, first.weight


@pytest.mark.parametrize(
    "change",
    [
        lambda model: None,
        lambda model: model.crate.layers[1].compress.gradient.raw_step.fill_(1e4),
        swap_bases,
        lambda model: model.crate.layers[0].compress.gradient.subspaces.weight.mul_(30),
        lambda model: model.crate.layers[0].sparsify.ista.dictionary.mul_(30),
    ],
    ids=["healthy", "largest step", "bases swapped", "larger bases", "larger dictionary"],
)
def test_guaranteed_descent_holds_whatever_the_weights_are(certified, change):
    with torch.no_grad():
        change(certified)
    finding = certificate_of(certified)
    assert (finding.verdict, finding.evidence) == (OK, "no step rises on 20 of 20 images; guaranteed")


def test_guaranteed_descent_that_is_broken(certified, monkeypatch):
    """What a layer computes is not what its weights say: its update, its code, the bound of its step."""
    handle = certified.crate.layers[1].compress.gradient.register_forward_hook(lambda *io: (-io[2][0], io[2][1]))
    finding = certificate_of(certified)
    assert finding.verdict == FAIL and "R^c must fall in layer 2, and rises by up to" in finding.evidence
    handle.remove()
    handle = certified.crate.layers[2].sparsify.ista.register_forward_hook(lambda *io: (io[2][0] + 1, io[2][1] + 1))
    finding = certificate_of(certified)
    assert finding.verdict == FAIL and "LASSO must fall in layer 3" in finding.evidence
    handle.remove()
    assert certificate_of(certified).verdict == OK
    monkeypatch.setattr(rate_gradient, "squared_norm_bound", lambda joined: squared_norm_bound(joined) / 1000)
    finding = certificate_of(certified)
    assert finding.verdict == FAIL and "R^c must fall" in finding.evidence


def test_descent_that_nothing_guarantees_is_no_fault(model, certified):
    finding = certificate_of(model)
    assert finding.verdict in (OK, FINDING) and "guaranteed" not in finding.evidence
    certified.crate.layers[0].compress.gradient.max_step = 1e3
    finding = certificate_of(certified)
    assert finding.verdict == FINDING and "R^c rises by up to" in finding.evidence
    with torch.no_grad():
        certified.crate.layers[0].compress.gradient.raw_step.fill_(math.nan)
    findings = {one.check: one.verdict for one in diagnose(certified, [stripes(20)]).findings}
    assert (findings["finite"], findings["certificate"]) == (FAIL, NOT_CHECKED)


def test_dead_atoms(healthy_weights):
    model = build(ista_lambda=50.0)
    model.load_state_dict(healthy_weights)
    findings, _ = found(model)
    assert findings["dead-atoms"].verdict == FAIL and "100.0 %" in findings["dead-atoms"].evidence
    assert findings["token-rank"].verdict == FAIL  # every token is zero
    assert findings["gradient-depth"].verdict == FAIL
    assert findings["class-collapse"].verdict == FAIL and findings["above-chance"].verdict == FAIL


def test_tokens_of_one_direction(model):
    with torch.no_grad():
        last = model.crate.layers[2].sparsify
        last.norm.weight.zero_()
        last.norm.bias.fill_(1.0)
    findings, _ = found(model)
    assert findings["token-rank"].verdict == FAIL and "layer 3" in findings["token-rank"].evidence


def test_gradient_that_vanishes(model):
    assert torch.isfinite(relative_gradients(model, stripes())).all()
    with torch.no_grad():
        model.crate.layers[2].sparsify.norm.weight.mul_(1e-3)
        model.crate.layers[2].sparsify.norm.bias.fill_(1.0)
    assert found(model)[0]["gradient-depth"].verdict in (WARN, FAIL)
    assert all(weight.grad is None for weight in model.parameters())


def test_saturated_softmax(model):
    findings = broken(model, MSSA, lambda one: one.subspaces.weight.mul_(100))
    assert findings["softmax-saturation"].verdict == FAIL


def test_large_states(model):
    findings = broken(model, MSSA, lambda one: one.output.weight.mul_(1e6))
    assert findings["half-precision"].verdict == WARN
    assert findings["finite"].verdict == OK


def test_rising_rates_and_codes(model):
    """Layers in an order in which R^c and the codes grow."""
    with torch.no_grad():
        for number, layer in enumerate(model.crate.layers):
            layer.compress.mssa.subspaces.weight.mul_(0.2 * 3**number)
            layer.sparsify.norm.bias.fill_(number - 1.0)
    findings, _ = found(model)
    trends = [findings[name] for name in ("rate-trend", "l0-trend", "l1-trend")]
    assert "does not fall" in trends[0].evidence
    assert [(one.verdict, one.advice) for one in trends] == [(FINDING, "")] * 3


def test_falling_rates_and_codes(model):
    with torch.no_grad():
        for number, layer in enumerate(model.crate.layers):
            layer.compress.mssa.subspaces.weight.mul_(0.2 * 3 ** (2 - number))
            layer.sparsify.norm.bias.fill_(1.0 - number)
    findings, _ = found(model)
    assert [findings[name].verdict for name in ("rate-trend", "l0-trend", "l1-trend")] == [OK, OK, OK]


def test_constant_prediction(model):
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([100.0, 0]))
    findings, _ = found(model)
    assert findings["class-collapse"].verdict == FAIL and findings["above-chance"].verdict == FAIL


def test_a_class_that_is_never_named():
    model, images = tiny_crate(), tiny_images(42)
    with torch.no_grad():
        model.classifier.bias[3] = -100
    findings, _ = found(model, batches=[images])
    assert 3 not in findings["class-collapse"].values["hardly_found"]  # at chance, six images without a hit say little


def test_a_class_that_is_never_named_by_a_good_model(model):
    with torch.no_grad():
        model.classifier.bias[1] = -100
    findings, _ = found(model)
    assert findings["class-collapse"].verdict == FAIL and findings["class-collapse"].values["hardly_found"] == [1]


def test_overfitting(model):
    held_out = stripes()
    swapped = torch.arange(84) % 5 < 3
    held_out["labels"] = torch.where(swapped, 1 - held_out["labels"], held_out["labels"])
    assert found(model, batches=[held_out])[0]["generalisation-gap"].verdict == FAIL


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        ([2, 1.5, 1.2, 1, 0.9, 0.8, 0.7], OK, "spikes: 0"),
        ([2, 1.5, 1.2, 1, 0.9, 5, 0.7], WARN, "first at entry 6 (5 after 0.9)"),
        ([2, 2.1, 2.2], FAIL, "from 2 to 2.2"),
        ([2, math.nan, 1], FAIL, "first entry 2"),
        ([2, math.inf], FAIL, "not finite"),
        ([], NOT_CHECKED, "no training loss"),
    ],
)
def test_loss_curve(model, losses, verdict, words):
    finding = found(model, log=[{"loss": loss} for loss in losses] + [{"train_runtime": 1.0}])[0]["loss-curve"]
    assert finding.verdict == verdict and words in finding.evidence


def readings(fine=True, collapsed=None):
    one = {
        "name": "spread",
        "value": 0.1,
        "healthy": "near 0.3",
        "fine": fine,
        "advice": "" if fine else "train longer",
    }
    return {"self_supervision": {}, "readings": [one], "collapsed": collapsed}


@pytest.mark.parametrize(
    ("entry", "verdict", "words"),
    [
        (readings(), OK, "spread 0.1 (healthy: near 0.3)"),
        (readings(fine=False), WARN, "train longer"),
        (readings(collapsed={"kind": "one-hot", "step": 9, "advice": "lower c"}), FAIL, "collapsed (one-hot): lower c"),
        ({"loss": 1.0}, NOT_CHECKED, "not of self-supervised training"),
    ],
)
def test_self_supervision(model, entry, verdict, words):
    findings = found(
        model, log=[readings(False), {"loss": 1.0}, entry, {"loss": 2.0}] if "loss" not in entry else [entry]
    )
    finding = findings[0]["self-supervision"]
    assert finding.verdict == verdict and words in finding.evidence
    if verdict != NOT_CHECKED:
        assert findings[0]["loss-curve"].verdict == NOT_CHECKED, "it need not fall"


def test_what_is_missing_is_said(model):
    diagnosis = diagnose(model, missing={"images": "no images: gone", "log": "no log there"})
    findings = {one.check: one for one in diagnosis.findings}
    weights = {"finite", "fresh-parameters", "layer-scale", "few-values", "duplicate-atoms"}
    weights |= {"collapsed-subspaces", "correlated-subspaces", "dictionary-condition", "ista-step"}
    assert {name for name, one in findings.items() if one.verdict == OK} == weights
    assert findings["token-rank"].evidence == "no images: gone" and findings["loss-curve"].evidence == "no log there"
    assert "states: no images: gone" in findings["finite"].evidence
    assert diagnosis.healthy() and diagnosis.healthy(strict=True)


def test_images_without_labels(model):
    findings = {one.check: one for one in diagnose(model, [stripes()["pixel_values"]]).findings}
    for name in ("class-collapse", "above-chance", "generalisation-gap"):
        assert (findings[name].verdict, findings[name].evidence) == (NOT_CHECKED, "the images have no labels")
    assert findings["gradient-depth"].verdict == OK
    labelled = {one.check: one for one in diagnose(model, [stripes()]).findings}
    assert labelled["generalisation-gap"].evidence == "no training images given"


def test_a_model_without_a_head(model):
    findings = {one.check: one for one in diagnose(model.crate, [stripes()]).findings}
    assert findings["token-rank"].verdict == OK
    assert "no head" in findings["gradient-depth"].evidence
    assert "no classification head" in findings["above-chance"].evidence


def test_a_vit_is_checked_where_theory_is_silent():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=2)
    images = {"pixel_values": torch.randn(12, 1, 8, 8), "labels": torch.arange(12) % 2}
    findings = {one.check: one for one in diagnose(ViTForImageClassification(config), [images]).findings}
    for name in ("rate-trend", "l0-trend", "dead-atoms", "ista-step", "correlated-subspaces", "softmax-saturation"):
        assert findings[name].verdict == NOT_CHECKED
    assert findings["token-rank"].verdict == findings["gradient-depth"].verdict == OK


def test_ablated_models_are_checked_as_far_as_they_go():
    """Without ISTA there is no code to be sparse; that is said and nothing breaks."""
    for overrides in ({"sparsification": "none"}, {"sparsification": "mlp", "compression": "attention"}):
        findings, _ = found(build(**overrides).eval())
        assert findings["dictionary-condition"].verdict == NOT_CHECKED
        codes = [findings[name] for name in ("l0-trend", "l1-trend", "dead-atoms")]
        missing = overrides["sparsification"] == "none"
        assert all((finding.verdict == NOT_CHECKED) == missing for finding in codes)


def test_strictness_and_the_number_of_images(model):
    _, diagnosis = found(model, num_images=20, log=[{"loss": loss} for loss in (9, 3, 3, 3, 3, 7, 2)])
    assert diagnosis.count(WARN) >= 1 and not diagnosis.healthy(strict=True)
    assert "20 images" in diagnosis.findings[0].evidence


def test_every_check_says_why():
    for check in CHECKS.values():
        assert check.what and check.threshold and len(check.reason) > 20 and len(check.advice) > 20


@pytest.mark.parametrize("model_type", ["dinov2", "dinov3_vit", "clip_vision_model", "vit"])
def test_foreign_vision_models_without_a_head_or_labels(model_type):
    images = inputs_for(model_type, 8)
    findings = {one.check: one for one in diagnose(tiny(model_type), [images]).findings}
    for name in ("finite", "layer-scale", "few-values", "token-rank", "attention-effect", "input-scale"):
        assert findings[name].verdict != NOT_CHECKED, name
    assert findings["output-variation"].evidence == "the model has no classification head"


def test_a_model_of_an_unknown_type_is_checked_by_weights_and_outputs():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_channels=1, num_labels=2)
    torch.manual_seed(0)
    findings = {one.check: one for one in diagnose(ResNetForImageClassification(config), [stripes()]).findings}
    assert "of no known type" in findings["token-rank"].evidence
    for name in ("fresh-parameters", "output-variation", "above-chance"):
        assert findings[name].verdict != NOT_CHECKED, name


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_text_models_without_a_head(model_type):
    findings = {one.check: one for one in diagnose(tiny(model_type), [inputs_for(model_type, 4)]).findings}
    assert findings["token-rank"].verdict != NOT_CHECKED
    assert findings["perplexity"].evidence == "the model has no language modelling head"
    assert findings["input-scale"].evidence == "the model reads text"


def test_nearest_class_mean_leaves_each_image_out():
    pixels = torch.tensor([0.0, 0.2, 1.0, 10.0]).view(4, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1])
    # 1.0 is nearer to the mean of 0.0 and 0.2 than to 10.0, and 10.0 nearer to its only companion than to 0.1
    assert nearest_class_mean(pixels, labels).num_correct == 3


def test_shuffled_patches_are_the_same_patches():
    pixels = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    shuffled = shuffle_patches(pixels, (2, 3))
    assert shuffled.shape == pixels.shape and not torch.equal(shuffled, pixels)
    cells = [one.unfold(2, 2, 2).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(4, -1) for one in (pixels, shuffled)]
    assert {tuple(cell) for cell in cells[0].tolist()} == {tuple(cell) for cell in cells[1].tolist()}
    assert shuffle_patches(pixels, (4, 6)) is None


@pytest.mark.parametrize(
    "given, named, pixels_right, above_chance, class_collapse",
    [
        ([0, 1] * 10, [0, 1] * 8 + [0, 0] + [1, 1], 20, OK, OK),  # 18 of 20, pixels 20 of 20: the intervals overlap
        ([0, 1] * 100, [0, 1] * 85 + [0, 0] * 15, 200, FAIL, OK),  # the same ten times as often: they do not
        ([0, 1, 0, 1], [0, 1, 0, 0], 2, WARN, OK),  # 3 of 4 says nothing
        ([0] * 9 + [1], [0] * 10, 5, WARN, OK),  # one image of the other class neither
        ([0, 1] * 10, [0] * 20, 10, FAIL, FAIL),
        ([0, 1] * 10, [1, 0] * 10, 10, FAIL, OK),
    ],
)
def test_few_images_are_judged_by_their_intervals(given, named, pixels_right, above_chance, class_collapse):
    outputs = Outputs(
        logits=torch.nn.functional.one_hot(torch.tensor(named), 2).float(),
        labels=torch.tensor(given),
        nearest_mean=Accuracy(pixels_right, len(given)),
    )
    patient = Patient(torch.nn.Linear(2, 2), is_crate=False, outputs=outputs)
    assert CHECKED["above-chance"](patient).verdict == above_chance
    assert CHECKED["class-collapse"](patient).verdict == class_collapse
