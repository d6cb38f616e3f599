"""The report of saved models: their evaluation, their white box, and what was run, handed to `opencrate.analysis`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .._files import printable, read_bytes, read_json, shown
from .._outputs import claim
from ..analysis.autoencoder import measure_autoencoder, require_layered
from ..analysis.layers.analyze import WhiteBoxReport, analyze
from ..analysis.layers.registry import MEASURES
from ..analysis.record.attention import attention_maps
from ..analysis.record.hooks import KNOWN_MODELS
from ..analysis.theory.check import theory_check
from ..data.fingerprint import fingerprint
from ..evaluation.classifier import Evaluation, evaluate_classifier
from ..modeling_crate_mae import CrateMAEForPreTraining
from ..recipe.schema import Recipe
from ..store import checkpoints, runs
from ..store.inputs import HELD_OUT, Inputs, Split, input_batches, labelled_images
from ..store.saved import SavedModel, untrained_copy
from ..store.start import start_from_config
from . import figures as plots
from .autoencoder import autoencoder_section
from .html import ReportFigure, ReportSection, write_report
from .tables import TrainedModel, rows_files
from .theory import theory_section
from .training import plot_training_measures
from .whitebox import RunRecord, Subject, white_box_page

logger = logging.getLogger(__name__)

MEASURED_INPUTS = 256
"""The layer measures use at most this many images or texts unless told otherwise."""

_THEORY_INPUTS = 256
"""The check of theory takes several gradient steps per image and layer, so it uses at most this many."""

_AUTOENCODER_IMAGES = 64
"""Every depth is decoded anew, so that the inverse of an autoencoder is measured on at most this many images."""

_TOKEN_NOISE = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_ATTENTION_IMAGES = 4
_CURVES = 4


@dataclass(frozen=True)
class ReportOptions:
    """What is measured of every model of a report.

    Attributes:
        eps: ε > 0 of the coding rates.
        num_inputs: images or texts for the layer measures; `None` takes 256, or all where there are fewer.
        measures: as `rates.layer_measures`.
        layers: layer numbers from 1; `None` measures all.
        subspaces: of models that are no CRATE: "values", "keys" or "pca".
        released_tool: add what the published measuring code prints.
        checkpoints: steps of a run's checkpoints to measure too; empty takes up to four, evenly spaced; `None` none.
        theory: add the check of theory against practice, for CRATE models.
    """

    eps: float = 0.5
    num_inputs: int | None = None
    measures: str = "basic"
    layers: tuple[int, ...] | None = None
    subspaces: str = "values"
    released_tool: bool = False
    checkpoints: tuple[int, ...] | None = None
    theory: bool = False

    def count(self, available: int) -> int:
        """How many of the inputs at hand are measured.

        Raises:
            ValueError: more were asked for than there are.
        """
        if self.num_inputs is not None and self.num_inputs > available:
            raise ValueError(f"num_inputs={self.num_inputs}: only {available} there; ask for at most {available}")
        return min(MEASURED_INPUTS, available) if self.num_inputs is None else self.num_inputs


def report_runs(
    saved: Sequence[SavedModel],
    path: str | Path,
    *,
    command: str,
    data: str | None = None,
    split: Split = "test",
    options: ReportOptions = ReportOptions(),
    skip_bad: bool = False,
) -> list[Evaluation]:
    """Evaluate trained classifiers on the same images and write one self-contained HTML report.

    Args:
        saved: the reported model first, then those beside it.
        path: of the HTML file; its folder is made, once everything is measured.
        command: what was typed, for the record.
        data, split, skip_bad: as `labelled_images`.
        options: what is measured of the layers (accuracy uses all images).

    Returns:
        One evaluation per model.

    Raises:
        ValueError: no usable images, fewer than asked for, or whatever `analyze` refuses.
    """
    first = saved[0]
    _check(options, first.model, first.title)
    images = labelled_images(first, data, split, skip_bad)
    count = options.count(len(images))
    batches = [one.batches(images) for one in saved]
    boxes = [_measure_saved(one, batch, count, options) for one, batch in zip(saved, batches)]
    evaluations = [evaluate_classifier(one.model, batch) for one, batch in zip(saved, batches)]
    names = _unique([one.title for one in saved], [one.path for one in saved])
    subjects = [
        Subject(name, box, _table_row(one, name, evaluation), _attention(one, batch, count))
        for one, name, box, evaluation, batch in zip(saved, names, boxes, evaluations, batches)
    ]
    record = _record(first, images, command, data, split)
    sections = _sections([one.model for one in saved], names, batches, count, options)
    sections += [_training_section(one, name) for one, name in zip(saved, names) if _measured_in_training(one)]
    claim(Path(path).parent)
    write_report(path, white_box_page(f"OpenCRATE: {first.name}", subjects, record, sections))
    return evaluations


def report_models(
    models: Sequence[SavedModel],
    path: str | Path,
    *,
    command: str,
    inputs: Inputs = HELD_OUT,
    options: ReportOptions = ReportOptions(),
) -> list[WhiteBoxReport]:
    """Measure any transformers models, without labels, and write the report.

    Args:
        models: the reported model first, then those beside it; all read images or all read text.
        path, command, options: as `report_runs`.
        inputs: images or a text, whichever the models read.

    Raises:
        ValueError: inputs of the wrong kind or too few, or whatever `analyze` refuses.
    """
    _check(options, models[0].model, models[0].title)
    if len({model.reads for model in models}) > 1:
        raise ValueError("`compare`: one model reads images, another text; compare models of one kind")
    names = _unique([model.title for model in models], [model.source for model in models])
    batches = [input_batches(model, inputs) for model in models]
    counts = [options.count(len(one.dataset)) for one in batches]
    boxes = [
        _measure(model.model, name, batch, count, options, _start_of(model), _checkpoints(model.source, options))
        for model, name, batch, count in zip(models, names, batches, counts)
    ]
    source = Path(inputs.words).name or inputs.words
    size = inputs.block_size
    kind = f"images of {source}" if models[0].reads == "images" else f"texts of up to {size} tokens of {source}"
    subjects = [Subject(name, box) for name, box in zip(names, boxes)]
    sections = _sections([model.model for model in models], names, batches, counts[0], options)
    sections += _autoencoder_sections([model.model for model in models], names, batches, counts[0], options)
    record = RunRecord(kind, (("command", command), ("models", ", ".join(str(model.source) for model in models))))
    claim(Path(path).parent)
    write_report(path, white_box_page(f"OpenCRATE: {names[0]}", subjects, record, sections))
    return boxes


def _check(options: ReportOptions, model: PreTrainedModel, name: str) -> None:
    """Refuse what cannot be measured before anything is read or run."""
    if not 0 < options.eps < float("inf"):
        raise ValueError(f"eps={options.eps}: must be a number above 0, such as 0.5")
    if options.theory and model.config.model_type != "crate":
        raise ValueError(f"`theory`: {name} is no CRATE of images, so no derived step is checked; leave it out")


def _measure_saved(saved: SavedModel, batches: DataLoader, count: int, options: ReportOptions) -> WhiteBoxReport | None:
    """The white box of a run, against the weights it started from; `None` for a type without hooks."""
    if saved.model.config.model_type not in ("crate", *KNOWN_MODELS):
        logger.warning("%s: no white box of model type '%s'", saved.name, saved.model.config.model_type)
        return None
    initial = _starting_model(saved.path, saved.model, saved.recipe).to(saved.model.device).eval()
    return _measure(saved.model, saved.title, batches, count, options, initial, _checkpoints(saved.path, options))


def _measure(
    model: nn.Module,
    name: str,
    batches: Iterable,
    count: int,
    options: ReportOptions,
    initial: nn.Module | str,
    found: Mapping[str, Path],
) -> WhiteBoxReport:
    return analyze(
        model,
        batches,
        eps=options.eps,
        num_inputs=count,
        layers=options.layers,
        measures=options.measures,
        initial=initial,
        checkpoints=found,
        subspaces=options.subspaces,
        name=name,
        released_tool=options.released_tool,
    )


def _checkpoints(run: str | Path, options: ReportOptions) -> dict[str, Path]:
    """The checkpoints of a run that are to be measured, by name.

    Raises:
        ValueError: it has none, or not those that were asked for.
    """
    if options.checkpoints is None:
        return {}
    found = {checkpoints.step_of(path): path for path in checkpoints.complete(Path(run) / runs.CHECKPOINTS)}
    if not found:
        raise ValueError(
            f"`checkpoints`: {run} holds none; train with training.save_strategy=epoch training.save_total_limit=null"
        )
    missing = [step for step in options.checkpoints if step not in found]
    if missing:
        known = ", ".join(map(str, found))
        raise ValueError(f"checkpoints={missing[0]}: {run} has no checkpoint of that step; it has {known}")
    steps = options.checkpoints or _spaced(list(found))
    return {f"step {step}": found[step] for step in steps}


def _spaced(steps: list[int]) -> list[int]:
    """At most four of the steps, the first and the last among them."""
    if len(steps) <= _CURVES:
        return steps
    return [steps[round(index * (len(steps) - 1) / (_CURVES - 1))] for index in range(_CURVES)]


def _sections(
    models: Sequence[nn.Module], names: Sequence[str], batches: Sequence[DataLoader], count: int, options: ReportOptions
) -> list[ReportSection]:
    """The optional parts of a report, on its first model."""
    if not options.theory:
        return []
    found = theory_check(models[0], batches[0], eps=options.eps, num_images=min(count, _THEORY_INPUTS))
    sentences, figures = theory_section(found)
    title = "Theory against practice" + (f": {names[0]}" if len(names) > 1 else "")
    rows = [{"model": names[0], **row} for row in found.to_rows()]
    return [ReportSection(title, tuple(sentences), tuple(figures), files=rows_files("theory", rows))]


def _autoencoder_sections(
    models: Sequence[nn.Module], names: Sequence[str], batches: Sequence[DataLoader], count: int, options: ReportOptions
) -> list[ReportSection]:
    """How far the decoder undoes the encoder, of the first model that is a CRATE autoencoder with mirrored layers."""
    for model, name, batch in zip(models, names, batches):
        if not isinstance(model, CrateMAEForPreTraining):
            continue
        try:
            require_layered(model)
        except ValueError as error:
            logger.warning("%s: no measures of the inverse: %s", name, error)
            continue
        settings = (options.eps, _TOKEN_NOISE, min(count, _AUTOENCODER_IMAGES))
        both = {name: model, name + plots.UNTRAINED: untrained_copy(model, seed=0)}
        subjects = {word: measure_autoencoder(one, batch, *settings) for word, one in both.items()}
        return [autoencoder_section(subjects)]
    return []


def _measured_in_training(saved: SavedModel) -> bool:
    return len((saved.metrics or {}).get("white_box", {}).get("history", ())) > 1


def _training_section(saved: SavedModel, name: str) -> ReportSection:
    """What the layers did while the model was trained, as its run logged it."""
    box = saved.metrics["white_box"]
    first, last = (sum(box["history"][index]["subspace_rate"]) for index in (0, -1))
    symbol = MEASURES["subspace_rate"].symbol
    measured = f"{box['images']} {box['split']} {box.get('inputs', 'images')}"
    figure = ReportFigure(
        name=f"training_measures_{saved.path.resolve().name}",
        title="The layers from epoch to epoch",
        figure=plot_training_measures(box),
        alt="R^c after compression and the non-zero fraction after sparsification, per layer, against the epoch",
        theory="Training is end to end: nothing in it asks for a lower R^c, the theory only hopes for it.",
        measured=f"Summed over the layers, {symbol} went from {first:.1f} to {last:.1f} nats during training.",
        how=f"{measured} at the end of epochs, the same ones each time; ε = {box['eps']:g}.",
    )
    return ReportSection(f"While training: {name}", (), (figure,))


def _attention(saved: SavedModel, batches: DataLoader, count: int):
    """Where the class token of a CRATE looks, on the first images."""
    if saved.model.config.model_type != "crate":
        return None
    mean, std = saved.processor.image_mean, saved.processor.image_std
    return attention_maps(
        saved.model, batches, num_images=min(_ATTENTION_IMAGES, count), image_mean=mean, image_std=std
    )


def _unique(titles: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """The titles, with the folder's name where two are the same.

    Raises:
        ValueError: a model is given twice.
    """
    counts = Counter(titles)
    names = [title if counts[title] == 1 else f"{title}, {Path(path).name}" for title, path in zip(titles, paths)]
    if len(set(names)) < len(names):
        names = [title if counts[title] == 1 else f"{title}, {path}" for title, path in zip(titles, paths)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"`compare`: {twice[0]} is given twice; name each model once")
    return names


def _start_of(model: SavedModel) -> PreTrainedModel:
    """As `_starting_model`; a model that is no run stands against a fresh copy."""
    known = (Path(model.source).expanduser() / runs.RECIPE).is_file()
    start = _starting_model(model.source, model.model, runs.read_recipe(model.source) if known else None)
    return start.to(model.model.device).eval()


def _starting_model(source: str | Path, model: PreTrainedModel, recipe: Recipe | None) -> PreTrainedModel:
    """The model before its first step: from its seed, or from the weights that it was fine-tuned from."""
    if recipe is None:
        return untrained_copy(model, seed=0)
    if recipe.model.init_from is None:
        return runs.initial_model(source)
    try:
        return start_from_config(recipe, model.config)[0]
    except ValueError as error:  # only the weights that it was fine-tuned from can be missing
        logger.warning("measured against an untrained model, since its start cannot be rebuilt: %s", error)
        return runs.initial_model(source)


def _table_row(saved: SavedModel, name: str, evaluation: Evaluation) -> TrainedModel:
    metrics = saved.metrics or {}
    return TrainedModel(
        name=name,
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
            listings.append((name, _listing(saved.path / name)))
    return RunRecord(f"{kind} of {words}", tuple(facts), tuple(listings))


def _training_facts(saved: SavedModel, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    trained = metrics["data"].get("train")
    if not isinstance(trained, dict) or not {"images", "of", "sha256"} <= trained.keys():
        raise ValueError(f"{shown(saved.path / runs.METRICS)}: damaged ('data.train' is incomplete); train again")
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
        *_machine_facts(saved.path / runs.ENVIRONMENT),
    ]
    return facts


def _machine_facts(path: Path) -> list[tuple[str, str]]:
    """What a run was made on; the numbers stand without it, so a damaged file is said and no error."""
    try:
        machine = read_json(path)
        device = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['torch_threads']} threads"
        versions = ", ".join(f"{name} {machine[name]}" for name in ("opencrate", "torch", "transformers", "python"))
        facts = [("machine", f"{device}; {machine['system']}"), ("versions", versions)]
        return facts + ([("commit", machine["commit"])] if machine["commit"] else [])
    except (ValueError, KeyError, TypeError):
        return [("machine", f"unknown: {path.name} is missing or damaged")]


def _listing(path: Path) -> str:
    """A side file's text for the report."""
    try:
        return printable(read_bytes(path, limit=1 << 20).decode("utf-8", "backslashreplace"))
    except ValueError as error:
        return str(error)
