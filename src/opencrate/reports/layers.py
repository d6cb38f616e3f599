"""What pages say about measured layers: a figure with its prediction for each measure, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..analysis.layers.analyze import LayerAnalysis
from ..analysis.layers.claims import sparsity_key
from ..analysis.layers.registry import MEASURES, measure_key
from ..analysis.layers.result import LayerMeasures
from ..analysis.record.attention import AttentionMaps
from ..analysis.record.states import LEARNED
from ..stats import words
from ..stats.intervals import ABOVE, BELOW, UNDECIDED
from ..stats.words import UNTRAINED
from . import layer_figures as plots, tables
from .html import HOW, MEASURED, PREDICTED, Figure, Table
from .layer_figures import against

CRATES = ("crate", "crate_mae", "crate_text")
"""Model types that were derived from the objective."""

COMPRESSION = "Does attention lower R^c?"
PREDICTED_OF = {
    "subspace_rate": (
        "Compression over the layers",
        "Attention is derived as a step that lowers R^c, so R^c should fall from layer to layer.",
    ),
    "rate_reduction": (
        "The objective: R, R^c and ΔR of Z^{ℓ+½}",
        "ΔR = R − R^c should rise: compressed within the subspaces, spread out as a whole.",
    ),
    "nonzero_fraction": (
        "Sparsification: entries of Z^{ℓ+1} that are not zero",
        "Each CRATE layer ends in a step towards a sparse non-negative code, so the fraction should fall with "
        "depth; in the paper's trained models it does, except at the last layer.",
    ),
    "code_nonzero_fraction": (
        "Sparsification: entries of the code A^ℓ that are not zero",
        "Each CRATE layer computes a sparse code A^ℓ and decodes it into Z^{ℓ+1}, which need not be sparse; the "
        "fraction of the code should fall with depth.",
    ),
    "subspace_rate_unit_norm": (
        "The same with every token scaled to length 1",
        "R^c also falls when tokens only shrink; here what is left must come from their directions.",
    ),
    "released_subspace_rate": (
        "What the paper's released measuring tool prints",
        "The paper's curves, made with this tool, fall with depth.",
    ),
}
"""Measures over the layers that have a figure of their own: its title, and what the theory predicts."""


def layer_table(title: str, measures: LayerMeasures, subspace_kind: str = LEARNED) -> Table:
    """One row per layer, one column per measure, the mean over inputs with its 95 % bootstrap interval."""
    columns: dict[str, Sequence[object]] = {"layer": list(measures.layer_numbers)}
    for key in [*measures.values, *measures.totals]:
        measure, found = MEASURES[key], measures.interval(key)
        digits = 3 if measure.unit.startswith("fraction") else 2
        cells = [words.interval(found[index], digits) for index in range(measures.num_layers)]
        columns[f"{against(measure.title, subspace_kind)} ({measure.unit})"] = cells
    note = (
        f"Mean over {words.plural(measures.num_inputs, 'input')} and its 95 % bootstrap interval; "
        f"ε = {measures.eps:g} unless said; R^c against {subspace_kind}."
    )
    return Table(title, tables.frame(dict(zip(columns, row)) for row in zip(*columns.values())), note)


def changes_table(boxes: Mapping[str, LayerAnalysis]) -> Table:
    """One row per layer, one column per model: what the half-step does to R^c, with its interval and a verdict."""
    verbs = {BELOW: "falls", ABOVE: "rises", UNDECIDED: "undecided"}
    cells = {}
    for name, box in boxes.items():
        found = box.measures.compression_changes()
        cells[name] = {
            layer: f"{verbs[found[index].sign]}: {words.interval(found[index], 2, signed=True)}"
            for index, layer in enumerate(box.measures.layer_numbers)
        }
    layers = sorted({layer for one in cells.values() for layer in one})
    rows = [{"layer": layer, **{name: one.get(layer) for name, one in cells.items()}} for layer in layers]
    note = (
        "Mean change in nats from Z^ℓ to Z^{ℓ+½}, paired input by input, its 95 % bootstrap interval, and its sign. "
        "Each interval is for its own layer; they are not widened for the number of layers."
    )
    return Table(COMPRESSION, tables.frame(rows), note)


def change_figure(boxes: Mapping[str, LayerAnalysis]) -> Figure:
    """What each layer's half-step does to R^c, of one model or several, with intervals."""
    return Figure(
        name="compression",
        title=COMPRESSION,
        figure=plots.plot_changes({name: box.measures for name, box in boxes.items()}, _kinds(boxes)),
        alt="Change of R^c from Z^ℓ to Z^{ℓ+½} at each layer, with its 95 % interval",
        notes={
            PREDICTED: (
                "CRATE's attention is derived as a step that lowers R^c under the layer's own U, so every change "
                "should lie below 0. It is one of several approximations away from that step, so the theory can fail "
                "here. For other models nothing is predicted."
                + "".join(
                    f" {name}: the step itself; R^c must fall on every input."
                    for name, box in boxes.items()
                    if box.guaranteed
                )
            ),
            MEASURED: " ".join(_each(boxes, lambda box: describe_compression(box.measures, box.subspace_kind))),
            HOW: (
                "Change from Z^ℓ to Z^{ℓ+½}, paired input by input, mean and 95 % bootstrap interval (bars). "
                + _how(boxes, "subspace_rate")
            ),
        },
    )


