"""The measures of a run's layers over its epochs, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LABELS = {
    "subspace_rate_before": r"$R^c(Z^\ell\,|\,U^\ell)$ (nats per image)",
    "subspace_rate": r"$R^c(Z^{\ell+1/2}\,|\,U^\ell)$ (nats per image)",
    "rate": r"$R(Z^{\ell+1/2})$ (nats per image)",
    "rate_reduction": r"$\Delta R(Z^{\ell+1/2})$ (nats per image)",
    "nonzero_fraction": r"$\Vert Z^{\ell+1}\Vert_0 / (d N)$",
    "l1_per_token": r"$\Vert Z^{\ell+1}\Vert_1 / N$",
    "dead_atoms": "atoms that never fire (fraction)",
}
"""Axis labels of what `whitebox_callback` logs."""
_WIDTH = 3.9


def plot_training_measures(
    white_box: Mapping[str, Any], keys: Sequence[str] = ("subspace_rate", "nonzero_fraction")
) -> Figure:
    """One panel per measure: its mean over the inputs against the epoch, one line per layer, first dark, last bright.

    Args:
        white_box: the entry of that name in a run's `metrics.json`.
        keys: of `LABELS`.

    Raises:
        ValueError: nothing was measured, or a key that was not.
    """
    rows = white_box["history"]
    for key in keys:
        if not rows or key not in rows[0]:
            raise ValueError(f"white_box: no measure '{key}' in it; train with logging.measure_inputs above 0")
    epochs, layers = [row["epoch"] for row in rows], len(rows[0][keys[0]])
    each = white_box.get("inputs", "images").removesuffix("s")
    colours = [colormaps["viridis"](0.9 * layer / max(1, layers - 1)) for layer in range(layers)]
    figure = Figure(figsize=(_WIDTH, 2.5 * len(keys) + 0.3), layout="constrained")
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    for axes, key in zip(panels, keys):
        for layer, colour in enumerate(colours):
            axes.plot(epochs, [row[key][layer] for row in rows], color=colour, linewidth=1.3, label=f"{layer + 1}")
        axes.set_ylabel(LABELS[key].replace("image", each), fontsize=9)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(
        lines, names, title="layer", loc="outside upper center", ncols=min(12, layers), fontsize=8, title_fontsize=8,
        frameon=False, handlelength=0.9, columnspacing=0.7,
    )  # fmt: skip
    return figure
