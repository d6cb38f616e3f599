"""Figures of `AutoencoderMeasures`: errors over the depth, R^c along encoder and decoder, errors over noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..analysis.autoencoder import AutoencoderMeasures
from ..stats.intervals import bootstrap_mean
from .autoencoder_findings import UNRELATED
from .figures import COLOURS, UNTRAINED, WIDTH, _style

_MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_inverse(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> Figure:
    """Error of each layer with its inverse, and of the layers up to ℓ with theirs; raw and of directions.

    Args:
        subjects: measures by name.
        narrow: panels below one another, as wide as a report's figures.
    """
    figure, panels = _panels(4, narrow)
    panels = [panels[:2], panels[2:]]
    rows = (("", "relative to ‖Z‖", 1.0), ("_direction", "of directions", UNRELATED))
    for row, (name, words, line) in zip(panels, rows):
        for axes, what, title in zip(row, ("layer", "network"), ("layer ℓ alone", "layers up to ℓ together")):
            for index, (label, found) in enumerate(subjects.items()):
                values = found.values[f"{what}{name}_error"]
                _line(axes, found.layers, values, index, label)
            axes.axhline(line, color="#555555", linewidth=0.8, linestyle=":")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"error {words}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_title(title, fontsize=9)
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("encoder layer ℓ")
            _style(axes)
            axes.get_legend().remove()
    _legend(figure, panels[0][0], "dotted: an output of zeros, unrelated directions", narrow)
    return figure


def plot_rates(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> Figure:
    """R^c along the encoder and then the decoder, every layer under its own U; arguments as `plot_inverse`."""
    figure, panels = _panels(2, narrow)
    for axes, suffix, words in zip(panels, ("", "_unit"), ("raw tokens", "tokens of length 1")):
        for index, (label, found) in enumerate(subjects.items()):
            start = 0
            for before, after in (("encoder_before", "encoder_half"), ("decoder_before", "decoder_after")):
                first, last = (found.values[key + suffix].mean(0).tolist() for key in (before, after))
                _steps(axes, start, first, last, index, label, named=not start)
                start += len(first)
            axes.axvline(len(found.values["encoder_before"][0]) + 0.5, color="#555555", linewidth=0.8)
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("layer: encoder | decoder")
        axes.set_ylabel("$R^c$ under own U (nats)", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0)
        _style(axes)
        axes.get_legend().remove()
    _legend(figure, panels[0], "open: before the attention step, filled: after it", narrow)
    return figure


def plot_noise(subjects: Mapping[str, AutoencoderMeasures], narrow: bool = False) -> Figure:
    """A layer and its inverse on tokens with noise: error against the noisy tokens, and against the clean ones.

    Arguments as `plot_inverse`.
    """
    figure, panels = _panels(2, narrow)
    names = {"noise_error": "against the noisy tokens", "noise_left": "against the tokens without noise"}
    for axes, (key, words) in zip(panels, names.items()):
        for index, (label, found) in enumerate(subjects.items()):
            _line(axes, found.noise_levels, found.values[key], index, label)
        if key == "noise_left":
            first = next(iter(subjects.values()))
            put = first.values["noise_put"].mean(0).tolist()
            axes.plot(first.noise_levels, put, color="#555555", linewidth=0.8, linestyle=":")
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("length of the noise relative to the tokens'")
        axes.set_ylim(bottom=0)
        _style(axes)
        axes.get_legend().remove()
        axes.set_ylabel("error of directions,\nmean over layers", fontsize=9)
    _legend(figure, panels[0], "dotted: the noisy tokens; below it, noise was removed", narrow)
    return figure


def _panels(count: int, narrow: bool) -> tuple[Figure, list[Axes]]:
    """Panels in two columns, or in one as wide as a report's figures."""
    columns = 1 if narrow else 2
    height = 0.7 + 2.4 * count if narrow else 0.7 + 1.4 * count
    figure = Figure(figsize=(WIDTH if narrow else 7.4, height), layout="constrained")
    return figure, list(figure.subplots(count // columns, columns, squeeze=False).flat)


def _line(axes: Axes, x: Sequence[float], values, index: int, label: str) -> None:
    """Mean over images with its interval as a band."""
    found = bootstrap_mean(values)
    colour, untrained = COLOURS[index % len(COLOURS)], UNTRAINED in label
    style = {"linestyle": "--" if untrained else "-", "markerfacecolor": "white" if untrained else colour}
    marker = _MARKERS[index % len(_MARKERS)]
    axes.plot(x, found.mean.tolist(), color=colour, marker=marker, markersize=4, linewidth=1.4, label=label, **style)
    axes.fill_between(x, found.low.tolist(), found.high.tolist(), color=colour, alpha=0.2, linewidth=0)


def _steps(
    axes: Axes, start: int, first: Sequence[float], last: Sequence[float], index: int, label: str, named: bool
) -> None:
    """One attention step per layer: an open point, and a filled one joined to the next layer's."""
    colour, places = COLOURS[index % len(COLOURS)], [start + number for number in range(1, len(first) + 1)]
    offset = 0.12 * (index % len(_MARKERS))
    x = [place + offset for place in places]
    marker = _MARKERS[index % len(_MARKERS)]
    line = "--" if UNTRAINED in label else "-"
    axes.plot(
        x,
        last,
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.2,
        linestyle=line,
        label=label if named else None,
    )
    axes.plot(x, first, color=colour, marker=marker, markersize=4, markerfacecolor="white", linestyle="none")
    axes.vlines(x, first, last, color=colour, linewidth=0.8)


def _legend(figure: Figure, axes: Axes, note: str, narrow: bool) -> None:
    """One legend for all panels, above them, with a note."""
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if narrow else 2
    style = {"loc": "outside upper left", "fontsize": 8.5, "frameon": False, "title_fontsize": 8}
    figure.legend(handles, names, ncols=columns, title=note, **style)
