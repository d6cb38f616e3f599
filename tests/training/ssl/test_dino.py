"""DINO's loss and centre against golden numbers and a loop over the pairs of views."""

import math

import pytest
import torch

from opencrate.training.ssl import dino_loss, linear_then_constant, updated_centre

from ...golden import golden_meta, load_golden
from .common import views

TOLERANCE = 1e-6
"""Of the norm: the stored numbers are float32 results, off by up to 7e-7 of it from ours in float64."""


def crops(rows, number):
    """Rows crop by crop -> `(crops, B, K)`, float64."""
    return rows.double().reshape(number, -1, rows.shape[-1])


def close(ours, golden, tolerance=TOLERANCE):
    assert ours.shape == golden.shape
    error = ((ours - golden).norm() / golden.norm()).item()
    print(f"relative error {error:.1e}")
    assert error <= tolerance


def follow(calls, centre, student_temperature, momentum):
    """Loss, gradient and centre of each call in turn: the centre moves after each."""
    for student, teacher, temperature, loss, gradient, after in calls:
        student.requires_grad_()
        value, parts = dino_loss(student, teacher, centre, student_temperature, temperature)
        value.backward()
        centre = updated_centre(centre, teacher, momentum)
        close(value.detach().reshape(1), loss)
        close(student.grad.flatten(0, 1), gradient)
        close(centre[None], after)
        assert torch.equal(value.detach(), parts["cross_entropy"])


def test_published_sequence():
    golden, meta = load_golden("dino_loss", "dino_loss"), golden_meta("dino_loss")
    warmup, low, high = (
        meta[f"{name}"] for name in ("warmup_teacher_temp_epochs", "warmup_teacher_temp", "teacher_temp")
    )
    calls = [
        (
            crops(golden[f"epoch{epoch}.student"], meta["ncrops"]),
            crops(golden[f"epoch{epoch}.teacher"], 2),
            linear_then_constant(epoch, warmup, low, high),
            *(golden[f"epoch{epoch}.{name}"].double() for name in ("loss", "grad_student", "center_after")),
        )
        for epoch in meta["epochs"]
    ]
    assert len(calls) == 4
    follow(calls, torch.zeros(meta["out_dim"], dtype=torch.float64), meta["student_temp"], meta["center_momentum"])


@pytest.mark.parametrize("form", ["multicrop", "two_crops"])
def test_published_forms(form):
    golden, meta = load_golden("dino_extra", "loss"), golden_meta("dino_extra")["files"]["loss.safetensors"][form]
    temperatures = golden[f"{form}.teacher_temp_schedule"]
    warmup, low, high = (meta[name] for name in ("warmup_teacher_temp_epochs", "warmup_teacher_temp", "teacher_temp"))
    ours = [linear_then_constant(epoch, warmup, low, high) for epoch in range(meta["nepochs"])]
    close(torch.tensor(ours), temperatures)
    calls = [
        (
            crops(golden[f"{form}.student"][step], meta["ncrops"]),
            crops(golden[f"{form}.teacher"][step], 2),
            ours[epoch],
            *(golden[f"{form}.step{step}.{name}"].double() for name in ("loss", "grad_student", "center_after")),
        )
        for step, epoch in enumerate(meta["epochs_of_steps"])
    ]
    assert len(calls) >= 2
    follow(calls, golden[f"{form}.center_before"][0].double(), meta["student_temp"], meta["center_momentum"])


def test_pair_by_pair():
    student, teacher, centre = views(5, 3), views(3, 3, seed=1), torch.linspace(-1, 1, 6, dtype=torch.float64)
    q = [((one - centre) / 0.2).softmax(-1) for one in teacher]
    pairs = [(i, v) for i in range(3) for v in range(5) if i != v]
    losses = [-(q[i] * (student[v] / 0.3).log_softmax(-1)).sum(-1).mean() for i, v in pairs]
    loss, parts = dino_loss(student, teacher, centre, 0.3, 0.2)
    assert loss.item() == pytest.approx(sum(losses).item() / len(pairs), rel=1e-12)
    rows = torch.stack(q)
    entropy = -(rows * rows.log()).sum(-1).mean().item()
    mean = rows.mean((0, 1))
    assert parts["teacher_entropy"].item() == pytest.approx(entropy, rel=1e-12)
    assert parts["batch_entropy"].item() == pytest.approx(-(mean * mean.log()).sum().item(), rel=1e-12)


def test_entropies_at_their_ends():
    """Equal logits: ln K in all. A teacher that always chooses prototype 2: 0, and the student's ln K still."""
    zeros, centre, K = torch.zeros(3, 4, 8), torch.zeros(8), math.log(8)
    loss, parts = dino_loss(zeros, zeros[:2], centre)
    assert [loss.item(), *(part.item() for part in parts.values())] == pytest.approx([K] * 4)
    chosen = torch.nn.functional.one_hot(torch.full((2, 4), 2), 8) * 1e4
    loss, parts = dino_loss(zeros, chosen.float(), centre)
    assert loss.item() == pytest.approx(K)
    assert parts["teacher_entropy"].item() == 0 and parts["batch_entropy"].item() == 0


def test_centre_is_a_new_tensor():
    centre, teacher = torch.ones(6), views(2, seed=1, dtype=torch.float32)
    moved = updated_centre(centre, teacher, 0.9)
    assert torch.equal(centre, torch.ones(6)) and moved.dtype == torch.float32 and not moved.requires_grad
    torch.testing.assert_close(moved, 0.9 + 0.1 * teacher.mean((0, 1)))
    assert torch.equal(updated_centre(centre, teacher, 1.0), centre)
