"""Self-supervised training while it runs: parts of the loss, readings with healthy values, k-NN and a linear probe.

Nothing here changes a run: the images are fixed by the recipe, the model is measured in evaluation mode without
gradients, and no random number is drawn.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...data.images.tensors import in_batches
from ...evaluation.inputs import evaluating, place, read_batches
from ...evaluation.representation import judge_quickly
from ...recipe.schema import Recipe, has_teacher
from ..callbacks import RunLog, TaskCallback
from ..whitebox_callback import MeasuredInputs
from .learner import Learner
from .monitors import Reading, collapse, rank_reading, readings, spread_reading
from .objectives import prototypes_of, teacher_temperature
from .schedules import cosine

logger = logging.getLogger(__name__)

MONITORED = 512
"""Images on which the projections are measured, at most."""
ROWS = 20
"""Rows of a run, besides the one before the first step."""
SURE_AFTER = 2
"""Rows that say nothing of a collapse: that before the first step, and the first one, in which the untrained network
counts. The next stands at a tenth of the run."""
SHOWN = 2
"""Readings in the progress line."""


@dataclass(frozen=True)
class LabelledImages:
    """What k-NN and linear probe are fitted on, and counted on; datasets of `pixel_values` and `labels`."""

    train: Dataset[Any]
    validation: Dataset[Any]


class SelfSupervisionLog(TaskCallback):
    """Measures every twentieth of a run and evaluates at the end of epochs, in the first process only.

    A collapse is logged once, at a tenth of the run at the earliest.

    Attributes:
        rows: one dict per measurement: `epoch`, `step`; since the row before, the means of the objective's parts; and
            of the measured images `effective_rank` and `spread` of the projections. With dino `teacher_temperature`,
            with a teacher `teacher_momentum`, both of the last step.
        evaluations: one dict per evaluation: `epoch`, `step`, `knn`, `knn_majority`, `linear`.
        readings: of the last row.
        collapsed: `kind`, `step` at which it was seen, and `advice`; `None` where the last row shows none.
    """

    def __init__(
        self, learner: Learner, inputs: MeasuredInputs, labelled: LabelledImages | None, recipe: Recipe, log: RunLog
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.readings: list[Reading] = []
        self.collapsed: dict[str, Any] | None = None
        self.seconds = 0.0
        self._learner = learner
        self._inputs = inputs
        self._labelled = labelled
        self._recipe = recipe
        self._log = log
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The untrained model."""
        if state.global_step == 0 and state.is_world_process_zero:
            self._measure(state)
            self._evaluate(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the step's parts, without waiting for an accelerator; a row every twentieth of the run."""
        if not state.is_world_process_zero:
            return
        for name, value in self._learner.parts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1
        if state.global_step % max(1, state.max_steps // ROWS) == 0 or state.global_step >= state.max_steps:
            self._measure(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every `evaluate_every_epochs` epochs, and at the end of the run."""
        every = self._recipe.ssl.evaluate_every_epochs
        due = bool(every) and (round(state.epoch) % every == 0 or state.global_step >= state.max_steps)
        if due and state.is_world_process_zero:
            self._evaluate(state)

    def to_keep(self) -> dict[str, Any]:
        """Rows, and the sums since the last one."""
        return {
            "rows": self.rows,
            "evaluations": self.evaluations,
            "readings": [asdict(one) for one in self.readings],
            "collapsed": self.collapsed,
            "seconds": self.seconds,
            "sums": {name: value.item() for name, value in self._sums.items()},
            "count": self._count,
        }

    def take_back(self, kept: dict[str, Any]) -> None:
        """As it was at the checkpoint."""
        self.rows, self.evaluations, self.collapsed = kept["rows"], kept["evaluations"], kept["collapsed"]
        self.readings, self.seconds = [Reading(**one) for one in kept["readings"]], kept["seconds"]
        device = self._learner.centre.device
        self._sums = {name: torch.tensor(value, device=device) for name, value in kept["sums"].items()}
        self._count = kept["count"]

    def metrics(self) -> dict[str, Any]:
        """What was measured, on what."""
        found = {
            "objective": self._recipe.ssl.objective,
            "images": len(self._inputs),
            "split": self._inputs.split,
            "history": self.rows,
            "evaluations": self.evaluations,
            "readings": [asdict(one) for one in self.readings],
            "collapsed": self.collapsed,
            "evaluation_seconds": round(self.seconds, 2),
        }
        return {"self_supervision": found}

    def _measure(self, state: Any) -> None:
        parts = {name: (value / self._count).item() for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        projections = self._projections()
        K = prototypes_of(self._recipe.ssl)
        rank = rank_reading(projections, self._recipe.ssl.bottleneck if K else None)
        spread = spread_reading(projections)
        self.readings = [*readings(parts, K), rank, *([] if K else [spread])]
        row = {"epoch": state.epoch or 0, "step": state.global_step, **parts}
        row |= {"effective_rank": rank.value, "spread": spread.value, **self._schedules(state)}
        self.rows.append(row)
        if len(self.rows) > SURE_AFTER:
            self._look_for_collapse(state, parts, spread.value * projections.shape[1] ** 0.5)
        if self.progress is not None:
            self.progress.note = ", ".join(f"{one.name} {one.value:.3g}" for one in self.readings[:SHOWN])
        kept = {"readings": [asdict(one) for one in self.readings], "collapsed": self.collapsed}
        self._write(state, {name: value for name, value in row.items() if name not in ("epoch", "step")}, **kept)

    def _look_for_collapse(self, state: Any, parts: dict[str, float], spread: float) -> None:
        found = collapse(parts, prototypes_of(self._recipe.ssl), spread=spread)
        before = self.collapsed["kind"] if self.collapsed else None
        if found is None:
            self.collapsed = None
            if before is not None:
                logger.info("no longer collapsed (%s) at step %d", before, state.global_step)
        elif found.kind != before:
            self.collapsed = {"kind": found.kind, "step": state.global_step, "advice": found.advice}
            logger.warning("collapsed (%s) by step %d: %s", found.kind, state.global_step, found.advice)

    def _projections(self) -> Tensor:
        """Of the measured images, by the model that is saved and its head: `(n, p)`."""
        model, head = self._learner.model, self._learner.head
        size, found = self._recipe.training.per_device_eval_batch_size, []
        with evaluating(model), evaluating(head):
            for batch in read_batches([self._inputs.fields], batch_size=size):
                found.append(head(model(pixel_values=place(batch["pixel_values"], model)).logits).float())
        return torch.cat(found)

    def _schedules(self, state: Any) -> dict[str, float]:
        """Of the last step that was taken, or of the first one before it."""
        given, found = self._recipe.ssl, {}
        if given.objective == "dino":
            found["teacher_temperature"] = teacher_temperature(given, self._learner.epoch)
        if has_teacher(given):
            step = max(0, state.global_step - 1)
            momenta = given.teacher_momentum, given.teacher_momentum_end
            found["teacher_momentum"] = cosine(step, state.max_steps, *momenta)
        return found

    def _evaluate(self, state: Any) -> None:
        if self._labelled is None or not self._recipe.ssl.evaluate_every_epochs:
            return
        started = time.perf_counter()
        size = self._recipe.training.per_device_eval_batch_size
        parts = (in_batches(part, size) for part in (self._labelled.train, self._labelled.validation))
        found = judge_quickly(self._learner.model, *parts)
        self.seconds += time.perf_counter() - started
        self.evaluations.append({"epoch": state.epoch or 0, "step": state.global_step, **found})
        self._write(state, found)

    def _write(self, state: Any, values: dict[str, float], **more: Any) -> None:
        self._log.write({"step": state.global_step, "epoch": state.epoch or 0, "self_supervision": values, **more})
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"self_supervision/{name}", value, state.global_step)