def describe_compression(measures: LayerMeasures, subspace_kind: str = LEARNED) -> str:
    """One sentence on whether each layer's Z^ℓ → Z^{ℓ+½} lowers R^c under that layer's own subspaces."""
    found = measures.compression_changes()
    digits = 1 if float(found.mean.abs().max()) >= 1 else 3
    sizes = f"mean changes {words.span(found.mean, digits, signed=True)} nats"
    what = against("R^c( · | U^ℓ)", subspace_kind)
    head, count = "Inside a layer, the step Z^ℓ → Z^{ℓ+½}", measures.num_layers
    if measures.num_inputs == 1:
        return f"{head} lowers the mean of {what} in {int((found.mean < 0).sum())} of {count} ({sizes}; one input)."
    groups = {
        side: [layer for layer, sign in zip(measures.layer_numbers, found.signs) if sign == side]
        for side in (BELOW, ABOVE, UNDECIDED)
    }
    every, total = "the only layer" if count == 1 else f"all {count} layers", words.plural(count, "layer")
    for verb, side in (("lowers", BELOW), ("raises", ABOVE)):
        if len(groups[side]) == count:
            return f"{head} {verb} {what} in {every} ({sizes}; every 95 % interval lies {side} 0)."
    parts = [f"lowers {what} in {len(groups[BELOW]) or 'none'} of {total} ({sizes})"]
    parts += [f"raises it in {words.layers(groups[ABOVE])}"] if groups[ABOVE] else []
    if groups[UNDECIDED]:
        parts.append(f"is undecided in {words.layers(groups[UNDECIDED])}, where the 95 % interval contains 0")
    return f"{head} {words.listing(parts)}."


def _trend(box: LayerAnalysis, key: str) -> str:
    nats = MEASURES[key].unit.startswith("nats")
    symbol = against(MEASURES[key].symbol, box.subspace_kind)
    return words.describe_trend(symbol, box.measures.mean(key), *(("nats", 1) if nats else ("", 3)))


def measure_figure(boxes: Mapping[str, LayerAnalysis], key: str) -> Figure | None:
    """One measure over the layers with what theory predicts of it; `None` where a model lacks it."""
    if not all_have(boxes, key):
        return None
    title, predicted = PREDICTED_OF[key]
    others = [name for name, box in boxes.items() if box.subspace_kind != LEARNED]
    if key == "nonzero_fraction" and others:
        predicted += f" {words.listing(others)}: not sparse by design, every entry is non-zero unless rounding says so."
    how = _how(boxes, key)
    if any(box.initial is not None for box in boxes.values()):
        how += f" {'Untrained' if len(boxes) > 1 else 'Initialisation'}: the same architecture, the same inputs."
    return Figure(
        name=key,
        title=title,
        figure=plots.plot_measure(_curves(boxes), key, _kinds(boxes)),
        alt=f"{MEASURES[key].unit} at each layer, {words.listing(_curves(boxes))}",
        notes={
            PREDICTED: _theory(boxes, predicted),
            MEASURED: " ".join(_each(boxes, lambda box: _trend(box, key))),
            HOW: how,
        },
    )


def objective_figure(boxes: Mapping[str, LayerAnalysis], key: str) -> Figure | None:
    """R, R^c and ΔR of the first model, those of the others folded."""
    if not all_have(boxes, "rate", "subspace_rate", key):
        return None
    title, predicted = PREDICTED_OF[key]
    alt = "R, R^c and their difference at each layer of the trained model"
    made = [
        Figure(f"{key}_{number}" if number > 1 else key, name, plots.plot_rates(box.measures, box.subspace_kind), alt)
        for number, (name, box) in enumerate(boxes.items(), 1)
    ]
    shown = f" Shown: {made[0].title}." if len(made) > 1 else ""
    notes = {PREDICTED: _theory(boxes, predicted), HOW: f"{_how(boxes, key)} Trained model only.{shown}"}
    return Figure(key, title, made[0].figure, alt, notes, tuple(made[1:]))


