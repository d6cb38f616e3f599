"""The report: self-contained, complete, true to its numbers, and never half-written."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from opencrate.analysis.layers.analyze import LayerAnalysis, analyze
from opencrate.analysis.record.attention import attention_maps
from opencrate.analysis.record.states import SUBSPACES, record
from opencrate.evaluation.classifier import evaluate_classifier
from opencrate.reports import layer_figures as plots
from opencrate.reports.classifier import TrainedModel, comparison_table, plot_confusion
from opencrate.reports.html import MEASURED, Part, Report, Table, write
from opencrate.reports.layers import changes_table, layer_table
from opencrate.reports.tables import frame
from opencrate.reports.training import TrainingHistory, plot_training
from opencrate.reports.whitebox import RunRecord, Subject, model_page
from opencrate.store.saved import untrained_copy

from .foreign_models import inputs_for, tiny
from .models import made_up_measures, split, tiny_crate, tiny_images

KEYS = ("rate", "subspace_rate_before", "subspace_rate", "rate_reduction", "nonzero_fraction", "l1_per_token")
KEYS = (*KEYS, "subspace_rate_unit_norm", "dead_atoms")
HISTORY = TrainingHistory(train_loss=((1, 2.0), (2, 1.0)), eval_accuracy=((1, 0.4), (2, 0.5)))


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


def make_content(analysis, attention, evaluation) -> Report:
    subjects = [
        Subject("CRATE", analysis, TrainedModel("CRATE", 1000, evaluation, 30.0, HISTORY), attention),
        Subject("ViT", None, TrainedModel("ViT", 1020, evaluation)),
    ]
    run = RunRecord("held-out <b>images</b>", (("command", "opencrate train digits"),), (("recipe.yaml", "a: 1\n"),))
    part = Part("Theory & practice", ("A sentence of theory.",), (Table("t", frame([{"a": "b"}])),))
    return model_page("CRATE & digits", subjects, run, [part])


@pytest.fixture(scope="module")
def written(content, tmp_path_factory):
    return write(content, tmp_path_factory.mktemp("run"))


def plain(text: str) -> str:
    """A sentence as a reader sees it."""
    return re.sub(r"\^\{([^}]*)\}|\^(\S)", r"\1\2", re.sub(r"</?(?:a|sup|sub)\b[^>]*>", "", text)).replace("‖_", "‖")


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
    assert found.tags.count("img") == 14 + 2
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in found.loads)
    ids = set(re.findall(r'id="([^"]*)"', page))
    assert {load[1:] for load in found.loads if load.startswith("#")} <= ids
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?://", page)


def test_report_says_everything(written, content):
    text = " ".join("".join(Resources(written.read_text()).text).replace("\xa0", " ").split())
    for sentence in (*content.summary, *(figure.notes.get(MEASURED, "") for figure in content.figures)):
        assert plain(sentence) in text
    for words in ("CRATE & digits", "held-out <b>images</b>", "opencrate train digits", "a: 1", "1,020 (+2.0 %)"):
        assert words in text
    assert "30.0" in text and "Predictions of the theory" in text


def test_files_beside_the_report_hold_the_numbers(written, analysis):
    rows = list(csv.DictReader(io.StringIO((written.parent / "layers.csv").read_text())))
    assert len(rows) == 2 * (len(KEYS) + 2) * 3 and {row["subspaces"] for row in rows} == {"learned U"}
    last = next(row for row in rows if (row["state"], row["measure"], row["layer"]) == ("trained", "rate", "3"))
    assert float(last["mean"]) == pytest.approx(analysis.measures.mean("rate")[2].item(), rel=1e-12)
    (again,) = map(LayerAnalysis.from_dict, json.loads((written.parent / "layers.json").read_text()))
    assert again.series.keys() == {"trained", "initialisation"}
    assert all(torch.equal(again.initial.values[key], value) for key, value in analysis.initial.values.items())


def test_figures_are_written_as_pictures(written, content):
    shown = {figure.name for figure in content.figures}
    names = {path.name for path in (written.parent / "figures").iterdir()}
    folded = {f"attention_layer{layer}.png" for layer in (1, 2)}
    assert names == {f"{name}.{kind}" for name in shown for kind in ("png", "svg")} | folded
    for path in (written.parent / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_parts_stand_under_their_heading(written):
    page = written.read_text()
    assert page.count("A sentence of theory.") == 1 and ">Theory &amp; practice</h2>" in page
    assert "Every half-step, and further measures" in page and 'alt="fraction of m at each layer' in page


def box(name: str = "CRATE", kind: str = "learned U", model_type: str = "crate", **means) -> LayerAnalysis:
    """A report of made-up numbers."""
    return LayerAnalysis(name, model_type, {"trained": made_up_measures(**means)}, kind)


def test_a_rising_rate_is_reported_as_rising(evaluation):
    rising = box(subspace_rate_before=[1.0, 1.0, 1.0], subspace_rate=[2.0, 3.0, 4.0], rate_reduction=[1.0, 2.0, 3.0])
    subject = Subject("CRATE", rising, TrainedModel("CRATE", 10, evaluation))
    report = model_page("t", [subject], RunRecord("images"))
    measured = {figure.name: figure.notes[MEASURED] for figure in report.figures if MEASURED in figure.notes}
    assert "R^c(Z^{ℓ+½} | U^ℓ) does not fall overall: it goes from 2.0 to 4.0 nats." in measured["subspace_rate"]
    assert "raises R^c( · | U^ℓ) in all 3 layers (mean changes +1.0 to +3.0 nats; every" in measured["compression"]
    assert "none" not in report.summary[1] and "1 held on these inputs." in plain(report.summary[1])
    (held,) = next(part for part in report.parts if part.title.startswith("Predictions")).tables
    assert list(held.frame["CRATE"].str.split(":").str[0]) == ["did not hold", "did not hold", "held", "did not hold"]
    with pytest.raises(ValueError, match="subjects: empty"):
        model_page("t", [], RunRecord("images", ()))
    with pytest.raises(ValueError, match="two of one name"):
        model_page("t", [subject, subject], RunRecord("images", ()))


def test_kinds_of_subspaces_are_never_mixed():
    """Each kind has its own panel, label and words; what needs no subspaces shares one panel."""
    kind = SUBSPACES["values"]
    numbers = {"subspace_rate_before": [3.0, 3.0], "subspace_rate": [2.0, 1.0]}
    subjects = [Subject("A", box("A", **numbers)), Subject("B", box("B", kind, "vit", **numbers))]
    page = model_page("t", subjects, RunRecord("images", ()))
    said = " ".join(sentence for part in page.parts for sentence in part.sentences)
    assert "B was not derived from the objective and has no subspaces of its own" in said
    assert "(A: learned U; B: value projections per head)" in said
    (held,) = next(part for part in page.parts if part.title.startswith("Predictions")).tables
    assert list(held.frame.columns) == ["prediction", "A"]
    compression = next(figure for figure in page.figures if figure.name == "compression").notes[MEASURED]
    assert "B: Inside a layer, the step Z^ℓ → Z^{ℓ+½} lowers R^c( · | value projections)" in compression
    by_name = {figure.name: figure.figure for figure in page.figures}
    for name in ("compression", "subspace_rate"):
        labels = [axes.get_ylabel() for axes in by_name[name].get_axes()]
        assert (
            len(labels) == 2 and r"U^ℓ" in labels[0] and r"\mathrm{value projections}".replace(" ", r"\ ") in labels[1]
        )
    assert len(by_name["nonzero_fraction"].get_axes()) == 1
    changes, _, other = page.parts[-1].tables
    assert list(changes.frame.loc[0]) == [1, "falls: -1.00 (-1.00 to -1.00)", "falls: -1.00 (-1.00 to -1.00)"]
    assert "R^c(Z^{ℓ+½} | value projections) (nats per image)" in other.frame.columns


def test_any_model_has_a_report():
    model = tiny("gpt2")
    report = analyze(model, [inputs_for("gpt2")], initial="untrained", measures=KEYS[:-1], name="g")
    page = model_page("t", [Subject("g", report)], RunRecord("texts", ()))
    text = " ".join([*page.summary, *(" ".join(figure.notes.values()) for figure in page.figures)])
    assert "value projections" in text and "learned U" not in text and "predictions of the theory" not in text
    assert "Results" not in [part.title for part in page.parts] and page.subtitle == "g, 3 texts"


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
    changes = analysis.measures.compression_changes()
    (axes,) = plots.plot_changes({"CRATE": analysis.measures}).get_axes()
    (container,) = axes.containers
    assert list(container.lines[0].get_ydata()) == changes.mean.tolist()
    bars = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
    assert bars == [pytest.approx(bounds) for bounds in zip(changes.low.tolist(), changes.high.tolist())]


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
    axes = plot_confusion(evaluation).get_axes()[0]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    nonzero = {(c, r): str(int(evaluation.confusion[r, c])) for r, c in evaluation.confusion.nonzero().tolist()}
    assert counts == nonzero and (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    loss, accuracy = plot_training({"CRATE": HISTORY}).get_axes()
    assert loss.get_ylabel() == "loss (nats per image)" and accuracy.get_xlabel() == "epoch"
    assert loss.get_legend_handles_labels()[1] == ["CRATE, training"]
    assert list(accuracy.lines[0].get_ydata()) == [0.4, 0.5]
    names = {"CRATE (digits)": TrainingHistory(train_loss=HISTORY.train_loss), "ViT (digits-vit)": HISTORY}
    figure = plot_training(dict(list(names.items())[:1]))
    (only,) = figure.get_axes()  # no empty panel where nothing was held out
    assert only.get_xlabel() == "epoch"
    figure = plot_training(names)
    figure.canvas.draw()
    legend = figure.get_axes()[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1


def test_comparison_and_layer_tables(evaluation):
    frame = comparison_table([TrainedModel("a", 200, evaluation, 1.25), TrainedModel("b", 190, evaluation)]).frame
    assert list(frame["parameters"]) == ["200", "190 (-5.0 %)"] and "top-5" in frame.columns
    assert list(frame["training (s)"]) == ["1.2", None]
    layers = layer_table("t", made_up_measures(rate=[3.0, 2.0])).frame
    assert list(layers["R(Z^{ℓ+½}) (nats per image)"]) == ["3.00 (2.75 to 3.25)", "2.00 (1.75 to 2.25)"]
    boxes = {
        name: box(name, subspace_rate_before=[2.0] * n, subspace_rate=[3.0] * n) for name, n in (("1", 1), ("2", 2))
    }
    frame = changes_table(boxes).frame
    assert frame["2"][0].startswith("rises: +1.00") and frame["1"].isna().tolist() == [False, True]
