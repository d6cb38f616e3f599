"""The white-box report: one model or several side by side, measured, then told in words and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..analysis.layers.analyze import LayerAnalysis
from ..analysis.layers.registry import MEASURES, STATES, measure_key
from ..analysis.layers.result import LayerMeasures
from ..analysis.record.attention import AttentionMaps
from ..analysis.record.states import LEARNED
from ..stats import intervals, words
from . import figures as plots
from . import findings
from .classifier import confusion_figure, training_figure
from .findings import against, compression_changes
from .html import ReportContent, ReportFigure, ReportSection
from .tables import (
    TrainedModel,
    changes_table,
    comparison_table,
    layer_table,
    layers_csv,
    layers_json,
)

_OWN_FIGURE = (
    "subspace_rate",
    "rate_reduction",
    "nonzero_fraction",
    "subspace_rate_unit_norm",
    "released_subspace_rate",
)
"""Measures over the layers with a figure among the first."""

CRATES = ("crate", "crate_mae", "crate_text")
"""Model types that were derived from the objective."""


@dataclass(frozen=True)
class Subject:
    """One model of a report.

    Attributes:
        name: for readers, unique in the report.
        report: its measures; `None` for a model without a white box (only its accuracy is shown).
        trained: its accuracy and training, where it is a classifier with labelled images.
        attention: where its class token looks, on a few images.
    """

    name: str
    report: LayerAnalysis | None
    trained: TrainedModel | None = None
    attention: AttentionMaps | None = None


@dataclass(frozen=True)
class RunRecord:
    """What was run, as the report shows it.

    Attributes:
        data: what the inputs are, as words that follow a number ("held-out images of handwritten digits").
        facts: (name, text): command, environment, data fingerprint, seed, ... in this order.
        listings: (name, text) of long texts, such as the resolved recipe.
    """

    data: str
    facts: tuple[tuple[str, str], ...]
    listings: tuple[tuple[str, str], ...] = ()


def white_box_page(
    title: str, subjects: Sequence[Subject], run: RunRecord, sections: Sequence[ReportSection] = ()
) -> ReportContent:
    """The whole report.

    Args:
        title: of the page.
        subjects: the reported model first, then those beside it.
        run: what was run.
        sections: further parts (theory, audit), shown after the figures, their sentences also on top.

    Raises:
        ValueError: `subjects` is empty, or two have the same name.
    """
    if not subjects:
        raise ValueError("subjects: empty; the first entry must be the reported model")
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError(f"subjects: two of one name in {[subject.name for subject in subjects]}")
    boxes = {subject.name: subject.report for subject in subjects if subject.report is not None}
    trained = [subject.trained for subject in subjects if subject.trained is not None]
    tables = []
    if boxes:
        tables.append(changes_table({name: compression_changes(box.measures) for name, box in boxes.items()}))
    tables += [
        layer_table(f"{name}: {state}" if len(boxes) > 1 else state, measures, box.subspace_kind)
        for name, box in boxes.items()
        for state, measures in box.series.items()
    ]
    files = {"layers.csv": layers_csv(list(boxes.values())), "layers.json": layers_json(list(boxes.values()))}
    return ReportContent(
        title=title,
        subtitle=f"{subjects[0].name}, {_num_inputs(subjects[0]):,} {run.data}",
        summary=tuple(_summary(subjects, boxes, run)),
        comparison=comparison_table(trained) if trained else None,
        figures=tuple(_figures(subjects, boxes)),
        sections=(*sections, *_further_section(boxes)),
        tables=tuple(tables),
        record=run.facts,
        listings=run.listings,
        files={**(files if boxes else {}), **{name: text for one in sections for name, text in one.files.items()}},
    )


def _num_inputs(subject: Subject) -> int:
    """Inputs of a classifier's accuracy, else those of the measures."""
    return subject.trained.evaluation.num_images if subject.trained else subject.report.measures.num_inputs


def _summary(subjects: Sequence[Subject], boxes: Mapping[str, LayerAnalysis], run: RunRecord) -> list[str]:
    """The sentences on top: accuracy, what held and what did not, then each model's numbers."""
    lines = _accuracy_lines([subject.trained for subject in subjects if subject.trained is not None], run)
    for name, box in boxes.items():
        lines += _box_lines(name, box, f"{name}: " if len(boxes) > 1 else "")
    kinds = {name: box.subspace_kind for name, box in boxes.items()}
    if len(set(kinds.values())) > 1:
        lines.append(
            f"R^c is taken against different subspaces ({'; '.join(f'{n}: {k}' for n, k in kinds.items())}): compare "
            "how it moves over the layers, not how large it is."
        )
    return lines


