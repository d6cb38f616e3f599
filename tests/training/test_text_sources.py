"""A text model that starts from another keeps its tokenizer and length; what is asked for instead is said."""

import logging

import pytest
from transformers import AutoTokenizer

from opencrate.recipe.load import load_recipe
from opencrate.training.tasks import task_of
from opencrate.training.train import train

TINY = (
    "model.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}",
    "training.max_steps=1",
    "training.per_device_train_batch_size=4",
)
MASKED = ("task=masked-lm", "model.config.is_causal=false")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENCRATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    texts = {"first": "The small bell rings. ", "second": "A QUIET boat leaves! "}
    for name, sentence in texts.items():
        (folder / f"{name}.txt").write_text("".join(f"{sentence}{number}\n" for number in range(300)))
    return {name: folder / f"{name}.txt" for name in texts}


@pytest.fixture(scope="module")
def sources(corpora, tmp_path_factory):
    """A causal model of characters, and a masked one of lower-case word pieces, both of 24 tokens."""
    folder, path = tmp_path_factory.mktemp("sources"), f"text.path={corpora['first']}"
    words = {"causal": (), "masked": (*MASKED, "text.tokenizer=wordpiece", "text.vocab_size=60")}
    return {
        name: train(load_recipe("shakespeare", [path, "text.block_size=24", *TINY, *more]), folder / name).directory
        for name, more in words.items()
    }


def built(recipe):
    return task_of(recipe.task).build(recipe, skip_bad=False)


def from_source(source, corpora, *overrides):
    words = ["model.size=null", "model.config={}", f"model.init_from={source}", f"text.path={corpora['second']}"]
    return load_recipe("shakespeare", [*words, *TINY[1:], *overrides])


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_tokenizer_is_the_sources(kind, sources, corpora, caplog):
    """Also where the recipe makes one from its text, which would give the same numbers to other words."""
    recipe = from_source(sources[kind], corpora, "text.block_size=24", *(MASKED[:1] if kind == "masked" else ()))
    with caplog.at_level(logging.INFO, logger="opencrate"):
        parts = built(recipe)
    assert parts.processor.get_vocab() == AutoTokenizer.from_pretrained(sources[kind]).get_vocab()
    assert not parts.initialisation.new and not parts.initialisation.settings
    assert "are unknown to the tokenizer" in caplog.text, "of a text with other characters"


def test_the_length_is_the_sources_where_the_recipe_states_none(sources, corpora, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"task: causal-lm\nmodel: {{type: crate_text, init_from: '{sources['causal']}'}}\n")
    recipe = load_recipe(path, [f"text.path={corpora['second']}"])
    assert recipe.text.block_size == 24 and recipe.text.tokenizer == str(sources["causal"])


def test_another_length_is_said(sources, corpora):
    found = built(from_source(sources["causal"], corpora, "text.block_size=12")).initialisation
    assert found.settings == {"text.block_size": [24, 12]}


def test_a_longer_one_than_there_are_positions_is_refused(sources, corpora):
    with pytest.raises(ValueError, match=r"lower text\.block_size to 24: the weights of .*causal have no more pos"):
        built(from_source(sources["causal"], corpora))


def test_another_tokenizer_that_is_asked_for_is_said(sources, corpora, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(sources["causal"])
    letters = "".join(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[2:])
    corpus = tmp_path / "same-number.txt"
    corpus.write_text(f"{letters[:-1]}é\n" * 200)
    words = ["text.block_size=24", "text.tokenizer=characters", f"text.path={corpus}"]
    found = built(from_source(sources["causal"], corpora, *words)).initialisation
    assert found.settings["tokenizer"][1].endswith("other tokens") and "tokenizer" in str(found)


def test_sentences_keep_the_tokenizer_and_its_case(sources, tmp_path):
    glue = tmp_path / "SST-2"
    glue.mkdir()
    for name in ("train", "dev"):
        (glue / f"{name}.tsv").write_text("sentence\tlabel\n" + "the SMALL bell\t1\na boat\t0\n" * 6)
    words = ["model.config={}", f"model.init_from={sources['masked']}", f"glue.path={glue}", *TINY[1:]]
    with pytest.raises(ValueError, match=r"lower glue\.max_length to 24"):
        built(load_recipe("glue", words))
    recipe = load_recipe("glue", [*words, "glue.max_length=16"])
    run = train(recipe, tmp_path / "run")
    assert run.metrics["initialisation"]["settings"] == {"glue.max_length": [24, 16]}
    before, after = (AutoTokenizer.from_pretrained(one) for one in (sources["masked"], run.directory))
    text = "The SMALL bell rings."
    assert before(text)["input_ids"] == after(text)["input_ids"] == after(text.lower())["input_ids"]
    assert (before.model_max_length, after.model_max_length) == (24, 16), "which the line says"
