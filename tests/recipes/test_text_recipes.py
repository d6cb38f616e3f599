"""Every shipped recipe for text: of the stated size, matched where it says so, and running in its smoke form."""

import dataclasses
import math

import pytest
import torch

from opencrate.recipe.load import find_recipe, load_recipe, shipped_recipes, stated_parameters
from opencrate.store.build import build_text_config, initialise
from opencrate.training.train import train

TEXT = [name for name in sorted(shipped_recipes()) if load_recipe(name).task in ("causal-lm", "masked-lm")]
VOCABULARY = {"characters": 67, "hf://openai-community/gpt2": 50257, "hf://google-bert/bert-base-uncased": 30522}
"""Tokens of what each recipe names; 67: tinyshakespeare's 65 characters, an end and an unknown one."""
QUICK = ("shakespeare-alpha", "shakespeare-gpt2", "wikitext2-bert")


class Vocabulary:
    """As much of a tokenizer as a configuration asks for."""

    bos_token_id = eos_token_id = pad_token_id = None

    def __init__(self, size):
        self.size = size

    def get_vocab(self):
        return {"last": self.size - 1}


def built_parameters(recipe):
    tokenizer = Vocabulary(VOCABULARY.get(recipe.text.tokenizer, recipe.text.vocab_size))
    with torch.device("meta"):
        model = initialise(build_text_config(recipe, tokenizer), 0, recipe.task)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TEXT)
def test_recipe_builds_with_the_stated_parameters(name):
    recipe = load_recipe(name)
    depends = recipe.text.path == "stdlib"  # on the version of Python
    assert stated_parameters(name) == (None if depends else built_parameters(recipe))


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("shakespeare", "shakespeare-alpha"),
        ("shakespeare", "shakespeare-gpt2"),
        ("shakespeare-alpha", "shakespeare-gpt"),
        ("text-demo", "text-demo-gpt2"),
        ("text-demo", "text-demo-gpt"),
        ("wikitext2", "wikitext2-gpt2"),
        ("wikitext2-bert", "wikitext2-bert-baseline"),
        ("wikipedia-bert-base", "wikipedia-bert-baseline"),
        ("pile-lm-base", "pile-gpt2"),
    ],
)
def test_baseline_is_matched(name, baseline):
    one, other = load_recipe(name), load_recipe(baseline)
    assert abs(built_parameters(other) / built_parameters(one) - 1) < 0.02
    equal_time = dataclasses.replace(other.training, max_steps=one.training.max_steps)
    assert one.text == other.text and one.training == equal_time
    assert 0.6 < other.training.max_steps / one.training.max_steps < 1.7  # equal time: steps take unequal time


def test_published_batches():
    """384 sequences a step for the paper's models, 480 for CRATE-LM."""
    for name, sequences in (("openwebtext-gpt-base", 384), ("openwebtext-alpha-small", 384), ("pile-lm-base", 480)):
        training = load_recipe(name).training
        per_device, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
        assert per_device * 8 * accumulated == sequences and (training.learning_rate, training.warmup_steps) == (
            6e-4,
            2000,
        )
        assert f"{sequences} = {per_device} per device x 8 processes x {accumulated}" in find_recipe(name).read_text()


def test_a_recipe_by_folder_and_name():
    assert find_recipe("text/demo") == find_recipe("text-demo")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    lines = [f"{number} green bottles hang on the wall, and {number - 1} fall." for number in range(300)]
    letters = (chr(number) for number in range(0xC0, 0xC0 + 500))  # as many as a text of the world has
    path.write_text("\n\n".join([" ".join(letters), *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENCRATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield path


def run_smoke_form(name, corpus, directory):
    data = [] if load_recipe(name).text.path == "stdlib" else [f"text.path={corpus}", "text.streaming=false"]
    run = train(load_recipe(name, data, smoke=True), directory)
    assert run.metrics["steps"] == 2 and math.isfinite(run.metrics["loss"])


@pytest.mark.parametrize("name", QUICK)
def test_smoke_form_runs(name, corpus, tmp_path):
    run_smoke_form(name, corpus, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TEXT) - set(QUICK)))
def test_every_other_smoke_form_runs(name, corpus, tmp_path):
    run_smoke_form(name, corpus, tmp_path / "run")


@pytest.mark.parametrize(("name", "task"), [("sst2", "sst2"), ("glue", "rte"), ("glue", "stsb")])
def test_smoke_form_of_sentences_runs(name, task, tmp_path):
    """It needs a folder of sentences and nothing else: no model, no tokenizer."""
    rows = {
        "sst2": "sentence\tlabel\ngreen bottles\t1\nthey fall\t0\n",
        "rte": "sentence1\tsentence2\tlabel\na\tb\tentailment\nc\td\tnot_entailment\n",
        "stsb": "sentence1\tsentence2\tscore\na\tb\t2.5\nc\td\t4.0\n",
    }
    (tmp_path / "glue").mkdir()
    for part in ("train", "dev"):
        header, *examples = rows[task].splitlines()
        (tmp_path / "glue" / f"{part}.tsv").write_text("\n".join([header, *examples * 6]) + "\n")
    words = [f"glue.path={tmp_path / 'glue'}", f"glue.task={task}"]
    run = train(load_recipe(name, words, smoke=True), tmp_path / "run")
    assert run.metrics["steps"] == 2 and math.isfinite(run.metrics["loss"])
