"""The report layer: pages that need nothing else, tables, files, and figures drawn once and the same."""

import json
import math
import re

import pandas
import pytest
import torch
from markupsafe import Markup

from opencrate import reports
from opencrate.analysis.layers.analyze import LayerAnalysis
from opencrate.reports import figures, html, tables
from opencrate.reports.html import Figure, Part, Report, Table, write
from opencrate.stats.intervals import bootstrap_mean, seed_interval

from .models import made_up_measures


def drawing():
    figure, (axes,) = figures.panels()
    figures.band(axes, [1, 2, 3], bootstrap_mean(torch.rand(5, 3, dtype=torch.float64)), "mean", 0)
    figures.finish(axes, ylabel="nats")
    return figure


@pytest.fixture(scope="module")
def report():
    folded = Figure("two", "Layer 2", drawing(), "another line")
    figure = Figure("one", "Rates of R^c", drawing(), "a line", {html.MEASURED: "5 %", html.HOW: ""}, (folded,))
    table = Table("‖Z^{ℓ+1}‖_0", tables.frame([{"layer": 1, "R^c": 0.5, "n": 1234}, {"layer": 2, "R^c": math.nan}]))
    parts = (
        Part("Figures", ("Falls at 1 of 2 layers.",), (figure, table, Markup("<p id='own'>own</p>"))),
        Part("Details", (), (Table("<i>", tables.frame([{"a": "V_kU_kᵀ A_long", "b": "x_0"}])),), folded=True),
    )
    summary = ("R^c < 1 %", Markup("Look at {}.").format(html.link("the figures", "Figures")))
    files = {"rows.csv": tables.frame([{"a": 1, "b": None}]), "rows.json": [{"a": math.nan, "b": math.inf}]}
    return Report("<t>", "s", summary, parts, (("command", "x & y"),), (("recipe", "a: 1\n"),), files)


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    return write(report, tmp_path_factory.mktemp("out") / "new")


def test_a_page_shows_its_parts(page):
    text = page.read_text()
    for piece in (
        "<title>&lt;t&gt;</title>",
        "R<sup>c</sup> &lt; 1&nbsp;%",
        '<a href="#figures">the figures</a>',
        '<h2 id="figures">',
        "<b>Measured.</b> 5&nbsp;%",
        "‖Z<sup>ℓ+1</sup>‖<sub>0</sub>",
        '<th scope="row">1</th><td>0.5</td><td>1,234</td>',
        '<th scope="row">2</th><td>–</td><td>–</td>',
        "<p id='own'>own</p>",
        '<details class="part" id="details">',
        "V<sub>k</sub>U<sub>k</sub>ᵀ A_long",
        "<td>x_0</td>",
        "x &amp; y",
        "<code>rows.csv</code>",
        "prefers-color-scheme: dark",
    ):
        assert piece in text, piece
    assert "<b>How.</b>" not in text and "<i>" not in text and "None" not in text


def test_a_page_needs_nothing_else(page):
    text = page.read_text()
    loads = re.findall(r'(?:src|href|srcset|data|action)="([^"]*)"', text)
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in loads)
    assert not re.search(r"<(?:script|link|iframe|object|embed)\b|url\(|@import|https?://", text)


def test_the_glossary_has_the_terms_that_are_used(page):
    text = page.read_text()
    assert "<dt>R<sup>c</sup></dt>" in text and "<dt>layer</dt>" in text and "<dt>perplexity</dt>" not in text
    plain = html.render(Report("t", "s", ("Nothing.",)), {})
    assert "Glossary" not in plain and "What was run" not in plain and "beside this page" not in plain


