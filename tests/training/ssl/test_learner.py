"""A learner: what it runs, what moves, what stays, and that its loss is the objective's of the projections."""

import copy

import pytest
import torch
from transformers import AutoModelForImageClassification, Dinov2Config, ViTConfig

import opencrate
from opencrate import CrateConfig
from opencrate.evaluation.representation import last_norm, representations
from opencrate.recipe.schema import SelfSupervisionRecipe
from opencrate.training.ssl.dino import dino_loss
from opencrate.training.ssl.learner import Learner
from opencrate.training.ssl.lejepa import draw_directions, lejepa_loss
from opencrate.training.ssl.simdino import simdino_loss
from opencrate.training.ssl.vicreg import vicreg_loss

opencrate.register_auto_classes()
SMALL = {"head_hidden": 12, "head_layers": 2}
OBJECTIVES = {
    "dino": {"prototypes": 7, "bottleneck": 5},
    "simdino": {"bottleneck": 5},
    "lejepa": {"features": 6, "directions": 8},
    "vicreg": {"features": 6},
    "simclr": {"features": 6},
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 0}
CONFIGS = {
    "crate": CrateConfig(**SHAPE),
    "vit": ViTConfig(**SHAPE, intermediate_size=16),
    "dinov2": Dinov2Config(**SHAPE),
}


def backbone(kind="crate"):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(CONFIGS[kind])


def learner(objective="dino", kind="crate", **more):
    given = SelfSupervisionRecipe(objective=objective, **SMALL, **OBJECTIVES[objective], **more)
    return Learner(backbone(kind), given, seed=3)


def batch(local=2, B=6):
    generator = torch.Generator().manual_seed(1)
    views = {"global_views": torch.randn(B, 2, 1, 8, 8, generator=generator)}
    return views | ({"local_views": torch.randn(B, local, 1, 4, 4, generator=generator)} if local else {})


def projections(model, head, views):
    """One view after the other, each by itself."""
    stacked = [head(model(pixel_values=view, interpolate_pos_encoding=True).logits) for view in views]
    return torch.stack(stacked)


def in_order(views):
    return [*views["global_views"].unbind(1), *views.get("local_views", torch.zeros(6, 0)).unbind(1)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_is_dinos_of_the_views_one_by_one(kind):
    one, views = learner(kind=kind), batch()
    one.epoch = 2
    loss, parts = one(**views)
    student = projections(one.student, one.student_head, in_order(views))
    teacher = projections(one.teacher, one.teacher_head, in_order(views)[:2])
    temperature = 0.04 + 0.03 * 2 / 29
    expected, _ = dino_loss(student, teacher, torch.zeros(7), 0.1, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["cross_entropy"], expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.centre, 0.1 * teacher.detach().mean((0, 1)), rtol=1e-4, atol=1e-7)


def test_settings_reach_the_objectives():
    views = batch()
    one = learner(
        "simdino", eps=0.2, compression_weight=0.5, expansion_weight=0.7, expansion_of="average", group_size=3
    )
    projected = (projections(one.student, one.student_head, in_order(views)),)
    projected += (projections(one.teacher, one.teacher_head, in_order(views)[:2]),)
    expected, _ = simdino_loss(*projected, 0.2, 0.5, 0.7, "average", 3)
    torch.testing.assert_close(one(**views)[0], expected, rtol=1e-5, atol=1e-6)
    one, views = learner("vicreg", invariance_weight=3.0, variance_weight=2.0, covariance_weight=0.5).eval(), batch(0)
    expected, _ = vicreg_loss(projections(one.student, one.student_head, in_order(views)), 2, 3.0, 2.0, 0.5)
    torch.testing.assert_close(one(**views)[0], expected, rtol=1e-5, atol=1e-6)
    one, views = learner("lejepa", sigreg_weight=0.3).eval(), batch()
    one.step = 4
    expected, _ = lejepa_loss(
        projections(one.student, one.student_head, in_order(views)), 2, 0.3, draw_directions(6, 8, 3, 4)
    )
    torch.testing.assert_close(one(**views)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_parameter_that_is_trained_gets_a_gradient(objective):
    """And none of the teacher; DDP waits for all of them."""
    one = learner(objective, "dinov2")
    one(**batch(0 if objective in ("vicreg", "simclr") else 2))[0].backward()
    for name, parameter in one.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        kept = ("mask_token", "original0", "norm.bias", "layernorm.bias")
        assert parameter.requires_grad or name.startswith("teacher") or name.endswith(kept), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_batch_normalisation_subtracts_is_not_trained(kind):
    """The last norm's bias is the same for all images; without a batch normalisation it is trained."""
    for objective, trained in (("lejepa", False), ("dino", True)):
        one = learner(objective, kind)
        still = {name for name, value in one.student.named_parameters() if not value.requires_grad}
        still -= {name for name in still if name.endswith("mask_token")}
        assert len(still) == (not trained) and all(name.endswith("norm.bias") for name in still), objective
    assert one_loss("lejepa", kind, shifted=3.0) == pytest.approx(one_loss("lejepa", kind), rel=1e-4)


def one_loss(objective, kind, shifted=0.0):
    """The loss of a batch, with this added to the last norm's bias."""
    one = learner(objective, kind)
    with torch.no_grad():
        last_norm(one.student).bias.add_(shifted)
        return one(**batch())[0].item()


def test_backbone_runs_once_for_each_resolution():
    one, seen = learner(), []
    one.student.register_forward_hook(lambda module, arguments, output: seen.append(len(output.logits)))
    heads = []
    one.student_head.register_forward_hook(lambda module, arguments, output: heads.append(output.shape))
    one(**batch())
    assert seen == [12, 12] and heads == [(4, 6, 7)]


def test_model_is_the_teacher_and_moves_by_the_momentum_alone():
    one = learner()
    assert one.model is one.teacher and one.head is one.teacher_head
    one.train()
    assert one.student.training and not one.teacher.training and not one.teacher_head.training
    before, student = copy.deepcopy(one.teacher.state_dict()), one.student.state_dict()
    with torch.no_grad():
        for parameter in one.student.parameters():
            parameter.add_(1.0)
    one.update_teacher(0.75)
    for name, value in one.teacher.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student[name], rtol=1e-5, atol=1e-6)


def test_without_a_teacher_the_student_is_the_model():
    one = learner("lejepa")
    assert one.teacher is None and one.model is one.student and not len(one.centre)
    with_average = learner("lejepa", teacher=True)
    assert with_average.model is with_average.teacher
    torch.testing.assert_close(one.eval()(**batch())[0], with_average.eval()(**batch())[0])


def test_dino_without_a_teacher_compares_the_student_with_itself():
    one, other = learner(teacher=False), learner()
    assert one.teacher is None
    torch.testing.assert_close(one(**batch())[0], other(**batch())[0])  # they are equal before the first step


def test_state_dict_holds_all_that_a_step_depends_on():
    one = learner()
    one(**batch())
    other = learner()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict())
    first, second = one(**batch()), other(**batch())
    assert torch.equal(first[0], second[0]) and torch.equal(one.centre, other.centre)


