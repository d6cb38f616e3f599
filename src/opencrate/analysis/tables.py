"""The tables of a report and the data files beside it, made from the measures' dataclasses."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .evaluation import Evaluation
from .findings import percent
from .plots import TrainingHistory
from .rates import MEASURES, LayerMeasures
from .report import ReportTable


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


def comparison_table(models: Sequence[TrainedModel]) -> ReportTable:
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


def layer_table(title: str, measures: LayerMeasures) -> ReportTable:
    """One row per layer, one column per measure, mean ± standard deviation over images."""
    columns, cells = ["layer"], []
    for key in measures.values:
        measure = MEASURES[key]
        columns.append(f"{measure.title} ({measure.unit})")
        digits = 3 if measure.unit.startswith("fraction") else 2
        pairs = zip(measures.mean(key).tolist(), measures.std(key).tolist())
        cells.append(
            [f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}") for mean, std in pairs]
        )
    rows = tuple((str(layer), *values) for layer, values in enumerate(zip(*cells), start=1))
    note = f"Mean ± standard deviation over {measures.num_images} images; ε = {measures.eps:g} unless said."
    return ReportTable(title, tuple(columns), rows, note)


def layers_csv(series: Mapping[str, LayerMeasures]) -> str:
    """One line per model, measure and layer; `series` maps a model's name to its measures."""
    rows = [{"model": name, **row} for name, measures in series.items() for row in measures.to_rows()]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def layers_json(series: Mapping[str, LayerMeasures]) -> str:
    """Per model the rows of the table and every image's value, which `LayerMeasures.from_dict` reads."""
    data = {name: {"rows": measures.to_rows(), **measures.to_dict()} for name, measures in series.items()}
    return json.dumps(data, ensure_ascii=False, allow_nan=False)
