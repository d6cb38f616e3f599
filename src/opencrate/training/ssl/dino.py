"""Self-distillation: DINO's cross-entropy between a teacher's prototypes and a student's. [2104.14294]"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .gathering import global_count, global_sum
from .inputs import checked_number, checked_teacher, checked_views, outside_autocast


@outside_autocast
def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    step: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DINO's loss over the global batch, in nats [2104.14294, Eq. 2 to 4].

        mean over teacher views i and student views v != i and images of  -sum_k q_ik log s_vk
        q_i = softmax((teacher_i - centre) / teacher_temperature),   s_v = softmax(student_v / student_temperature)

    Update the centre after use, with `updated_centre`. Every process computes the same loss; see gathering.py for the
    gradient's convention.

    Args:
        student: logits `(V, B, K)` of all V >= 2 views, the first G global; B may differ between processes.
        teacher: logits `(G, B, K)` of the global views; no gradient reaches them.
        centre: `(K)`, subtracted from the teacher's logits.
        student_temperature, teacher_temperature: above 0; published runs use 0.1, and 0.04 rising to 0.07.
        step: optimizer step, for messages.

    Returns:
        The loss, and its parts without gradient: `cross_entropy` (the loss), `teacher_entropy` (of q, mean over views
        and images, 0 to ln K), `batch_entropy` (of the mean q, 0 to ln K); all in nats.

    Raises:
        ValueError: a shape, temperature or number of views that is not allowed.
        FloatingPointError: a logit is not finite; names view and step.
    """
    checked_number("student_temperature", student_temperature)
    checked_number("teacher_temperature", teacher_temperature)
    student, teacher = checked_teacher(student, teacher, step)
    (V, B, K), G = student.shape, len(teacher)
    _check_centre(centre, K)
    images = global_count(B, student.device)
    log_q = F.log_softmax((teacher - centre.detach().to(teacher)) / teacher_temperature, -1)
    q = log_q.exp()
    log_s = F.log_softmax(student / student_temperature, -1)
    total = log_s.sum(0)
    cross = torch.stack([(q[i] * (total - log_s[i])).sum() for i in range(G)]).sum()
    loss = -global_sum(cross) / (G * (V - 1) * images)
    with torch.no_grad():
        entropies = -global_sum((q * log_q).sum()) / (G * images)
        mean_q = global_sum(q.sum((0, 1))) / (G * images)
    parts = {
        "cross_entropy": loss.detach(),
        "teacher_entropy": entropies,
        "batch_entropy": torch.special.entr(mean_q).sum(),
    }
    return loss, parts


@torch.no_grad()
@outside_autocast
def updated_centre(centre: Tensor, teacher: Tensor, momentum: float = 0.9) -> Tensor:
    """`momentum centre + (1 - momentum) mean(teacher)`, mean over views and the global batch; a new tensor `(K)`.

    Args:
        centre: `(K)`, floating; the result has its dtype.
        teacher: logits `(G, B, K)` that the loss has been computed from.
        momentum: 0 to 1.

    Raises:
        ValueError, FloatingPointError: as for `dino_loss`.
    """
    checked_number("momentum", momentum, 0, inclusive=True, most=1)
    teacher = checked_views("teacher", teacher, len(teacher), least_views=1)
    G, B, K = teacher.shape
    _check_centre(centre, K)
    mean = global_sum(teacher.sum((0, 1))) / (G * global_count(B, teacher.device))
    return momentum * centre + (1 - momentum) * mean.to(centre)


def _check_centre(centre: Tensor, K: int) -> None:
    if not isinstance(centre, Tensor) or tuple(centre.shape) != (K,) or not centre.is_floating_point():
        got = f"{tuple(centre.shape)} of {centre.dtype}" if isinstance(centre, Tensor) else type(centre).__name__
        raise ValueError(f"centre must be a floating tensor of shape ({K},), one number per prototype, got {got}")
