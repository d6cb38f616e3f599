"""The tables of a sweep from runs made by hand: no, one, several and undecided differences, one seed."""

import json

import pytest

from opencrate.reports.sweep import markdown, plot_ablation, sentences, write_ablation
from opencrate.studies.sweep import ArmRun, Sweep
from opencrate.studies.sweep_measures import MEASURES
from opencrate.studies.sweep_table import summarise


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
