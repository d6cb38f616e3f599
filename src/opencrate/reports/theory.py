"""Theory against practice in words and figures: every sentence is computed from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter
from torch import Tensor

from ..analysis.maths.steps import FORMS
from ..analysis.theory.check import ASCENDS, CANNOT_TELL, DESCENDS, TheoryCheck
from ..analysis.theory.layers import QUANTITIES, STATES, Key
from .figures import COLOURS, WIDTH, _figure, _finish_layers, _style
from .html import ReportFigure

_VERDICT_COLOURS = {DESCENDS: "#9ecae9", CANNOT_TELL: "#e4e4e4", ASCENDS: "#f6b48f"}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_SHORT = {
    "exact": "exact gradient",
    "neumann": "Neumann",
    "softmax": "Neumann, softmax",
    "paper": "(1−κγ)Z + κγMSSA",
    "plus": "Z + MSSA, tied",
    "minus": "Z − MSSA, tied",
    "model": "model: Z + MSSA",
    "model_minus": "model: Z − MSSA",
}
_ERRORS = {
    "neumann_error": "Neumann against exact",
    "softmax_error": "softmax against Neumann",
    "identity_error": "Σ Z U_kU_kᵀ against Z",
    "paper_error": "paper's step against exact",
}


def theory_section(report: TheoryCheck) -> tuple[tuple[str, ...], list[ReportFigure]]:
    """Sentences for a report's summary, and its figures with what theory predicts and what was measured."""
    sentences = (*describe_compression_step(report), *describe_approximations(report), *describe_ista_step(report))
    return sentences, [*_compression_figures(report), *_ista_figures(report)]


def _compression_figures(report: TheoryCheck) -> list[ReportFigure]:
    """What the forms of the compression step do to R^c, where they point, and what each approximation costs."""
    step = _largest_step(report)
    how = (
        f"{report.num_images} images, all tokens, U as learned, ε = {report.eps:g}; mean change of R^c in nats per "
        f"image; colour from the 95 % bootstrap interval over images; κ = {step}/L where a form has a step size, "
        "L = γ‖U‖^2."
    )
    changes = [(state, plot_changes(report, state)) for state in STATES]
    return [
        ReportFigure(
            name="theory_changes",
            title="Which forms of the compression step lower R^c?",
            figure=changes[0][1],
            alt="Table of forms by layers, coloured by whether R^c falls or rises, with the mean change.",
            theory="Every form approximates a gradient step down R^c, so every cell should say 'descends'.",
            measured=" ".join(describe_compression_step(report)),
            how=f"{STATES['raw']}. {how}",
            variants=tuple((f"theory_changes_{state}", STATES[state], figure) for state, figure in changes[1:]),
        ),
        ReportFigure(
            name="theory_cosine",
            title="Where does each update point?",
            figure=plot_cosines(report),
            alt="Cosine between each form's update and the direction of steepest descent, over the layers.",
            theory="1 along the direction of steepest descent of R^c, above 0 for any direction that goes down.",
            measured=_describe_cosine(report),
            how=f"{STATES['raw']}; mean over {report.num_images} images.",
        ),
        ReportFigure(
            name="theory_errors",
            title="What does each approximation cost?",
            figure=plot_errors(report),
            alt="Relative error of each approximation against the coherence of the layer's subspaces.",
            theory="Small for incoherent subspaces (left) and γ‖V_k‖^2 < 1.",
            measured=" ".join(describe_approximations(report)),
            how=f"One point per layer. {STATES['unit']}; coherence = cosine of the smallest angle between subspaces.",
        ),
    ]


def _ista_figures(report: TheoryCheck) -> list[ReportFigure]:
    """What the ISTA step does to its LASSO, and what D does to the rate."""
    return [
        ReportFigure(
            name="theory_lasso",
            title="How far does the ISTA step go?",
            figure=plot_lasso(report),
            alt="The LASSO objective before and after the ISTA step, over the layers.",
            theory="The step lowers its LASSO objective; descent is guaranteed for η‖D‖^2 up to 1.",
            measured=" ".join(describe_ista_step(report)[:-1]),
            how="Summed over the tokens of an image; the start is the nearest code that the problem allows.",
        ),
        ReportFigure(
            name="theory_code_rates",
            title="Is the rate kept by the dictionary?",
            figure=plot_code_rates(report),
            alt="Coding rates of the code, of the decoded code and of the input, over the layers.",
            theory="For an orthonormal D the three coding rates would be equal: R(A Dᵀ) = R(A), and A Dᵀ close to X.",
            measured=describe_ista_step(report)[-1],
            how=f"X is the input of the ISTA step (after LayerNorm), A its code; ε = {report.eps:g}.",
        ),
    ]