def further_figure(boxes: Mapping[str, LayerAnalysis], key: str, half_steps: bool) -> Figure:
    """One measure over the layers, or with `half_steps` one quantity at every half-step."""
    symbol = MEASURES[measure_key(key, "before")].symbol.replace("Z^ℓ", "Z") if half_steps else MEASURES[key].title
    said = f", {MEASURES[key].words}" if half_steps and MEASURES[key].words else ""
    kinds = set(_kinds(boxes).values())
    return Figure(
        name=f"half_steps_{key}" if half_steps else key,
        title=against(symbol, kinds.pop() if len(kinds) == 1 else "its own subspaces") + said,
        figure=(plots.plot_half_steps if half_steps else plots.plot_measure)(_curves(boxes), key, _kinds(boxes)),
        alt=f"{MEASURES[key].unit} at each {'half-step' if half_steps else 'layer'}, {words.listing(_curves(boxes))}",
        notes={HOW: _how(boxes, key)},
    )


def attention_figure(attention: AttentionMaps, name: str, number: int | None) -> Figure:
    """The class token's attention; `number` sets the files of several models apart."""
    layers = attention.maps.shape[1]
    key = "attention" if number is None else f"attention_{number}"
    alt = "For a few images, the attention of the class token to the patches in every head"
    how = (
        "The class token's row of each head's softmax map, on the patch grid, without smoothing; each panel is "
        "stretched from 0 to its own largest value; the first images of the set, not chosen."
    )
    folded = tuple(
        Figure(f"{key}_layer{layer}", f"Layer {layer}", plots.plot_attention(attention, layer - 1), alt)
        for layer in range(1, layers)
    )
    predicted = "Each head compares tokens within one subspace; theory makes no prediction for a single head."
    title = f"Last layer ({layers} of {layers})" + ("" if number is None else f": {name}")
    return Figure(key, title, plots.plot_attention(attention), alt, {PREDICTED: predicted, HOW: how}, folded)


def curves(boxes: Mapping[str, LayerAnalysis]) -> tuple[Figure, ...]:
    """R^c, the objective and sparsity over the layers: what there is to see where no input is like another."""
    made = [measure_figure(boxes, "subspace_rate"), objective_figure(boxes, "rate_reduction")]
    keys = {sparsity_key(box.measures) for box in boxes.values()}
    made += [measure_figure(boxes, key) for key in sorted(keys)]
    return tuple(figure for figure in made if figure is not None)


def all_have(boxes: Mapping[str, LayerAnalysis], *keys: str) -> bool:
    """Whether all models were measured by these."""
    return bool(boxes) and all({*keys} <= {*one.measures.values, *one.measures.totals} for one in boxes.values())


def _curves(boxes: Mapping[str, LayerAnalysis]) -> dict[str, LayerMeasures]:
    """What a figure shows: of one model all states of training, of several the trained and the untrained ones."""
    if len(boxes) == 1:
        return dict(next(iter(boxes.values())).series)
    found = {
        name + end: one for name, box in boxes.items() for end, one in (("", box.measures), (UNTRAINED, box.initial))
    }
    return {name: measures for name, measures in found.items() if measures is not None}


def _kinds(boxes: Mapping[str, LayerAnalysis]) -> dict[str, str]:
    """What the subspaces are, by the curves' names."""
    if len(boxes) == 1:
        (box,) = boxes.values()
        return dict.fromkeys([*boxes, *box.series], box.subspace_kind)
    return {name + end: box.subspace_kind for name, box in boxes.items() for end in ("", UNTRAINED)}


def _each(boxes: Mapping[str, LayerAnalysis], sentence: Callable[[LayerAnalysis], str]) -> list[str]:
    """A sentence per model, with its name where there are several."""
    return [(f"{name}: " if len(boxes) > 1 else "") + sentence(box) for name, box in boxes.items()]


def _how(boxes: Mapping[str, LayerAnalysis], key: str) -> str:
    """How one measure was taken."""
    first = next(iter(boxes.values()))
    eps, rate = first.measures.eps_of(key), ""
    if eps is not None:
        rate = f"; ε = {eps:g}"
        if "U^ℓ" in MEASURES[key].symbol or "R^c" in MEASURES[key].symbol:
            learned = "U^ℓ as learned, not made orthonormal"
            kinds = {kind: learned if kind == LEARNED else f"subspaces: {kind}" for kind in _kinds(boxes).values()}
            rate += "; " + "; ".join(_each(boxes, lambda box: kinds[box.subspace_kind]))
    taken = MEASURES[key].how
    if first.inputs == "texts":
        taken = taken.replace(", class token included", ", padding left out").replace("images", "texts")
    count = first.measures.num_inputs
    spread = ", mean and its 95 % bootstrap interval (band)" if count > 1 else ""
    return f"{words.plural(count, first.inputs.removesuffix('s'))}{spread}; {taken}{rate}."


def _theory(boxes: Mapping[str, LayerAnalysis], text: str) -> str:
    """What the theory predicts, or that it predicts nothing where no model is a CRATE."""
    crates = any(box.model_type in CRATES for box in boxes.values())
    return text if crates else f"Nothing for this model. Of a CRATE: {text}"
