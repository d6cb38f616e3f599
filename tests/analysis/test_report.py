"""The report: self-contained, complete, true to its numbers, and never half-written."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from opencrate.analysis.layers.analyze import WhiteBoxReport, analyze
from opencrate.analysis.record.attention import attention_maps
from opencrate.analysis.record.states import SUBSPACES, record
from opencrate.evaluation.classifier import evaluate_classifier
from opencrate.reports import figures as plots
from opencrate.reports.findings import compression_changes
from opencrate.reports.html import ReportContent, ReportFigure, ReportSection, ReportTable, write_report
from opencrate.reports.tables import TrainedModel, changes_table, comparison_table, layer_table
from opencrate.reports.whitebox import RunRecord, Subject, white_box_page
from opencrate.store.saved import untrained_copy

from .foreign_models import inputs_for, tiny
from .models import made_up_measures, split, tiny_crate, tiny_images

KEYS = ("rate", "subspace_rate_before", "subspace_rate", "rate_reduction", "nonzero_fraction", "l1_per_token")
KEYS = (*KEYS, "subspace_rate_unit_norm", "dead_atoms")
HISTORY = plots.TrainingHistory(train_loss=((1, 2.0), (2, 1.0)), eval_accuracy=((1, 0.4), (2, 0.5)))


@pytest.fixture(scope="module")
def analysis():
    model = tiny_crate()
    batches = split(tiny_images(6), 4)
    initial = untrained_copy(model, 5)
    return analyze(model, batches, initial=initial, released_tool=True, name="CRATE", measures=KEYS)


@pytest.fixture(scope="module")
def attention():
    return attention_maps(tiny_crate(), split(tiny_images(6), 4), num_images=2)


@pytest.fixture(scope="module")
def evaluation():
    return evaluate_classifier(tiny_crate(), [tiny_images(14)])


@pytest.fixture(scope="module")
def content(analysis, attention, evaluation):
    return make_content(analysis, attention, evaluation)


def make_content(analysis, attention, evaluation) -> ReportContent:
    subjects = [
        Subject("CRATE", analysis, TrainedModel("CRATE", 1000, evaluation, 30.0, HISTORY), attention),
        Subject("ViT", None, TrainedModel("ViT", 1020, evaluation)),
    ]
    run = RunRecord("held-out <b>images</b>", (("command", "opencrate train digits"),), (("recipe.yaml", "a: 1\n"),))
    section = ReportSection(
        "Theory & practice", ("A sentence of theory.",), tables=(ReportTable("t", ("a",), (("b",),)),)
    )
    return white_box_page("CRATE & digits", subjects, run, [section])


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("run") / "report.html", content)


class Resources(HTMLParser):
    """Everything a browser would load, every tag, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads, self.tags, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_report_loads_nothing_from_outside(written):
    page = written.read_text()
    found = Resources(page)
    assert len(found.loads) == found.tags.count("img") == 14 + 2
    assert all(load.startswith("data:image/png;base64,") for load in found.loads)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?://", page)


def test_report_says_everything(written, content):
    text = " ".join("".join(Resources(written.read_text()).text).replace("\xa0", " ").split())
    for sentence in (*content.summary, *(figure.measured for figure in content.figures)):
        assert re.sub(r"\^\{([^}]*)\}|\^(\S)", r"\1\2", sentence).replace("‖_", "‖") in text
    for words in ("CRATE & digits", "held-out <b>images</b>", "opencrate train digits", "a: 1", "1,020 (+2.0 %)"):
        assert words in text
    assert "trained in 30 seconds" in text


def test_files_beside_the_report_hold_the_numbers(written, analysis):
    rows = list(csv.DictReader(io.StringIO((written.parent / "layers.csv").read_text())))
    assert len(rows) == 2 * (len(KEYS) + 2) * 3 and {row["subspaces"] for row in rows} == {"learned U"}
    last = next(row for row in rows if (row["state"], row["measure"], row["layer"]) == ("trained", "rate", "3"))
    assert float(last["mean"]) == pytest.approx(analysis.measures.mean("rate")[2].item(), rel=1e-12)
    (again,) = map(WhiteBoxReport.from_dict, json.loads((written.parent / "layers.json").read_text()))
    assert again.series.keys() == {"trained", "initialisation"}
    assert all(torch.equal(again.initial.values[key], value) for key, value in analysis.initial.values.items())