# --- Words --------------------------------------------------------------------------------------------------------


def describe_compression_step(report: TheoryCheck) -> tuple[str, ...]:
    """What the exact gradient, the paper's step and the model's own step do to R^c, one sentence each."""
    step = _largest_step(report)
    sentences = []
    for form in ("exact", "neumann", "paper", "model", "model_minus"):
        size = step if FORMS[form].sized else ""
        sentences.append(
            _describe_verdicts(
                f"{FORMS[form].words[0].upper()}{FORMS[form].words[1:]} ({FORMS[form].formula}"
                f"{f', κ = {step}/L' if size else ''})",
                report.verdicts("change", "raw", form, size),
                report.mean("change", "raw", form, size),
                "nats per image",
            )
        )
    unit = report.verdicts("change_unit", "raw", "model")
    sentences.append(
        "With every token scaled to length 1 before and after, so that length cannot count, the model's own step "
        + _count_verdicts(unit, report.mean("change_unit", "raw", "model"), "nats per image")
    )
    return tuple(sentences)


def describe_approximations(report: TheoryCheck) -> tuple[str, ...]:
    """How good each approximation is on tokens of length 1."""
    radius = report.mean("neumann_radius", "unit")
    inside = int((radius < 1).sum())
    errors = {name: report.mean(name, "unit") for name in _ERRORS}
    coherences = report.mean("coherence_orthonormal")
    return (
        f"On tokens of length 1 the Neumann series' condition γ‖V_k‖^2 < 1 holds on average in {inside} of "
        f"{report.num_layers} layers (means from {_span(radius)}).",
        f"The relative errors there are {_span(errors['neumann_error'])} for Neumann against exact, "
        f"{_span(errors['softmax_error'])} for the softmax, {_span(errors['identity_error'])} for Σ Z U_kU_kᵀ "
        f"against Z and {_span(errors['paper_error'])} for all of them together; the largest cosine between two "
        f"subspaces of a layer is {_span(coherences)} (0 = incoherent).",
    )


def describe_ista_step(report: TheoryCheck) -> tuple[str, ...]:
    """What the ISTA step does to its LASSO, how far the converged solution is, and what D does to the rate."""
    sizes = report.mean("step_size")
    guaranteed = int((sizes <= 1).sum())
    sentences = [
        _describe_verdicts(
            "From the nearest allowed code, the ISTA step",
            report.verdicts("lasso_change_allowed"),
            report.mean("lasso_change_allowed"),
            "per image",
            "its LASSO objective",
        ),
        f"η‖D‖^2 is {_span(sizes)}: descent is guaranteed (up to 1) in {guaranteed} of {report.num_layers} layers, "
        f"convergence (below 2) in {int((sizes < 2).sum())}.",
    ]
    if Key("lasso_gap") in report.per_image:
        gap, distance = 100 * report.mean("lasso_gap"), report.mean("lasso_distance")
        bound = f"; the solver ran out of steps in layers {list(report.unconverged)}" if report.unconverged else ""
        sentences.append(
            f"Against the converged code the objective is {_span(gap, '.0f')} % above the optimum, and the code is "
            f"{_span(distance)} of the optimum's norm away{bound}."
        )
    ratio = report.mean("decoded_rate") / report.mean("code_rate")
    sentences.append(f"R(A Dᵀ) is {_span(ratio)} times R(A) (1 for an orthonormal D).")
    return tuple(sentences)


def _describe_cosine(report: TheoryCheck) -> str:
    own = report.mean("cosine", "raw", "model")
    return (
        f"The model's own update has a cosine of {_span(own, '+.3f')} to the direction of steepest descent of R^c "
        f"(+1 down, 0 across, −1 up); the paper's step {_span(report.mean('cosine', 'raw', 'paper'), '+.3f')}."
    )


def _describe_verdicts(name: str, verdicts: Sequence[str], changes: Tensor, unit: str, what: str = "R^c") -> str:
    return f"{name} {_count_verdicts(verdicts, changes, unit, what)}"


def _count_verdicts(verdicts: Sequence[str], changes: Tensor, unit: str, what: str = "R^c") -> str:
    """'lowers R^c in 4 of 6 layers, raises it in 1, and 1 cannot be told (mean changes from -1.2 to +0.3 ...).'"""
    lowered, raised = verdicts.count(DESCENDS), verdicts.count(ASCENDS)
    unclear = len(verdicts) - lowered - raised
    text = f"lowers {what} in {lowered} of {len(verdicts)} layers"
    text += f", raises it in {raised}" if raised else ""
    text += f", and cannot be told in {unclear}" if unclear else ""
    return f"{text} (mean changes {_span(changes, '+.3g')} {unit})."


