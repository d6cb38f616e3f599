"""Figures of measured layers: one measure over the layers, every half-step, what attention changes, where it looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..analysis.layers.registry import MEASURES, STATES, measure_key
from ..analysis.layers.result import LayerMeasures
from ..analysis.record.attention import AttentionMaps
from ..analysis.record.states import LEARNED
from ..stats.words import UNTRAINED
from . import figures
from .figures import WIDTH, band, finish

_MAPS_PER_ROW = 6
_EACH = " per image"  # left out of axes, which are the same for images and texts


def against(text: str, subspace_kind: str) -> str:
    """A formula with U^ℓ replaced by what the subspaces are, where they are no learned U."""
    return text if subspace_kind == LEARNED else text.replace("U^ℓ", subspace_kind.removesuffix(" per head"))


def plot_measure(series: Mapping[str, LayerMeasures], key: str, kinds: Mapping[str, str] | None = None) -> Figure:
    """One measure over the layers, one line with the 95 % interval of its mean as a band per entry of `series`.

    A rate against subspaces gets one panel per kind of subspaces, so that no two kinds share an axis (`kinds` by name,
    learned U where one is missing). Names that end in ", untrained" have the colour of the line before and are dashed.
    """
    measure = MEASURES[key]
    figure, panels = _panels_by_kind(series, measure.symbol, kinds)
    for name, colour, line in _styles(series):
        measures = series[name]
        if key in measures.values or key in measures.totals:
            band(panels[name], measures.layer_numbers, measures.interval(key), name, colour, line)
    words = f"{measure.words}\n" if measure.words else ""
    _finish(panels, measure.symbol, f"\n{words}({measure.unit.removesuffix(_EACH)})", kinds)
    return figure


def plot_half_steps(
    series: Mapping[str, LayerMeasures], quantity: str, kinds: Mapping[str, str] | None = None
) -> Figure:
    """One quantity by half-step: at ℓ−1 what enters layer ℓ, at ℓ−½ Z^{ℓ+½}, at ℓ what leaves, each under its U."""
    symbol = MEASURES[measure_key(quantity, "before")].symbol.replace("Z^ℓ", "Z")
    figure, panels = _panels_by_kind(series, symbol, kinds)
    for name, colour, line in _styles(series):
        layers = _half_steps(series[name], quantity)
        if not _needs_subspaces(symbol):  # one line; a layer's output is the next one's input
            layers = [dict(sorted({place: found for layer in layers for place, found in layer.items()}.items()))]
        for number, points in enumerate(layers):
            if points:
                band(panels[name], list(points), list(points.values()), None if number else name, colour, line)
    unit = MEASURES[quantity].unit.removesuffix(_EACH)
    _finish(panels, symbol, f"\n({unit})", kinds, "layers done (½: after attention)")
    return figure


def _half_steps(measures: LayerMeasures, quantity: str) -> list[dict[float, object]]:
    """Per layer the interval of each measured state, by how many layers are done."""
    places = {measure_key(quantity, state): place for state, place in zip(STATES, (-1.0, -0.5, 0.0))}
    found = {place: measures.interval(key) for key, place in places.items() if key in measures.values}
    return [
        {layer + place: interval[index] for place, interval in found.items()}
        for index, layer in enumerate(measures.layer_numbers)
    ]


def plot_changes(measures: Mapping[str, LayerMeasures], kinds: Mapping[str, str] | None = None) -> Figure:
    """What each layer's half-step does to R^c: the mean change with its 95 % interval, one colour per model."""
    symbol = "R^c( · | U^ℓ)"
    figure, panels = _panels_by_kind(measures, symbol, kinds)
    for index, (name, found) in enumerate(measures.items()):
        together = [other for other in measures if panels[other] is panels[name]]
        offset = 0.16 * (together.index(name) - (len(together) - 1) / 2)
        places = [layer + offset for layer in found.layer_numbers]
        figures.bars(panels[name], places, found.compression_changes(), name, index)
    for axes in set(panels.values()):
        figures.rule(axes, y=0)
        axes.set_xmargin(0.08)
    _finish(panels, symbol, "\n(nats)", kinds, before="change of ")
    return figure


