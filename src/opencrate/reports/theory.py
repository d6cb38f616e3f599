"""The page of theory against practice: which steps descend, where they point, and what the approximations cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.figure
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter

from ..analysis.maths.steps import FORMS
from ..analysis.theory.check import ASCENDS, CANNOT_TELL, DESCENDS, TheoryCheck
from ..analysis.theory.layers import QUANTITIES, STATES, Key
from ..stats.intervals import ABOVE, BELOW
from ..stats.words import listing, plural, span
from . import figures, tables
from .certificate import certificate_part
from .html import HOW, MEASURED, PREDICTED, Figure, Part, Report, Table, link

TITLE = "Theory against practice"
_VERDICT_COLOURS = {DESCENDS: "#9ecae9", CANNOT_TELL: "#e4e4e4", ASCENDS: "#f6b48f"}
_SHORT = {
    "exact": "exact gradient",
    "neumann": "Neumann",
    "softmax": "Neumann, softmax",
    "paper": "(1−κγ)Z + κγMSSA",
    "plus": "Z + MSSA, tied",
    "minus": "Z − MSSA, tied",
}
_TEXTS = {
    "theory_changes": (
        "Which forms of the compression step lower R^c?",
        "Table of forms by layers, coloured by whether R^c falls or rises, with the mean change.",
        "Every form approximates a gradient step down R^c, so every cell should say 'descends'.",
    ),
    "theory_cosine": (
        "Where does each update point?",
        "Cosine between each form's update and the direction of steepest descent, over the layers.",
        "1 along the steepest descent of R^c, above 0 for any direction that goes down.",
    ),
    "theory_errors": (
        "What does each approximation cost?",
        "Relative error of each approximation against the coherence of the layer's subspaces.",
        "Small for incoherent subspaces (left) and γ‖V_k‖^2 < 1.",
    ),
    "theory_lasso": (
        "How far does the ISTA step go?",
        "The LASSO objective at the nearest code that the problem allows and after the ISTA step, over the layers.",
        "The step lowers its LASSO objective; descent is guaranteed for η‖D‖^2 up to 1.",
    ),
    "theory_code_rates": (
        "Is the rate kept by the dictionary?",
        "Coding rates of the code, of the decoded code and of the input, over the layers.",
        "For an orthonormal D the three rates are equal: R(A Dᵀ) = R(A), and A Dᵀ is close to X.",
    ),
}
"""Of each figure: its title, what there is to see, and what theory predicts."""
_APPROXIMATIONS = "theory_errors"
"""The figure that only a compression derived as MSSA is has."""
_ERRORS = {
    "neumann_error": "Neumann against exact",
    "softmax_error": "softmax against Neumann",
    "identity_error": "Σ Z U_kU_kᵀ against Z",
    "paper_error": "paper's step against exact",
}
_OTHERS = {
    "coherence_orthonormal": "largest cosine between two subspaces",
    "neumann_radius": "γ‖V_k‖^2; the Neumann series needs < 1",
    "step_size": "η‖D‖^2; descent is guaranteed up to 1, convergence below 2",
    "lasso_gap": "LASSO objective above its optimum, relative to it",
    "lasso_distance": "distance to the converged code, relative to it",
}


def page(check: TheoryCheck) -> Report:
    """The page of a check alone."""
    parts = theory_parts(check)
    look = Markup("Look first at “{}”: which steps descend, layer by layer.")
    found = (*parts[0].sentences[-2:], *parts[-1].sentences[:1])
    summary = (*found, look.format(link(_TEXTS["theory_changes"][0], _TEXTS["theory_changes"][0])))
    return Report(TITLE, plural(check.num_images, _one(check)), summary, tuple(parts), files=theory_files(check))


def theory_files(check: TheoryCheck, name: str = "") -> dict[str, Any]:
    """The rows of a check and of its certificate, by the name of the file; with a column of the model's `name`."""
    head = {"model": name} if name else {}
    rows = tables.frame(head | row for row in check.to_rows())
    files: dict[str, Any] = {"theory.csv": rows, "theory.json": rows}
    if check.certificate is not None:
        files["certificate.csv"] = tables.frame(head | row for row in check.certificate.to_rows())
    return files


def theory_parts(check: TheoryCheck, name: str = "") -> list[Part]:
    """The part of the forms of both steps, and that of the model's own steps on each input."""
    found = [theory_part(check, name)]
    return found if check.certificate is None else [*found, certificate_part(check.certificate, name)]


def theory_part(check: TheoryCheck, name: str = "") -> Part:
    """Verdicts on both steps of the layers, the figures, and what the approximations cost; `name` of the model."""
    sentences = [*describe_compression_step(check), describe_ista_step(check)]
    if check.padded:
        sentences.insert(0, f"Texts that are padded are left out: {check.padded} of {check.padded + check.num_images}.")
    items = (*_figures(check), approximations_table(check))
    return Part(TITLE + (f": {name}" if name else ""), tuple(sentences), items)


