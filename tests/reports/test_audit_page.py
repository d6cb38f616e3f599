"""The audit's page from results made by hand: what is said of none, one, all and undecided layers."""

import math
import re
from dataclasses import replace

import pytest
import torch

from opencrate.analysis.audit.audit import TOKEN_MEASURES, Audit, LayerAudit
from opencrate.analysis.audit.fits import FITS, Fit
from opencrate.analysis.maths.geometry import dictionary_geometry, subspace_geometry
from opencrate.reports import audit_findings as words
from opencrate.reports.audit import audit_report, plot_blocks, plot_dictionary, plot_fits, plot_gains, plot_outside
from opencrate.reports.html import render, write

NOISE = torch.linspace(-0.5, 0.5, 20).double()


def fits(**means: float) -> dict[str, Fit]:
    """Fits whose held-out log-likelihood is this on average; the learned ones vary so that 0 is undecided."""
    base = dict.fromkeys(FITS, 0.0) | means
    draws = torch.tensor([base["random"] - 0.01, base["random"] + 0.01])
    return {
        name: Fit(value + NOISE * (name == "learned"), 10.0, 3, draws if name == "random" else None)
        for name, value in base.items()
    }


def layer(number: int, learned: float, dims: int = 6, K: int = 2, dictionary: bool = True, control: bool = True):
    """A layer of which the learned subspaces gain this much over every control."""
    conditions = {"trained": fits(learned=learned), "shuffled": fits()} | ({"untrained": fits()} if control else {})
    bases = torch.eye(6)[:, : 2 * K].unflatten(1, (K, 2)).movedim(1, 0)
    return LayerAudit(
        layer=number,
        subspaces=subspace_geometry(bases),
        dictionary=dictionary_geometry(torch.eye(6), 0.1) if dictionary else None,
        tokens={key: torch.full((4,), 0.25) for key in TOKEN_MEASURES},
        fits=conditions,
        dimensions=dict.fromkeys(conditions, dims),
    )


def audit_of(*gains: float, **options) -> Audit:
    layers = tuple(layer(number, gain, **options) for number, gain in enumerate(gains, start=1))
    return Audit(layers, "tiny", "noise", "learned U", "LN(Z^ℓ)", 40, 100, 100)


@pytest.mark.parametrize(
    ("gains", "counted", "verdict", "short"),
    [
        (
            (-1.0, -1.0),
            "above at 0, below at 2 and undecided at 0 of 2 layers",
            "at none of the 2",
            "at none of 2 layers.",
        ),
        (
            (1.0, -1.0),
            "above at 1, below at 1 and undecided at 0 of 2 layers",
            "at layer 1 of the 2",
            "at 1 of 2 layers.",
        ),
        (
            (1.0, 1.0),
            "above at 2, below at 0 and undecided at 0 of 2",
            "at layers 1 and 2 of the 2",
            "at all 2 layers.",
        ),
        (
            (0.0, 0.0),
            "above at 0, below at 0 and undecided at 2 of 2 layers",
            "at none of the 2",
            "at none of 2 layers.",
        ),
        ((1.0,), "above at 1, below at 0 and undecided at 0 of 1 layer ", "at layer 1 of the 1", "at the only layer."),
    ],
)
def test_every_verdict(gains, counted, verdict, short):
    found = audit_of(*gains)
    text = " ".join(words.describe(found))
    assert counted in text and f"and the untrained model {verdict} judged." in text
    assert short in audit_report([found]).summary[0]


def test_what_is_missing_is_said():
    text = " ".join(words.describe(audit_of(1.0, control=False, dictionary=False)))
    assert "random subspaces and shuffled tokens at layer 1" in text and "untrained model was not measured" in text
    assert "no dictionary" in text
    trivial = words.describe(audit_of(1.0, 1.0, dims=2))
    assert trivial[0].startswith("At layers 1 and 2 the tokens vary in 2 dimensions only, no more than the 2 of one")
    assert not any("full Gaussian" in line for line in trivial)
    assert words.describe_geometry(audit_of(1.0, K=1)).endswith("[U_1 … U_K] rank 2 of 6.")


def test_figures_show_every_layer_and_density():
    found = audit_of(1.0, -1.0, 0.0)
    (axes,) = plot_fits(found).axes
    assert len(axes.lines) == len(FITS) and list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert len(plot_gains(found).axes[0].lines) == 1 + 2 * 3 and plot_outside(found).axes[0].get_ylim() == (0, 1)
    blocks = plot_blocks(found)
    assert [axes.get_title() for axes in blocks.axes[:3]] == ["layer 1", "layer 2", "layer 3"]
    steps = plot_dictionary(found).axes[0].lines
    assert steps[0].get_label() == "stable below 2" and steps[1].get_ydata() == pytest.approx([0.1] * 3)
    assert math.isnan(audit_of(1.0, K=1).layers[0].geometry()["mean_overlap"])
    plot_blocks(audit_of(1.0, K=1))


def test_the_page(tmp_path):
    found, other = audit_of(1.0, -1.0), replace(audit_of(1.0, -1.0), name="other")
    page = write(audit_report([found, other], [("command", "some words")]), tmp_path).read_text()
    assert "Side by side" in page and "<h3>How likely held-out tokens are (tiny)" in page and "some words" in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and re.search(r'href="#([^"]*)"', page)[1] in ids
    text = re.sub(r"<(style|img)[^>]*>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bNone\b|\bnan\b|all 1 ", text)
    assert {path.name for path in (tmp_path / "figures").glob("*_2.png")} == {
        f"audit_{name}_2.png" for name in ("fits", "gains", "outside", "blocks", "dictionary")
    }
    alone = audit_report([audit_of(1.0, dictionary=False)])
    assert [one.name for one in alone.figures] == ["audit_fits", "audit_gains", "audit_outside", "audit_blocks"]
    assert "Side by side" not in render(alone, dict.fromkeys([one.name for one in alone.figures], b""))