def plot_rates(measures: LayerMeasures, subspace_kind: str = LEARNED) -> Figure:
    """R, R^c and ΔR of Z^{ℓ+½} over the layers of one model, with the 95 % intervals of their means as bands."""
    figure, (axes,) = figures.panels()
    for index, key in enumerate(("rate", "subspace_rate", "rate_reduction")):
        symbol = against(MEASURES[key].symbol.split(" = ")[0], subspace_kind)
        band(axes, measures.layer_numbers, measures.interval(key), figures.math(symbol), index)
    finish(axes, ylabel="coding rate (nats)")
    return figure


def plot_attention(attention: AttentionMaps, layer: int = -1) -> Figure:
    """Every head's class-token attention in one layer, each map stretched from 0 to its largest, the image beside."""
    return plot_maps(
        [
            (title, image, {f"head {head}": one for head, one in enumerate(maps[layer].numpy(), 1)})
            for title, image, maps in zip(attention.titles, attention.images, attention.maps)
        ]
    )


def plot_maps(found: Sequence[tuple[str, Tensor, Mapping[str, Any]]], columns: int = _MAPS_PER_ROW) -> Figure:
    """Maps of images, each stretched from 0 to its largest value, with the image before them.

    Args:
        found: of each image a title, itself `(C, H, W)` in [0, 1], and its maps `(rows, columns)` by name, equally
            many of each.
        columns: maps beside one another, at most.
    """
    count = max(len(maps) for *_, maps in found)
    columns = min(count, columns)
    lines = -(-count // columns)
    cell = WIDTH / (columns + 1)
    tall = max(image.shape[-2] / image.shape[-1] for _, image, _ in found)
    figure = Figure(figsize=(WIDTH, len(found) * (lines * (cell * tall + 0.12) + 0.24)), layout="constrained")
    for block, (title, image, maps) in zip(figure.subfigures(len(found), 1, squeeze=False)[:, 0], found):
        block.suptitle(figures.short(title, 60), fontsize=9, x=0.01, ha="left")
        grid = block.subplots(lines, columns + 1, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        figures.show_image(grid[0, 0], image, "image")
        for number, (name, one) in enumerate(maps.items()):
            axes = grid[number // columns, 1 + number % columns]
            axes.imshow(one, cmap="viridis", vmin=0, extent=(0, image.shape[-1], image.shape[-2], 0))
            axes.set_title(name, fontsize=8, pad=2)
    return figure


def _styles(names: Iterable[str]) -> list[tuple[str, int, str]]:
    """(name, colour, line) per curve: an untrained model takes the colour of the trained one before it."""
    found, colour = [], -1
    for name in names:
        dashed = name.endswith(UNTRAINED) and colour >= 0
        colour += not dashed
        found.append((name, colour, "--" if dashed else "-"))
    return found


def _needs_subspaces(symbol: str) -> bool:
    return "U^ℓ" in symbol or "R^c" in symbol


def _panels_by_kind(
    names: Iterable[str], symbol: str, kinds: Mapping[str, str] | None
) -> tuple[Figure, dict[str, Axes]]:
    """Axes below one another over the same layers, one per kind of subspaces if the symbol needs any; by name."""
    wanted = {name: (kinds or {}).get(name, LEARNED) if _needs_subspaces(symbol) else "" for name in names}
    different = list(dict.fromkeys(wanted.values()))
    figure, panels = figures.panels(len(different))
    return figure, {name: panels[different.index(kind)] for name, kind in wanted.items()}


def _finish(
    panels: Mapping[str, Axes],
    symbol: str,
    after: str,
    kinds: Mapping[str, str] | None,
    xlabel: str = "layer ℓ",
    before: str = "",
) -> None:
    """Labels and look of `_panels_by_kind`."""
    for axes, name in {axes: name for name, axes in panels.items()}.items():
        words = figures.math(against(symbol, (kinds or {}).get(name, LEARNED)))
        finish(axes, xlabel, f"{before}{words}{after}")
