"""The page of an evaluation of masks: every number beside its floors, examples, heads by class, noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..analysis.segmentation.evaluation import (
    BEST,
    FLOOR,
    MODEL,
    TABLES,
    UNTRAINED,
    Difference,
    Measure,
    SegmentationScores,
    Subject,
)
from ..analysis.segmentation.scores import CONSTANT
from ..stats import words
from ..stats.intervals import ABOVE, BELOW, Interval
from . import tables
from .html import Part, Report, Table
from .segmentation_figures import classes_figure, examples_figure, noise_figure

NAME = "segmentation_scores"
EACH = f"{NAME}_each.csv"
"""Every image's own numbers, or every sequence's."""
FILES = (f"{NAME}.html", f"{NAME}.csv", EACH, f"{NAME}.json", "figures")
_NOTES = {
    "attention": "A head's mask against the region of each class in the image, at the image's size; the mean over "
    "classes, then over {unit}s. “entries:0.6” keeps 60 % of the patches, “mass:0.6” the fewest that hold 60 % of the "
    "attention. “Best head” is chosen with the truth at hand, for each class anew, and grows with the number of heads "
    "whatever they show; “head of other images” is one head, chosen without the image that it is scored on.",
    "attention on the grid": "The same on the grid of patches, where the truth is what lies at each patch's centre: as "
    "the paper has it.",
    "object": "CorLoc: the share of {unit}s whose box has an IoU of 0.5 or more with the box of any object; of MaskCut "
    "it is the box of the first mask. J: the IoU of the mask with everything that is not background.",
    "box": "All classes as one, crowds left out, at most 100 masks per image. “Score 1”: all masks rank alike, images "
    "by id, then cuts in their order. “Score by cut”: by 1 − λ₂ of the mask's cut.",
    "mask": "As for boxes.",
}
_FLOORS = (
    "Floors. “Whole image” and “centred ellipse” do not look at the image; the ellipse's size is the best on the "
    "other images. “Smooth random maps” are noise with as many heads as the model has; their cuts are those of "
    "smooth random features. “Untrained” is the model's form with fresh weights."
)
_FOLDED = "attention on the grid"
_VERDICTS = {ABOVE: "above", BELOW: "below"}


def score_words(found: Interval | None, signed: bool = False) -> str | None:
    """A score in per cent with its interval; `None` where there is none."""
    if found is None:
        return None
    low, high = (words.number(100 * float(end), 1, signed=signed) for end in (found.low, found.high))
    mean = words.number(100 * float(found.mean), 1, signed=signed)
    return mean if low == "–" else f"{mean} ({low} to {high})"


def score_tables(found: SegmentationScores) -> list[Table]:
    """One table for each kind of measure: subjects in rows, measures in columns, per cent with 95 % intervals."""
    made = []
    for table, title in TABLES.items():
        measures = [measure for measure in found.measures if measure[0] == table]
        rows = []
        for one in (*found.of(MODEL), *found.of(UNTRAINED), *found.of(FLOOR)):
            cells = {measure[1]: score_words(found.interval(one, measure)) for measure in measures}
            if any(cells.values()):
                rows.append({"": one.name, **cells})
        if rows:
            made.append(Table(f"{title}, %", tables.frame(rows), _NOTES[table].format(unit=found.unit)))
    return made


def floor_table(found: SegmentationScores) -> Table:
    """Every model against the highest of its floors, measure by measure."""
    rows = []
    for measure in found.measures:
        row: dict[str, Any] = {"": _words(measure)}
        for model in found.of(MODEL):
            against = found.best_floor(model, measure)
            row[model.name] = against and f"{score_words(against.interval, signed=True)} · {against.second.name}"
        rows.append(row)
    note = (
        "Points above (+) or below the floor that is named, the highest for that measure: {unit} by {unit}, with a "
        "95 % "
        "interval by bootstrap over {unit}s. Where it contains 0, the model cannot be told from its floor."
    )
    return Table("Models against their highest floors, points", tables.frame(rows), note.format(unit=found.unit))


def model_table(found: SegmentationScores) -> Table | None:
    """Models against each other; `None` for one model."""
    pairs: dict[str, dict[Measure, Difference]] = {}
    for one in found.differences:
        if one.second.role == MODEL and not one.first.sigma:
            pairs.setdefault(f"{one.first.name} − {one.second.name}", {})[one.measure] = one
    if not pairs:
        return None
    rows = [
        {"": _words(measure), **{name: _difference(of.get(measure)) for name, of in pairs.items()}}
        for measure in found.measures
    ]
    note = f"On the same {found.unit}s, in pairs, with 95 % intervals by bootstrap over {found.unit}s."
    return Table("Models against each other, points", tables.frame(rows), note)


def page_of(found: SegmentationScores, record: Sequence[tuple[str, str]] = ()) -> Report:
    """The page, with the numbers as CSV and JSON beside it."""
    models = found.of(MODEL)
    title = f"How good are the masks of {words.listing(one.name for one in models)}?"
    scores = score_tables(found)
    coarse = tuple(table for table in scores if table.title.startswith(TABLES[_FOLDED]))
    parts = [Part("Scores", (_FLOORS,), tuple(table for table in scores if table not in coarse))]
    against = tuple(table for table in (floor_table(found), model_table(found)) if table is not None)
    parts.append(Part("Above the floors, above each other?", (), against))
    if found.examples:
        parts.append(Part("Examples", (), tuple(examples_figure(found, model.name) for model in models)))
    parts += _class_parts(found)
    if len(found.sigmas) > 1:
        sentence = (
            "Gaussian noise on the images as they lie in the data set, before they are resized, in pixel values of 0 "
            "to 255, the same noise for all models. The grey lines are floors on clean images."
        )
        parts.append(Part("With noise on the images", (sentence,), (noise_figure(found),)))
    if coarse:
        parts.append(Part("On the grid of patches", (), coarse, folded=True))
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in found.settings.items())
    facts = (*record, ("data", found.source), ("settings", settings))
    units = f", {words.plural(len(found.units), found.unit)}" if found.unit != "image" else ""
    subtitle = f"{words.plural(found.num_images, 'image')} of {found.kind}{units}; 95 % intervals over {found.unit}s"
    files = {f"{NAME}.csv": tables.frame(found.rows()), EACH: tables.frame(found.unit_rows())}
    files |= {f"{NAME}.json": found.to_dict()}
    summary = tuple(describe(found))
    return Report(title, subtitle, summary, tuple(parts), facts, files=files, page=f"{NAME}.html")


def describe(found: SegmentationScores) -> list[str]:
    """What was found in some sentences: the models against their floors, and against each other."""
    chosen = _headline(found)
    sentences = []
    for model in found.of(MODEL):
        for measure in chosen:
            against, value = found.best_floor(model, measure), found.interval(model, measure)
            if against is not None and value is not None:
                sentences.append(_sentence(model, measure, value, against, found))
    for one in found.differences:
        if one.second.role == MODEL and not one.first.sigma and one.measure in chosen[:1]:
            verdict = _VERDICTS.get(one.interval.sign, "not told apart from")
            sentences.append(
                f"{_words(one.measure)}: {one.first.name} is {verdict} {one.second.name} "
                f"({_difference(one)} points, in pairs)."
            )
    if found.empty:
        sentences.append(
            f"{words.plural(len(found.empty), 'image')} without an object: left out but for average precision, where "
            "every mask on such an image is wrong."
        )
    return sentences


def _headline(found: SegmentationScores) -> list[Measure]:
    """What the summary speaks of: heads chosen on other images, one object, masks by average precision."""
    wanted = [("attention", f"{rule}, head of other images") for rule in found.settings.get("rules", ())][-1:]
    wanted += [("object", "J, TokenCut" if ("object", "J, TokenCut") in found.measures else "CorLoc, TokenCut")]
    wanted += [("mask", f"AP50, {CONSTANT}")]
    return [measure for measure in wanted if measure in found.measures]


def _sentence(model: Subject, measure: Measure, value: Interval, against: Difference, found: SegmentationScores) -> str:
    floor = found.interval(against.second, measure)
    verdict = _VERDICTS.get(against.interval.sign, "not told apart from")
    return (
        f"{_words(measure)}: {model.name} has {score_words(value)} %, {verdict} its highest floor, "
        f"{against.second.name} "
        f"({score_words(floor)} %)."
    )


def _class_parts(found: SegmentationScores) -> list[Part]:
    """Which head fires for which class: for every model a figure and a table."""
    made = []
    for (name, rule), table in found.classes.items():
        if name not in {one.name for one in found.of(MODEL)}:
            continue
        floor = next(
            (
                one
                for (other, of), one in found.classes.items()
                if other != name
                and of == rule
                and one.means.shape == table.means.shape
                and other not in {one.name for one in found.of(MODEL)}
            ),
            None,
        )
        rows = []
        for place, head in enumerate(table.best):
            row: dict[str, Any] = {"class": table.names[place], found.unit + "s": table.counts[place]}
            row |= {"head": head + 1, "IoU, %": score_words(table.intervals[place][head])}
            if floor is not None:
                row["best of random maps, %"] = score_words(floor.intervals[place][floor.best[place]])
            rows.append(row)
        note = (
            "For each class the head whose masks have the largest mean IoU with the class's region. It is chosen on "
            "the same images, so compare it with the best of as many random maps, chosen in the same way; intervals "
            "are those of the chosen head alone. All heads are in the JSON file."
        )
        shown = Table(f"Best head for each class: {name}, {rule}", tables.frame(rows), note)
        title = f"Which head fires for which class: {name}, {rule}"
        made.append(Part(title, (), (classes_figure(table, floor, name, rule), shown), folded=bool(made)))
    return made


def _difference(one: Difference | None) -> str | None:
    return None if one is None else score_words(one.interval, signed=True)


def _words(measure: Measure) -> str:
    """A measure in a line of its own."""
    table = {"attention": "mIoU", "attention on the grid": "mIoU on the grid", "object": ""}.get(measure[0])
    table = f"MaskCut {measure[0]}" if table is None else table
    return f"{table}, {measure[1]}".removeprefix(", ").replace(f", {BEST}", ", best head")


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
