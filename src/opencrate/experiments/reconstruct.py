"""How well the decoder's layers undo the encoder's: errors against the bound that docs/theory.md derives."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from ..analysis.plots import COLOURS, _style
from ..operators import complete_ista_matrix, gamma, ista, mssa, orthonormalize, project, shrink
from .results import Experiment, Row, Settings, Track, over_seeds, select
from .synthetic import dictionary_with_condition, generator, union_of_subspaces

Step = Callable[[Tensor], Tensor]

CASES = {
    "soft": "soft threshold, random orthonormal D",
    "aligned": "ReLU, D in which all codes stay >= 0",
    "relu": "ReLU, random orthonormal D",
    "layernorm": "soft threshold, with LayerNorm (directions only)",
}
_SWEEPS = {
    "noise": "noise",
    "angle": "angle (degrees)",
    "condition": "condition number of D",
    "lam": "λ",
    "step_size": "η‖D‖²",
}
_SWEPT = {"soft": tuple(_SWEEPS), "aligned": ("noise", "lam", "step_size")}  # aligned codes fix the angle and D
_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class ReconstructSettings(Settings):
    """Settings of `opencrate experiment reconstruct`.

    Attributes:
        layers: L.
        subspaces, dim, ambient, tokens: K, p, d, N.
        eps: ε of the factor γ = p/(Nε²) of MSSA.
        noise, angle, condition, lam, step_size: swept one at a time; step sizes are η‖D‖².
        base_noise, base_angle, base_condition, base_lam, base_step_size: their base values.
    """

    layers: int = 6
    subspaces: int = 4
    dim: int = 8
    ambient: int = 64
    tokens: int = 128
    eps: float = 0.5
    noise: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8)
    angle: tuple[float, ...] = (90.0, 75.0, 60.0, 45.0, 30.0)
    condition: tuple[float, ...] = (1.0, 1.5, 2.0, 5.0, 10.0)
    lam: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03, 0.1)
    step_size: tuple[float, ...] = (0.1, 0.3, 0.5, 0.8, 1.0)
    base_noise: float = 0.0
    base_angle: float = 90.0
    base_condition: float = 1.0
    base_lam: float = 0.01
    base_step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ValueError(f"layers={self.layers}: must be at least 1")
        for name, lowest in (("eps", 1e-9), ("lam", 0), ("base_lam", 0), ("condition", 1), ("base_condition", 1)):
            values = getattr(self, name)
            smallest = min(values) if isinstance(values, tuple) else values
            if smallest < lowest:
                raise ValueError(f"{name}={smallest:g}: must be at least {lowest:g}")
        if min(*self.step_size, self.base_step_size) <= 0:
            raise ValueError("step_size, base_step_size: must be > 0")
        for angle in (self.base_angle, *self.angle):
            for noise in (self.base_noise, *self.noise):
                union_of_subspaces(self.subspaces, self.dim, self.ambient, 1, noise, angle)

    @property
    def factor(self) -> float:
        """γ, the factor of MSSA."""
        return gamma(self.tokens, self.dim, self.eps)


SETTINGS = ReconstructSettings


def quick(settings: ReconstructSettings) -> ReconstructSettings:
    """The same in seconds."""
    shorter = {name: (getattr(settings, name)[0], getattr(settings, name)[-2]) for name in _SWEEPS}
    return replace(settings, seeds=3, layers=3, tokens=64, **shorter)


@dataclass(frozen=True)
class MatchedLayer:
    """An encoder layer without LayerNorm and the decoder layer that is meant to undo it.

    f(Z) = ISTA(Z + M(Z)) with one step from its own input, g(A) = A Dᵀ − M(A Dᵀ), M = MSSA with its output tied
    to U.

    Attributes:
        bases: U `(K, d, p)`.
        dictionary: D `(d, d)`.
        eta, lam, signed: of the ISTA step.
        factor: in front of M.
        scale: inside its softmax.
    """

    bases: Tensor
    dictionary: Tensor
    eta: float
    lam: float
    signed: bool
    factor: float
    scale: float

    @cached_property
    def dictionary_norm(self) -> float:
        """‖D‖."""
        return torch.linalg.matrix_norm(self.dictionary, 2).item()

    @cached_property
    def bases_norm(self) -> float:
        """‖[U_1 … U_K]‖."""
        return torch.linalg.matrix_norm(self.bases.movedim(0, 1).flatten(1), 2).item()

    def attention(self, Z: Tensor) -> Tensor:
        """M(Z)."""
        return mssa(Z, self.bases, scale=self.scale, factor=self.factor)

    def compress(self, Z: Tensor) -> Tensor:
        """Z + M(Z)."""
        return Z + self.attention(Z)

    def encode(self, Z: Tensor) -> Tensor:
        """f(Z)."""
        X = self.compress(Z)
        return ista(X, self.dictionary, self.eta, self.lam, 1, X, self.signed)

    def decode(self, A: Tensor) -> Tensor:
        """g(A)."""
        Y = A @ self.dictionary.mT
        return Y - self.attention(Y)


@dataclass(frozen=True)
class InverseErrors:
    """Relative errors ‖g(f(Z)) − Z‖ / ‖Z‖ in the Frobenius norm.

    Attributes:
        per_layer: of layer ℓ at the state that enters it, `(L)`.
        network: of the first ℓ layers, encoded and then decoded in reverse, one per depth ℓ asked for; the last is
            the whole network unless depths were chosen.
    """

    per_layer: Tensor
    network: Tensor


def inverse_errors(
    encoders: Sequence[Step],
    decoders: Sequence[Step],
    Z: Tensor,
    directions: bool = False,
    depths: Sequence[int] | None = None,
) -> InverseErrors:
    """Encode and decode with any layers, such as a trained autoencoder's.

    Args:
        encoders: f_1 ... f_L, each `(..., N, d)` -> `(..., N, d)`.
        decoders: g_1 ... g_L, where g_ℓ is meant to undo f_ℓ.
        Z: tokens `(..., N, d)` that enter the first layer.
        directions: compare the tokens after scaling each to length 1, for layers that forget the length.
        depths: numbers of layers to encode and decode together; `None` is 1 ... L.

    Raises:
        ValueError: not as many decoders as encoders, or none.
    """
    if not encoders or len(encoders) != len(decoders):
        raise ValueError(f"decoders: {len(decoders)} for {len(encoders)} encoders; need one for each, at least one")
    states = [Z]
    for encode in encoders:
        states.append(encode(states[-1]))
    per_layer = [
        _relative(decode(after), before, directions) for before, after, decode in zip(states, states[1:], decoders)
    ]
    network = []
    for depth in depths or range(1, len(encoders) + 1):
        back = states[depth]
        for decode in reversed(decoders[:depth]):
            back = decode(back)
        network.append(_relative(back, Z, directions))
    return InverseErrors(torch.stack(per_layer), torch.stack(network))


# --- The bound (derived in docs/theory.md) ------------------------------------------------------------------------


def attention_lipschitz(radius: float, num_tokens: int, scale: float) -> float:
    """Lipschitz constant of V -> softmax(s V Vᵀ) V in the Frobenius norm where every token is at most `radius` long.

    √c + s r² (1 + √c) with c = min(N, exp(2 s r²)), the largest column sum that the softmax can have.
    """
    bend = scale * radius**2
    column = math.sqrt(min(num_tokens, math.exp(min(2 * bend, 700.0))))
    return column + bend * (1 + column)


def mssa_lipschitz(layer: MatchedLayer, *points: Tensor) -> float:
    """Lipschitz constant of M on the set spanned by the points `(N, d)`: β ‖[U]‖² times that of its heads."""
    radius = max(float(project(Z, layer.bases).norm(dim=-1).max()) for Z in points)
    return layer.factor * layer.bases_norm**2 * attention_lipschitz(radius, points[0].shape[-2], layer.scale)


def layer_bound(layer: MatchedLayer, Z: Tensor) -> float:
    """Upper bound of ‖g(f(Z)) − Z‖_F: (1 + ℓ) ‖D‖ (‖E‖ + ‖shrink(S, ηλ) − S‖) + ℓ ‖M(Z)‖.

    S is the exact code of X = Z + M(Z), E = X + η (X − X Dᵀ) D − S what one step leaves out, ℓ of
    :func:`mssa_lipschitz`. `D` must be invertible.
    """
    D, X = layer.dictionary, layer.compress(Z)
    S = torch.linalg.solve(D, X.mT).mT
    E = X @ complete_ista_matrix(D, layer.eta) - S
    bias = shrink(S, layer.eta * layer.lam, layer.signed) - S
    lipschitz = mssa_lipschitz(layer, Z, X, layer.encode(Z) @ D.mT)
    undone = layer.dictionary_norm * float(E.norm() + bias.norm())
    return (1 + lipschitz) * undone + lipschitz * float((X - Z).norm())


def network_bounds(
    layers: Sequence[MatchedLayer], Z: Tensor, depths: Sequence[int] | None = None
) -> tuple[list[float], list[float]]:
    """Bounds of `InverseErrors.per_layer` and `.network`, relative to ‖Z‖ as these are.

    The error of a layer passes through the decoders before it, each of which stretches it by at most
    ‖D‖ (1 + ℓ): Y_{ℓ−1} − Z_{ℓ−1} is at most ‖D_ℓ‖ (1 + ℓ_ℓ) ‖Y_ℓ − Z_ℓ‖ + layer_bound.
    """
    states = [Z]
    for layer in layers:
        states.append(layer.encode(states[-1]))
    own = [layer_bound(layer, state) for layer, state in zip(layers, states)]
    network = []
    for depth in depths or range(1, len(layers) + 1):
        back, total = states[depth], 0.0
        for number in reversed(range(depth)):
            layer = layers[number]
            D = layer.dictionary
            lipschitz = mssa_lipschitz(layer, back @ D.mT, states[number + 1] @ D.mT)
            total = layer.dictionary_norm * (1 + lipschitz) * total + own[number]
            back = layer.decode(back)
        network.append(total / float(Z.norm()))
    return [bound / max(float(state.norm()), 1e-300) for bound, state in zip(own, states)], network


def _relative(a: Tensor, b: Tensor, directions: bool) -> Tensor:
    if directions:
        a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    return (a - b).norm() / b.norm().clamp_min(1e-300)


# --- The experiment -----------------------------------------------------------------------------------------------


def matched_layers(settings: ReconstructSettings, case: str, seed: int, point: dict[str, float]) -> tuple:
    """Tokens `(N, d)` and the layers of one case: U of every layer follows the tokens through the layers before."""
    aligned = case == "aligned"
    data = union_of_subspaces(
        settings.subspaces,
        settings.dim,
        settings.ambient,
        settings.tokens,
        point["noise"],
        point["angle"],
        seed,
        aligned,
    )
    bases, layers = data.bases, []
    for number in range(settings.layers):
        if aligned:
            D = _aligned_dictionary(bases, seed) if number == 0 else _permutation(settings.ambient, 97 * seed + number)
        else:
            D = dictionary_with_condition(settings.ambient, point["condition"], 1000 * (seed + 1) + 2 * number)
        eta = point["step_size"] / torch.linalg.matrix_norm(D, 2).square().item()
        layers.append(
            MatchedLayer(
                bases, D, eta, point["lam"], case in ("soft", "layernorm"), settings.factor, settings.dim**-0.5
            )
        )
        bases = orthonormalize(complete_ista_matrix(D, eta).mT @ bases)
    return data.tokens, layers


def run(settings: ReconstructSettings, track: Track = iter) -> Experiment:
    """Error and bound over the depth at the base point, and of single layers and the network over each sweep."""
    base = {name: getattr(settings, f"base_{name}") for name in _SWEEPS}
    values: dict[tuple, list[float]] = defaultdict(list)
    for seed in track(range(settings.seeds)):
        for case in CASES:
            for key, found in _base_values(settings, case, seed, base).items():
                values[key].append(found)
            for sweep in _SWEPT.get(case, ()):
                for value in getattr(settings, sweep):
                    for key, found in _sweep_values(settings, case, seed, base | {sweep: value}).items():
                        values[(sweep, value, case, *key)].append(found)
    rows = [_row(*key, values=found) for key, found in values.items()]
    return Experiment(
        name="reconstruct",
        title="How well do the decoder's layers undo the encoder's?",
        settings=settings,
        rows=tuple(rows),
        summary=tuple(_summary(settings, rows, values)),
        columns=("case", "one layer: error", "bound", f"{settings.layers} layers: error", "bound", "over half lost"),
        shown=tuple(_shown(settings, rows)),
        figures={"reconstruct": plot_depth(rows), "reconstruct_sweeps": plot_sweeps(rows)},
    )


_LAYER, _NETWORK = "one layer (mean over layers)", "whole network"


def _base_values(settings: ReconstructSettings, case: str, seed: int, base: dict[str, float]) -> dict[tuple, float]:
    """Errors and bounds by depth, `("depth", ℓ, case, of, what)`."""
    Z, layers = matched_layers(settings, case, seed, base)
    plain = case != "layernorm"
    encoders = [layer.encode if plain else _with_layer_norm(layer)[0] for layer in layers]
    decoders = [layer.decode if plain else _with_layer_norm(layer)[1] for layer in layers]
    errors = inverse_errors(encoders, decoders, Z, directions=not plain)
    found = {}
    bounds = network_bounds(layers, Z) if plain else None
    for number in range(settings.layers):
        where = ("depth", float(number + 1), case)
        found[(*where, "layer ℓ", "error")] = float(errors.per_layer[number])
        found[(*where, "first ℓ layers", "error")] = float(errors.network[number])
        if bounds:
            found[(*where, "layer ℓ", "bound")] = bounds[0][number]
            found[(*where, "first ℓ layers", "bound")] = bounds[1][number]
    return found


def _sweep_values(settings: ReconstructSettings, case: str, seed: int, point: dict[str, float]) -> dict[tuple, float]:
    """Errors and bounds of one layer and of the network at one point, `(of, what)`."""
    Z, layers = matched_layers(settings, case, seed, point)
    whole = [len(layers)]
    errors = inverse_errors([one.encode for one in layers], [one.decode for one in layers], Z, depths=whole)
    bounds = network_bounds(layers, Z, whole)
    return {
        (_LAYER, "error"): float(errors.per_layer.mean()),
        (_LAYER, "bound"): sum(bounds[0]) / len(layers),
        (_NETWORK, "error"): float(errors.network[-1]),
        (_NETWORK, "bound"): bounds[1][-1],
    }


def _with_layer_norm(layer: MatchedLayer) -> tuple[Step, Step]:
    """The layers as CRATE has them, with a LayerNorm (without its affine part) before each step."""

    def norm(Z: Tensor) -> Tensor:
        return layer_norm(Z, Z.shape[-1:])

    def encode(Z: Tensor) -> Tensor:
        X = norm(Z + layer.attention(norm(Z)))
        return ista(X, layer.dictionary, layer.eta, layer.lam, 1, X, layer.signed)

    def decode(A: Tensor) -> Tensor:
        Y = norm(A) @ layer.dictionary.mT
        return Y - layer.attention(norm(Y))

    return encode, decode


def _aligned_dictionary(bases: Tensor, seed: int) -> Tensor:
    """Orthonormal D whose first atoms are the bases' columns, so that non-negative coordinates are the codes."""
    joined = bases.movedim(0, 1).flatten(1)
    filling = torch.randn(len(joined), len(joined) - joined.shape[1], generator=generator(seed)).double()
    return orthonormalize(torch.cat((joined, filling), dim=1))


