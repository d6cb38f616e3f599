"""The objectives by name, as a recipe's `ssl` section asks for them: their heads, and their losses of projections."""

from __future__ import annotations

from torch import Tensor, nn

from ...recipe.schema import SelfSupervisionRecipe
from .dino import dino_loss
from .heads import ProjectionHead, Projector
from .lejepa import draw_directions, lejepa_loss
from .schedules import linear_then_constant
from .simclr import simclr_loss
from .simdino import simdino_loss
from .vicreg import vicreg_loss

LossAndParts = tuple[Tensor, dict[str, Tensor]]


def make_head(given: SelfSupervisionRecipe, in_features: int) -> ProjectionHead | Projector:
    """The head of an objective, on a backbone of `in_features` features; drawn from torch's global generator."""
    if given.objective in ("dino", "simdino"):
        prototypes = given.prototypes if given.objective == "dino" else None
        return ProjectionHead(
            in_features, given.head_hidden, given.bottleneck, given.head_layers, prototypes, given.norm_last_layer
        )
    return Projector(in_features, given.head_hidden, given.features, given.head_layers)


def last_parameters(head: nn.Module) -> list[nn.Parameter]:
    """Those of the prototypes, where there are any."""
    return head.last_parameters() if isinstance(head, ProjectionHead) else []


def prototypes_of(given: SelfSupervisionRecipe) -> int | None:
    """K, for the monitors; `None` for an objective without prototypes."""
    return given.prototypes if given.objective == "dino" else None


def teacher_temperature(given: SelfSupervisionRecipe, epoch: int) -> float:
    """DINO's, in an epoch counted from 0."""
    start, end = given.teacher_temperature_start, given.teacher_temperature
    return linear_then_constant(epoch, given.teacher_temperature_epochs, start, end)


def loss_of(
    given: SelfSupervisionRecipe, student: Tensor, teacher: Tensor, centre: Tensor, epoch: int, step: int, seed: int
) -> LossAndParts:
    """The objective's loss over the global batch, and its parts without gradient; raises what the objective raises.

    Args:
        student: projections `(V, B, p)` of all views, the first G global.
        teacher: projections `(G, B, p)` of the global views, without gradient; dino and simdino alone read them.
        centre: `(K)`, of DINO's teacher.
        epoch, step: both from 0: DINO's temperature follows from the epoch, LeJEPA's directions from (seed, step).
    """
    num_global = len(teacher)
    if given.objective == "dino":
        temperature = teacher_temperature(given, epoch)
        return dino_loss(student, teacher, centre, given.student_temperature, temperature, step=step)
    if given.objective == "simdino":
        weights = given.compression_weight, given.expansion_weight
        return simdino_loss(student, teacher, given.eps, *weights, given.expansion_of, given.group_size, step=step)
    if given.objective == "lejepa":
        directions = draw_directions(student.shape[-1], given.directions, seed, step, like=student)
        return lejepa_loss(student, num_global, given.sigreg_weight, directions, step=step)
    if given.objective == "vicreg":
        weights = given.invariance_weight, given.variance_weight, given.covariance_weight
        return vicreg_loss(student, num_global, *weights, step=step)
    return simclr_loss(student, num_global, given.temperature, step=step)