def _accuracy_lines(trained: Sequence[TrainedModel], run: RunRecord) -> list[str]:
    if not trained:
        return []
    model = trained[0]
    lines = [findings.describe_accuracy(model.name, model.evaluation, run.data)]
    if model.training_seconds is not None:
        took = words.duration(model.training_seconds)
        lines.append(f"It has {model.num_parameters:,} parameters and was trained in {took}.")
    else:
        lines.append(f"It has {model.num_parameters:,} parameters.")
    for other in trained[1:]:
        lines.append(findings.describe_difference(model.name, model.evaluation, other.name, other.evaluation))
    return lines


def _box_lines(name: str, box: LayerAnalysis, prefix: str) -> list[str]:
    """What one model's layers do, the verdict on the theory first."""
    found = [findings.describe_compression(box.measures, box.subspace_kind), _rate_sentence(box)]
    if box.subspace_kind == LEARNED:
        found = [findings.describe_claims(findings.claims(box.series)), *found]
        found += [_objective_sentence(box), _sparsity_sentence(box.measures)]
    lines = [prefix + sentence for sentence in found]
    if box.model_type in CRATES:
        return lines
    return [
        f"{name} was not derived from the objective and has no subspaces of its own: R^c is taken against its "
        f"{box.subspace_kind}, Z^{{ℓ+½}} is {box.half_step}.",
        *lines,
    ]


def _rate_sentence(box: LayerAnalysis) -> str:
    name = against("R^c(Z^{ℓ+½} | U^ℓ)", box.subspace_kind)
    return words.describe_trend(name, box.measures.mean("subspace_rate"), "nats")


def _objective_sentence(box: LayerAnalysis) -> str:
    rate, gain = (intervals.trend(box.measures.mean(key)) for key in ("rate", "rate_reduction"))
    return (
        f"From the first layer to the last, R(Z^{{ℓ+½}}) goes from {rate.first:.1f} to {rate.last:.1f} nats and ΔR "
        f"from {gain.first:.1f} to {gain.last:.1f}; ΔR rises at {gain.steps - gain.falls} of {gain.steps} steps."
    )


def _sparsity_sentence(measures: LayerMeasures) -> str:
    name = "The non-zero fraction of Z^{ℓ+1}"
    return words.describe_trend(name, measures.mean("nonzero_fraction"), digits=3)


def _curves(boxes: Mapping[str, LayerAnalysis]) -> dict[str, LayerMeasures]:
    """What a figure shows: of one model all states of training, of several the trained and the untrained ones."""
    if len(boxes) == 1:
        return dict(next(iter(boxes.values())).series)
    curves = {}
    for name, box in boxes.items():
        curves[name] = box.measures
        if box.initial is not None:
            curves[name + plots.UNTRAINED] = box.initial
    return curves


def _figures(subjects: Sequence[Subject], boxes: Mapping[str, LayerAnalysis]) -> list[ReportFigure]:
    """All figures in reading order."""
    figures = _box_figures(boxes) if boxes else []
    looking = [subject for subject in subjects if subject.attention is not None]
    figures += [_attention_figure(one, number if len(looking) > 1 else None) for number, one in enumerate(looking, 1)]
    trained = [subject.trained for subject in subjects if subject.trained is not None]
    if trained:
        figures.append(confusion_figure(trained[0]))
    histories = {model.name: model.history for model in trained if model.history is not None}
    return [*figures, training_figure(histories)] if histories else figures


def _box_figures(boxes: Mapping[str, LayerAnalysis]) -> list[ReportFigure]:
    figures = [_change_figure(boxes), _rate_figure(boxes), _objective_figure(boxes), _sparsity_figure(boxes)]
    figures.append(_unit_norm_figure(boxes))
    if all("released_subspace_rate" in box.measures.values for box in boxes.values()):
        figures.append(_released_figure(boxes))
    return figures


def _change_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    return ReportFigure(
        name="compression",
        title="Does attention lower R^c?",
        figure=plots.plot_changes(
            {name: compression_changes(box.measures) for name, box in boxes.items()},
            {name: box.subspace_kind for name, box in boxes.items()},
        ),
        alt="Change of R^c from Z^ℓ to Z^{ℓ+½} at each layer, with its 95 % interval",
        theory=(
            "CRATE's attention is derived as a step that lowers R^c under the layer's own U, so every change should "
            "lie below 0. It is one of several approximations away from that step, so the theory can fail here. For "
            "other models nothing is predicted."
        ),
        measured=" ".join(_each(boxes, lambda box: findings.describe_compression(box.measures, box.subspace_kind))),
        how=(
            f"Change from Z^ℓ to Z^{{ℓ+½}}, paired input by input, mean and 95 % bootstrap interval (bars). "
            f"{_how(boxes, 'subspace_rate')}"
        ),
    )