def _permutation(d: int, seed: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)[:, torch.randperm(d, generator=generator(seed))]


def _row(sweep: str, value: float, case: str, of: str, what: str, values: list[float]) -> Row:
    return {"sweep": sweep, "value": value, "case": case, "of": of, "what": what, **over_seeds(values)}


# --- Words --------------------------------------------------------------------------------------------------------


def _summary(settings: ReconstructSettings, rows: list[Row], values: dict[tuple, list[float]]) -> list[str]:
    sentences = [
        f"{settings.seeds} seeds; {settings.tokens} tokens of length 1 from {settings.subspaces} subspaces of "
        f"dimension {settings.dim} in {settings.ambient} dimensions; MSSA tied to U with factor γ = "
        f"{settings.factor:.3g}, softmax scale 1/√p; λ = {settings.base_lam:g}, η‖D‖² = {settings.base_step_size:g}; "
        "errors relative to ‖Z‖.",
        _bound_sentence(values),
    ]
    for case, words in CASES.items():
        one = _of_depth(rows, case, "layer ℓ", "error", 1)
        whole = _of_depth(rows, case, "first ℓ layers", "error", settings.layers)
        sentences.append(
            f"{words[0].upper()}{words[1:]}: one layer is undone up to {_percent(one)}, {settings.layers} layers up to "
            f"{_percent(whole)}."
        )
    for sweep, words in _SWEEPS.items():
        found = select(rows, sweep=sweep, case="soft", of=_NETWORK, what="error")
        path = ", ".join(f"{row['value']:g}: {100 * row['mean']:.3g} %" for row in found)
        sentences.append(f"Network error by {words}, soft threshold: {path}.")
    return sentences


