"""The tables of a sweep from runs made by hand: no, one, several and undecided differences, one seed."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from opencrate.reports import figures, sweep_layers
from opencrate.reports.sweep import markdown, plot_ablation, sentences, write_ablation
from opencrate.reports.sweep_layers import claim_lines, plot_layers
from opencrate.studies.sweep import ArmRun, Sweep
from opencrate.studies.sweep_measures import LAYERS, MEASURES
from opencrate.studies.sweep_table import by_layer, headlines, layer_rows, summarise


def sweep_of(*seeds: int) -> Sweep:
    return Sweep("structure", "what is needed", "crate", seeds, {"crate": "a", "mlp": "b"})


def runs_of(differences, shape=(2, 8, 4)) -> list[ArmRun]:
    """Accuracies of 0.9 and 0.9 + the difference, one run per seed."""
    found = []
    for seed, difference in enumerate(differences):
        for arm, accuracy in (("crate", 0.9), ("mlp", 0.9 + difference)):
            values = {**dict.fromkeys(MEASURES), "accuracy": accuracy, "rate_reduction": 2.0, "parameters": 1000}
            found.append(ArmRun(arm, seed, "", "learned U", shape if arm == "mlp" else (2, 8, 4), values))
    return found


@pytest.mark.parametrize(
    ("differences", "words", "shown"),
    [
        (
            (-0.10, -0.11, -0.12),
            "accuracy -11.00 points (-13.48 to -8.52) to `crate`: lower.",
            "**-11.00 (-13.48 to -8.52)**",
        ),
        (
            (0.10, 0.11, 0.12),
            "accuracy +11.00 points (+8.52 to +13.48) to `crate`: higher.",
            "**+11.00 (+8.52 to +13.48)**",
        ),
        ((-0.01, 0.01, 0.0), "to `crate`: no significant difference.", "| +0.00 (-2.48 to +2.48) |"),
        ((0.01,), "accuracy +1.00 points to `crate`: no significant difference.", "| +1.00 |"),
    ],
)
def test_every_verdict(differences, words, shown):
    sweep, found = sweep_of(*range(len(differences))), runs_of(differences)
    cells = summarise(sweep, found)
    (sentence,) = sentences(sweep, cells)
    assert sentence.endswith(words)
    text = markdown(sweep, cells, found, "typed", "parameters")
    assert shown in text.replace("-0.00", "+0.00") and words in text and "nan" not in text and "None" not in text


def test_rates_against_other_subspaces_are_not_compared():
    cells = {(cell.arm, cell.measure): cell for cell in summarise(sweep_of(0, 1), runs_of((0, 0), shape=(4, 8, 2)))}
    assert cells["mlp", "rate_reduction"].verdict == "not compared" == cells["crate", "accuracy"].verdict
    row = cells["mlp", "rate_reduction"].to_row()
    assert row["difference"] is None and row["mean"] == 2.0


def test_files_and_figure(tmp_path):
    sweep, found = sweep_of(0), runs_of((0.1,))
    cells = write_ablation(tmp_path / "out", sweep, found, "typed")
    assert (tmp_path / "out" / "ablation.csv").read_text().splitlines()[
        1
    ] == "crate,accuracy,%,1,90.0,,,,,,,not compared"
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert content["table"][0]["values"] == [90.0] and content["measures"]["accuracy"]["scale"] == 100
    figure = plot_ablation(sweep, cells)
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_visible()] == [
        "accuracy (%)",
        "ΔR, last layer (nats)",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["crate", "mlp"]


def layered(*seeds: int, mlp: str = "learned U") -> tuple[Sweep, list[ArmRun]]:
    """Three layers; the arm `mlp` is 1 above `crate`, and seed s adds s. The untrained network is at 0."""
    sweep = Sweep("objectives", "what they do", "untrained", seeds, {"crate": "a", "mlp": "b"}, untrained="crate")
    found = []
    for seed in seeds:
        for arm, level in (("untrained", 0.0), ("crate", 10.0), ("mlp", 11.0)):
            layers = {key: [level + seed + layer for layer in range(3)] for key in LAYERS}
            claims = {"R^c falls": None if arm == "mlp" else seed > 0} | ({} if arm == "untrained" else {"more": True})
            values = {**dict.fromkeys(MEASURES), "knn": level / 100, "linear": level / 50}
            kind = mlp if arm == "mlp" else "learned U"
            found.append(ArmRun(arm, seed, "", kind, (2, 8, 4), values, layers, claims))
    return sweep, found


def test_layers_over_the_seeds():
    sweep, found = layered(0, 1, 2)
    one = by_layer(sweep, found)["crate", "nonzero"]
    assert one.mean.tolist() == [1100, 1200, 1300], "in per cent"
    assert float(one.high[0] - one.mean[0]) == pytest.approx(4.3027 * 100 / 3**0.5, rel=1e-4)
    rows = [row for row in layer_rows(sweep, found) if (row["arm"], row["measure"]) == ("mlp", "subspace_rate")]
    assert [(row["layer"], row["mean"], row["sd"], row["seeds"]) for row in rows] == [
        (1, 12.0, 1.0, 3),
        (2, 13.0, 1.0, 3),
        (3, 14.0, 1.0, 3),
    ]
    (first, *_) = layer_rows(*layered(4))
    assert (first["mean"], first["sd"], first["low"]) == (4.0, None, None)


def test_predictions_are_counted_by_seed():
    lines = claim_lines(*layered(0, 1))
    assert lines[-2:] == ["| R^c falls | 1 of 2 | 1 of 2 | 0 of 2, 2 undecided |", "| more | – | 2 of 2 | 2 of 2 |"]
    assert claim_lines(sweep_of(0), runs_of((0.1,))) == [], "none was judged"


def bars_of(axes) -> dict[str, tuple[list[float], list[float], list[tuple[float, float]]]]:
    """Arm -> x, means and (low, high) of its bars."""
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        bounds = [tuple(end[1] for end in segment) for segment in bars.get_segments()]
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()), bounds)
    return found


@pytest.mark.parametrize(("seeds", "half"), [((0, 2), 1.0), ((0, 1, 2), 4.3027 / 3**0.5)])
def test_figure_of_the_layers(seeds, half):
    """Bars are the range of two seeds, and t-intervals of three; rates against other subspaces are not drawn."""
    sweep, found = layered(*seeds, mlp="value projections per head")
    figure = plot_layers(sweep, summarise(sweep, found), found)
    first, rate, subspace_rate, *_ = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["untrained", "crate", "mlp"]
    assert bars_of(subspace_rate).keys() == {"untrained", "crate"}
    drawn = bars_of(rate)
    assert drawn["mlp"][1] == [12, 13, 14] and drawn["untrained"][1] == [1, 2, 3]
    assert drawn["mlp"][2][0] == pytest.approx((12 - half, 12 + half), rel=1e-4)
    assert [drawn[arm][0][1] for arm in sweep.names] == pytest.approx([1.75, 2, 2.25]), "side by side at layer 2"
    half_of_accuracy = [bar.get_segments()[0][:, 0] for bar in first.containers[1].lines[2]]
    assert (half_of_accuracy[0][1] - half_of_accuracy[0][0]) == pytest.approx(0), "the seeds do not differ"


def test_every_arm_looks_different():
    """Seven arms and the reference, which has no colour; the seventh has the first's colour and another line."""
    arms = {name: name for name in "abcdefg"}
    sweep = Sweep("s", "d", "untrained", (0,), arms, untrained="a")
    looks = {arm: sweep_layers._look(sweep, arm) for arm in sweep.names}
    assert len({tuple(look.values()) for look in looks.values()}) == 8
    assert looks["untrained"]["color"] == figures.GREY not in figures.COLOURS
    assert looks["a"]["color"] == looks["g"]["color"] and looks["g"]["fmt"] == "o:"