def approximations_table(check: TheoryCheck) -> Table:
    """The relative errors of the approximations and what they depend on, as a range over the layers."""
    found = {}
    for key, words in (_ERRORS | _OTHERS).items():
        state = "unit" if key in _ERRORS or key == "neumann_radius" else ""
        if Key(key, state) in check.per_image or Key(key) in check.per_layer:
            found[words] = check.mean(key, state)
    approximated = any(key.quantity in _ERRORS for key in check.per_image)
    found["R(A Dᵀ) / R(A); 1 for an orthonormal D"] = check.mean("decoded_rate") / check.mean("code_rate")
    rows = [
        {"quantity": words, "smallest layer": float(values.min()), "largest layer": float(values.max())}
        for words, values in found.items()
    ]
    note = f"Means over {check.kind}."
    if approximated:
        note += " The first rows are relative errors, on tokens of length 1, as the derivation assumes."
    if check.unconverged:
        note += f" The LASSO solver ran out of steps in layers {listing(check.unconverged)}: bounds there."
    return Table("What the approximations cost" if approximated else "Weights and codes", tables.frame(rows), note)


def _figures(check: TheoryCheck) -> list[Figure]:
    """What the forms of the compression step do to R^c and where they point, then the ISTA step and its dictionary."""
    step, images, first = _largest_step(check), plural(check.num_images, _one(check)), check.states["raw"]
    how = (
        f"{first}. {images}, all tokens, U as learned, ε = {check.eps:g}; mean change of R^c in nats per "
        f"{_one(check)}; colour from the 95 % bootstrap interval over {check.kind}; κ = {step}/L where a form has a "
        "step size, L = γ‖U‖^2."
    )
    alt = _TEXTS["theory_changes"][1]
    others = [
        Figure(f"theory_changes_{state}", words, plot_changes(check, state), alt)
        for state, words in check.states.items()
        if state != "raw"
    ]
    drawn = {
        "theory_changes": (plot_changes, "", how),
        "theory_cosine": (plot_cosines, describe_cosine(check), f"{first}; mean over {images}."),
        _APPROXIMATIONS: (plot_errors, "", f"One point per layer. {STATES['unit']}; coherence: see the table below."),
        "theory_lasso": (plot_lasso, describe_ista_step(check), f"Summed over the tokens of each {_one(check)}."),
        "theory_code_rates": (plot_code_rates, "", f"X: input of the ISTA step, A: its code; ε = {check.eps:g}."),
    }
    found = []
    if "neumann" not in check.forms:
        del drawn[_APPROXIMATIONS]
    for name, (plot, measured, how) in drawn.items():
        title, alt, predicted = _TEXTS[name]
        notes = {PREDICTED: predicted, MEASURED: measured, HOW: how}
        found.append(Figure(name, title, plot(check), alt, notes, tuple(others) if name == "theory_changes" else ()))
    return found


def describe_compression_step(check: TheoryCheck) -> tuple[str, ...]:
    """What the exact gradient, the paper's step and the model's own step do to R^c, one sentence each."""
    step = _largest_step(check)
    sentences = []
    for name in ("exact", "neumann", "paper", "model", "model_minus"):
        if name not in check.forms:
            continue
        form = FORMS[name]
        size = step if form.sized else ""
        kappa = f", κ = {step}/L" if size else ""
        head = f"{form.words[0].upper()}{form.words[1:]} ({check.formula(name)}{kappa})"
        sentences.append(_verdicts(head, check, "change", "raw", name, size))
    head = "With every token scaled to length 1 before and after, so that length cannot count, the model's own step"
    return (*sentences, _verdicts(head, check, "change_unit", "raw", "model"))


def describe_ista_step(check: TheoryCheck) -> str:
    """Whether the ISTA step lowers its LASSO objective."""
    head = "From the nearest allowed code, the ISTA step"
    return _verdicts(head, check, "lasso_change_allowed", unit="", what="its LASSO objective")


def describe_cosine(check: TheoryCheck) -> str:
    """In how many layers the model's own update points down R^c."""
    own = check.intervals[Key("cosine", "raw", "model")]
    counts = {"down": own.signs.count(ABOVE), "up": own.signs.count(BELOW)}
    rest = f", up in {counts['up']}" if counts["up"] else ""
    total = plural(check.num_layers, "layer")
    return f"The model's own update points down R^c in {counts['down'] or 'none'} of {total}{rest}."


def _verdicts(
    head: str,
    check: TheoryCheck,
    quantity: str,
    state: str = "",
    form: str = "",
    step: str = "",
    unit: str = "nats ",
    what: str = "R^c",
) -> str:
    """'... lowers R^c in 4 of 6 layers, raises it in 1 and is undecided in 1 (mean changes -1.2 to +0.3 nats).'"""
    found, changes = check.verdicts(quantity, state, form, step), check.mean(quantity, state, form, step)
    counts = [found.count(word) for word in (DESCENDS, ASCENDS, CANNOT_TELL)]
    parts = [f"lowers {what} in {counts[0] or 'none'} of {plural(len(found), 'layer')}"]
    parts += [f"raises it in {counts[1]}"] if counts[1] else []
    parts += [f"is undecided in {counts[2]}"] if counts[2] else []
    sizes = f"{'change' if len(found) == 1 else 'changes'} {span(changes, 3, signed=True, significant=True)}"
    return f"{head} {listing(parts)} (mean {sizes} {unit}per {_one(check)})."


