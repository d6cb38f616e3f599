"""What holds for every objective: precision, gradients, refusals."""

import pytest
import torch

from opencrate.training.ssl import dino_loss, lejepa_loss, simclr_loss, simdino_loss, updated_centre, vicreg_loss
from opencrate.training.ssl.lejepa import draw_directions, sigreg

from .common import GLOBAL, OBJECTIVES, PARTS, unit, views

every = pytest.mark.parametrize("name", OBJECTIVES)


@every
def test_parts_are_plain_tensors(name):
    z = views().requires_grad_()
    loss, parts = OBJECTIVES[name](z, views(GLOBAL, seed=1))
    assert loss.shape == () and loss.requires_grad and parts.keys() == PARTS[name]
    assert all(part.shape == () and not part.requires_grad and bool(part.isfinite()) for part in parts.values())


@every
def test_gradient(name):
    z, teacher = views(3, 4, 3).requires_grad_(), views(GLOBAL, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda z: OBJECTIVES[name](z, teacher)[0], (z,))


@every
def test_no_gradient_to_the_teacher(name):
    teacher = views(GLOBAL, seed=1).requires_grad_()
    OBJECTIVES[name](views().requires_grad_(), teacher)[0].backward()
    assert teacher.grad is None or not teacher.grad.any()


@every
def test_half_precision_input_under_autocast(name):
    """bfloat16 features give what the same numbers give in float32, with autocast on or off."""
    z, teacher = views(dtype=torch.bfloat16), views(GLOBAL, seed=1, dtype=torch.bfloat16)
    reference, _ = OBJECTIVES[name](z.float(), teacher.float())
    if not name.startswith("simdino"):  # whose features the helper normalises in bfloat16
        assert torch.equal(OBJECTIVES[name](z, teacher)[0], reference)
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = OBJECTIVES[name](z.float(), teacher.float())
    assert torch.equal(loss, reference) and loss.dtype == torch.float32
    assert {part.dtype for part in parts.values()} == {torch.float32}


@every
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_named(name, value):
    z = views()
    z[3, 1, 2] = value
    with pytest.raises(FloatingPointError, match=r"at step 17, in view 3 \(local view 1\); lower"):
        OBJECTIVES[name](z, views(GLOBAL, seed=1), step=17)
    z[1, 0, 0] = value
    with pytest.raises(FloatingPointError, match=r"finite, in view 1 \(global view 1\), view 3 \(local view 1\)"):
        OBJECTIVES[name](z, views(GLOBAL, seed=1))


@pytest.mark.parametrize("name", ["dino", "simdino"])
def test_teacher_that_is_not_finite_is_named(name):
    teacher = views(GLOBAL, seed=1)
    teacher[1, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"teacher has .* in view 1 \(global view 1\)"):
        OBJECTIVES[name](views(), teacher)


@every
def test_one_view(name):
    with pytest.raises(ValueError, match="at least 2 views of each image, got 1; add views"):
        OBJECTIVES[name](views(1), views(1, seed=1))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "dino"])
def test_one_image(name):
    with pytest.raises(ValueError, match="at least 2 images in the global batch, got 1"):
        OBJECTIVES[name](views(B=1), views(GLOBAL, 1, seed=1))


@every
def test_no_features(name):
    with pytest.raises(ValueError, match=r"one image and one feature \(K for DINO\), got B = 8 and p = 0"):
        OBJECTIVES[name](views(p=0), views(GLOBAL, p=0)) if name in ("dino", "simdino") else refused(name)


def refused(name):
    z = views(p=0)
    if "lejepa" in name:
        lejepa_loss(z, GLOBAL, 0.1, torch.zeros(0, 4))
    elif "groups" in name:
        simdino_loss(z, z[:2], 0.4, group_size=4)
    else:
        {"simclr": simclr_loss, "vicreg": vicreg_loss}[name](z)


@pytest.mark.parametrize("name", ["dino", "simdino"])
@pytest.mark.parametrize("shape", [(GLOBAL, 8, 5), (GLOBAL, 7, 6), (5, 8, 6), (0, 8, 6), (8, 6)])
def test_teacher_of_another_shape(name, shape):
    with pytest.raises(ValueError, match=r"teacher must have shape|student and teacher must be"):
        OBJECTIVES[name](views(), torch.ones(shape, dtype=torch.float64))


Z, T = unit(views()), unit(views(GLOBAL, seed=1))
C = torch.zeros(Z.shape[-1])
A = draw_directions(Z.shape[-1], 4, 0, 0)
REFUSED = {
    "student_temperature must be a number above 0, got 0": lambda: dino_loss(Z, T, C, 0),
    "teacher_temperature must be a number above 0, got -0.1": lambda: dino_loss(Z, T, C, 0.1, -0.1),
    r"centre must be a floating tensor of shape \(6,\)": lambda: dino_loss(Z, T, torch.zeros(1, 6)),
    "momentum must be a number at least 0 and at most 1, got 1.5": lambda: updated_centre(C, T, 1.5),
    "eps must be a number at least 1e-12, got 0": lambda: simdino_loss(Z, T, 0),
    "eps must be a number at least 1e-12, got nan": lambda: simdino_loss(Z, T, float("nan")),
    "coefficient must be a number at least 0, got -1": lambda: simdino_loss(Z, T, 0.4, -1),
    "expansion_weight must be a number at least 0, got inf": lambda: simdino_loss(Z, T, 0.4, 1, float("inf")),
    "expansion_of must be student or average, got 'teacher'": lambda: simdino_loss(Z, T, 0.4, expansion_of="teacher"),
    "group_size must be .* divides the global batch of 8 images, got 3": lambda: simdino_loss(Z, T, 0.4, group_size=3),
    "student must have features of norm 1, got one of 2": lambda: simdino_loss(2 * Z, T, 0.4),
    "teacher must have features of norm 1, got one of 0": lambda: simdino_loss(Z, 0 * T, 0.4),
    "weight must be a number at least 0 and at most 1, got 2": lambda: lejepa_loss(Z, 2, 2, A),
    r"directions must have shape \(6, M\), .* got \(4, 6\)": lambda: lejepa_loss(Z, 2, 0.1, A.T),
    "num_global must be a whole number from 1 to 4, .* got 5": lambda: lejepa_loss(Z, 5, 0.1, A),
    "num_global must be a whole number from 2 to 4, .* got 1": lambda: simclr_loss(Z, 1),
    "temperature must be a number above 0, got 0": lambda: simclr_loss(Z, 2, 0),
    "num_global must be a whole number from 2 to 4, .* got 0": lambda: vicreg_loss(Z, 0),
    "covariance_weight must be a number at least 0, got -1": lambda: vicreg_loss(Z, covariance_weight=-1),
    r"views must be a floating tensor \(V, B, p\).*\(8, 6\)": lambda: vicreg_loss(Z[0]),
    "views must be a floating tensor .* torch.int64": lambda: simclr_loss(Z.long()),
    "must be a tensor .*, got list; use torch.stack": lambda: simclr_loss([Z[0], Z[1]]),
    "z must have at least 2 images": lambda: sigreg(Z[0, :1], A),
    "number must be a whole number from 1, got 0": lambda: draw_directions(4, 0, 0, 0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
