"""The tab of texts, without a browser."""

import pytest
import torch

from opencrate.analysis.features.here import features_of_word, word_positions
from opencrate.analysis.record.states import record
from opencrate.app.texts import fill_in, go_on, word_features
from opencrate.evaluation.generation import Sampling, generate
from opencrate.reports.html import fragment

TEXT = "the king is here and the queen is not here and the king is far and the letter is here"


def test_going_on(shelf):
    saved = shelf["writer"]
    found = go_on(saved, "the king", 5, 0.0)
    assert found == "the king" + generate(saved, "the king", Sampling(max_new_tokens=5, temperature=0.0))
    assert go_on(saved, "the king", 5, 1.0, 3) == go_on(saved, "the king", 5, 1.0, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("the", 301), "max_new_tokens=301"), (("the " * 30_000, 5), "characters, more than"), (("the " * 30, 9), "fit")],
)
def test_what_going_on_refuses(shelf, arguments, words):
    with pytest.raises(ValueError, match=words):
        go_on(shelf["writer"], *arguments)


def test_filling_in_takes_the_most_probable(shelf):
    saved = shelf["blanks"]
    parts = fill_in(saved, "the [MASK] is [MASK]")
    table = parts[0].tables[0].frame
    assert list(table["mask"]) == ["1"] * 5 + ["2"] * 5
    with torch.no_grad():
        logits = saved.model(input_ids=torch.tensor([saved.tokenizer("the [MASK] is [MASK]")["input_ids"]])).logits[0]
    assert table["token"][0] == saved.tokenizer.decode([int(logits[1].argmax())])
    assert table["token"][5] == saved.tokenizer.decode([int(logits[3].argmax())])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("writer", "the [MASK]", "not a masked language model"),
        ("blanks", "the king", "0 times"),
        ("blanks", "[MASK] " * 9, "9 times"),
        ("blanks", "[MASK] " + "the " * 40, "41 tokens, more than the model's context of 32"),
    ],
)
def test_what_filling_in_refuses(shelf, name, text, words):
    with pytest.raises(ValueError, match=words):
        fill_in(shelf[name], text)


@pytest.mark.parametrize("name", ["writer", "blanks"])
def test_features_of_a_word_have_the_largest_gap(shelf, name):
    saved = shelf[name]
    found = features_of_word(saved, TEXT, "KING", layer=2, count=3)
    ids = torch.tensor([saved.tokenizer(TEXT)["input_ids"]])
    (states,) = record(saved.model, [ids], layers=[2])
    codes = next(iter(states.steps())).codes[0]
    here = torch.tensor([word == "king" for word in TEXT.split()])
    gaps = codes[here].mean(0) - codes[~here].mean(0)
    assert [one.index for one in found] == gaps.argsort(descending=True)[:3].tolist()
    assert found[0].on_word - found[0].elsewhere == pytest.approx(float(gaps.max()), rel=1e-5)
    assert found[0].context.tokens[found[0].context.peak] == "king"
    assert "king" in fragment(word_features(saved, TEXT, "king", 2))


def test_places_of_a_word():
    assert word_positions("a king", [(0, 0), (0, 1), (2, 4), (4, 6), (6, 6)], "KING") == [2, 3]
    assert word_positions("a.b ab", [(0, 3), (4, 6)], "a.b") == [0]


@pytest.mark.parametrize(
    ("text", "word", "words"),
    [(TEXT, " ", "word: empty"), (TEXT, "spring", "'spring' stands not in"), ("king king", "king", "all of the text")],
)
def test_words_that_are_refused(shelf, text, word, words):
    with pytest.raises(ValueError, match=words):
        word_features(shelf["writer"], text, word)


def test_what_a_text_holds_is_no_markup(shelf):
    text = "the <script>alert(1)</script> king is here"
    page = fragment(word_features(shelf["writer"], text, "king"))
    assert "<script" not in page