def _one(check: TheoryCheck) -> str:
    """What one input is called."""
    return check.kind.removesuffix("s")


def _largest_step(check: TheoryCheck) -> str:
    """The largest κL that was tried."""
    return max({key.step for key in check.per_image} - {"", "best"}, key=float)


def plot_changes(check: TheoryCheck, state: str = "raw") -> matplotlib.figure.Figure:
    """Forms by layers: the mean change of R^c, coloured by its verdict, for one of `theory_layers.STATES`."""
    step = _largest_step(check)
    rows = [(_short(check, form), form, step if FORMS[form].sized else "") for form in check.forms]
    rows.insert(1, ("exact, best κ", "exact", "best"))
    order = list(_VERDICT_COLOURS)
    codes = [[order.index(word) for word in check.verdicts("change", state, form, size)] for _, form, size in rows]
    figure, (axes,) = figures.panels(height=0.27 * len(rows) + 1.0)
    axes.imshow(codes, cmap=ListedColormap(list(_VERDICT_COLOURS.values())), vmin=0, vmax=2, aspect="auto")
    size = 7 if check.num_layers <= 8 else 5
    for row, (_, form, kappa) in enumerate(rows):
        for layer, value in enumerate(check.mean("change", state, form, kappa).tolist()):
            axes.text(layer, row, _short_number(value), ha="center", va="center", fontsize=size)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7.5)
    axes.set_xticks(range(check.num_layers), [str(layer + 1) for layer in range(check.num_layers)], fontsize=8)
    axes.set_xlabel(f"layer ℓ   (κ = {step}/L where there is a step size)", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [
        Patch(color=colour, label=word.replace(CANNOT_TELL, "undecided")) for word, colour in _VERDICT_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_cosines(check: TheoryCheck, state: str = "raw") -> matplotlib.figure.Figure:
    """Cosine of each form's update to −∇R^c over the layers, with 95 % intervals."""
    forms = [form for form in ("neumann", "softmax", "paper", "plus", "model") if form in check.forms]
    names = {Key("cosine", state, form): _short(check, form) for form in forms}
    figure, axes = _lines(check, names, r"cosine to $-\nabla R^c$", 2)
    figures.rule(axes, y=0)
    axes.set_ylim(-1.05, 1.05)
    return figure


def plot_errors(check: TheoryCheck, state: str = "unit") -> matplotlib.figure.Figure:
    """Relative error of each approximation against the coherence of the layer's subspaces, one point per layer."""
    figure, (axes,) = figures.panels(height=3.5)
    x = check.mean("coherence_orthonormal")
    for index, (name, words) in enumerate(_ERRORS.items()):
        style = {"color": figures.COLOURS[index], "marker": figures.MARKERS[index], "markersize": 5, "linestyle": ""}
        axes.plot(x, check.mean(name, state), label=words, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    axes.set_xlim(0, 1.02)
    figures.finish(axes, "largest cosine between two subspaces", "relative error", columns=1, whole=False)
    axes.tick_params(axis="y", which="minor", labelsize=8)
    return figure


def plot_lasso(check: TheoryCheck) -> matplotlib.figure.Figure:
    """The LASSO objective at the nearest allowed start and after the layer's steps, with 95 % intervals."""
    names = {Key("lasso_allowed"): "before the step", Key("lasso_after"): "after it"}
    figure, axes = _lines(check, names, f"LASSO objective (per {_one(check)})")
    axes.set_ylim(bottom=0)
    return figure


def plot_code_rates(check: TheoryCheck) -> matplotlib.figure.Figure:
    """R(X), R(A) and R(A Dᵀ) over the layers, with 95 % intervals."""
    names = {"input_rate": "R(X), input", "code_rate": "R(A), code", "decoded_rate": "R(ADᵀ), decoded"}
    unit = QUANTITIES["code_rate"].unit
    return _lines(check, {Key(name): words for name, words in names.items()}, f"coding rate ({unit})")[0]


def _lines(
    check: TheoryCheck, names: Mapping[Key, str], ylabel: str, columns: int | None = None
) -> tuple[matplotlib.figure.Figure, Axes]:
    """Means over the layers with their 95 % intervals, one line per key."""
    figure, (axes,) = figures.panels()
    for index, (key, words) in enumerate(names.items()):
        figures.band(axes, range(1, check.num_layers + 1), check.intervals[key], words, index)
    figures.finish(axes, ylabel=ylabel, columns=columns)
    return figure, axes


def _short(check: TheoryCheck, form: str) -> str:
    """A form's name where there is little room."""
    return _SHORT.get(form) or "model: " + check.formula(form).replace("(LN(Z))", "")


def _short_number(value: float) -> str:
    """A signed number of at most two digits where that is honest: -0.1, +2.6, -22."""
    return f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}" if abs(value) >= 0.1 else f"{value:+.1g}"
