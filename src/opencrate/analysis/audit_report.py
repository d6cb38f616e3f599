"""The audit in words, figures, tables and files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .audit import CONDITIONS, FITS, AuditReport, LayerAudit, geometry_values
from .plots import COLOURS, WIDTH, _figure, _finish_layers
from .report import ReportContent, ReportFigure, ReportSection, ReportTable, write_report
from .statistics import Interval, bootstrap_mean

REPORT, CSV, JSON = "audit.html", "audit.csv", "audit.json"
_MARKERS = ("o", "s", "^", "D", "v")
_SHORT = {
    "learned": "learned",
    "random": "random",
    "subspaces": "fitted",
    "clusters": "fitted, own means",
    "gaussian": "one Gaussian",
    "isotropic": "isotropic",
}


def describe(report: AuditReport) -> tuple[str, ...]:
    """Sentences on what was found; all are computed, also when the assumption does not hold."""
    tellable = [layer for layer in report.layers if layer.dimensions["trained"] > _subspace_dim(layer)]
    lines = [_trivial(report, tellable)] if len(tellable) < len(report.layers) else []
    if tellable:
        lines += [_against_gaussian(report, tellable), _against_random(tellable), _fitted(tellable)]
        lines.append(_verdict(report, tellable))
    lines += [_outside(report), _geometry(report)]
    return tuple(lines + _dictionary(report))


def verdicts(layer: LayerAudit) -> dict[str, str]:
    """Whether the mixture on the learned subspaces is "above" or "below" each control, or the interval spans 0.

    Controls: one full Gaussian and random subspaces on the same tokens, these only where every draw of them lies on
    the same side; the gain over the Gaussian on shuffled and on untrained tokens, compared image by image.
    """
    found = {"gaussian": _side(layer.gain("learned")), "random": _against_draws(layer)}
    others = [name for name in layer.fits if name != "trained"]
    return found | {name: _side(_against_condition(layer, name, "learned")) for name in others}


def _side(found: Interval) -> str:
    if float(found.low) > 0:
        return "above"
    return "below" if float(found.high) < 0 else "not told apart"


def _against_draws(layer: LayerAudit) -> str:
    """The side on which the learned subspaces lie of random ones, if it is the same for the mean and every draw."""
    fits = layer.fits["trained"]
    side, draws = _side(layer.gain("learned", "random")), fits["random"].draws
    own = float(fits["learned"].held_out.mean())
    beyond = own > float(draws.max()) if side == "above" else own < float(draws.min())
    return side if beyond else "not told apart"


def _against_condition(layer: LayerAudit, condition: str, model: str) -> Interval:
    """Gain over the full Gaussian on the model's tokens minus that on a control's tokens."""
    own, other = layer.fits["trained"], layer.fits[condition]
    gain = own[model].held_out - own["gaussian"].held_out
    return bootstrap_mean(gain - (other[model].held_out - other["gaussian"].held_out))


def _subspace_dim(layer: LayerAudit) -> int:
    return int(layer.subspaces.ranks.max())


def _numbers(layers: Iterable[LayerAudit]) -> str:
    numbers = [str(layer.layer) for layer in layers]
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {', '.join(numbers[:-1])} and {numbers[-1]}"


def _range(values: Sequence[float] | Tensor, digits: int = 1, signed: bool = False) -> str:
    low, high = float(min(values)), float(max(values))
    sign = "+" if signed else ""
    text = [f"{value:{sign}.{digits}f}" for value in (low, high)]
    return text[0] if text[0] == text[1] else f"{text[0]} to {text[1]}"


def _counts(sides: Sequence[str]) -> str:
    """How many layers lie on which side, in words."""
    above, below = sides.count("above"), sides.count("below")
    return (
        f"above at {above}, below at {below} and not told apart at {len(sides) - above - below} of {len(sides)} layers"
    )


def _trivial(report: AuditReport, tellable: Sequence[LayerAudit]) -> str:
    rest = [layer for layer in report.layers if layer not in tellable]
    dims = _range([layer.dimensions["trained"] for layer in rest], 0)
    p = _subspace_dim(rest[0])
    return (
        f"At {_numbers(rest)} the tokens vary in {dims} dimensions only, no more than the {p} of one subspace: any "
        "subspace holds them all, so the mixtures are not judged there."
    )


def _against_gaussian(report: AuditReport, layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned") for layer in layers]
    K = len(layers[0].subspaces.ranks)
    return (
        f"{report.name}, {report.token_words}: a mixture of {K} Gaussians on the subspaces ({report.subspace_kind}), "
        "with fitted weights and variances and a common mean, is set against one full Gaussian by the log-likelihood "
        f"of held-out tokens: {_counts([_side(gain) for gain in gains])} (mean differences "
        f"{_range([g.mean for g in gains], 1, True)} nats per token)."
    )


def _against_random(layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("learned", "random") for layer in layers]
    draws = len(layers[0].fits["trained"]["random"].draws)
    return (
        f"Against as many random subspaces of the same dimension ({draws} draws; told apart where all lie on one "
        f"side) it is {_counts([_against_draws(layer) for layer in layers])} "
        f"({_range([g.mean for g in gains], 2, True)} nats per token from their mean)."
    )


def _fitted(layers: Sequence[LayerAudit]) -> str:
    gains = [layer.gain("subspaces") for layer in layers]
    text = (
        "With the subspaces fitted to the tokens by EM, same number, dimension and mean, the mixture is "
        f"{_counts([_side(gain) for gain in gains])} against the full Gaussian "
        f"({_range([g.mean for g in gains], 1, True)} nats per token)"
    )
    controls = []
    for condition in layers[0].fits:
        if condition != "trained":
            there = [layer.gain("subspaces", condition=condition).mean for layer in layers]
            more = sum(_side(_against_condition(layer, condition, "subspaces")) == "above" for layer in layers)
            controls.append(
                f"on {'shuffled tokens' if condition == 'shuffled' else 'tokens of the untrained model'} that gain is "
                f"{_range(there, 1, True)}, smaller at {more} of {len(layers)} layers"
            )
    return f"{text}; {'; '.join(controls)}."


def _verdict(report: AuditReport, layers: Sequence[LayerAudit]) -> str:
    holds = [layer for layer in layers if set(verdicts(layer).values()) == {"above"}]
    controls = "the full Gaussian, random subspaces and shuffled tokens"
    if "untrained" in layers[0].fits:
        controls = "the full Gaussian, random subspaces, shuffled tokens and the untrained model"
    where = (
        f"at {_numbers(holds)} of the {len(layers)} judged" if holds else f"at none of the {len(layers)} judged layers"
    )
    missing = "" if "untrained" in layers[0].fits else " The untrained model was not measured."
    return f"The assumed mixture on these subspaces fits better than {controls} {where}.{missing}"


def _outside(report: AuditReport) -> str:
    own, random = ([float(layer.token(key).mean) for layer in report.layers] for key in _OUTSIDE)
    joint = [float(layer.token("outside_joint").mean) for layer in report.layers]
    whole = all(layer.subspaces.joint_rank == layer.subspaces.width for layer in report.layers)
    span = (
        "together the subspaces span the whole space, so nothing can lie outside their joint span"
        if whole
        else f"{_percent(joint)} lies outside the joint span"
    )
    entropy = [float(layer.token("membership_entropy").mean) for layer in report.layers]
    return (
        f"{_percent(own)} of a token's energy lies outside its nearest subspace, {_percent(random)} for random "
        f"subspaces; {span}. The energy is spread over the subspaces with {_range(entropy, 3)} of the largest entropy."
    )


_OUTSIDE = ("outside_nearest", "outside_nearest_random")


def _percent(values: Sequence[float]) -> str:
    return f"{_range([100 * value for value in values], 1)} %"


def _geometry(report: AuditReport) -> str:
    found = [geometry_values(layer) for layer in report.layers]
    U = report.layers[0].subspaces
    ranks = [one["smallest_rank"][2] for one in found]
    text = (
        f"Every U_k has rank {_range(ranks, 0)} (smallest of a layer), [U_1 … U_K] rank "
        f"{_range([one['joint_rank'][2] for one in found], 0)} of {U.width}"
    )
    if len(U.ranks) == 1:
        return text + "."
    return (
        f"{text}; pairs of subspaces overlap by {_range([one['mean_overlap'][2] for one in found], 3)} on average, "
        f"where random ones have {found[0]['random_overlap'][2]:.3f} and orthogonal ones 0; the smallest "
        f"principal angle is {_range([one['smallest_angle'][2] for one in found], 1)} degrees."
    )


def _dictionary(report: AuditReport) -> list[str]:
    found = [layer.dictionary for layer in report.layers if layer.dictionary is not None]
    if not found:
        return ["The model has no dictionary D, so nothing is said about one."]
    steps = [one.step for one in found]
    stable = sum(step < 2 for step in steps)
    name = "D D^T" if found[0].overcomplete else "D^T D"
    return [
        f"η‖D‖² is {_range(steps, 2)}, below the stable limit 2 at {stable} of {len(steps)} layers; {name} is "
        f"{_range([one.gram_error for one in found], 2)} away from {'c I' if found[0].overcomplete else 'I'} in "
        f"relative Frobenius norm ({_range([one.scaled_gram_error for one in found], 2)} from the nearest multiple of "
        f"I), its largest coherence {_range([one.coherence for one in found], 2)} and its condition number "
        f"{_range([one.condition for one in found], 0)}."
    ]


# --- Figures ----------------------------------------------------------------------------------------------------


def plot_fits(report: AuditReport) -> Figure:
    """Held-out log-likelihood of every density on the model's tokens over the layers, with 95 % intervals."""
    figure, axes = _figure()
    for index, name in enumerate(name for name in FITS if name in report.layers[0].fits["trained"]):
        intervals = [layer.fits["trained"][name].log_likelihood for layer in report.layers]
        _line(axes, report, intervals, _SHORT[name], index)
    _finish_layers(axes, "held-out log-likelihood\n(nats per token)", columns=2)
    return figure