def test_files_are_beside_the_page(page):
    names = {path.name for path in page.parent.rglob("*") if path.is_file()}
    assert names == {".opencrate", "report.html", "rows.csv", "rows.json", "one.png", "one.svg", "two.png"}
    assert (page.parent / "rows.csv").read_text() == "a,b\n1,\n"
    assert json.loads((page.parent / "rows.json").read_text()) == [{"a": None, "b": "inf"}]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        torch.manual_seed(0)
        write(Report("t", "s", parts=(Part("p", (), (Figure("f", "F", drawing(), "f"),)),)), tmp_path / name)
    for file in ("report.html", "figures/f.png", "figures/f.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_an_old_report_is_kept(tmp_path, monkeypatch):
    path = write(Report("t", "old", page="p.html"), tmp_path)
    assert path == tmp_path / "p.html"
    with pytest.raises(ValueError, match=r"p.html: exists; choose another folder, or pass overwrite=True"):
        write(Report("t", "new", page="p.html"), tmp_path)
    old = path.read_text()
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write(Report("t", "new", page="p.html"), tmp_path, overwrite=True)
    assert path.read_text() == old and not list(tmp_path.glob(".p.html*"))
    assert "new" in write(Report("t", "new", page="p.html"), tmp_path, overwrite=True).read_text()


def test_csv_and_json_keep_every_value():
    rows = [{"a": 1, "b": 0.1 + 0.2, "c": None, "d": "x,y"}, {"a": None, "b": 1e-20, "c": True, "d": "Z^ℓ"}]
    assert tables.to_csv(tables.frame(rows)) == 'a,b,c,d\n1,0.30000000000000004,,"x,y"\n,1e-20,True,Z^ℓ\n'
    frame = pandas.DataFrame({"a": [1.0, math.nan]})
    found = {"t": torch.tensor([1.0, math.nan]), "f": frame, "i": seed_interval([1.0, 1.0]), "n": 3, "x": -math.inf}
    plain = json.loads(tables.to_json(found))
    assert plain["t"] == [1.0, None] and plain["f"] == [{"a": 1.0}, {"a": None}] and plain["x"] == "-inf"
    assert plain["i"]["mean"] == 1.0 and plain["i"]["count"] == 2 and plain["n"] == 3


def test_a_band_shows_its_interval():
    found = seed_interval(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    forms = (
        found,
        [found[0], found[1]],
        [{n: float(getattr(found[i], n)) for n in ("mean", "low", "high")} for i in (0, 1)],
    )
    for form in forms:
        _, (axes,) = figures.panels()
        figures.band(axes, [1, 2], form, "a", 1, "--")
        assert list(axes.lines[0].get_ydata()) == [1.5, 3.0] and axes.lines[0].get_markerfacecolor() == "white"
        edge = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert edge.min() == pytest.approx(float(found.low.min())) and edge.max() == pytest.approx(
            float(found.high.max())
        )
    _, (axes,) = figures.panels()
    figures.bars(axes, [1, 2], found, "a", 0)
    (container,) = axes.containers
    assert container.lines[2][0].get_segments()[0][:, 1] == pytest.approx([float(found.low[0]), float(found.high[0])])
    figures.bars(axes, [1, 2], found, "b", 1, horizontal=True)
    figures.bars(axes, [1], [seed_interval([1.0])], "one run", 2)
    assert len(axes.containers) == 3


def test_one_legend_names_every_line():
    figure, both = figures.panels(2)
    for axes in both:
        figures.band(axes, [1, 2], seed_interval(torch.ones(2, 2)), "a", 0)
    figures.rule(both[0], y=0)
    figures.finish(both, "x", "y", together=True, note="dotted: zero")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"] and legend.get_title().get_text() == "dotted: zero"
    assert [axes.get_xlabel() for axes in both] == ["", "x"] and [axes.get_ylabel() for axes in both] == ["y", "y"]
    assert all(axes.get_legend() is None for axes in both)


def test_every_result_has_its_page(tmp_path):
    measured = LayerAnalysis("m", "crate", {"trained": made_up_measures(rate=[1.0, 2.0])})
    path = reports.write(measured, tmp_path / "m")
    assert {file.name for file in path.parent.iterdir()} == {
        ".opencrate",
        "figures",
        "layers.csv",
        "layers.json",
        "report.html",
    }
    assert reports.write(Report("t", "s"), tmp_path / "r").name == "report.html"
    with pytest.raises(ValueError, match="result: int has no page; give one of Report, LayerAnalysis, TheoryCheck"):
        reports.write(3, tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'wrote'"):
        _ = reports.wrote