def _bound_sentence(values: dict[tuple, list[float]]) -> str:
    """At how many points the error is below its bound on every seed, and at how many the bound says anything."""
    pairs = [(found, values[(*key[:-1], "error")]) for key, found in values.items() if key[-1] == "bound"]
    broken = sum(any(e > b for b, e in zip(bounds, errors)) for bounds, errors in pairs)
    useful = sum(max(bounds) < 1 for bounds, _ in pairs)
    held = f"holds at all {len(pairs)} points" if not broken else f"is broken at {broken} of {len(pairs)} points"
    return f"The bound {held}, on every seed; it is below 100 %, and so says something, at {useful} of them."


def _of_depth(rows: list[Row], case: str, of: str, what: str, depth: int) -> Row | None:
    found = select(rows, sweep="depth", value=float(depth), case=case, of=of, what=what)
    return found[0] if found else None


def _percent(row: Row | None) -> str:
    """'1.2 % (1.1 to 1.3)', the mean and its interval over seeds."""
    if row is None:
        return "–"
    return f"{100 * row['mean']:.3g} % ({100 * row['low']:.3g} to {100 * row['high']:.3g})"


def _shown(settings: ReconstructSettings, rows: list[Row]) -> list[tuple[str, ...]]:
    lines = []
    for case, words in CASES.items():
        cells = [
            _percent(_of_depth(rows, case, of, what, depth))
            for of, depth in (("layer ℓ", 1), ("first ℓ layers", settings.layers))
            for what in ("error", "bound")
        ]
        whole = _of_depth(rows, case, "first ℓ layers", "error", settings.layers)
        lines.append((words, *cells, "yes" if whole["mean"] > 0.5 else "no"))
    return lines


