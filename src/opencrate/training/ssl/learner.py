"""What self-supervised training trains: a student with its head, and where there is one its teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...evaluation.inputs import evaluating
from ...evaluation.representation import last_norm
from ...recipe.schema import SelfSupervisionRecipe, has_teacher
from ..losses import penalty
from .dino import updated_centre
from .heads import GlobalBatchNorm
from .objectives import LossAndParts, loss_of, make_head, prototypes_of
from .schedules import update_teacher

UNUSED = ("mask_token",)
"""Parameters of backbones, by the last part of their name, that no view of a whole image reaches."""


class Learner(nn.Module):
    """A student that compares views, and the average of it that it may be compared with.

    The state dict holds everything that a step depends on besides `step` and `epoch`, which a callback hands in.
    Several processes hold equal copies: every loss and every centre is that of the global batch.

    Attributes:
        student, student_head: trained.
        teacher, teacher_head: their averages, without gradient and always in evaluation mode; `None` for none. Without
            a teacher, dino and simdino compare the student with its own projections, without their gradient.
        centre: `(K)`, of DINO's teacher logits; empty for the other objectives.
        step, epoch: of the training, both from 0.
        parts: of the last loss, without gradient.
    """

    centre: Tensor

    def __init__(self, backbone: PreTrainedModel, given: SelfSupervisionRecipe, seed: int) -> None:
        """The head is drawn from `seed`; torch's own random state stays as it was."""
        super().__init__()
        self.given, self.seed = given, seed
        self.step = self.epoch = 0
        self.parts: dict[str, Tensor] = {}
        for name, parameter in backbone.named_parameters():
            if name.rpartition(".")[2] in UNUSED:
                parameter.requires_grad_(False)
        self.student = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student_head = make_head(given, feature_width(backbone))
        if any(isinstance(part, GlobalBatchNorm) for part in self.student_head.modules()):
            # It adds the same to all images, which the first batch normalisation subtracts: its gradient is rounding
            # noise, of which AdamW would make whole steps.
            last_norm(backbone).get_parameter("bias").requires_grad_(False)
        self.teacher: PreTrainedModel | None = None
        self.teacher_head: nn.Module | None = None
        if has_teacher(given):
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)
            self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes_of(given) or 0))
        self.train()

    def train(self, mode: bool = True) -> Learner:
        """As of any module, but for the teacher, which stays in evaluation mode."""
        super().train(mode)
        for module in (self.teacher, self.teacher_head):
            if module is not None:
                module.eval()
        return self

    @property
    def model(self) -> PreTrainedModel:
        """The backbone that is measured, evaluated and saved: the teacher's, or the student's where there is none."""
        return self.student if self.teacher is None else self.teacher

    @property
    def head(self) -> nn.Module:
        """The head of `model`."""
        return self.student_head if self.teacher_head is None else self.teacher_head

    def forward(self, global_views: Tensor, local_views: Tensor | None = None) -> LossAndParts:
        """The loss over the global batch with the student's penalties, and its parts without gradient.

        Args:
            global_views: `(B, G, C, H, W)`.
            local_views: `(B, L, C, h, w)`, or none.
        """
        student = _projected(self.student, self.student_head, global_views, local_views)
        if self.teacher is None or self.teacher_head is None:
            teacher = student[: global_views.shape[1]].detach()
        elif self.given.objective in ("dino", "simdino"):
            with torch.no_grad():
                teacher = _projected(self.teacher, self.teacher_head, global_views)
        else:  # it is an average only, which nothing is compared with
            teacher = student[: global_views.shape[1]].detach()
        return self._loss(student, teacher)  # pyright: ignore[reportCallIssue]  # the decorator has no types

    @torch.compiler.disable  # for numbers that change in every step, and the directions that NumPy draws
    def _loss(self, student: Tensor, teacher: Tensor) -> LossAndParts:
        loss, self.parts = loss_of(self.given, student, teacher, self.centre, self.epoch, self.step, self.seed)
        if self.training and len(self.centre):
            self.centre.copy_(updated_centre(self.centre, teacher, self.given.centre_momentum))
        return loss + penalty(self.student), self.parts

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher, if there is one, towards the student."""
        if self.teacher is not None and self.teacher_head is not None:
            update_teacher(self.teacher, self.student, momentum)
            update_teacher(self.teacher_head, self.student_head, momentum)

    def heads(self) -> Iterator[tuple[str, nn.Module]]:
        """The heads by name."""
        yield "student_head", self.student_head
        if self.teacher_head is not None:
            yield "teacher_head", self.teacher_head


def feature_width(backbone: PreTrainedModel) -> int:
    """f: how many features `backbone(pixel_values).logits` has for an image, where it has no classes."""
    size, channels = backbone.config.image_size, backbone.config.num_channels
    height, width = size if isinstance(size, list | tuple) else (size, size)
    with evaluating(backbone):
        return backbone(pixel_values=torch.zeros(1, channels, height, width)).logits.shape[-1]


def _projected(backbone: nn.Module, head: nn.Module, *views: Tensor | None) -> Tensor:
    """Projections `(V, B, p)`: the backbone once per resolution, the head once on everything."""
    found = []
    for of_size in views:
        if of_size is not None:
            B, V = of_size.shape[:2]
            images = of_size.transpose(0, 1).flatten(0, 1)
            features = backbone(pixel_values=images, interpolate_pos_encoding=True).logits
            found.append(features.unflatten(0, (V, B)))
    return head(torch.cat(found))
