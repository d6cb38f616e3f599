"""The model card of a run: the Hub reads it, and its numbers are those of the run."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from opencrate import load_recipe, train
from opencrate.store.card import CardFacts, model_card, scores_of, white_box_words, write_card


@pytest.fixture(scope="module")
def card(digits_runs):
    return ModelCard.load(digits_runs[0] / "README.md")


def test_every_run_has_one_that_the_hub_reads(card, digits_runs):
    metrics = json.loads((digits_runs[0] / "metrics.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy" and result.metric_value == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-classification"
    assert {"crate", "white-box"} <= set(card.data.tags) and card.data.datasets == ["digits"]
    assert card.data.license == "unknown"


def test_it_says_what_the_run_wrote_down(card, digits_runs):
    metrics = json.loads((digits_runs[0] / "metrics.json").read_text())
    text = card.content
    for part, facts in metrics["data"].items():
        assert f"{facts['images']:,} images ({part})" in text
    assert f"{metrics['parameters']:,} parameters" in text and f"{100 * metrics['accuracy']:.2f} %" in text
    assert "CC BY 4.0" in text and "one run of one seed" in text
    assert "opencrate train digits model.config.num_hidden_layers=2 training.num_train_epochs=2" in text


def test_the_white_box_summary_counts_the_layers_that_descend():
    rows = [{"subspace_rate_before": [1, 9, 9], "subspace_rate": [9, 1, 1], "nonzero_fraction": [1, 1, 1]}]
    rows += [{"subspace_rate_before": [5, 5, 5], "subspace_rate": [4, 6, 4], "nonzero_fraction": [0.5, 0.25, 0.125]}]
    record = {"images": 8, "inputs": "images", "split": "validation", "eps": 0.5, "history": rows}
    words = white_box_words(record)
    assert "in 2 of 3 layers (layers 1, 3)" in words and "50 %, 25 %, 12 %" in words
    assert "Not measured" in white_box_words(None) and "Not measured" in white_box_words({"history": []})
    single = {**record, "history": [{**rows[-1], "subspace_rate": [4, 6, 6]}]}
    assert "in 1 of 3 layers (layer 1)" in white_box_words(single)


def test_seeds_give_the_spread(digits_runs):
    (score,) = scores_of(digits_runs[0], digits_runs[1:])
    one, other = score.values
    assert score.mean == pytest.approx((one + other) / 2)
    assert score.deviation == pytest.approx(abs(one - other) / 2**0.5)
    assert f"{score.spread} | seed 0; spread over seeds 0, 1" in str(
        model_card(digits_runs[0], CardFacts(others=[digits_runs[1]]))
    )


def test_what_was_measured_anew_takes_the_place_of_the_run_s_result(digits_runs):
    card = model_card(digits_runs[0], CardFacts(measured={"accuracy": 0.125}))
    assert card.data.eval_results[0].metric_value == 0.125 and "| 12.50 % |" in card.content


@pytest.mark.parametrize(("stated", "words"), [("+changes", "0123456789ab with changes. "), ("", "0123456789ab. ")])
def test_a_changed_source_is_said_to_be_one(digits_runs, tmp_path, stated, words):
    run = tmp_path / "run"
    shutil.copytree(digits_runs[0], run)
    made = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**made, "commit": f"0123456789abcdef{stated}"}))
    assert f"commit {words}`recipe.yaml` states" in model_card(run).content


def test_a_text_model_says_where_its_text_is_without_a_path(text_run):
    text = (text_run / "README.md").read_text()
    assert str(text_run.parent) not in text and "`book.txt`" in text and "text-generation" in text
    assert "bits per byte" in text or "perplexity" in text


def test_a_card_is_replaced_with_its_run(small_again):
    directory, recipe = small_again
    (directory / "README.md").write_text("old")
    train(recipe, directory, overwrite=True)
    assert "# digits" in (directory / "README.md").read_text()


@pytest.fixture
def small_again(tmp_path):
    recipe = load_recipe("digits", ["training.max_steps=1", "model.config.num_hidden_layers=1"])
    train(recipe, tmp_path / "run")
    return tmp_path / "run", recipe


def test_a_run_is_not_lost_because_its_card_fails(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("what")

    monkeypatch.setattr("opencrate.training.train.write_card", fail)
    recipe = load_recipe("digits", ["training.max_steps=1", "model.config.num_hidden_layers=1"])
    train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file() and not (tmp_path / "run" / "README.md").exists()
    assert "no model card was written" in caplog.text


def test_names_cannot_break_the_card(digits_runs, tmp_path):
    """What a file states is text in it, never a template or a second front matter."""
    run = tmp_path / "run"
    shutil.copytree(digits_runs[0], run)
    write_card(run, CardFacts(title="a\n---\nlicense: mit", data_license="{{ 7 * 7 }}", notes="x\x1b[31m"))
    card = ModelCard.load(run / "README.md")
    assert card.data.license == "unknown" and "{{ 7 * 7 }}" in card.content and "\x1b" not in card.content
