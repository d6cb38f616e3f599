"""The audit as files: an HTML page of figures and tables, CSV and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from .._outputs import claim
from ..analysis.audit.audit import CONDITIONS, OUTSIDE, AuditReport, LayerAudit, geometry_values
from ..analysis.audit.fits import FITS
from ..stats.intervals import Interval
from .audit_findings import describe, describe_dictionary, describe_geometry, describe_outside
from .audit_plots import plot_blocks, plot_dictionary, plot_fits, plot_gains, plot_outside
from .html import ReportContent, ReportFigure, ReportSection, ReportTable, write_report

REPORT, CSV, JSON = "audit.html", "audit.csv", "audit.json"

_COLUMNS: tuple[tuple[str, Callable[[LayerAudit], str]], ...] = (
    ("learned − Gaussian", lambda layer: _with_interval(layer.gain("learned"))),
    ("learned − random", lambda layer: _with_interval(layer.gain("learned", "random"))),
    ("fitted − Gaussian", lambda layer: _with_interval(layer.gain("subspaces"))),
    ("energy outside nearest", lambda layer: f"{float(layer.token('outside_nearest').mean):.3f}"),
    ("same, random", lambda layer: f"{float(layer.token('outside_nearest_random').mean):.3f}"),
    ("mean overlap", lambda layer: _number(geometry_values(layer)["mean_overlap"][2], 3)),
    ("smallest angle (degrees)", lambda layer: _number(geometry_values(layer)["smallest_angle"][2], 1)),
    ("η‖D‖²", lambda layer: "–" if layer.dictionary is None else f"{layer.dictionary.step:.2f}"),
)


LAYER_NOTE = (
    "Columns with −: differences of the held-out log-likelihood in nats per token, with 95 % bootstrap intervals over "
    "images or texts; learned, random, fitted: mixtures of Gaussians on those subspaces with a common mean. "
    "Energy: fraction of ‖z‖²."
)


def layer_rows(report: AuditReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column names and one row of texts per layer, for terminals and the report."""
    rows = [(str(layer.layer), *(text(layer) for _, text in _COLUMNS)) for layer in report.layers]
    return ("layer", *(name for name, _ in _COLUMNS)), rows


def save_audit(
    reports: Sequence[AuditReport],
    directory: str | os.PathLike,
    *,
    record: Sequence[tuple[str, str]] = (),
    overwrite: bool = False,
) -> Path:
    """Write audit.html (self-contained), audit.csv, audit.json and the figures as PNG and SVG.

    Args:
        reports: the audited model first, then those beside it; all on the same images.
        directory: made if it does not exist.
        record: (name, text) of what was run, for the report.
        overwrite: replace an audit that lies there.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: no reports, or an audit lies there already and is not to be replaced.
    """
    if not reports:
        raise ValueError("reports: empty; give at least one audit")
    directory = Path(directory).expanduser()
    check_free(directory, overwrite)
    claim(directory)
    return write_report(directory / REPORT, _content(reports, record))


