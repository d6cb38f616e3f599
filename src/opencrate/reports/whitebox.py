"""The page of one model or several side by side: what they do well, what their layers do, what theory says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..analysis.layers.analyze import LayerAnalysis
from ..analysis.layers.claims import CODES, claims, sparsity_key
from ..analysis.layers.registry import MEASURES, STATES
from ..analysis.record.attention import AttentionMaps
from ..stats.words import plural
from . import layers, tables
from .classifier import TrainedModel, amount, comparison_table, confusion_figure, describe_accuracy, describe_difference
from .html import Part, Report, Table, formula, link
from .layers import COMPRESSION, CRATES, PREDICTED_OF, all_have
from .training import RunResults, describe_results, results_items, training_figure

PREDICTIONS, RESULTS = "Predictions of the theory", "Results"


@dataclass(frozen=True)
class Subject:
    """One model of a page, by a name that is unique in it; `None` is what was not, or cannot be, measured.

    `trained` is a classifier's accuracy and training, `results` what a run without classes came to.
    """

    name: str
    analysis: LayerAnalysis | None
    trained: TrainedModel | None = None
    attention: AttentionMaps | None = None
    results: RunResults | None = None


@dataclass(frozen=True)
class RunRecord:
    """What was run, as the page shows it.

    Attributes:
        data: what the inputs are, as words that follow a number ("held-out images of handwritten digits").
        facts, listings: (name, short text), such as the seed, and (name, long text), such as the recipe.
    """

    data: str
    facts: tuple[tuple[str, str], ...] = ()
    listings: tuple[tuple[str, str], ...] = ()


def page(analysis: LayerAnalysis) -> Report:
    """The page of one model's layers alone."""
    return model_page(f"OpenCRATE: {analysis.model}", [Subject(analysis.model, analysis)], RunRecord(analysis.inputs))


def model_page(title: str, subjects: Sequence[Subject], run: RunRecord, parts: Sequence[Part] = ()) -> Report:
    """The whole page: the reported model first, then those beside it; `parts` (theory, audit) follow the layers."""
    if not subjects:
        raise ValueError("subjects: empty; the first entry must be the reported model")
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError(f"subjects: two of one name in {[subject.name for subject in subjects]}")
    boxes = {subject.name: subject.analysis for subject in subjects if subject.analysis is not None}
    found = [
        _results(subjects),
        _predictions(boxes),
        _layers(boxes),
        *parts,
        _attention(subjects),
        _further(boxes),
        _layer_tables(boxes),
    ]
    files = {}
    if boxes:
        rows = tables.frame(row for box in boxes.values() for row in box.to_rows())
        files = {"layers.csv": rows, "layers.json": [box.to_dict() for box in boxes.values()]}
    first = subjects[0]
    count = first.analysis.measures.num_inputs if first.analysis else 0
    count = first.trained.evaluation.num_images if first.trained else count
    return Report(
        title=title,
        subtitle=f"{first.name}, {amount(count, run.data) if count else run.data}",
        summary=_summary(subjects, boxes, run),
        parts=tuple(part for part in found if part is not None),
        record=run.facts,
        listings=run.listings,
        files=files,
    )


def _summary(
    subjects: Sequence[Subject], boxes: Mapping[str, LayerAnalysis], run: RunRecord
) -> tuple[str | Markup, ...]:
    """What the first model does well, how many predictions held in it, and what to look at."""
    first = subjects[0]
    if first.trained is not None:
        good = describe_accuracy(first.name, first.trained.evaluation, run.data)
    elif first.results is not None:
        good = describe_results(first.results)
    else:
        count = plural(first.analysis.measures.num_layers, "layer") if first.analysis else "no layer"
        good = f"The measures are of {count} of {first.name}; how well the model does its task was not measured."
    if first.analysis is None:
        return (good, f"The layers of {first.name} cannot be measured, so nothing is said about the theory.")
    if first.analysis.model_type not in CRATES:
        return (good, _not_derived(first.name, first.analysis), _look(COMPRESSION, "what attention does to R^c"))
    return (good, *_theory_sentences(first.analysis))


def _theory_sentences(box: LayerAnalysis) -> tuple[str | Markup, ...]:
    found = claims(box.series)
    if not found:
        return ("No prediction of the theory was checked: the measures that it is about were not taken.",)
    held = sum(claim.held is True for claim in found)
    undecided = sum(claim.held is None for claim in found)
    if len(found) == 1:
        verdict = "is undecided" if undecided else "held" if held else "did not hold"
        counted = Markup("The one {} {} on these inputs.").format(
            link("prediction that was checked", PREDICTIONS), verdict
        )
    else:
        rest = f", and {undecided} {'is' if undecided == 1 else 'are'} undecided" if undecided else ""
        counted = Markup("Of the {} of the theory, {} held on these inputs{}.").format(
            link(f"{len(found)} predictions", PREDICTIONS), "all" if held == len(found) else held or "none", rest
        )
    wrong = next((claim for claim in found if claim.held is False), None)
    claim = wrong or next((claim for claim in found if claim.held is None), None)
    if claim is None:
        return (counted, _look(COMPRESSION, "how much attention lowers R^c in each layer"))
    title = COMPRESSION if claim.about == "compression" else PREDICTED_OF[claim.about][0]
    word = "did not hold" if claim.held is False else "is undecided"
    return (counted, _look(title, f"it {word} that {claim.text} ({claim.measured})"))


def _look(title: str, why: str) -> Markup:
    return Markup("Look first at “{}”: {}.").format(link(title, title), formula(why))