def test_figures_are_written_as_pictures(written, content):
    shown = {figure.name for part in (content, *content.sections) for figure in part.figures}
    names = {path.name for path in (written.parent / "figures").iterdir()}
    folded = {f"attention_layer{layer}.png" for layer in (1, 2)}
    assert names == {f"{name}.{kind}" for name in shown for kind in ("png", "svg")} | folded
    for path in (written.parent / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_the_same_numbers_give_the_same_bytes(analysis, tmp_path):
    for name in ("one", "other"):
        figure = ReportFigure("rates", "Rates", plots.plot_rates(analysis.measures), alt="rates")
        (tmp_path / name).mkdir()
        write_report(tmp_path / name / "r.html", ReportContent("t", "s", (), figures=(figure,)))
    for file in ("r.html", "figures/rates.png", "figures/rates.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_sections_stand_under_their_heading_and_on_top(written):
    page = written.read_text()
    assert page.count("A sentence of theory.") == 2 and "<h2>Theory &amp; practice</h2>" in page
    assert "Every half-step, and further measures" in page and 'alt="fraction of m at each layer' in page


def test_a_failure_leaves_the_old_report(written, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, ReportContent("t", "s", ()))
    assert path.read_text() == "old" and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["report.html"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        write_report(tmp_path / "nowhere" / "report.html", ReportContent("t", "s", ()))


def test_texts_are_escaped_and_formulas_raised(tmp_path):
    table = ReportTable("‖Z^{ℓ+1}‖_0", ("<i>", "V_kU_kᵀ A_long"), (("x_0", "y^2"),))
    page = write_report(tmp_path / "r.html", ReportContent("<t>", "s", ("R^c < 1 %",), table)).read_text()
    for piece in (
        "R<sup>c</sup> &lt; 1&nbsp;%",
        "‖Z<sup>ℓ+1</sup>‖<sub>0</sub>",
        "&lt;i&gt;",
        "V<sub>k</sub>U<sub>k</sub>ᵀ A_long",
        "x_0",
        "y<sup>2</sup>",
    ):
        assert piece in page
    assert "<i>" not in page and "<title>&lt;t&gt;</title>" in page


def box(name: str = "CRATE", kind: str = "learned U", model_type: str = "crate", **means) -> WhiteBoxReport:
    """A report of made-up numbers."""
    return WhiteBoxReport(name, model_type, {"trained": made_up_measures(**means)}, kind)


def test_a_rising_rate_is_reported_as_rising(evaluation):
    rising = box(subspace_rate_before=[1.0, 1.0, 1.0], subspace_rate=[2.0, 3.0, 4.0], rate_reduction=[1.0, 2.0, 3.0])
    subject = Subject("CRATE", rising, TrainedModel("CRATE", 10, evaluation))
    report = white_box_page("t", [subject], RunRecord("images", ()))
    summary = " ".join(report.summary)
    assert "R^c(Z^{ℓ+½} | U^ℓ) does not fall overall: it goes from 2.0 to 4.0 nats." in summary
    assert "raises R^c( · | U^ℓ) in all 3 layers (mean changes from +1.0 to +3.0 nats; every 95 % interval" in summary
    assert "Of 4 predictions of the theory, 1 held on these inputs. Held: ΔR rises" in summary
    assert "initialisation" not in report.figures[1].measured
    with pytest.raises(ValueError, match="subjects: empty"):
        white_box_page("t", [], RunRecord("images", ()))
    with pytest.raises(ValueError, match="two of one name"):
        white_box_page("t", [subject, subject], RunRecord("images", ()))


def test_kinds_of_subspaces_are_never_mixed():
    """Each kind has its own panel, label and words; what needs no subspaces shares one panel."""
    kind = SUBSPACES["values"]
    numbers = {"subspace_rate_before": [3.0, 3.0], "subspace_rate": [2.0, 1.0]}
    subjects = [Subject("A", box("A", **numbers)), Subject("B", box("B", kind, "vit", **numbers))]
    page = white_box_page("t", subjects, RunRecord("images", ()))
    summary = " ".join(page.summary)
    assert "B was not derived from the objective and has no subspaces of its own" in summary
    assert "(A: learned U; B: value projections per head)" in summary and "B: Of " not in summary
    assert "B: Inside a layer, the step Z^ℓ → Z^{ℓ+½} lowers R^c( · | value projections)" in summary
    by_name = {figure.name: figure.figure for figure in page.figures}
    for name in ("compression", "subspace_rate"):
        labels = [axes.get_ylabel() for axes in by_name[name].get_axes()]
        assert (
            len(labels) == 2 and r"U^ℓ" in labels[0] and r"\mathrm{value projections}".replace(" ", r"\ ") in labels[1]
        )
    assert len(by_name["nonzero_fraction"].get_axes()) == 1
    (rows,) = {table.title: table.rows for table in page.tables if table.title.startswith("Does")}.values()
    assert rows[0] == ("1", "falls: -1.00 (-1.00 to -1.00)", "falls: -1.00 (-1.00 to -1.00)")
    assert "R^c(Z^{ℓ+½} | value projections) (nats per image)" in page.tables[2].columns


def test_any_model_has_a_report():
    model = tiny("gpt2")
    report = analyze(model, [inputs_for("gpt2")], initial="untrained", measures=KEYS[:-1], name="g")
    page = white_box_page("t", [Subject("g", report)], RunRecord("texts", ()))
    text = " ".join([*page.summary, *(figure.measured + figure.how for figure in page.figures)])
    assert "value projections" in text and "learned U" not in text and "predictions of the theory" not in text
    assert page.comparison is None and page.subtitle == "g, 3 texts"


def test_untrained_copy_is_seeded_and_leaves_the_random_state():
    model = tiny_crate()
    state = torch.get_rng_state()
    first, second, other = (untrained_copy(model, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    name = "crate.embeddings.cls_token"
    assert torch.equal(first[name], second[name]) and not torch.equal(first[name], other[name])


def test_attention_maps_are_the_class_tokens_rows():
    model, images = tiny_crate(), tiny_images(5)
    found = attention_maps(model, split(images, 2), num_images=3, image_mean=[0.5], image_std=[0.25])
    (states,) = record(model, [images["pixel_values"][:3]], attentions=True)
    assert found.maps.shape == (3, 3, 2, 2, 3) and found.images.shape == (3, 1, 4, 6)
    for layer, attention in enumerate(states.attentions):
        torch.testing.assert_close(found.maps[:, layer].flatten(2), attention[:, :, 0, 1:])
        own = attention[:, :, 0, 0]
        torch.testing.assert_close(found.maps[:, layer].sum((-1, -2)) + own, torch.ones_like(own))
    shown = (images["pixel_values"][:3] * 0.25 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found.images, shown)
    guess = states.logits.argmax(1).tolist()
    assert found.titles == tuple(f"is class {index}, said class {guess[index]}" for index in range(3))


def test_unknown_normalisation_stretches_the_image():
    found = attention_maps(tiny_crate(), [tiny_images(2)["pixel_values"]], num_images=2)
    assert found.images.amin((1, 2, 3)).tolist() == [0, 0] and found.images.amax((1, 2, 3)).tolist() == [1, 1]
    assert found.titles[0].startswith("said ")


def test_every_curve_is_labelled_and_shows_the_numbers(analysis):
    (axes,) = plots.plot_measure(analysis.series, "subspace_rate", {}).get_axes()
    assert axes.get_xlabel() == "layer ℓ" and "(nats)" in axes.get_ylabel()
    assert axes.get_legend_handles_labels()[1] == ["trained", "initialisation"]
    for line, measures in zip(axes.lines, analysis.series.values()):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_ydata().tolist() == measures.mean("subspace_rate").tolist()
    found = analysis.measures.interval("rate")
    band = plots.plot_rates(analysis.measures).get_axes()[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(found.low.min().item())
    assert band.max() == pytest.approx(found.high.max().item())


def test_half_steps_follow_the_states():
    """R needs no subspaces and is one line; R^c is drawn layer by layer, each under its own U."""
    report = analyze(tiny_crate(), [tiny_images(4)], measures="full", layers=[1, 2])
    found = report.measures
    (axes,) = plots.plot_half_steps(report.series, "rate").get_axes()
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0, 0.5, 1, 1.5, 2]
    keys = ("rate_before", "rate", "rate_after")
    expected = [*(found.mean(key)[0] for key in keys), *(found.mean(key)[1] for key in keys[1:])]
    assert line.get_ydata() == pytest.approx([float(value) for value in expected])
    (axes,) = plots.plot_half_steps(report.series, "subspace_rate").get_axes()
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 0.5, 1], [1, 1.5, 2]]


def test_changes_are_drawn_with_their_intervals(analysis):
    changes = compression_changes(analysis.measures)
    (axes,) = plots.plot_changes({"CRATE": changes}).get_axes()
    (container,) = axes.containers
    assert list(container.lines[0].get_ydata()) == [change.mean for change in changes]
    bars = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
    assert bars == [pytest.approx([change.low, change.high]) for change in changes]


def test_attention_figure_has_a_panel_per_head_of_the_chosen_layer(attention):
    last, first = (plots.plot_attention(attention, layer) for layer in (-1, 0))
    shown = [axes.images[0].get_array().tolist() for axes in last.get_axes() if axes.images]
    assert len(shown) == 2 * (1 + 2)
    assert shown[1] == attention.maps[0, -1, 0].tolist()
    assert first.get_axes()[1].images[0].get_array().tolist() == attention.maps[0, 0, 0].tolist()


def test_many_heads_wrap():
    maps = attention_maps(tiny_crate(hidden_size=24, num_attention_heads=8), [tiny_images(1)], num_images=1)
    titles = [axes.get_title() for axes in plots.plot_attention(maps).get_axes()]
    assert [title for title in titles if title] == ["image", *(f"head {head}" for head in range(1, 9))]


def test_confusion_and_training_figures(evaluation):
    axes = plots.plot_confusion(evaluation).get_axes()[0]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    nonzero = {(c, r): str(int(evaluation.confusion[r, c])) for r, c in evaluation.confusion.nonzero().tolist()}
    assert counts == nonzero and (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    loss, accuracy = plots.plot_training({"CRATE": HISTORY}).get_axes()
    assert loss.get_ylabel() == "loss (nats per image)" and accuracy.get_xlabel() == "epoch"
    assert loss.get_legend_handles_labels()[1] == ["CRATE, training"]
    assert list(accuracy.lines[0].get_ydata()) == [0.4, 0.5]
    names = {"CRATE (digits)": plots.TrainingHistory(train_loss=HISTORY.train_loss), "ViT (digits-vit)": HISTORY}
    figure = plots.plot_training(dict(list(names.items())[:1]))
    (only,) = figure.get_axes()  # no empty panel where nothing was held out
    assert only.get_xlabel() == "epoch"
    figure = plots.plot_training(names)
    figure.canvas.draw()
    legend = figure.get_axes()[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1


def test_comparison_and_layer_tables(evaluation):
    table = comparison_table([TrainedModel("a", 200, evaluation, 1.25), TrainedModel("b", 190, evaluation)])
    assert [row[1] for row in table.rows] == ["200", "190 (-5.0 %)"] and "top-5" in table.columns
    assert [row[-2] for row in table.rows] == ["1.2", "–"]
    layers = layer_table("t", made_up_measures(rate=[3.0, 2.0]))
    column = layers.columns.index("R(Z^{ℓ+½}) (nats per image)")
    assert [row[column] for row in layers.rows] == ["3.00 (2.75 to 3.25)", "2.00 (1.75 to 2.25)"]
    one, two = (
        compression_changes(made_up_measures(subspace_rate_before=[2.0] * n, subspace_rate=[3.0] * n)) for n in (1, 2)
    )
    rows = changes_table({"one": one, "two": two}).rows
    assert rows[0][1].startswith("rises: +1.00") and rows[1][1] == "–"


def test_a_figure_alone_is_enough(tmp_path):
    figure = ReportFigure("one", "One", Figure(), alt="nothing")
    page = write_report(tmp_path / "r.html", ReportContent("t", "s", (), figures=(figure,))).read_text()
    assert 'alt="nothing"' in page and "Theory predicts" not in page and "What was run" not in page