def check_free(directory: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse a folder that holds an audit, unless it is to be replaced.

    Raises:
        ValueError: as said.
    """
    path = Path(directory).expanduser() / REPORT
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; choose another output folder, or pass overwrite=True to replace it")


def _content(reports: Sequence[AuditReport], record: Sequence[tuple[str, str]]) -> ReportContent:
    import pandas

    first = reports[0]
    rows = [{"model": report.name, "data": report.data, **row} for report in reports for row in report.to_rows()]
    about = [
        ("tokens", f"{first.token_words}; {first.fit_tokens:,} fitted, {first.held_out_tokens:,} held out, per layer"),
        ("inputs", f"{first.num_images} {first.inputs}; even-numbered ones fitted, odd ones held out; {first.data}"),
        (
            "intervals",
            f"95 %, bootstrap over {first.inputs}; each for its own layer, not widened for the number of layers",
        ),
        ("seed", str(first.seed)),
    ]
    return ReportContent(
        title=f"Subspace audit: {first.name}",
        subtitle=f"{first.num_images:,} {first.inputs}{', ' + first.data if first.data else ''}, {first.token_words}",
        summary=(),
        comparison=_side_by_side(reports) if len(reports) > 1 else None,
        sections=tuple(_section(report, index, len(reports) > 1) for index, report in enumerate(reports)),
        record=(*record, *about),
        files={
            CSV: pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n"),
            JSON: json.dumps([_as_json(report) for report in reports], ensure_ascii=False, allow_nan=False),
        },
    )


def _as_json(report: AuditReport) -> dict[str, object]:
    """The rows, and per layer the maps that a row cannot hold."""
    fields = ("ranks", "effective_ranks", "orthonormality", "scale")
    maps = ("block_norms", "overlaps", "smallest_angles", "mean_angles")
    layers = []
    for layer in report.layers:
        values = {name: getattr(layer.subspaces, name).tolist() for name in fields}
        pairs = {name: _without_nan(getattr(layer.subspaces, name)) for name in maps}
        layers.append({"layer": layer.layer, **values, **pairs})
    return {"model": report.name, "data": report.data, "rows": report.to_rows(), "subspaces": layers}


def _without_nan(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]


def _side_by_side(reports: Sequence[AuditReport]) -> ReportTable:
    """Means over the layers, one column per model."""
    columns, cells = ("mean over the layers",), []
    for key in ("learned − Gaussian", "fitted − Gaussian", "learned − random"):
        model, against = {"learned": "learned", "fitted": "subspaces"}[key.split()[0]], key.split()[2].lower()
        values = [[float(layer.gain(model, against).mean) for layer in report.layers] for report in reports]
        cells.append((f"{key} (nats per token)", *(f"{sum(one) / len(one):+.2f}" for one in values)))
    for key in (*OUTSIDE, "membership_entropy", "mean_cosine", "effective_rank"):
        values = [[float(layer.token(key).mean) for layer in report.layers] for report in reports]
        cells.append((key.replace("_", " "), *(f"{sum(one) / len(one):.3f}" for one in values)))
    cells.append(("the subspaces are", *(report.subspace_kind for report in reports)))
    return ReportTable("Side by side", (*columns, *(report.name for report in reports)), tuple(cells))


def _section(report: AuditReport, index: int, several: bool) -> ReportSection:
    columns, rows = layer_rows(report)
    note = f"{LAYER_NOTE} Learned subspaces: {report.subspace_kind}."
    tables = (
        ReportTable(f"Layer by layer: {report.name}", columns, tuple(rows), note),
        _likelihood_table(report),
    )
    suffix = f"_{index + 1}" if several else ""
    return ReportSection(
        title=f"{report.name}: subspaces are {report.subspace_kind}",
        sentences=report.summary(),
        figures=tuple(_figures(report, suffix)),
        tables=tables,
    )


def _likelihood_table(report: AuditReport) -> ReportTable:
    """Held-out log-likelihood and BIC of every fit."""
    rows = []
    for layer in report.layers:
        for condition, fits in layer.fits.items():
            for name, fit in fits.items():
                value = _with_interval(fit.log_likelihood)
                rows.append(
                    (
                        f"{layer.layer}, {condition}",
                        FITS[name],
                        value,
                        f"{fit.bic:,.0f}",
                        f"{fit.num_parameters:,}",
                        str(layer.dimensions[condition]),
                    )
                )
    columns = (
        "layer, tokens",
        "density",
        "held-out log-likelihood (nats per token)",
        "BIC",
        "parameters",
        "dimensions",
    )
    note = (
        "Compare within one layer and one kind of tokens only: densities live in the dimensions in which those tokens "
        "vary. BIC is of the fitted tokens, taken as independent, which tokens of one image are not; the learned "
        "subspaces' own entries are not counted as parameters, since they were not fitted to these tokens. Tokens: "
        + "; ".join(f"{key}, {words}" for key, words in CONDITIONS.items())
        + "."
    )
    return ReportTable("Every fit", columns, tuple(rows), note)


def _figures(report: AuditReport, suffix: str) -> list[ReportFigure]:
    return [*_fit_figures(report, suffix), _outside_figure(report, suffix), *_geometry_figures(report, suffix)]


def _fit_figures(report: AuditReport, suffix: str) -> list[ReportFigure]:
    """How likely held-out tokens are under every density, and the gains of the mixtures beside the controls."""
    how = (
        f"{report.token_words}; {report.fit_tokens:,} tokens of half of the {report.inputs} fitted, "
        f"{report.held_out_tokens:,} of the other half held out; bands are 95 % bootstrap intervals over held-out "
        f"{report.inputs}."
    )
    sentences = describe(report)
    return [
        ReportFigure(
            f"audit_fits{suffix}",
            "How likely held-out tokens are",
            plot_fits(report),
            "log-likelihood of six densities over the layers",
            theory="Tokens are a mixture of Gaussians on the subspaces: that mixture is the most likely.",
            measured=next((line for line in sentences if "set against one full Gaussian" in line), ""),
            how=how,
        ),
        ReportFigure(
            f"audit_gains{suffix}",
            "Mixtures against one Gaussian, with controls",
            plot_gains(report),
            "gain of mixtures over one Gaussian on trained, shuffled and untrained tokens",
            theory="Above 0 on the model's tokens, near 0 on shuffled ones, and less before training.",
            measured=next((line for line in sentences if "fitted to the tokens by EM" in line), ""),
            how=how,
        ),
    ]


def _outside_figure(report: AuditReport, suffix: str) -> ReportFigure:
    """Where tokens lie relative to the subspaces."""
    return ReportFigure(
        f"audit_outside{suffix}",
        "Energy outside the nearest subspace",
        plot_outside(report),
        "fraction of energy outside the nearest subspace over the layers, beside random subspaces",
        theory="Near 0, and falling with depth.",
        measured=describe_outside(report),
        how=f"{report.token_words}, all tokens of all {report.num_images} {report.inputs}; U_k orthonormalised.",
    )


def _geometry_figures(report: AuditReport, suffix: str) -> list[ReportFigure]:
    """The overlaps of the subspaces, and the dictionary where every layer has one."""
    figures = [
        ReportFigure(
            f"audit_blocks{suffix}",
            "Overlap of the subspaces",
            plot_blocks(report),
            "one K by K map per layer; the diagonal is left out",
            theory="0 off the diagonal: incoherent subspaces.",
            measured=describe_geometry(report),
            how="Mean squared cosine of the principal angles between span U_i and span U_j.",
        ),
    ]
    if all(layer.dictionary is not None for layer in report.layers):
        figures.append(
            ReportFigure(
                f"audit_dictionary{suffix}",
                "The dictionary",
                plot_dictionary(report),
                "step size and Gram error over the layers",
                theory="D is orthonormal, and the step stays below 2.",
                measured=describe_dictionary(report)[0],
                how="Singular values of D; relative Frobenius norm.",
            )
        )
    return figures


def _with_interval(found: Interval) -> str:
    mean, low, high = float(found.mean), float(found.low), float(found.high)
    return f"{mean:+.2f}" + ("" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})")


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
