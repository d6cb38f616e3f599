"""What a certificate says, as a part of a page: on how many inputs each step descends, and by how much."""

from __future__ import annotations

from typing import Any

import matplotlib.figure

from ..certificate import LASSO, RATE, Certificate
from ..stats.words import listing, plural
from . import figures, tables
from .html import HOW, MEASURED, PREDICTED, Figure, Part, Table

TITLE = "Certificate"
_STEPS = {RATE: "the compression", LASSO: "the ISTA steps"}
_CONSTRUCTION = {
    RATE: "R^c in every layer (by an exact gradient step within its bound, symmetric maps, or a guard)",
    LASSO: "the LASSO objective in every ISTA step (η‖D‖^2 < 2, from a start that the problem allows)",
}
"""What is guaranteed where it is in every layer, and why."""


def certificate_part(found: Certificate, name: str = "") -> Part:
    """The certificate of a model called `name`: what holds on all inputs, the figure, and the table by layer."""
    sentences = (describe_certificate(found), describe_guarantee(found))
    return Part(TITLE + (f": {name}" if name else ""), sentences, (_figure(found), certificate_table(found)))


def describe_certificate(found: Certificate) -> str:
    """On how many inputs every step of every layer descends."""
    count, total = int(found.holds.sum()), found.num_inputs
    on = f"all {plural(total, 'input')}" if count == total else f"{count or 'none'} of {plural(total, 'input')}"
    on = "the only input" if count == total == 1 else on
    objectives = {row["objective"] for row in found.to_rows()}
    claims = ["every layer lowers R^c"] if RATE in objectives else []
    if LASSO in objectives:
        claims.append("every ISTA step its objective" if claims else "every ISTA step lowers its objective")
    sentence = " and ".join(claims)
    end = ""
    if found.guaranteed:
        end = ", as guaranteed by construction" if count == total else ""
    return f"{sentence[:1].upper()}{sentence[1:]} on {on}{end}."


def describe_guarantee(found: Certificate) -> str:
    """What the construction guarantees on any input, and whether it is broken."""
    rows = found.to_rows()
    sure = [name for name in _STEPS if all(row["guaranteed"] for row in rows if row["objective"] == name)]
    sure = [name for name in sure if any(row["objective"] == name for row in rows)]
    if broken := found.broken:
        places = listing(f"layer {layer} ({objective}, by {-margin:.2g} of it)" for layer, objective, margin in broken)
        return f"What is guaranteed to fall rises in {places}: the weights or the code are damaged."
    if sure:
        return f"Guaranteed on any input: {listing([_CONSTRUCTION[name] for name in sure])}."
    return "Nothing of it is guaranteed for this model: other inputs may say otherwise."


def certificate_table(found: Certificate) -> Table:
    """One row per layer and objective: its change over the inputs, and on how many it descends."""
    rows = []
    for row in found.to_rows():
        digits = {name: f"{row[name]:+.3g}" for name in ("change", "change_smallest", "change_largest")}
        rows.append(
            {
                "layer": row["layer"],
                "objective": row["objective"],
                "before": f"{row['before']:.4g}",
                "mean change": digits["change"],
                "smallest": digits["change_smallest"],
                "largest": digits["change_largest"],
                "mean at equal length": f"{row['change_at_length']:+.3g}" if "change_at_length" in row else "",
                "largest, relative": f"{100 * row['relative_largest']:+.3g} %",
                "descends on": f"{row['descends_on']} of {row['num_inputs']}",
                "guaranteed": "yes" if row["guaranteed"] else "no",
            }
        )
    note = (
        "R^c from Z^ℓ to Z^{ℓ+½}, nats per input, against U^ℓ at the model's own ε; the LASSO objective from the "
        "nearest code that the problem allows to the layer's code, per input. “At equal length”: Z^{ℓ+½} scaled to the "
        "length of Z^ℓ, as longer tokens alone raise R^c. “Descends”: no single step rises by more "
        f"than rounding ({found.rounding:.0e} of the objective). “Guaranteed”: follows from how the layer is built, on "
        "any input."
    )
    return Table("Change of each objective, layer by layer", tables.frame(rows), note)


def _figure(found: Certificate) -> Figure:
    proof = found.guaranteed
    predicted = "All ranges lie below 0, on any input, by construction." if proof else "All ranges lie below 0."
    return Figure(
        "certificate",
        "Does every step descend on every input?",
        plot_certificate(found),
        "Relative change of R^c and of the LASSO objective at each layer: mean, and range over the inputs",
        {
            PREDICTED: predicted,
            MEASURED: describe_certificate(found),
            HOW: f"{plural(found.num_inputs, 'input')}; point: mean, bar: smallest to largest change over the inputs.",
        },
    )


def plot_certificate(found: Certificate) -> matplotlib.figure.Figure:
    """For each objective one panel: its relative change by layer, the mean and the range over the inputs."""
    rows = found.to_rows()
    by_objective: dict[str, list[dict[str, Any]]] = {
        name: [row for row in rows if row["objective"] == name] for name in _STEPS
    }
    shown = {name: part for name, part in by_objective.items() if part}
    drawing, panels = figures.panels(rows=max(1, len(shown)), height=1.4 + 1.6 * len(shown))
    for index, (axes, (name, part)) in enumerate(zip(panels, shown.items())):
        ends = {"mean": "relative", "low": "relative_smallest", "high": "relative_largest"}
        ranges = [{end: 100 * row[key] for end, key in ends.items()} for row in part]
        figures.bars(axes, [row["layer"] for row in part], ranges, f"{figures.math(name)}, by {_STEPS[name]}", index)
        figures.rule(axes, y=0)
    figures.finish(panels, ylabel="change (%)")
    return drawing