def _rate_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    return _measure_figure(
        boxes,
        "subspace_rate",
        title="Compression over the layers",
        theory="Attention is derived as a step that lowers R^c, so R^c should fall from layer to layer.",
        measured=" ".join(_each(boxes, _rate_sentence)),
    )


def _objective_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    (name, first), *others = boxes.items()
    variants = tuple(
        (f"rate_reduction_{index}", other, plots.plot_rates(box.measures, box.subspace_kind))
        for index, (other, box) in enumerate(others, start=2)
    )
    whose = f" Shown: {name}." if others else ""
    return ReportFigure(
        name="rate_reduction",
        title="The objective: R, R^c and ΔR of Z^{ℓ+½}",
        figure=plots.plot_rates(first.measures, first.subspace_kind),
        alt="R, R^c and their difference at each layer of the trained model",
        theory=_theory(boxes, "ΔR = R − R^c should rise: compressed within the subspaces, spread out as a whole."),
        measured=" ".join(_each(boxes, _objective_sentence)),
        how=f"{_how(boxes, 'rate_reduction')} Trained model only.{whose}",
        variants=variants,
    )


def _sparsity_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    others = [name for name, box in boxes.items() if box.subspace_kind != LEARNED]
    dense = f" {' and '.join(others)}: not sparse by design, every entry is non-zero unless rounding says so."
    return _measure_figure(
        boxes,
        "nonzero_fraction",
        title="Sparsification: entries of Z^{ℓ+1} that are not zero",
        theory=(
            "Each CRATE layer ends in a step towards a sparse non-negative code, so the fraction should fall with "
            "depth; in the paper's trained models it does, except at the last layer." + (dense if others else "")
        ),
        measured=" ".join(_each(boxes, lambda box: _sparsity_sentence(box.measures))),
    )


def _unit_norm_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    key = "subspace_rate_unit_norm"

    def sentence(box: LayerAnalysis) -> str:
        return words.describe_trend("R^c of Z^{ℓ+½} on unit-norm tokens", box.measures.mean(key), "nats")

    return _measure_figure(
        boxes,
        key,
        title="The same with every token scaled to length 1",
        theory="R^c also falls when tokens only shrink; here what is left must come from their directions.",
        measured=" ".join(_each(boxes, sentence)),
    )


def _released_figure(boxes: Mapping[str, LayerAnalysis]) -> ReportFigure:
    key = "released_subspace_rate"

    def sentence(box: LayerAnalysis) -> str:
        name = f"The released tool's {against('R^c(LN(Z^ℓ) | U^ℓ)', box.subspace_kind)}"
        return words.describe_trend(name, box.measures.mean(key), "nats")

    return _measure_figure(
        boxes,
        key,
        title="What the paper's released measuring tool prints",
        theory="The paper's curves, made with this tool, fall with depth.",
        measured=" ".join(_each(boxes, sentence)),
    )


def _further_section(boxes: Mapping[str, LayerAnalysis]) -> list[ReportSection]:
    """Quantities at every half-step, and the measures without a figure above; those that all models have."""
    if not boxes:
        return []
    measured = [{*box.measures.values, *box.measures.totals} for box in boxes.values()]
    keys = [key for key in MEASURES if all(key in one for one in measured)]
    states = Counter(MEASURES[key].quantity for key in keys if MEASURES[key].state in STATES)
    names = dict.fromkeys(
        (MEASURES[key].quantity, True)
        if states[MEASURES[key].quantity] > 1 and MEASURES[key].state in STATES
        else (key, False)
        for key in keys
    )
    figures = tuple(
        _further_figure(boxes, name, half_steps) for name, half_steps in names if half_steps or name not in _OWN_FIGURE
    )
    return [ReportSection("Every half-step, and further measures", figures=figures)] if figures else []


def _further_figure(boxes: Mapping[str, LayerAnalysis], key: str, half_steps: bool) -> ReportFigure:
    """One measure over the layers, or with `half_steps` one quantity at every half-step."""
    symbol = MEASURES[measure_key(key, "before")].symbol.replace("Z^ℓ", "Z") if half_steps else MEASURES[key].title
    words = f", {MEASURES[key].words}" if half_steps and MEASURES[key].words else ""
    return ReportFigure(
        name=f"half_steps_{key}" if half_steps else key,
        title=against(symbol, _common_kind(boxes)) + words,
        figure=(plots.plot_half_steps if half_steps else plots.plot_measure)(_curves(boxes), key, _kinds(boxes)),
        alt=f"{MEASURES[key].unit} at each {'half-step' if half_steps else 'layer'}, {' and '.join(_curves(boxes))}",
        how=_how(boxes, key),
    )