def _span(values: Tensor, style: str = ".3g") -> str:
    """'0.41 to 0.49', or the one value."""
    low, high = format(float(values.min()), style), format(float(values.max()), style)
    return low if low == high else f"{low} to {high}"


def _largest_step(report: TheoryCheck) -> str:
    """The largest κL that was tried."""
    steps = {key.step for key in report.per_image if key.step not in ("", "best")}
    return max(steps, key=float)


# --- Figures ------------------------------------------------------------------------------------------------------


def plot_changes(report: TheoryCheck, state: str = "raw") -> Figure:
    """Forms by layers: the mean change of R^c, coloured by its verdict, for one of `theory_layers.STATES`."""
    step = _largest_step(report)
    rows = [(_SHORT[form], form, step if FORMS[form].sized else "") for form in FORMS]
    rows.insert(1, ("exact, best κ", "exact", "best"))
    order = list(_VERDICT_COLOURS)
    codes = [[order.index(word) for word in report.verdicts("change", state, form, size)] for _, form, size in rows]
    figure = Figure(figsize=(WIDTH, 0.27 * len(rows) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(codes, cmap=ListedColormap(list(_VERDICT_COLOURS.values())), vmin=0, vmax=2, aspect="auto")
    size = 7 if report.num_layers <= 8 else 5
    for row, (_, form, kappa) in enumerate(rows):
        for layer, value in enumerate(report.mean("change", state, form, kappa).tolist()):
            axes.text(layer, row, _short_number(value), ha="center", va="center", fontsize=size)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7.5)
    axes.set_xticks(range(report.num_layers), range(1, report.num_layers + 1), fontsize=8)
    axes.set_xlabel(f"layer ℓ   (κ = {step}/L where there is a step size)", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=colour, label=word) for word, colour in _VERDICT_COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_cosines(report: TheoryCheck, state: str = "raw") -> Figure:
    """Cosine of each form's update to −∇R^c over the layers, with 95 % intervals."""
    figure, axes = _figure()
    for index, form in enumerate(("neumann", "softmax", "paper", "plus", "model")):
        _interval_line(axes, report, Key("cosine", state, form), _SHORT[form], index)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    _finish_layers(axes, r"cosine to $-\nabla R^c$")
    _style(axes, columns=2)
    return figure


def plot_errors(report: TheoryCheck, state: str = "unit") -> Figure:
    """Relative error of each approximation against the coherence of the layer's subspaces, one point per layer."""
    figure, axes = _figure()
    figure.set_figheight(3.5)
    x = report.mean("coherence_orthonormal")
    for index, (name, words) in enumerate(_ERRORS.items()):
        style = {"color": COLOURS[index], "marker": _MARKERS[index], "markersize": 5, "linestyle": ""}
        axes.plot(x, report.mean(name, state), label=words, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("largest cosine between two subspaces")
    axes.set_ylabel("relative error")
    _style(axes, columns=1)
    return figure


def plot_lasso(report: TheoryCheck) -> Figure:
    """The LASSO objective at the nearest allowed start and after the layer's steps, with 95 % intervals."""
    figure, axes = _figure()
    for index, (name, words) in enumerate((("lasso_allowed", "before the step"), ("lasso_after", "after it"))):
        _interval_line(axes, report, Key(name), words, index)
    axes.set_ylim(bottom=0)
    _finish_layers(axes, "LASSO objective (per image)")
    return figure


def plot_code_rates(report: TheoryCheck) -> Figure:
    """R(X), R(A) and R(A Dᵀ) over the layers, with 95 % intervals."""
    figure, axes = _figure()
    names = {"input_rate": "R(X), input", "code_rate": "R(A), code", "decoded_rate": "R(ADᵀ), decoded"}
    for index, (name, words) in enumerate(names.items()):
        _interval_line(axes, report, Key(name), words, index)
    _finish_layers(axes, f"coding rate ({QUANTITIES['code_rate'].unit})")
    return figure


def _interval_line(axes: Axes, report: TheoryCheck, key: Key, name: str, index: int) -> None:
    """Mean over the layers with its 95 % interval as a band."""
    found, layers = report.intervals[key], range(1, report.num_layers + 1)
    axes.plot(layers, found.mean, color=COLOURS[index], marker=_MARKERS[index], markersize=4, label=name)
    low, high = (torch.where(bound.isnan(), found.mean, bound) for bound in (found.low, found.high))
    axes.fill_between(layers, low, high, color=COLOURS[index], alpha=0.2, linewidth=0)


def _short_number(value: float) -> str:
    """A signed number of at most two digits where that is honest: -0.1, +2.6, -22."""
    return f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}" if abs(value) >= 0.1 else f"{value:+.1g}"