def test_tables_have_as_many_heads_as_cells():
    """The bar of R^c(Z | U) does not end its cell."""
    lines = markdown(*page(*layered(0, 1))).splitlines()
    tables = [(heads, rule) for heads, rule in pairwise(lines) if rule.startswith("| ---")]
    assert len(tables) == 3 + len(LAYERS)
    for heads, rule in tables:
        assert heads.replace("\\|", "").count("|") == rule.count("|"), heads


def page(sweep, found):
    return sweep, summarise(sweep, found), found, "typed", "parameters"


def test_the_page_says_only_what_is_so():
    """Sizes where they differ; a match where operations were counted."""
    text = markdown(*page(*layered(0, 1)))
    assert "Rates against other" not in text and "matched" not in text and "seeds 0, 1." in text
    text = markdown(*page(sweep_of(0), runs_of((0.1,), shape=(4, 8, 2))))
    assert "not\ncompared: `crate` d = 8, K = 2, p = 4, `mlp` d = 8, K = 4, p = 2." in text


def test_numbers_of_predictions_are_compared_where_they_are_the_same_predictions():
    sweep, found = layered(0, 1)
    found = [replace(run, values={**run.values, "held": seed}) for seed, run in enumerate(found)]
    cells = {cell.arm: cell for cell in summarise(sweep, found) if cell.measure == "held"}
    assert cells["crate"].difference is None, "`untrained` has one less"
    sweep = replace(sweep, reference="crate")
    cells = {cell.arm: cell for cell in summarise(sweep, found) if cell.measure == "held"}
    assert float(cells["mlp"].difference.mean) == 1 and cells["untrained"].difference is None


def test_page_of_objectives(tmp_path):
    sweep, found = layered(0, 1)
    cells = write_ablation(tmp_path, sweep, found, "typed")
    text = (tmp_path / "ablation.md").read_text()
    assert "- `mlp`: k-NN +11.00 points (+11.00 to +11.00) to `untrained`: higher." in text
    assert "- `mlp`: linear probe +22.00 points" in text and "## Predictions of the theory" in text
    assert "| `crate` | 10.50 ± 0.71 | 11.50 ± 0.71 | 12.50 ± 0.71 |" in text and "nan" not in text
    assert (tmp_path / "ablation-layers.csv").read_text().startswith("arm,measure,quantity,unit,layer,subspaces,seeds,")
    assert headlines(cells) == ["knn", "linear"]
