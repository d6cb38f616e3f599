"""The report of a run: its evaluation, its white box, and what was run, handed to `opencrate.analysis`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..analysis import plots
from ..analysis.classifier import (
    RunRecord,
    analyze_classifier,
    classifier_report,
    confusion_figure,
    training_figure,
    untrained_copy,
)
from ..analysis.evaluation import Evaluation
from ..analysis.findings import describe_accuracy
from ..analysis.report import ReportContent, write_report
from ..analysis.tables import TrainedModel, comparison_table
from ..data.fingerprint import fingerprint
from . import runs
from .initialisation import start_from_config
from .saved import SavedModel, Split

logger = logging.getLogger(__name__)

MEASURED_IMAGES = 256
"""The layer measures use at most this many images unless asked for more."""


def report_runs(
    saved: Sequence[SavedModel],
    path: str | Path,
    *,
    command: str,
    data: str | None = None,
    split: Split = "test",
    num_images: int = MEASURED_IMAGES,
    eps: float = 0.5,
    released_tool: bool = False,
    skip_bad: bool = False,
) -> list[Evaluation]:
    """Evaluate trained models on the same images and write one self-contained HTML report.

    Args:
        saved: the reported model first (its white box is measured if it is a CRATE), then those beside it.
        path: of the HTML file; its folder is made, once everything is measured.
        command: what was typed, for the record.
        data, split, skip_bad: as `SavedModel.images`.
        num_images: images for the layer measures, at most (accuracy uses all).
        eps: ε of the coding rates.
        released_tool: add the quantity that the published measuring code prints.

    Returns:
        One evaluation per model.

    Raises:
        ValueError: no usable images, or ε <= 0.
    """
    first = saved[0]
    images = first.images(data, split, skip_bad)
    batches = [one.batches(images) for one in saved]
    evaluations = [one.evaluate(batch) for one, batch in zip(saved, batches)]
    models = [_table_row(one, evaluation) for one, evaluation in zip(saved, evaluations)]
    record = _record(first, images, command, data, split)
    if first.model.config.model_type == "crate":
        options = {"num_images": min(num_images, len(images)), "eps": eps, "released_tool": released_tool}
        content = _white_box(first, batches[0], models, record, options)
    else:
        content = _plain_report(models, record)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_report(path, content)
    return evaluations


def _white_box(
    saved: SavedModel,
    batches: DataLoader,
    models: Sequence[TrainedModel],
    record: RunRecord,
    options: dict[str, Any],
) -> ReportContent:
    """The full report of a CRATE: layer by layer, against the weights it started from."""
    initial = _starting_model(saved)
    analysis = analyze_classifier(
        saved.model,
        batches,
        initial=initial.to(saved.model.device).eval(),
        image_mean=saved.processor.image_mean,
        image_std=saved.processor.image_std,
        attention_images=min(4, options["num_images"]),
        **options,
    )
    return classifier_report(f"OpenCRATE: {saved.name}", analysis, models, record)


def _starting_model(saved: SavedModel) -> PreTrainedModel:
    """The model before its first step: from its seed, or from the weights that it was fine-tuned from."""
    if saved.recipe is None:
        return untrained_copy(saved.model, seed=0)
    if saved.recipe.model.init_from is None:
        return runs.initial_model(saved.path)
    try:
        return start_from_config(saved.recipe, saved.model.config)[0]
    except ValueError as error:  # only the weights that it was fine-tuned from can be missing
        logger.warning("measured against an untrained model, since its start cannot be rebuilt: %s", error)
        return runs.initial_model(saved.path)


def _plain_report(models: Sequence[TrainedModel], record: RunRecord) -> ReportContent:
    """The report of a model without a white box (a baseline): accuracy, confusion, training curve."""
    first = models[0]
    count = first.evaluation.num_images
    figures = [confusion_figure(first)]
    if first.history is not None:
        figures.append(training_figure({first.name: first.history}))
    return ReportContent(
        title=f"OpenCRATE: {first.name}",
        subtitle=f"{first.name}, {count:,} {record.data}",
        summary=(describe_accuracy(first.name, first.evaluation, record.data),),
        comparison=comparison_table(models),
        figures=tuple(figures),
        record=record.facts,
        listings=record.listings,
    )


def _table_row(saved: SavedModel, evaluation: Evaluation) -> TrainedModel:
    metrics = saved.metrics or {}
    return TrainedModel(
        name=saved.title,
        num_parameters=saved.num_parameters,
        evaluation=evaluation,
        training_seconds=metrics.get("seconds"),
        history=_history(metrics["history"]) if metrics else None,
    )


def _history(rows: Sequence[dict[str, Any]]) -> plots.TrainingHistory:
    def points(key: str) -> tuple[tuple[float, float], ...]:
        return tuple((row["epoch"], row[key]) for row in rows if key in row)

    return plots.TrainingHistory(
        train_loss=points("train_loss"),
        eval_loss=points("validation_loss"),
        eval_accuracy=points("validation_accuracy"),
    )


def _record(saved: SavedModel, images: Dataset, command: str, data: str | None, split: Split) -> RunRecord:
    """What was run: command, data with its fingerprint, training, machine, versions."""
    own = saved.recipe.data.path if saved.recipe else None
    source = data or own or ""
    words = "handwritten digits" if source == "digits" else Path(source).resolve().name
    part = {"train": "training", "validation": "validation", "test": "held-out"}[split]
    kind = f"{part} images" if source in (own, "digits") else "images"
    mark = fingerprint(images)
    facts = [
        ("command", command),
        ("images", f"{mark['images']:,} {kind} of {words}; SHA-256 of {mark['of']}: {mark['sha256']}"),
    ]
    listings = []
    if saved.recipe and saved.metrics:
        facts += _training_facts(saved, saved.metrics)
        for name in (runs.RECIPE, runs.ENVIRONMENT):
            listings.append((name, (saved.path / name).read_text(encoding="utf-8")))
    return RunRecord(f"{kind} of {words}", tuple(facts), tuple(listings))


def _training_facts(saved: SavedModel, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    machine = json.loads((saved.path / runs.ENVIRONMENT).read_text(encoding="utf-8"))
    device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['torch_threads']} threads"
    versions = ", ".join(f"{name} {machine[name]}" for name in ("opencrate", "torch", "transformers", "python"))
    trained = metrics["data"]["train"]
    facts = [
        (
            "training",
            f"recipe {saved.recipe.name}, seed {metrics['seed']}, {metrics['epochs']:g} epochs, "
            f"{metrics['steps']:,} steps, {metrics['seconds']:.1f} s",
        ),
        (
            "training images",
            f"{trained['images']:,}; SHA-256 of {trained['of']}: {trained['sha256']}",
        ),
        ("machine", f"{device}; {machine['system']}"),
        ("versions", versions),
    ]
    return facts + ([("commit", machine["commit"])] if machine["commit"] else [])
