"""Images without labels, and an encoder that learns to give views of an image alike features."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.images.labelled import label_names, relabelled
from ...data.images.sources import ImageSplits, load_images
from ...data.images.tensors import ImageTransform, in_batches, to_tensors
from ...data.images.views import MultiViewImages
from ...evaluation.probe import NEIGHBOURS
from ...evaluation.representation import accuracies, judge
from ...recipe.schema import Recipe, recipe_value
from ...store.build import build_config
from ...store.runs import HEADS, STUDENT
from ..callbacks import RunLog, TaskCallback
from ..ssl.learner import Learner
from ..ssl.log import MONITORED, LabelledImages, SelfSupervisionLog
from ..ssl.schedule_callback import Schedules
from ..whitebox_callback import MeasuredInputs, measured_images
from .base import Batch, Parts, Task
from .classification import patch_of, start_images

logger = logging.getLogger(__name__)

BACKBONES = ("crate", "vit", "dinov2")
FITTED = 100_000
"""Training images that the evaluation after training is fitted on, at most, evenly spaced."""
_OFF = {
    "training.label_smoothing_factor": "is for classifiers",
    "regulariser.weight": "is for classifiers",
    "optimiser.ema_decay": "the average of the weights is the teacher, with ssl.teacher_momentum",
}
"""Keys that must be 0, and why."""


@dataclass(frozen=True)
class SelfSupervisionParts(Parts):
    """As `Parts`; `test` and `validation` are not asked by the Trainer, since no loss is measured on them.

    Attributes:
        learner: what is trained; `model` is the backbone of its teacher, or of its student.
        monitored: images on which the projections are measured.
        untrained: the model before the first step, where there are labels to judge it by.
        evaluated: for evaluations during training, `None` without labels or without a validation split.
        fitted: labelled training images for the evaluation after training, `None` without labels.
    """

    learner: Learner | None = None
    monitored: MeasuredInputs | None = None
    untrained: PreTrainedModel | None = None
    evaluated: LabelledImages | None = None
    fitted: Any = None


class SelfSupervision(Task):
    """Views of an image are compared; labels, where there are any, are used for evaluation only."""

    whole_batches = True  # objectives compare the images of a batch, and some divide it into groups

    def build(self, recipe: Recipe, skip_bad: bool) -> SelfSupervisionParts:
        check_recipe(recipe)
        splits = load_images(recipe.data, skip_bad, patch_of(recipe) if skip_bad else (1, 1), labelled=False)
        start = start_images(recipe, splits, build_config(recipe, []))
        train = MultiViewImages(splits.train, start.transform, recipe.views)
        learner = Learner(start.fields["model"], recipe.ssl, recipe.training.seed)
        known = with_labels(splits)
        return SelfSupervisionParts(
            **{**start.fields, "model": learner.model},
            train=train,
            validation=None,
            test=None if known is None else to_tensors(known.test, start.transform),
            trained=learner,
            learner=learner,
            monitored=measured_images(splits, start.transform, MONITORED),
            untrained=None if known is None else copy.deepcopy(learner.model),
            evaluated=None if known is None else _evaluated(known, start.transform, recipe),
            fitted=None if known is None else to_tensors(evenly(known.train, FITTED), start.transform),
        )

    def check_batch(self, recipe: Recipe, images: int) -> None:
        given, size = recipe.ssl, recipe.training.per_device_train_batch_size
        if given.objective != "dino" and images < 2:
            raise ValueError(
                f"training.per_device_train_batch_size={size}: must be at least 2 for "
                f"ssl.objective={given.objective}, which compares images with each other; raise it"
            )
        if given.group_size is not None and images % given.group_size:
            raise ValueError(
                f"ssl.group_size={given.group_size}: must divide the global batch of {images} images "
                f"(training.per_device_train_batch_size={size}); change one of them, or set it to null"
            )

    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        """The loss of the global batch, times this process's images.

        The Trainer divides by the images of the global batch and multiplies by the processes. All of these have equally
        many images, so each goes backward from the global loss itself, as the objectives' gradients require.
        """
        loss, parts = model(global_views=batch["global_views"], local_views=batch.get("local_views"))
        return loss * self.count(batch), parts

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        raise NotImplementedError("no loss is measured on held-out images; see SelfSupervisionLog")

    def test(self, model: PreTrainedModel, parts: SelfSupervisionParts, recipe: Recipe) -> dict[str, Any]:
        if parts.untrained is None:
            return {}
        size, workers = recipe.training.per_device_eval_batch_size, recipe.training.dataloader_num_workers
        nn.Module.to(parts.untrained, model.device)
        found = {
            name: judge(one, *(in_batches(split, size, workers) for split in (parts.fitted, parts.test)))
            for name, one in (("trained", model), ("untrained", parts.untrained))
        }
        test = {name: one.to_dict() for name, one in found["trained"].items()}
        return {**accuracies(found["trained"]), "untrained": accuracies(found["untrained"]), "test": test}

    def outcome(self, metrics: dict[str, Any]) -> str:
        seen = metrics["self_supervision"]
        readings = "; ".join(f"{one['name']} {one['value']:.3g} ({one['healthy']})" for one in seen["readings"])
        collapsed = f"collapsed ({seen['collapsed']['kind']}); " if seen["collapsed"] else ""
        if "knn" not in metrics:
            return f"{collapsed}no labels to evaluate by; {readings}"
        before = metrics["untrained"]
        words = ", ".join(
            f"{title} {100 * metrics[name]:.2f} % (untrained {100 * before[name]:.2f})"
            for name, title in (("knn", "k-NN"), ("linear", "linear probe"))
        )
        return f"{collapsed}{words} on {metrics['test']['knn']['test_images']:,} test images"

    def callbacks(self, parts: SelfSupervisionParts, recipe: Recipe, log: RunLog) -> list[TaskCallback]:
        assert parts.learner is not None and parts.monitored is not None
        watch = SelfSupervisionLog(parts.learner, parts.monitored, parts.evaluated, recipe, log)
        return [Schedules(parts.learner, recipe), watch]

    def leave(self, parts: SelfSupervisionParts, directory: Path) -> None:
        """The student's last weights where the model is the teacher's, and the heads."""
        learner = parts.learner
        assert learner is not None
        if learner.teacher is not None:
            save_file(learner.student.state_dict(), directory / STUDENT, {"format": "pt"})
        heads = {f"{of}.{name}": value for of, one in learner.heads() for name, value in one.state_dict().items()}
        save_file(heads, directory / HEADS, {"format": "pt"})


def check_recipe(recipe: Recipe) -> None:
    """Refuse what does not fit the task, before anything is read.

    Raises:
        ValueError: another type of model, accumulated gradients, or settings of classifiers.
    """
    if recipe.model.type not in BACKBONES:
        raise ValueError(
            f"model.type={recipe.model.type}: task {recipe.task} trains {', '.join(BACKBONES)}; give one of these"
        )
    if (steps := recipe.training.gradient_accumulation_steps) > 1:
        raise ValueError(
            f"training.gradient_accumulation_steps={steps}: must be 1 for task {recipe.task}, whose losses compare the "
            "images of a batch; raise training.per_device_train_batch_size, or the number of processes"
        )
    for key, reason in _OFF.items():
        if value := recipe_value(recipe, key):
            raise ValueError(f"{key}={value:g}: must be 0 for task {recipe.task} ({reason})")


def with_labels(splits: ImageSplits) -> ImageSplits | None:
    """The splits with the label numbers of the training part; `None` where labels cannot be used to evaluate."""
    names = label_names(splits.train)
    if len(names) < 2:
        return None
    if min(counts := (len(splits.train), len(splits.test))) < NEIGHBOURS:
        logger.info(
            "k-NN and linear probe are left out: they need %d training and as many test images; there are %d and %d",
            *(NEIGHBOURS, *counts),
        )
        return None
    try:
        held_out = {
            part: relabelled(images, names, f"the {part} part")
            for part, images in (("validation", splits.validation), ("test", splits.test))
            if images is not None
        }
    except ValueError as error:
        logger.info("k-NN and linear probe are left out: %s", error)
        return None
    return replace(splits, **held_out)


def evenly(images: Dataset, most: int) -> Dataset:
    """At most so many images, at equal distances."""
    count = min(most, len(images))
    return images if count == len(images) else images.select([row * len(images) // count for row in range(count)])


def _evaluated(known: ImageSplits, transform: ImageTransform, recipe: Recipe) -> LabelledImages | None:
    """Part of the training and validation images, where there are enough."""
    if known.validation is None or not recipe.ssl.evaluate_every_epochs:
        return None
    train, validation = (evenly(part, recipe.ssl.evaluate_images) for part in (known.train, known.validation))
    if len(train) < NEIGHBOURS:
        return None
    return LabelledImages(to_tensors(train, transform), to_tensors(validation, transform))
