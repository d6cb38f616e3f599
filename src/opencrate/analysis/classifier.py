"""The white-box report of one trained classifier: measured, then told in words and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from . import findings, plots
from .attention_maps import AttentionMaps, attention_maps
from .inputs import Batch
from .rates import MEASURES, LayerMeasures, layer_measures
from .report import ReportContent, ReportFigure
from .tables import TrainedModel, comparison_table, layer_table, layers_csv, layers_json

TRAINED, INITIAL = "trained", "initialisation"


@dataclass(frozen=True)
class ClassifierAnalysis:
    """What the white box of one classifier shows.

    Attributes:
        measures: of the trained model, per image and layer.
        initial: the same of the same architecture untrained, on the same images; `None` where not asked for.
        attention: class-token attention on a few images.
    """

    measures: LayerMeasures
    initial: LayerMeasures | None
    attention: AttentionMaps

    @property
    def series(self) -> dict[str, LayerMeasures]:
        """The measures by name: trained, and initialisation where it was measured."""
        return {TRAINED: self.measures} | ({} if self.initial is None else {INITIAL: self.initial})


@dataclass(frozen=True)
class RunRecord:
    """What was run, as the report shows it.

    Attributes:
        data: what the images are, as words that follow a number ("held-out images of handwritten digits").
        facts: (name, text): command, environment, data fingerprint, seed, ... in this order.
        listings: (name, text) of long texts, such as the resolved recipe.
    """

    data: str
    facts: tuple[tuple[str, str], ...]
    listings: tuple[tuple[str, str], ...] = ()


def untrained_copy(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture freshly initialised, on the same device; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    weight = next(model.parameters())
    return fresh.to(weight.device, weight.dtype)


def analyze_classifier(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    initial: nn.Module | None = None,
    eps: float = 0.5,
    num_images: int | None = None,
    attention_images: int = 4,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    released_tool: bool = False,
) -> ClassifierAnalysis:
    """Measure a CRATE classifier layer by layer and record its attention on the first images.

    Args:
        model: a CRATE classifier.
        batches: a DataLoader or list (read several times) of mappings with `pixel_values`, perhaps `labels`.
        initial: the same architecture untrained, to compare with; see `untrained_copy`.
        eps: ε of the coding rates.
        num_images: measure this many images; `None` measures all.
        attention_images: images with attention maps.
        image_mean, image_std: the processor's normalisation, undone where an image is shown.
        released_tool: add what the published measuring code prints, under its own label.

    Raises:
        ValueError: `batches` can be read only once; and whatever `layer_measures` refuses.
    """
    if iter(batches) is batches:
        raise ValueError("batches: can be read only once (a generator); pass a list or a DataLoader")
    options = {"num_images": num_images, "released_tool": released_tool}
    return ClassifierAnalysis(
        measures=layer_measures(model, batches, eps, **options),
        initial=None if initial is None else layer_measures(initial, batches, eps, **options),
        attention=attention_maps(
            model, batches, num_images=attention_images, image_mean=image_mean, image_std=image_std
        ),
    )


def classifier_report(
    title: str,
    analysis: ClassifierAnalysis,
    models: Sequence[TrainedModel],
    run: RunRecord,
) -> ReportContent:
    """The whole report of one classifier.

    Args:
        title: of the page.
        analysis: of `models[0]`.
        models: the analysed model, then those it stands beside (the matched ViT).
        run: what was run.

    Raises:
        ValueError: `models` is empty.
    """
    if not models:
        raise ValueError("models: empty; the first entry must be the analysed model")
    tables = [layer_table(f"Layer by layer: {name}", found) for name, found in analysis.series.items()]
    return ReportContent(
        title=title,
        subtitle=f"{models[0].name}, {models[0].evaluation.num_images:,} {run.data}",
        summary=tuple(_summary(analysis, models, run)),
        comparison=comparison_table(models),
        figures=tuple(_figures(analysis, models)),
        tables=tuple(tables),
        record=run.facts,
        listings=run.listings,
        files={"layers.csv": layers_csv(analysis.series), "layers.json": layers_json(analysis.series)},
    )


def _summary(analysis: ClassifierAnalysis, models: Sequence[TrainedModel], run: RunRecord) -> list[str]:
    """The sentences on top."""
    model, measures = models[0], analysis.measures
    lines = [findings.describe_accuracy(model.name, model.evaluation, run.data)]
    if model.training_seconds is not None:
        took = findings.duration(model.training_seconds)
        lines.append(f"It has {model.num_parameters:,} parameters and was trained in {took}.")
    else:
        lines.append(f"It has {model.num_parameters:,} parameters.")
    for other in models[1:]:
        lines.append(findings.describe_difference(model.name, model.evaluation, other.name, other.evaluation))
    lines.append(_rate_sentence(measures))
    lines += [findings.describe_compression(measures), _objective_sentence(measures), _sparsity_sentence(measures)]
    return lines


def _rate_sentence(measures: LayerMeasures) -> str:
    return findings.describe_trend(MEASURES["subspace_rate"].symbol, measures.mean("subspace_rate"), "nats")


def _objective_sentence(measures: LayerMeasures) -> str:
    rate, gain = (findings.trend(measures.mean(key)) for key in ("rate", "rate_reduction"))
    return (
        f"From the first layer to the last, R(Z^{{ℓ+½}}) goes from {rate.first:.1f} to {rate.last:.1f} nats and ΔR "
        f"from {gain.first:.1f} to {gain.last:.1f}; ΔR rises at {gain.steps - gain.falls} of {gain.steps} steps."
    )


def _sparsity_sentence(measures: LayerMeasures) -> str:
    name = "The non-zero fraction of Z^{ℓ+1}"
    return findings.describe_trend(name, measures.mean("nonzero_fraction"), digits=3)


def _figures(analysis: ClassifierAnalysis, models: Sequence[TrainedModel]) -> list[ReportFigure]:
    """All figures in reading order."""
    figures = [_rate_figure(analysis), _objective_figure(analysis), _sparsity_figure(analysis)]
    figures.append(_unit_norm_figure(analysis))
    if "released_subspace_rate" in analysis.measures.values:
        figures.append(_released_figure(analysis))
    figures += [_attention_figure(analysis.attention), confusion_figure(models[0])]
    histories = {model.name: model.history for model in models if model.history is not None}
    if histories:
        figures.append(training_figure(histories))
    return figures


def _rate_figure(analysis: ClassifierAnalysis) -> ReportFigure:
    return _measure_figure(
        analysis,
        "subspace_rate",
        title=f"Compression: {MEASURES['subspace_rate'].symbol}",
        theory="Attention is derived as a step that lowers R^c, so R^c should fall from layer to layer.",
        measured=f"{_rate_sentence(analysis.measures)} {findings.describe_compression(analysis.measures)}",
    )


def _objective_figure(analysis: ClassifierAnalysis) -> ReportFigure:
    return ReportFigure(
        name="rate_reduction",
        title="The objective: R, R^c and ΔR of Z^{ℓ+½}",
        figure=plots.plot_rates(analysis.measures),
        alt="R, R^c and their difference at each layer of the trained model",
        theory="ΔR = R − R^c should rise: compressed within the subspaces, spread out as a whole.",
        measured=_objective_sentence(analysis.measures),
        how=f"{_how(analysis.measures, 'rate_reduction')} Trained model only.",
    )


def _sparsity_figure(analysis: ClassifierAnalysis) -> ReportFigure:
    return _measure_figure(
        analysis,
        "nonzero_fraction",
        title="Sparsification: entries of Z^{ℓ+1} that are not zero",
        theory=(
            "Each layer ends in a step towards a sparse non-negative code, so the fraction should fall with "
            "depth; in the paper's trained models it does, except at the last layer."
        ),
        measured=_sparsity_sentence(analysis.measures),
    )


def _unit_norm_figure(analysis: ClassifierAnalysis) -> ReportFigure:
    key = "subspace_rate_unit_norm"
    name = "R^c of Z^{ℓ+½} on unit-norm tokens"
    return _measure_figure(
        analysis,
        key,
        title="The same with every token scaled to length 1",
        theory="R^c also falls when tokens only shrink; here what is left must come from their directions.",
        measured=findings.describe_trend(name, analysis.measures.mean(key), "nats"),
    )


def _released_figure(analysis: ClassifierAnalysis) -> ReportFigure:
    key = "released_subspace_rate"
    name = "The released tool's R^c(LN(Z^ℓ) | U^ℓ)"
    return _measure_figure(
        analysis,
        key,
        title="What the paper's released measuring tool prints",
        theory="The paper's curves, made with this tool, fall with depth.",
        measured=findings.describe_trend(name, analysis.measures.mean(key), "nats"),
    )


def _measure_figure(analysis: ClassifierAnalysis, key: str, *, title: str, theory: str, measured: str) -> ReportFigure:
    """One measure over the layers, set against the initialisation where that was measured."""
    measures, initial = analysis.measures, analysis.initial
    how = _how(measures, key)
    if initial is not None:
        unit, digits = ("nats", 1) if measures.eps_of(key) else ("", 3)
        start = findings.describe_against_start(
            MEASURES[key].symbol, measures.mean(key), initial.mean(key), unit, digits
        )
        measured = f"{measured} {start}"
        how = f"{how} Initialisation: the same architecture untrained, the same images."
    return ReportFigure(
        name=key,
        title=title,
        figure=plots.plot_measure(analysis.series, key),
        alt=f"{MEASURES[key].unit} at each layer, {' and '.join(analysis.series)}",
        theory=theory,
        measured=measured,
        how=how,
    )


def _how(measures: LayerMeasures, key: str) -> str:
    """How one measure was taken."""
    eps = measures.eps_of(key)
    rate = "" if eps is None else f"; ε = {eps:g}; U^ℓ as learned, not made orthonormal"
    return f"{measures.num_images} images, mean and one standard deviation (band); {MEASURES[key].tokens}{rate}."


def _attention_figure(attention: AttentionMaps) -> ReportFigure:
    layers = attention.maps.shape[1]
    others = tuple(
        (f"attention_layer{layer}", f"Layer {layer}", plots.plot_attention(attention, layer - 1))
        for layer in range(1, layers)
    )
    return ReportFigure(
        name="attention",
        title=f"Where the class token looks, last layer ({layers} of {layers})",
        figure=plots.plot_attention(attention),
        alt="For a few images, the attention of the class token to the patches in every head",
        theory="Each head compares tokens within one subspace; nothing is predicted for a single head.",
        how=(
            "The class token's row of each head's softmax map, on the patch grid, without smoothing; each panel "
            "is stretched from 0 to its own largest value; the first images of the set, not chosen."
        ),
        variants=others,
    )


def confusion_figure(model: TrainedModel) -> ReportFigure:
    """Confusion matrix of a model, with its most frequent mistake in words."""
    found = model.evaluation
    wrong = found.confusion.clone().fill_diagonal_(0)
    measured = f"{found.num_images - found.num_correct:,} of {found.num_images:,} images are given a wrong class."
    if int(wrong.max()) > 0:
        true, guess = divmod(int(wrong.argmax()), len(wrong))
        pair = f"{found.labels[true]} taken for {found.labels[guess]} ({int(wrong.max())} times)"
        measured += f" Most often: {pair}."
    return ReportFigure(
        name="confusion",
        title="Which classes are confused",
        figure=plots.plot_confusion(found),
        alt="Confusion matrix of the trained model, true classes in rows",
        measured=measured,
        how=f"Largest logit on {found.num_images:,} images, one crop.",
    )


def training_figure(histories: Mapping[str, plots.TrainingHistory]) -> ReportFigure:
    """Training curves of one or more models, by name."""
    return ReportFigure(
        name="training",
        title="Training",
        figure=plots.plot_training(histories),
        alt="Loss and held-out accuracy over the epochs of training",
        how="Training loss as logged, a mean since the point before; held-out values as logged.",
    )