def _not_derived(name: str, box: LayerAnalysis) -> str:
    return (
        f"{name} was not derived from the objective and has no subspaces of its own: R^c is taken against its "
        f"{box.subspace_kind}, Z^{{ℓ+½}} is {box.half_step}. The theory predicts nothing for it."
    )


def _results(subjects: Sequence[Subject]) -> Part | None:
    """Accuracy side by side, or what runs without classes came to."""
    trained = [subject.trained for subject in subjects if subject.trained is not None]
    results = [subject.results for subject in subjects if subject.results is not None]
    if trained:
        first, *others = trained
        sentences = [describe_difference(first.name, first.evaluation, one.name, one.evaluation) for one in others]
        items = [comparison_table(trained), confusion_figure(first.evaluation)]
        histories = {model.name: model.history for model in trained if model.history is not None}
        items += [training_figure(histories)] if histories else []
        return Part(RESULTS, tuple(sentences), tuple(items))
    return Part(RESULTS, (), tuple(results_items(results))) if results else None


def _predictions(boxes: Mapping[str, LayerAnalysis]) -> Part | None:
    """What held in each CRATE, and what the others are measured against."""
    crates = {name: claims(box.series) for name, box in boxes.items() if box.model_type in CRATES}
    marks = {True: "held", False: "did not hold", None: "undecided"}
    cells = {
        name: {claim.text: f"{marks[claim.held]}: {claim.measured}; {claim.weakest}" for claim in found}
        for name, found in crates.items()
    }
    texts = dict.fromkeys(claim.text for found in crates.values() for claim in found)
    rows = [{"prediction": text, **{name: cells[name].get(text) for name in crates}} for text in texts]
    kinds = {name: box.subspace_kind for name, box in boxes.items()}
    sentences = [_not_derived(name, box) for name, box in boxes.items() if name not in crates]
    sentences += [
        (f"{name}: by" if len(boxes) > 1 else "By") + " construction every layer lowers R^c, and every ISTA step its "
        "objective, on any input; the check of theory shows by how much."
        for name, box in boxes.items()
        if box.guaranteed
    ]
    if len(set(kinds.values())) > 1:
        each = "; ".join(f"{name}: {kind}" for name, kind in kinds.items())
        sentences.append(
            f"R^c is taken against different subspaces ({each}): compare how it moves over the layers, not how large "
            "it is."
        )
    note = (
        "Judged by 95 % bootstrap intervals over inputs, one for each layer or step: “held” where all lie on the "
        "predicted side of 0, “did not hold” where one lies on the other or nothing changes, else “undecided”. They "
        "are not widened for their number."
    )
    items = (Table("What held", tables.frame(rows), note),) if rows else ()
    return Part(PREDICTIONS, tuple(sentences), items) if items or sentences else None


def _layers(boxes: Mapping[str, LayerAnalysis]) -> Part | None:
    keys = ("subspace_rate", "rate_reduction", "nonzero_fraction")
    made = [layers.change_figure(boxes) if all_have(boxes, "subspace_rate", "subspace_rate_before") else None]
    made += [
        (layers.objective_figure if key == "rate_reduction" else layers.measure_figure)(boxes, key) for key in keys
    ]
    made += [layers.measure_figure(_decoded(boxes), CODES)]
    figures = tuple(figure for figure in made if figure is not None)
    return Part("What the layers do", (), figures) if figures else None


def _decoded(boxes: Mapping[str, LayerAnalysis]) -> dict[str, LayerAnalysis]:
    """The CRATEs whose codes, not their tokens, are what theory calls sparse."""
    crates = {name: box for name, box in boxes.items() if box.model_type in CRATES}
    return {name: box for name, box in crates.items() if sparsity_key(box.measures) == CODES}


def _attention(subjects: Sequence[Subject]) -> Part | None:
    looking = [(one.attention, one.name) for one in subjects if one.attention is not None]
    figures = [
        layers.attention_figure(*one, number if len(looking) > 1 else None) for number, one in enumerate(looking, 1)
    ]
    return Part("Where the class token looks", (), tuple(figures)) if figures else None


def _further(boxes: Mapping[str, LayerAnalysis]) -> Part | None:
    """Figures with a prediction that is checked elsewhere, then every half-step, then what has no figure above."""
    keys = [key for key in MEASURES if boxes and all_have(boxes, key)]
    states = Counter(MEASURES[key].quantity for key in keys if MEASURES[key].state in STATES)
    names = dict.fromkeys(
        (MEASURES[key].quantity, True)
        if states[MEASURES[key].quantity] > 1 and MEASURES[key].state in STATES
        else (key, False)
        for key in keys
    )
    made = [layers.measure_figure(boxes, key) for key in ("subspace_rate_unit_norm", "released_subspace_rate")]
    made += [
        layers.further_figure(boxes, name, half_steps)
        for name, half_steps in names
        if half_steps or name not in PREDICTED_OF or (name == CODES and not _decoded(boxes))
    ]
    figures = tuple(figure for figure in made if figure is not None)
    return Part("Every half-step, and further measures", (), figures, folded=True) if figures else None


def _layer_tables(boxes: Mapping[str, LayerAnalysis]) -> Part | None:
    found = [layers.changes_table(boxes)] if all_have(boxes, "subspace_rate", "subspace_rate_before") and boxes else []
    found += [
        layers.layer_table(f"{name}: {state}" if len(boxes) > 1 else state, measures, box.subspace_kind)
        for name, box in boxes.items()
        for state, measures in box.series.items()
    ]
    return Part("Layer by layer", (), tuple(found), folded=True) if found else None
