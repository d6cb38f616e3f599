"""Schedules against DINO's, the teacher's average, and clipping tensor by tensor."""

import pytest
import torch
from torch import nn

from opencrate.training.ssl import clip_each, cosine, linear_then_constant, update_teacher

from ...golden import golden_meta, load_golden


@pytest.mark.parametrize("form", ["cos_plain", "cos_warmup"])
def test_published_cosines(form):
    golden = load_golden("dino_extra", "schedules")[form].double()
    meta = golden_meta("dino_extra")["files"]["schedules.safetensors"][form]
    each, warmup = meta["iters_per_epoch"], meta.get("warmup_epochs", 0) * meta["iters_per_epoch"]
    ours = [
        cosine(step, meta["epochs"] * each, meta["base"], meta["final"], warmup, meta.get("warmup_start", 0.0))
        for step in range(meta["epochs"] * each)
    ]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), golden, rtol=1e-6, atol=0)


def test_cosine_at_its_ends():
    assert cosine(0, 10, 0.996, 1.0) == pytest.approx(0.996) and cosine(10, 10, 0.996, 1.0) == 1.0
    assert cosine(5, 10, 0.04, 0.4) == pytest.approx(0.22) and cosine(99, 10, 0.04, 0.4) == 0.4
    assert [cosine(step, 4, 1.0, 0.0, 3) for step in range(5)] == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert cosine(0, 4, 1.0, 0.0, 4) == 0.0 and cosine(4, 4, 1.0, 0.0, 4) == 0.0


def test_linear_then_constant():
    values = [linear_then_constant(epoch, 3, 0.04, 0.07) for epoch in range(5)]
    assert values == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert linear_then_constant(0, 0, 0.04, 0.07) == 0.07 and linear_then_constant(0, 1, 0.04, 0.07) == 0.04


@pytest.mark.parametrize("call", [(-1, 5), (0, 0), (0, 5, 6)])
def test_steps_that_are_not(call):
    step, steps, *warmup = call
    with pytest.raises(ValueError, match="a schedule needs step >= 0"):
        cosine(step, steps, 0.0, 1.0, *warmup)


def test_teacher_moves_and_the_student_stays():
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    )
    before = [[one.detach().clone() for one in net.parameters()] for net in (teacher, student)]
    storage = [one.data_ptr() for one in teacher.parameters()]
    update_teacher(teacher, student, 0.9)
    for now, was, other in zip(teacher.parameters(), *before):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * other)
    assert [one.data_ptr() for one in teacher.parameters()] == storage
    assert all(torch.equal(now, was) for now, was in zip(student.parameters(), before[1]))
    update_teacher(teacher, student, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), student.parameters()))
    teacher.requires_grad_(False)
    held = teacher[0].weight.clone()
    update_teacher(teacher, student, 1.0)
    assert torch.equal(teacher[0].weight, held)


def test_teacher_of_another_architecture():
    with pytest.raises(ValueError, match=r"same architecture, got 2 and 2 parameters or other shapes; .*deepcopy"):
        update_teacher(nn.Linear(3, 4), nn.Linear(4, 3), 0.9)
    with pytest.raises(ValueError, match=r"momentum must be a number .* at most 1, got 1.1"):
        update_teacher(nn.Linear(3, 4), nn.Linear(3, 4), 1.1)


def test_clipping_tensor_by_tensor():
    """As DINO's code does it, which the common clipping by the norm of all tensors is not."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = 10 * torch.randn(3, 4), 0.1 * torch.randn(5)
    expected = [grad * min(1.0, 3 / (grad.norm().item() + 1e-6)) for grad in (parameters[0].grad, parameters[1].grad)]
    norms = clip_each(parameters, 3.0)
    torch.testing.assert_close(parameters[0].grad, expected[0])
    assert torch.equal(parameters[1].grad, expected[1]) and parameters[2].grad is None
    assert norms.shape == (2,) and norms[0] > 3 > norms[1] and parameters[0].grad.norm().item() == pytest.approx(3)
    assert clip_each([parameters[2]], 3.0).shape == (0,)
    with pytest.raises(ValueError, match="limit must be a number above 0, got 0"):
        clip_each(parameters, 0)