def _measure_figure(
    boxes: Mapping[str, LayerAnalysis], key: str, *, title: str, theory: str, measured: str
) -> ReportFigure:
    """One measure over the layers, set against the initialisation where one model is shown and that was measured."""
    how = _how(boxes, key)
    box = next(iter(boxes.values()))
    if box.initial is not None:
        how = f"{how} {'Untrained' if len(boxes) > 1 else 'Initialisation'}: the same architecture, the same inputs."
    if len(boxes) == 1 and box.initial is not None:
        unit, digits = ("nats", 1) if MEASURES[key].unit.startswith("nats") else ("", 3)
        symbol = against(MEASURES[key].symbol, box.subspace_kind)
        start = findings.describe_against_start(symbol, box.measures.mean(key), box.initial.mean(key), unit, digits)
        measured = f"{measured} {start}"
    return ReportFigure(
        name=key,
        title=title,
        figure=plots.plot_measure(_curves(boxes), key, _kinds(boxes)),
        alt=f"{MEASURES[key].unit} at each layer, {' and '.join(_curves(boxes))}",
        theory=_theory(boxes, theory),
        measured=measured,
        how=how,
    )


def _kinds(boxes: Mapping[str, LayerAnalysis]) -> dict[str, str]:
    """What the subspaces are, by the curves' names."""
    if len(boxes) == 1:
        (box,) = boxes.values()
        return dict.fromkeys(box.series, box.subspace_kind)
    return {name + end: box.subspace_kind for name, box in boxes.items() for end in ("", plots.UNTRAINED)}


def _common_kind(boxes: Mapping[str, LayerAnalysis]) -> str:
    """What the subspaces are, or that they differ."""
    kinds = {box.subspace_kind for box in boxes.values()}
    return kinds.pop() if len(kinds) == 1 else "its own subspaces"


def _each(boxes: Mapping[str, LayerAnalysis], sentence: Callable[[LayerAnalysis], str]) -> list[str]:
    """A sentence per model, with its name where there are several."""
    return [(f"{name}: " if len(boxes) > 1 else "") + sentence(box) for name, box in boxes.items()]


def _how(boxes: Mapping[str, LayerAnalysis], key: str) -> str:
    """How one measure was taken."""
    first = next(iter(boxes.values()))
    eps = first.measures.eps_of(key)
    rate = ""
    if eps is not None:
        kinds = "; ".join(_each(boxes, lambda box: _kind_words(box.subspace_kind)))
        rate = (
            f"; ε = {eps:g}; {kinds}"
            if "U^ℓ" in MEASURES[key].symbol or "R^c" in MEASURES[key].symbol
            else (f"; ε = {eps:g}")
        )
    tokens = MEASURES[key].how
    if first.inputs == "texts":
        tokens = tokens.replace(", class token included", ", padding left out").replace("images", "texts")
    return f"{first.measures.num_inputs} {first.inputs}, mean and its 95 % bootstrap interval (band); {tokens}{rate}."


def _theory(boxes: Mapping[str, LayerAnalysis], text: str) -> str:
    """What the theory predicts, or that it predicts nothing where no model is a CRATE."""
    crates = any(box.model_type in CRATES for box in boxes.values())
    return text if crates else f"Nothing for this model. Of a CRATE: {text}"


def _kind_words(kind: str) -> str:
    return "U^ℓ as learned, not made orthonormal" if kind == LEARNED else f"subspaces: {kind}"


def _attention_figure(subject: Subject, number: int | None) -> ReportFigure:
    """The class token's attention; `number` sets the files of several models apart."""
    attention = subject.attention
    layers = attention.maps.shape[1]
    key = "attention" if number is None else f"attention_{number}"
    whose = "" if number is None else f": {subject.name}"
    others = tuple(
        (f"{key}_layer{layer}", f"Layer {layer}", plots.plot_attention(attention, layer - 1))
        for layer in range(1, layers)
    )
    return ReportFigure(
        name=key,
        title=f"Where the class token looks, last layer ({layers} of {layers}){whose}",
        figure=plots.plot_attention(attention),
        alt="For a few images, the attention of the class token to the patches in every head",
        theory="Each head compares tokens within one subspace; nothing is predicted for a single head.",
        how=(
            "The class token's row of each head's softmax map, on the patch grid, without smoothing; each panel "
            "is stretched from 0 to its own largest value; the first images of the set, not chosen."
        ),
        variants=others,
    )
