"""Self-distillation by a coding rate: SimDINO's loss, on the project's own rate. [2502.10385]"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ...objective import coding_rate
from .gathering import global_rows, global_sum
from .inputs import checked_batch, checked_number, checked_teacher, outside_autocast

NORM_TOLERANCE = 0.02


@outside_autocast
def simdino_loss(
    student: Tensor,
    teacher: Tensor,
    eps: float,
    coefficient: float = 1.0,
    expansion_weight: float = 1.0,
    expansion_of: Literal["student", "average"] = "student",
    group_size: int | None = None,
    step: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SimDINO's loss, a function of the global batch alone [2502.10385].

        loss        = -coefficient * compression - expansion_weight * expansion
        compression = mean over teacher views i, student views v != i and images of cos(teacher_i, student_v)
        expansion   = gamma * mean over global views of 1/2 logdet(I + p/(N eps) Z^T Z),   gamma = (p + N)/(p N)

    with N the images of the global batch and Z `(N, p)` their features in one view. The rate is `coding_rate(Z,
    sqrt(eps))`: eps is not squared here, as in the published code. It is computed in float64.

    The published run in these terms. Its code scales eps and gamma by the number W of processes, as if the covariance
    were the global one; with `reduce_cov 0`, the command of its README, the covariance is that of the B rows of one
    process. On W = 8 processes of B = 64 rows, p = 256 and `--eps 0.05`, each process therefore maximises

        gamma(512) * 1/2 logdet(I + p/(W B 0.05) Z^T Z)
          =  [gamma(512)/gamma(64)] * gamma(64) * coding_rate(Z, sqrt(0.4))

    over its 64 rows: ours with N = 64, eps = W * 0.05 = 0.4 and expansion_weight = gamma(512)/gamma(64)
    = (768/(256 * 512)) / (320/(256 * 64)) = 0.30. The processes' losses are averaged, so on a global batch of 512 it is
    `group_size=64, eps=0.4, expansion_weight=0.3`, whatever the number of processes. Its largest possible expansion
    is 0.30 * gamma(64) * 32 ln(1 + 256/(64 * 0.4)) = 0.4496 (see `largest_expansion`), and its log ends at 0.4238.
    Without groups, the rate of all 512 rows with eps = 0.4 sees the same covariance, but one of rank up to 256 instead
    of 64: no weight makes the two equal. Weight 1 gives the same slope while features fill far fewer than 64
    directions; weight 0.4496/0.9395 = 0.48 the same largest expansion.

    Args:
        student: unit-norm features `(V, B, p)` of all V >= 2 views, the first G global; B may differ between processes.
        teacher: unit-norm features `(G, B, p)` of the global views; no gradient reaches them.
        eps: distortion inside the rate, above 0.
        coefficient: weight of the compression, at least 0.
        expansion_weight: weight of the expansion, at least 0.
        expansion_of: whose features expand: the student's global views, or the mean of student and teacher (the
            published code's `expa_type` 0 and 1).
        group_size: take the rates of consecutive groups of so many images, and their mean; N above is then the
            group's. It must divide the global batch. `None`: the global batch is one group.
        step: optimizer step, for messages.

    Returns:
        The loss, and its parts without gradient: `compression`; `expansion` (without its weight);
        `expansion_share`, the expansion divided by `largest_expansion`; `constant_share`, that share where all
        features are one vector.

    Raises:
        ValueError: a shape, weight, or number of views or images that is not allowed; features without unit norm.
        FloatingPointError: a feature is not finite; names view and step.
    """
    checked_number("eps", eps, 1e-12, inclusive=True)
    checked_number("coefficient", coefficient, 0, inclusive=True)
    checked_number("expansion_weight", expansion_weight, 0, inclusive=True)
    if expansion_of not in ("student", "average"):
        raise ValueError(f"expansion_of must be student or average, got {expansion_of!r}")
    student, teacher = checked_teacher(student, teacher, step)
    _check_norms("student", student)
    _check_norms("teacher", teacher)
    (V, _, p), G = student.shape, len(teacher)
    images = checked_batch("student", student)
    N = _checked_group(group_size, images)
    cosines = F.normalize(student, dim=-1)
    others = cosines.sum(0) - cosines[:G]
    compression = global_sum((F.normalize(teacher, dim=-1) * others).sum()) / (G * (V - 1) * images)
    features = student[:G] if expansion_of == "student" else (student[:G] + teacher) / 2
    groups = global_rows(features, 1).reshape(G, images // N, N, p)
    expansion = gamma(N, p) * coding_rate(groups, math.sqrt(eps)).mean()
    loss = -coefficient * compression - expansion_weight * expansion
    largest = largest_expansion(N, p, eps)
    parts = {
        "compression": compression.detach(),
        "expansion": expansion.detach(),
        "expansion_share": expansion.detach() / largest,
        "constant_share": expansion.new_tensor(constant_expansion(N, p, eps) / largest),
    }
    return loss, parts


def gamma(samples: int, features: int) -> float:
    """(p + N)/(p N): the factor of the expansion, which makes it depend little on p and N."""
    return (features + samples) / (features * samples)


def largest_expansion(samples: int, features: int, eps: float) -> float:
    """The largest expansion, in nats, of `samples` unit-norm rows of `features` numbers.

    The eigenvalues of Z^T Z sum to N, at most r = min(N, p) of them are not zero, and log(1 + x) is concave: the
    largest rate has r equal ones, N/r each, which orthogonal rows or an orthogonal frame reach. So
    gamma * r/2 * ln(1 + p/(N eps) * N/r) = gamma * r/2 * ln(1 + p/(r eps)).

    >>> round(0.3 * largest_expansion(64, 256, eps=0.4), 4)  # of the published run: see `simdino_loss`
    0.4496
    """
    rank = min(samples, features)
    return gamma(samples, features) * rank / 2 * math.log1p(features / (rank * eps))


def constant_expansion(samples: int, features: int, eps: float) -> float:
    """The expansion, in nats, of rows that are all the same unit vector: gamma / 2 * ln(1 + p/eps)."""
    return gamma(samples, features) / 2 * math.log1p(features / eps)


def _check_norms(name: str, features: Tensor) -> None:
    """Bfloat16 leaves up to 0.004 of the norm; other features would expand by growing."""
    norms = features.detach().norm(dim=-1)
    worst = float(norms.flatten()[(norms - 1).abs().argmax()])
    if abs(worst - 1) > NORM_TOLERANCE:
        raise ValueError(f"{name} must have features of norm 1, got one of {worst:.3g}; end the head with F.normalize")


def _checked_group(group_size: int | None, images: int) -> int:
    """N, the images of a group."""
    if group_size is None:
        return images
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2 or images % group_size:
        raise ValueError(
            f"group_size must be a whole number from 2 that divides the global batch of {images} images, got "
            f"{group_size!r}; choose another, or drop the last incomplete batch"
        )
    return group_size
