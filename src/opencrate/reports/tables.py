"""Data as CSV and JSON: the one form in which results are written, on pandas frames and plain values."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pandas

from .._files import encoded
from ..analysis.layers.analyze import LayerAnalysis
from ..analysis.layers.registry import MEASURES
from ..analysis.layers.result import LayerMeasures
from ..analysis.record.states import LEARNED
from ..evaluation.classifier import Evaluation
from ..stats.words import percent
from .figures import TrainingHistory
from .findings import Change, against, mean_and_bounds


def frame(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row per mapping. Values stay as they are: a count beside a `None` stays a whole number."""
    return pandas.DataFrame(list(rows), dtype=object)


def to_csv(table: pandas.DataFrame) -> str:
    """The table with one header line and no index; what is undefined is empty."""
    return table.to_csv(index=False, lineterminator="\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Frames (a list of rows), dataclasses, tensors, mappings, lists and numbers as JSON.

    JSON has no NaN and no infinity: the first becomes null, the second its name.
    """
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def as_bytes(value: pandas.DataFrame | Mapping | list | str | bytes) -> bytes:
    """The content of a file: CSV of a frame, JSON of a mapping or list, text and bytes as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, pandas.DataFrame):
        return encoded(to_csv(value))
    return encoded(value if isinstance(value, str) else to_json(value))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, pandas.DataFrame):
        return _plain(value.to_dict("records"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


# --- Tables that move to their pages ---


@dataclass(frozen=True)
class ReportTable:
    """A table of texts; the first column holds the row names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class TrainedModel:
    """One trained model, a row of the comparison.

    Attributes:
        num_parameters: all of them, trained or not.
        training_seconds: wall clock of the training alone, where it is known.
    """

    name: str
    num_parameters: int
    evaluation: Evaluation
    training_seconds: float | None = None
    history: TrainingHistory | None = None


def comparison_table(models: Sequence[TrainedModel]) -> Any:
    """One row per model; the first is what the others' parameter counts are set against."""
    top5 = any(model.evaluation.top5 is not None for model in models)
    columns = ["model", "parameters", "accuracy", "95 % interval", *(["top-5"] if top5 else [])]
    columns += ["loss (nats per image)", "training (s)", "images/s (forward)"]
    rows = []
    for model in models:
        found = model.evaluation
        ratio = model.num_parameters / models[0].num_parameters - 1
        count = f"{model.num_parameters:,}" + (f" ({100 * ratio:+.1f} %)" if model is not models[0] else "")
        interval = f"{percent(found.interval[0])} to {percent(found.interval[1])}"
        row = [model.name, count, percent(found.top1), interval]
        row += [percent(found.top5) if found.top5 is not None else "–"] if top5 else []
        seconds = "–" if model.training_seconds is None else f"{model.training_seconds:.1f}"
        rows.append((*row, f"{found.loss:.4f}", seconds, f"{found.images_per_second:,.0f}"))
    return ReportTable("Accuracy, size and speed", tuple(columns), tuple(rows))


def layer_table(title: str, measures: LayerMeasures, subspace_kind: str = LEARNED) -> Any:
    """One row per layer, one column per measure, the mean over inputs with its 95 % bootstrap interval."""
    columns, cells = ["layer"], []
    for key in [*measures.values, *measures.totals]:
        measure = MEASURES[key]
        columns.append(f"{against(measure.title, subspace_kind)} ({measure.unit})")
        digits = 3 if measure.unit.startswith("fraction") else 2
        cells.append([_cell(*numbers, digits) for numbers in zip(*mean_and_bounds(measures, key))])
    rows = tuple((str(layer), *values) for layer, values in zip(measures.layer_numbers, zip(*cells)))
    note = (
        f"Mean over {measures.num_inputs} inputs and its 95 % bootstrap interval; ε = {measures.eps:g} unless said; "
        f"R^c against {subspace_kind}."
    )
    return ReportTable(title, tuple(columns), rows, note)


def _cell(mean: float, low: float, high: float, digits: int) -> str:
    """A mean, with its interval where there is one."""
    return f"{mean:.{digits}f}" + ("" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def changes_table(changes: Mapping[str, Sequence[Change]]) -> Any:
    """One row per layer, one column per model: what the half-step does to R^c, with its interval and a verdict."""
    layers = sorted({change.layer for found in changes.values() for change in found})
    by_layer = {name: {change.layer: change for change in found} for name, found in changes.items()}
    rows = tuple((str(layer), *(_change_cell(found.get(layer)) for found in by_layer.values())) for layer in layers)
    note = (
        "Mean change in nats from Z^ℓ to Z^{ℓ+½}, paired input by input, its 95 % bootstrap interval, and what it "
        "allows to be said. Each interval is for its own layer; they are not widened for the number of layers."
    )
    return ReportTable("Does attention lower R^c?", ("layer", *changes), rows, note)


def _change_cell(change: Change | None) -> str:
    if change is None:
        return "–"
    return f"{change.verdict}: {change.mean:+.2f}" + (
        "" if math.isnan(change.low) else f" ({change.low:+.2f} to {change.high:+.2f})"
    )


def layers_csv(reports: Sequence[LayerAnalysis]) -> str:
    """One line per model, state of training, measure and layer."""
    return _csv([row for report in reports for row in report.to_rows()])


def rows_files(name: str, rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """The texts of `<name>.csv` and `<name>.json` by these names; all rows have the same keys."""
    return {f"{name}.csv": _csv(rows), f"{name}.json": json.dumps(rows, ensure_ascii=False, allow_nan=False)}


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def layers_json(reports: Sequence[LayerAnalysis]) -> str:
    """A list with every model's report, which `LayerAnalysis.from_dict` reads."""
    return json.dumps([report.to_dict() for report in reports], ensure_ascii=False, allow_nan=False)
