"""The audit as a page: figures, tables, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas
import torch
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from ..analysis.audit.audit import CONDITIONS, OUTSIDE, Audit, LayerAudit
from ..analysis.audit.fits import FITS
from ..stats.words import interval, number, percent, plural
from .audit_findings import describe, describe_dictionary, describe_geometry, describe_outside, holding, judged_layers
from .figures import WIDTH, band, finish, panels, rule
from .html import HOW, MEASURED, PREDICTED, Figure, Part, Report, Table, link
from .tables import frame

FILES = ("audit.html", "audit.csv", "audit.json", "figures")
LAYER_NOTE = (
    "Columns with −: differences of the held-out log-likelihood in nats per token, with 95 % bootstrap intervals over "
    "images or texts; learned, random, fitted: mixtures of Gaussians on those subspaces with a common mean. "
    "Energy: fraction of ‖z‖²."
)
_GAINS_TITLE = "Mixtures against one Gaussian, with controls"
_SHORT = {
    "learned": "learned",
    "random": "random",
    "subspaces": "fitted",
    "clusters": "fitted, own means",
    "gaussian": "one Gaussian",
    "isotropic": "isotropic",
}
_GAINS = {
    "learned − Gaussian": ("learned", "gaussian"),
    "learned − random": ("learned", "random"),
    "fitted − Gaussian": ("subspaces", "gaussian"),
}


def audit_report(audits: Sequence[Audit], record: Sequence[tuple[str, str]] = ()) -> Report:
    """The page of one audit, or of several on the same inputs side by side; `record`: (name, text) of what was run.

    Raises:
        ValueError: no audits.
    """
    if not audits:
        raise ValueError("audits: empty; give at least one")
    first = audits[0]
    rows = [{"model": audit.name, "data": audit.data, **row} for audit in audits for row in audit.to_rows()]
    about = {
        "tokens": f"{first.token_words}; {first.fit_tokens:,} fitted, {first.held_out_tokens:,} held out, per layer",
        "inputs": f"{first.num_images} {first.inputs}; even-numbered ones fitted, odd ones held out; {first.data}",
        "intervals": f"95 %, bootstrap over {first.inputs}; each for its own layer, not corrected for their number",
        "seed": str(first.seed),
    }
    several = len(audits) > 1
    ends = [(f"_{place}", f" ({audit.name})") if several else ("", "") for place, audit in enumerate(audits, start=1)]
    parts = [Part("Side by side", items=(side_by_side(audits),))] if several else []
    parts += [part for audit, end in zip(audits, ends) for part in _parts(audit, *end)]
    return Report(
        title=f"Subspace audit: {first.name}",
        subtitle=f"{first.num_images:,} {first.inputs}{', ' + first.data if first.data else ''}, {first.token_words}",
        summary=_in_short(first, ends[0][1]),
        parts=tuple(parts),
        record=(*record, *about.items()),
        files={"audit.csv": frame(rows), "audit.json": [audit.to_dict() for audit in audits]},
        page=FILES[0],
    )


def _in_short(audit: Audit, title_end: str) -> tuple[str | Markup, ...]:
    """Three sentences for a reader who does not know the theory."""
    total, holds = len(audit.layers), len(holding(judged_layers(audit)))
    where = f"{holds or 'none'} of {plural(total, 'layer')}"
    if holds == total:
        where = f"all {total} layers" if total > 1 else "the only layer"
    own, random = (_mean_token(key, audit) for key in OUTSIDE)
    return (
        f"CRATE assumes that tokens come from a mixture of Gaussians on the model's subspaces. In {audit.name}, that "
        f"mixture fits better than every control at {where}.",
        f"On average {percent(own)} of a token's energy lies outside its nearest subspace; with random subspaces it is "
        f"{percent(random)}.",
        Markup("Look at {} first: a mixture that fits lies above 0 for the model's tokens only.").format(
            link("the mixtures beside their controls", _GAINS_TITLE + title_end)
        ),
    )


def layer_frame(audit: Audit) -> pandas.DataFrame:
    """One row of texts per layer, for terminals and the page."""
    return frame(_cells(layer) for layer in audit.layers)


def _cells(layer: LayerAudit) -> dict[str, str]:
    geometry = layer.geometry()
    return {
        "layer": str(layer.layer),
        **{name: interval(layer.gain(*fits), 2, signed=True) for name, fits in _GAINS.items()},
        "energy outside nearest": number(layer.token("outside_nearest").mean, 3),
        "same, random": number(layer.token("outside_nearest_random").mean, 3),
        "mean overlap": number(geometry["mean_overlap"], 3),
        "smallest angle (degrees)": number(geometry["smallest_angle"], 1),
        "η‖D‖²": number(geometry.get("dictionary_step", math.nan), 2),
    }


def side_by_side(audits: Sequence[Audit]) -> Table:
    """Means over the layers, one column per model."""
    found: dict[str, list[str]] = {}
    for name, fits in _GAINS.items():
        gains = [sum(layer.gain(*fits).mean for layer in audit.layers) / len(audit.layers) for audit in audits]
        found[f"{name} (nats per token)"] = [number(gain, 2, signed=True) for gain in gains]
    for key in (*OUTSIDE, "membership_entropy", "mean_cosine", "effective_rank"):
        found[key.replace("_", " ")] = [number(_mean_token(key, audit), 3) for audit in audits]
    found["the subspaces are"] = [audit.subspace_kind for audit in audits]
    names = ("mean over the layers", *(audit.name for audit in audits))
    return Table("Side by side", frame(dict(zip(names, (name, *texts))) for name, texts in found.items()))


def _mean_token(key: str, audit: Audit) -> float:
    return sum(float(layer.token(key).mean) for layer in audit.layers) / len(audit.layers)


def _likelihood_table(audit: Audit, title_end: str) -> Table:
    """Held-out log-likelihood and BIC of every fit."""
    rows = [
        {
            "layer, tokens": f"{layer.layer}, {condition}",
            "density": FITS[name],
            "held-out log-likelihood (nats per token)": interval(fit.log_likelihood, 2, signed=True),
            "BIC": f"{fit.bic:,.0f}",
            "parameters": f"{fit.num_parameters:,}",
            "dimensions": str(layer.dimensions[condition]),
        }
        for layer in audit.layers
        for condition, fits in layer.fits.items()
        for name, fit in fits.items()
    ]
    note = (
        "Compare within one layer and one kind of tokens only: densities live in the dimensions in which those tokens "
        "vary. BIC is of the fitted tokens, taken as independent, which tokens of one image are not; the learned "
        "subspaces' own entries are not counted as parameters, since they were not fitted to these tokens. Tokens: "
        + "; ".join(f"{key}, {words}" for key, words in CONDITIONS.items())
        + "."
    )
    return Table(f"Every fit{title_end}", frame(rows), note)


def _parts(audit: Audit, name_end: str, title_end: str) -> tuple[Part, Part]:
    """What was found, with the figures, and folded below it every number; the ends keep several models apart."""
    figures = _figures(audit, name_end, title_end)
    shown = {text for figure in figures for text in figure.notes.values()}
    sentences = tuple(line for line in describe(audit) if line not in shown)
    note = f"{LAYER_NOTE} Learned subspaces: {audit.subspace_kind}."
    tables = (Table(f"Layer by layer{title_end}", layer_frame(audit), note), _likelihood_table(audit, title_end))
    found = Part(f"{audit.name}: subspaces are {audit.subspace_kind}", sentences, tuple(figures))
    return found, Part(f"Every number{title_end}", items=tables, folded=True)


def _figures(audit: Audit, name_end: str, title_end: str) -> list[Figure]:
    """The figures with what theory predicts of each and what was measured."""
    sentences = describe(audit)
    fits = (
        f"{audit.token_words}; {audit.fit_tokens:,} tokens of half of the {audit.inputs} fitted, "
        f"{audit.held_out_tokens:,} of the other half held out; bands are 95 % bootstrap intervals over held-out "
        f"{audit.inputs}."
    )
    tokens = f"{audit.token_words}, all tokens of all {audit.num_images} {audit.inputs}; U_k orthonormalised."
    found = [
        Figure(
            f"audit_fits{name_end}",
            f"How likely held-out tokens are{title_end}",
            plot_fits(audit),
            "log-likelihood of six densities over the layers",
            {
                PREDICTED: "Tokens are a mixture of Gaussians on the subspaces: that mixture is the most likely.",
                MEASURED: next((line for line in sentences if "set against one full Gaussian" in line), ""),
                HOW: fits,
            },
        ),
        Figure(
            f"audit_gains{name_end}",
            _GAINS_TITLE + title_end,
            plot_gains(audit),
            "gain of mixtures over one Gaussian on trained, shuffled and untrained tokens",
            {
                PREDICTED: "Above 0 on the model's tokens, near 0 on shuffled ones, and less before training.",
                MEASURED: next((line for line in sentences if "fitted to the tokens by EM" in line), ""),
                HOW: fits,
            },
        ),
        Figure(
            f"audit_outside{name_end}",
            f"Energy outside the nearest subspace{title_end}",
            plot_outside(audit),
            "fraction of energy outside the nearest subspace over the layers, beside random subspaces",
            {PREDICTED: "Near 0, and falling with depth.", MEASURED: describe_outside(audit), HOW: tokens},
        ),
        Figure(
            f"audit_blocks{name_end}",
            f"Overlap of the subspaces{title_end}",
            plot_blocks(audit),
            "one K by K map per layer; the diagonal is left out",
            {
                PREDICTED: "0 off the diagonal: incoherent subspaces.",
                MEASURED: describe_geometry(audit),
                HOW: "Mean squared cosine of the principal angles between span U_i and span U_j.",
            },
        ),
    ]
    if all(layer.dictionary is not None for layer in audit.layers):
        notes = {
            PREDICTED: "D is orthonormal, and the step stays below 2.",
            MEASURED: describe_dictionary(audit),
            HOW: "Singular values of D; relative Frobenius norm.",
        }
        alt = "step size and Gram error over the layers"
        found.append(
            Figure(f"audit_dictionary{name_end}", f"The dictionary{title_end}", plot_dictionary(audit), alt, notes)
        )
    return found


def plot_fits(audit: Audit) -> Drawing:
    """Held-out log-likelihood of every density on the model's tokens over the layers, with 95 % intervals."""
    figure, (axes,) = panels()
    for index, name in enumerate(name for name in FITS if name in audit.layers[0].fits["trained"]):
        found = [layer.fits["trained"][name].log_likelihood for layer in audit.layers]
        band(axes, _numbers(audit), found, _SHORT[name], index)
    finish(axes, ylabel="held-out log-likelihood\n(nats per token)", columns=2)
    return figure