def test_head_does_not_depend_on_what_was_drawn_before():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    given = SelfSupervisionRecipe(**SMALL, **OBJECTIVES["dino"])
    model = backbone()
    torch.random.set_rng_state(before)
    one = Learner(model, given, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for first, second in zip(one.student_head.parameters(), learner().student_head.parameters()):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", CONFIGS)
def test_representations(kind):
    model = backbone(kind).eval()
    images, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
    found = representations(model, [{"pixel_values": images, "labels": labels}])
    with torch.no_grad():
        outputs = model(pixel_values=images, output_hidden_states=True)
        last = last_norm(model)(outputs.hidden_states[-1])
        before = last_norm(model)(outputs.hidden_states[-2])
    torch.testing.assert_close(torch.from_numpy(found["pooled"].values), outputs.logits)
    torch.testing.assert_close(torch.from_numpy(found["patches"].values), last[:, 1:].mean(1))
    torch.testing.assert_close(torch.from_numpy(found["last_two"].values), torch.cat([before[:, 0], last[:, 0]], 1))
    if kind != "crate":  # whose own last state is the one after the norm
        torch.testing.assert_close(last, model.base_model(pixel_values=images).last_hidden_state)
    with pytest.raises(ValueError, match="have no labels"):
        representations(model, [images])


@pytest.mark.parametrize("kind", CONFIGS)
def test_representations_of_a_classifier_are_what_its_classes_are_read_from(kind):
    config = type(CONFIGS[kind]).from_dict({**CONFIGS[kind].to_dict(), "num_labels": 3})
    model = AutoModelForImageClassification.from_config(config).eval()
    images, labels = torch.randn(5, 1, 8, 8), torch.arange(5)
    found = torch.from_numpy(representations(model, [{"pixel_values": images, "labels": labels}])["pooled"].values)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(found), model(pixel_values=images).logits)
    assert not model.classifier._forward_pre_hooks


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_representations_of_an_autoencoder_are_those_of_a_classifier_made_of_it(pool, tmp_path):
    config = opencrate.CrateMAEConfig(**SHAPE, pool=pool, decoder_num_hidden_layers=1, mask_tokens_in_encoder=False)
    model = opencrate.CrateMAEForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    encoder = opencrate.CrateForImageClassification.from_pretrained(tmp_path, num_labels=0).eval()
    batches = [{"pixel_values": torch.randn(5, 1, 8, 8), "labels": torch.arange(5)}]
    first, second = representations(model, batches), representations(encoder, batches)
    for name in first:
        torch.testing.assert_close(first[name].values, second[name].values, msg=name)
    assert model.config.mask_ratio == 0.75