def plot_gains(report: AuditReport) -> Figure:
    """Gain over one full Gaussian, with learned and with fitted subspaces, on the model's tokens and the controls'."""
    figure, axes = _figure()
    axes.axhline(0, color="#555555", linewidth=0.8)
    styles = {"trained": "-", "shuffled": ":", "untrained": "--"}
    for colour, name in enumerate(("learned", "subspaces")):
        for condition in report.layers[0].fits:
            intervals = [layer.gain(name, condition=condition) for layer in report.layers]
            words = f"{_SHORT[name]}, {condition}"
            _line(axes, report, intervals, words, colour, styles[condition])
    _finish_layers(axes, "gain over one Gaussian\n(nats per token)", columns=2)
    return figure


def plot_outside(report: AuditReport) -> Figure:
    """Energy outside the nearest subspace over the layers, learned and random subspaces."""
    figure, axes = _figure()
    for index, (key, words) in enumerate(zip(_OUTSIDE, ("of the model", "random subspaces"))):
        _line(axes, report, [layer.token(key) for layer in report.layers], words, index)
    axes.set_ylim(0, 1)
    _finish_layers(axes, "energy outside the nearest\nsubspace (fraction)")
    return figure


def plot_blocks(report: AuditReport) -> Figure:
    """The K x K map of overlaps between the subspaces, one panel per layer on one scale."""
    columns = min(3, len(report.layers))
    rows = -(-len(report.layers) // columns)
    figure = Figure(figsize=(WIDTH, 0.35 + rows * (WIDTH / columns + 0.05)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    maps = [layer.subspaces.overlaps for layer in report.layers]
    top = max((float(_off_diagonal(one).max()) for one in maps if len(one) > 1), default=1.0)
    for axes, layer, overlaps in zip(grid.flat, report.layers, maps):
        axes.set_axis_on()
        shown = overlaps.clone().fill_diagonal_(math.nan).numpy()
        image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=max(top, 1e-6))
        axes.set_facecolor("#dddddd")
        ticks = range(len(overlaps)) if len(overlaps) <= 6 else range(0, len(overlaps), 4)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_title(f"layer {layer.layer}", fontsize=8, pad=3)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.8, aspect=30)
    bar.set_label("overlap of subspaces i and j", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_dictionary(report: AuditReport) -> Figure:
    """η‖D‖² and the distance of the dictionary's Gram matrix from a multiple of I over the layers."""
    figure, axes = _figure()
    layers = [layer.layer for layer in report.layers]
    found = [layer.dictionary for layer in report.layers]
    axes.axhline(2, color="#555555", linewidth=0.8, linestyle="--", label="stable below 2")
    for index, (field, words) in enumerate(
        (("step", "η‖D‖²"), ("scaled_gram_error", "distance of $D^TD$ from $c\\,I$"))
    ):
        values = [getattr(one, field) for one in found]
        axes.plot(layers, values, color=COLOURS[index], marker=_MARKERS[index], markersize=4, label=words)
    axes.set_ylim(bottom=0)
    _finish_layers(axes, "ratio", columns=2)
    return figure


def _line(axes: Axes, report: AuditReport, found: Sequence[Interval], words: str, index: int, style: str = "-") -> None:
    layers = [layer.layer for layer in report.layers]
    mean, low, high = (torch.stack([getattr(one, name) for one in found]).numpy() for name in ("mean", "low", "high"))
    colour = COLOURS[index % len(COLOURS)]
    marker = _MARKERS[index % len(_MARKERS)]
    face = colour if style == "-" else "white"
    axes.plot(layers, mean, style, color=colour, marker=marker, markersize=4, markerfacecolor=face, label=words)
    axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)


def _off_diagonal(values: Tensor) -> Tensor:
    return values[~torch.eye(len(values), dtype=torch.bool)].nan_to_num(0)


# --- Tables and files -------------------------------------------------------------------------------------------

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
    "images; learned, random, fitted: mixtures of Gaussians on those subspaces with a common mean. Energy: fraction of "
    "‖z‖²."
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
    directory.mkdir(parents=True, exist_ok=True)
    return write_report(directory / REPORT, _content(reports, record))


def check_free(directory: str | os.PathLike, overwrite: bool = False) -> None:
    """Refuse a folder that holds an audit, unless it is to be replaced.

    Raises:
        ValueError: as said.
    """
    path = Path(directory).expanduser() / REPORT
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; choose another output folder, or pass --overwrite to replace it")


def _content(reports: Sequence[AuditReport], record: Sequence[tuple[str, str]]) -> ReportContent:
    import pandas

    first = reports[0]
    rows = [{"model": report.name, "data": report.data, **row} for report in reports for row in report.to_rows()]
    about = [
        ("tokens", f"{first.token_words}; {first.fit_tokens:,} fitted, {first.held_out_tokens:,} held out, per layer"),
        ("images", f"{first.num_images}; even-numbered ones fitted, odd ones held out; {first.data}"),
        ("intervals", "95 %, bootstrap over images; each for its own layer, not widened for the number of layers"),
        ("seed", str(first.seed)),
    ]
    return ReportContent(
        title=f"Subspace audit: {first.name}",
        subtitle=f"{first.num_images:,} images{', ' + first.data if first.data else ''}, {first.token_words}",
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
    for key in (*_OUTSIDE, "membership_entropy", "mean_cosine", "effective_rank"):
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
    how = (
        f"{report.token_words}; {report.fit_tokens:,} tokens of half of the images fitted, {report.held_out_tokens:,} "
        "of the other half held out; bands are 95 % bootstrap intervals over held-out images."
    )
    sentences = describe(report)
    figures = [
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
        ReportFigure(
            f"audit_outside{suffix}",
            "Energy outside the nearest subspace",
            plot_outside(report),
            "fraction of energy outside the nearest subspace over the layers, beside random subspaces",
            theory="Near 0, and falling with depth.",
            measured=_outside(report),
            how=f"{report.token_words}, all tokens of all {report.num_images} images; U_k orthonormalised.",
        ),
        ReportFigure(
            f"audit_blocks{suffix}",
            "Overlap of the subspaces",
            plot_blocks(report),
            "one K by K map per layer; the diagonal is left out",
            theory="0 off the diagonal: incoherent subspaces.",
            measured=_geometry(report),
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
                measured=_dictionary(report)[0],
                how="Singular values of D; relative Frobenius norm.",
            )
        )
    return figures


def _with_interval(found: Interval) -> str:
    mean, low, high = float(found.mean), float(found.low), float(found.high)
    return f"{mean:+.2f}" + ("" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})")


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