def plot_gains(audit: Audit) -> Drawing:
    """Gain over one full Gaussian, with learned and with fitted subspaces, on the model's tokens and the controls'."""
    figure, (axes,) = panels()
    rule(axes, y=0)
    lines = {"trained": "-", "shuffled": ":", "untrained": "--"}
    for colour, name in enumerate(("learned", "subspaces")):
        for condition in audit.layers[0].fits:
            found = [layer.gain(name, condition=condition) for layer in audit.layers]
            band(axes, _numbers(audit), found, f"{_SHORT[name]}, {condition}", colour, lines[condition])
    finish(axes, ylabel="gain over one Gaussian\n(nats per token)", columns=2)
    return figure


def plot_outside(audit: Audit) -> Drawing:
    """Energy outside the nearest subspace over the layers, learned and random subspaces."""
    figure, (axes,) = panels()
    for index, (key, words) in enumerate(zip(OUTSIDE, ("of the model", "random subspaces"))):
        band(axes, _numbers(audit), [layer.token(key) for layer in audit.layers], words, index)
    axes.set_ylim(0, 1)
    finish(axes, ylabel="energy outside the nearest\nsubspace (fraction)")
    return figure


def plot_blocks(audit: Audit) -> Drawing:
    """The K x K map of overlaps between the subspaces, one panel per layer on one scale."""
    columns = min(3, len(audit.layers))
    rows = -(-len(audit.layers) // columns)
    figure, grid = panels(rows, columns, height=0.35 + rows * (WIDTH / columns + 0.05), sharex=False)
    maps = [layer.subspaces.overlaps.clone().fill_diagonal_(math.nan) for layer in audit.layers]
    top = float(torch.stack(maps).nan_to_num(0).max())
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    for axes, layer, shown in zip(grid, audit.layers, maps):
        image = axes.imshow(shown.numpy(), cmap="viridis", vmin=0, vmax=max(top, 1e-6))
        axes.set_facecolor("#dddddd")
        ticks = range(0, len(shown), 1 if len(shown) <= 6 else 4)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=7)
        axes.set_title(f"layer {layer.layer}", fontsize=8, pad=3)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.8, aspect=30)
    bar.set_label("overlap of subspaces i and j", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_dictionary(audit: Audit) -> Drawing:
    """η‖D‖² and the distance of the dictionary's Gram matrix from a multiple of I over the layers."""
    figure, (axes,) = panels()
    rule(axes, y=2, line="--", label="stable below 2")
    for index, (key, words) in enumerate(
        (("dictionary_step", "η‖D‖²"), ("dictionary_scaled_gram_error", "distance of $D^TD$ from $c\\,I$"))
    ):
        values = [dict.fromkeys(("mean", "low", "high"), layer.geometry()[key]) for layer in audit.layers]
        band(axes, _numbers(audit), values, words, index)
    axes.set_ylim(bottom=0)
    finish(axes, ylabel="ratio", columns=2)
    return figure


def _numbers(audit: Audit) -> list[int]:
    return [layer.layer for layer in audit.layers]
