"""The part of a page about a training without labels."""

import pytest

from opencrate.reports.self_supervision import plot_self_supervision, self_supervision_part

NAMES = ("knn", "knn_majority", "linear", "linear_patches", "linear_last_two")


def metrics(collapsed=None, labelled=True):
    rows = [
        {"epoch": 0, "step": 0, "effective_rank": 9.0, "spread": 0.2},
        {"epoch": 1, "step": 5, "invariance": 0.5, "sigreg": 3.0, "effective_rank": 8.0, "spread": 0.2},
        {"epoch": 2, "step": 10, "invariance": 0.4, "sigreg": 1.5, "effective_rank": 7.0, "spread": 0.3},
    ]
    reading = {"name": "SIGReg", "value": 1.5, "healthy": "near 1.05, a Gaussian's", "fine": True, "advice": ""}
    unwell = {"name": "effective rank", "value": 7.0, "healthy": "9 to 90", "fine": False, "advice": "train longer"}
    seen = {"objective": "lejepa", "images": 90, "split": "training", "history": rows, "collapsed": collapsed}
    seen |= {"readings": [reading, unwell], "evaluations": [{"epoch": 2, "step": 10, "knn": 0.5, "linear": 0.75}]}
    found = {"self_supervision": seen}
    if labelled:
        one = {"interval": [0.4, 0.6], "train_images": 1000, "test_images": 360}
        found |= {
            "test": dict.fromkeys(NAMES, one),
            "untrained": dict.fromkeys(NAMES, 0.25),
            **dict.fromkeys(NAMES, 0.5),
        }
    else:
        seen["evaluations"] = []
    return found


def test_part():
    part = self_supervision_part(metrics(), "CRATE (digits-lejepa)", "run")
    readings, accuracies, figure = part.items
    assert readings.frame.to_dict("records")[1]["verdict"] == "train longer"
    assert (
        accuracies.frame["trained (%)"][0] == "50.00 (40.00 to 60.00)"
        and accuracies.frame["untrained (%)"][4] == "25.00"
    )
    assert "1,000 training images" in accuracies.note and "lejepa" in next(iter(figure.notes.values()))
    labels = [axes.get_ylabel() for axes in figure.figure.axes]
    assert labels == ["effective rank", "invariance", "sigreg", "accuracy (fraction)"]


def test_part_without_labels_and_with_a_collapse():
    collapsed = {"kind": "constant", "step": 5, "advice": "raise the weight of SIGReg"}
    part = self_supervision_part(metrics(collapsed, labelled=False), "CRATE", "run")
    assert len(part.items) == 2
    assert any(
        "Collapsed (constant) by step 5: raise the weight of SIGReg." in note for note in part.items[1].notes.values()
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_panels(labelled):
    figure = plot_self_supervision(metrics(labelled=labelled)["self_supervision"])
    assert len(figure.axes) == 3 + labelled
    rank = figure.axes[0].lines[0]
    assert list(rank.get_ydata()) == [9.0, 8.0, 7.0] and list(figure.axes[1].lines[0].get_xdata()) == [1, 2]
