"""The page of saved models: their evaluation, their layers and what was run, measured and written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..analysis.autoencoder import measure_autoencoder, require_layered
from ..analysis.layers.analyze import LayerAnalysis, analyze
from ..analysis.record.attention import AttentionMaps, attention_maps
from ..analysis.record.hooks import KNOWN_MODELS
from ..analysis.record.states import has_maps
from ..analysis.theory.check import theory_check
from ..evaluation.classifier import Evaluation, evaluate_classifier
from ..evaluation.generation import Sampling, generate
from ..evaluation.reconstruction import grid_of, patch_noise, reconstruct
from ..modeling_crate_mae import CrateMAEForPreTraining
from ..stats.words import UNTRAINED
from ..store import checkpoints, runs
from ..store.inputs import HELD_OUT, Inputs, Split, input_batches, labelled_images
from ..store.saved import SavedModel, untrained_copy
from ..store.start import start_from_config
from .autoencoder import autoencoder_part
from .classifier import TrainedModel
from .html import Part, Report, write
from .layers import CRATES
from .masks import masks_part
from .reconstruction import ReconstructedImage, images_of
from .records import images_record, training_record
from .self_supervision import self_supervision_part
from .theory import theory_files, theory_parts
from .training import RunResults, TrainingHistory, measures_part
from .whitebox import RunRecord, Subject, model_page

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
_SAMPLES, _PROMPT_TOKENS, _NEW_TOKENS = 3, 24, 60
_SEED = 0
"""Of samples and of the masks of shown reconstructions."""


@dataclass(frozen=True)
class ReportOptions:
    """What is measured of every model of a report.

    Attributes:
        eps: ε > 0 of the coding rates.
        num_inputs: images or texts for the layer measures; `None` takes 256, or all where there are fewer.
        measures: a set's name or measures by name, as `layer_measures`.
        layers: layer numbers from 1; `None` measures all.
        subspaces: of models other than CRATE: "values", "keys" or "pca".
        released_tool: add what the published measuring code prints.
        checkpoints: steps of a run's checkpoints to measure too; empty takes up to four, evenly spaced; `None` none.
        theory: add the check of theory against practice, for CRATE models.
    """

    eps: float = 0.5
    num_inputs: int | None = None
    measures: str | tuple[str, ...] = "basic"
    layers: tuple[int, ...] | None = None
    subspaces: str = "values"
    released_tool: bool = False
    checkpoints: tuple[int, ...] | None = None
    theory: bool = False

    def count(self, available: int) -> int:
        """How many of the inputs at hand are measured; asking for more than there are is refused."""
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
    """Evaluate trained classifiers on the same images and write one self-contained HTML page.

    Args:
        saved: the reported model first, then those beside it.
        path: of the HTML file; its folder is made, once everything is measured.
        command: what was typed, for the record.
        data, split, skip_bad: as `labelled_images`.
        options: what is measured of the layers (accuracy uses all images).

    Raises:
        ValueError: no usable images, fewer than requested, or what `analyze` refuses.
    """
    first = saved[0]
    _check(options, first.model, first.title)
    images = labelled_images(first, data, split, skip_bad)
    count = options.count(len(images))
    batches = [one.batches(images) for one in saved]
    names = _unique([one.title for one in saved], [one.path for one in saved])
    boxes = [_layers(one, one.title, batch, count, options) for one, batch in zip(saved, batches)]
    evaluations = [evaluate_classifier(one.model, batch) for one, batch in zip(saved, batches)]
    subjects = [
        Subject(name, box, _trained(one, name, evaluation), _attention(one, batch, count))
        for one, name, box, evaluation, batch in zip(saved, names, boxes, evaluations, batches)
    ]
    parts, files = _theory(first, names, batches[0], count, options)
    parts += [part for one, name in zip(saved, names) for part in _while_training(one.metrics, name, one.path)]
    parts += _masks(saved, names, batches)
    record = images_record(first, images, command, data, split)
    _write(path, model_page(f"OpenCRATE: {first.name}", subjects, record, parts), files)
    return evaluations


def report_models(
    models: Sequence[SavedModel],
    path: str | Path,
    *,
    command: str,
    inputs: Inputs = HELD_OUT,
    options: ReportOptions = ReportOptions(),
) -> list[LayerAnalysis]:
    """Measure any transformers models, without labels, and write the page.

    Of a run, it also shows what the run came to: loss, samples of a language model, reconstructions of an autoencoder.
    Gives the measures of every model whose layers can be measured. Arguments as `report_runs`, and `inputs`: images or
    a text, whichever the models read.

    Raises:
        ValueError: inputs of the wrong kind or too few, or what `analyze` refuses.
    """
    first = models[0]
    _check(options, first.model, first.title)
    if len({model.reads for model in models}) > 1:
        raise ValueError("`compare`: one model reads images, another text; compare models of one kind")
    names = _unique([model.title for model in models], [model.source for model in models])
    batches = [input_batches(model, inputs) for model in models]
    datasets: list[Any] = [one.dataset for one in batches]
    counts = [options.count(len(one)) for one in datasets]
    subjects = []
    parts, files = _theory(first, names, batches[0], counts[0], options)
    parts += _autoencoder(models, names, batches, counts[0], options)
    for model, name, batch, count in zip(models, names, batches, counts):
        results = _results(model, name, batch)
        box = _layers(model, name, batch, count, options, needed=results is None)
        subjects.append(Subject(name, box, results=results))
        metrics = model.metrics if model.kind == "features" else results.metrics if results else None
        parts += _while_training(metrics, name, Path(model.source))
    parts += _masks(models, names, batches)
    _write(path, model_page(f"OpenCRATE: {names[0]}", subjects, _plain_record(models, command, inputs), parts), files)
    return [subject.analysis for subject in subjects if subject.analysis is not None]


def _write(path: str | Path, report: Report, files: Mapping[str, Any]) -> None:
    path = Path(path)
    write(replace(report, page=path.name, files={**report.files, **files}), path.parent, overwrite=True)


def _check(options: ReportOptions, model: PreTrainedModel, name: str) -> None:
    """Refuse what cannot be measured before anything is read or run."""
    if not 0 < options.eps < float("inf"):
        raise ValueError(f"eps={options.eps}: must be a number above 0, such as 0.5")
    if options.theory and model.config.model_type not in CRATES:
        raise ValueError(f"`theory`: {name} is not a CRATE, so no derived step is checked; leave it out")


def _plain_record(models: Sequence[SavedModel], command: str, inputs: Inputs) -> RunRecord:
    """What was run on inputs without labels."""
    source, first = Path(inputs.words).name or inputs.words, models[0]
    kind = (
        f"images of {source}" if first.reads == "images" else f"texts of up to {inputs.block_size} tokens of {source}"
    )
    facts = [("command", command), ("models", ", ".join(str(model.source) for model in models))]
    listings: list[tuple[str, str]] = []
    if first.recipe and first.metrics:
        found, listings = training_record(first.path, first.recipe, first.metrics)
        facts += found
    return RunRecord(kind, tuple(facts), tuple(listings))


def _layers(
    saved: SavedModel, name: str, batches: DataLoader, count: int, options: ReportOptions, needed: bool = False
) -> LayerAnalysis | None:
    """The layers of a model, against its start; `None` for an unknown type, which is an error where they are needed."""
    model = saved.model
    if not needed and model.config.model_type not in (*CRATES, *KNOWN_MODELS):
        logger.warning("%s: no white box of model type '%s'", name, model.config.model_type)
        return None
    return analyze(
        model,
        batches,
        name=name,
        num_inputs=count,
        initial=_starting_model(saved).to(model.device).eval(),
        checkpoints=_checkpoints(saved, options),
        **{key: getattr(options, key) for key in ("eps", "layers", "measures", "subspaces", "released_tool")},
    )


def _checkpoints(saved: SavedModel, options: ReportOptions) -> dict[str, Path]:
    """The checkpoints of a run that are to be measured, by name."""
    if options.checkpoints is None:
        return {}
    run = saved.source
    found = {checkpoints.step_of(path): path for path in checkpoints.complete(saved.path / runs.CHECKPOINTS)}
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


def _starting_model(saved: SavedModel) -> nn.Module:
    """The model before its first step: from its seed, or from the weights that it was fine-tuned from."""
    recipe = saved.recipe
    if recipe is None:
        return saved.untrained()
    if recipe.model.init_from is None:
        return runs.initial_model(saved.path)
    try:
        return start_from_config(recipe, saved.model.config)[0]
    except ValueError as error:  # only the weights that it was fine-tuned from can be missing
        logger.warning("measured against an untrained model, since its start cannot be rebuilt: %s", error)
        return runs.initial_model(saved.path)


def _theory(
    saved: SavedModel, names: Sequence[str], batches: DataLoader, count: int, options: ReportOptions
) -> tuple[list[Part], dict[str, Any]]:
    """The check of theory on the first model, where it is asked for, and its files."""
    if not options.theory:
        return [], {}
    found = theory_check(saved.model, batches, eps=options.eps, num_images=min(count, _THEORY_INPUTS))
    return theory_parts(found, names[0] if len(names) > 1 else ""), theory_files(found, names[0])


def _autoencoder(
    saved: Sequence[SavedModel], names: Sequence[str], batches: Sequence[DataLoader], count: int, options: ReportOptions
) -> list[Part]:
    """How far the decoder undoes the encoder, of the first model that is a CRATE autoencoder with mirrored layers."""
    for one, name, batch in zip(saved, names, batches):
        model = one.model
        if not isinstance(model, CrateMAEForPreTraining):
            continue
        try:
            require_layered(model)
        except ValueError as error:
            logger.warning("%s: no measures of the inverse: %s", name, error)
            continue
        settings = (options.eps, _TOKEN_NOISE, min(count, _AUTOENCODER_IMAGES))
        both = {name: model, name + UNTRAINED: untrained_copy(model, seed=0)}
        return [autoencoder_part({word: measure_autoencoder(each, batch, *settings) for word, each in both.items()})]
    return []


def _masks(saved: Sequence[SavedModel], names: Sequence[str], batches: Sequence[DataLoader]) -> list[Part]:
    """Attention at a higher resolution, and MaskCut, of every model of images."""
    found = (masks_part(*one) for one in zip(saved, names, batches))
    return [part for part in found if part is not None]


def _while_training(metrics: Mapping | None, name: str, path: Path) -> list[Part]:
    """What a training without labels came to; the layers over the epochs, where the run logged them more than once."""
    metrics, key = metrics or {}, path.resolve().name
    found = [self_supervision_part(metrics, name, key)] if "self_supervision" in metrics else []
    box = metrics.get("white_box", {})
    return found + ([measures_part(box, name, key)] if len(box.get("history", ())) > 1 else [])


def _trained(saved: SavedModel, name: str, evaluation: Evaluation) -> TrainedModel:
    metrics = saved.metrics or {}
    history = TrainingHistory.of(metrics["history"]) if metrics else None
    return TrainedModel(name, saved.num_parameters, evaluation, metrics.get("seconds"), history)


def _attention(saved: SavedModel, batches: DataLoader, count: int) -> AttentionMaps | None:
    """Where the class token of a CRATE looks, on the first images; `None` for a model without such maps."""
    if saved.model.config.model_type != "crate" or not has_maps(saved.model):
        return None
    mean, std = saved.processor.image_mean, saved.processor.image_std
    count = min(_ATTENTION_IMAGES, count)
    return attention_maps(saved.model, batches, num_images=count, image_mean=mean, image_std=std)


def _results(model: SavedModel, name: str, batches: DataLoader) -> RunResults | None:
    """The results of a language model's or an autoencoder's run; `None` for any other model."""
    metrics = model.metrics or {}
    autoencoder = model.kind == "autoencoder"
    if "loss" not in metrics or not (autoencoder or "perplexity" in metrics):
        return None
    samples = _continuations(model, batches) if "bits_per_byte" in metrics else ()
    images = _reconstructions(model, batches) if autoencoder else ()
    return RunResults(name, model.num_parameters, metrics, samples, images, _SEED)


def _continuations(model: SavedModel, batches: DataLoader) -> tuple[tuple[str, str], ...]:
    """(beginning, continuation) of the first held-out texts."""
    ids = next(iter(batches))["input_ids"][:_SAMPLES, : min(_PROMPT_TOKENS, model.context // 2)]
    sampling = Sampling(max_new_tokens=min(_NEW_TOKENS, model.context - ids.shape[1]), seed=_SEED)
    found = []
    for prompt in model.tokenizer.batch_decode(ids, skip_special_tokens=True):
        try:
            found.append((prompt, generate(model, prompt, sampling)))
        except ValueError as error:  # the prompt, decoded and read again, may be longer
            logger.warning("%s: no sample: %s", model.source, error)
    return tuple(found)


def _reconstructions(model: SavedModel, batches: DataLoader) -> tuple[ReconstructedImage, ...]:
    """The first images, masked and reconstructed."""
    pixels = next(iter(batches))["pixel_values"][:_ATTENTION_IMAGES]
    rows, columns = grid_of(model.model, pixels)
    processor, noise = model.processor, patch_noise(len(pixels), rows * columns, _SEED)
    found = reconstruct(model.model, pixels, noise, processor.image_mean, processor.image_std)
    return tuple(images_of(found, [f"image {number}" for number in range(1, len(pixels) + 1)], len(pixels)))


def _unique(titles: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """The titles, with the folder's name where two are the same; a model given twice is refused."""
    counts = Counter(titles)
    names = [title if counts[title] == 1 else f"{title}, {Path(path).name}" for title, path in zip(titles, paths)]
    if len(set(names)) < len(names):
        names = [title if counts[title] == 1 else f"{title}, {path}" for title, path in zip(titles, paths)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"`compare`: {twice[0]} is given twice; name each model once")
    return names