# --- Figures ------------------------------------------------------------------------------------------------------


def plot_depth(rows: list[Row]) -> Figure:
    """Error (solid) and bound (dashed) of the first ℓ layers, one colour per case."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (case, words) in enumerate(CASES.items()):
        _pair(axes, [row for row in select(rows, sweep="depth", case=case, of="first ℓ layers")], index, words)
    _finish(axes, "first ℓ layers, encoded and decoded (dashed: bound)")
    _style(axes, columns=1)
    return figure


def plot_sweeps(rows: list[Row]) -> Figure:
    """Network error (solid) and bound (dashed) over each sweep, one colour per case."""
    figure = Figure(figsize=(7.4, 5.0), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, (sweep, label) in zip(panels, _SWEEPS.items()):
        for index, (case, words) in enumerate(CASES.items()):
            _pair(axes, select(rows, sweep=sweep, case=case, of=_NETWORK), index, words)
        _finish(axes, label)
        if sweep == "condition":
            axes.set_xscale("log")
        if sweep == "lam":
            _price_axis(axes, sorted({row["value"] for row in select(rows, sweep=sweep)}))
        if not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
        _style(axes)
        axes.get_legend().remove()
    last = figure.axes[-1]
    last.set_axis_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    last.legend(
        handles,
        names,
        loc="center",
        fontsize=8.5,
        frameon=False,
        title="whole network\nsolid: error, dashed: bound",
        title_fontsize=8.5,
    )
    return figure


def _pair(axes, rows: list[Row], index: int, name: str) -> None:
    """Error and bound of one case."""
    for what, line in (("error", "-"), ("bound", "--")):
        found = select(rows, what=what)
        if not found:
            continue
        x, style = [row["value"] for row in found], {"color": COLOURS[index], "linestyle": line, "linewidth": 1.4}
        marker = _MARKERS[index] if what == "error" else None
        axes.plot(
            x, [row["mean"] for row in found], marker=marker, markersize=3.5, label=name if marker else None, **style
        )
        low, high = [max(row["low"], 1e-4) for row in found], [row["high"] for row in found]
        axes.fill_between(x, low, high, color=COLOURS[index], alpha=0.15, linewidth=0)


def _price_axis(axes, values: list[float]) -> None:
    """λ on a scale that is logarithmic but shows 0."""
    axes.set_xscale("symlog", linthresh=max(values[min(1, len(values) - 1)], 1e-9))
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8, rotation=45)
    axes.minorticks_off()


def _finish(axes, label: str) -> None:
    axes.set_yscale("log")
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel("error relative to ‖Z‖")
