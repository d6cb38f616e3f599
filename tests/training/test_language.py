"""Language models in the training engine: what is learned, exact resume, two processes as one, bad input."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from opencrate.analysis.layers.result import layer_measures
from opencrate.recipe.load import load_recipe
from opencrate.store.build import build_text_config
from opencrate.training.tasks import task_of
from opencrate.training.train import train

from .common import assert_same_run
from .test_resume import killed_and_resumed
from .two import record

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "bell",
    "rings",
    "and",
    "a",
    "small",
    "boat",
    "leaves",
    "when",
    "night",
    "falls",
    "over",
    "quiet",
    "water",
    "again",
]
TINY = (
    "model.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}",
    "text.block_size=32",
    "training.per_device_train_batch_size=8",
    "training.max_steps=12",
)
MASKED = ("task=masked-lm", "model.config.is_causal=false", "text.tokenizer=wordpiece", "text.vocab_size=80")
GPT2 = ("model.type=gpt2", "model.size=null", "model.config={n_embd: 32, n_layer: 1, n_head: 2}")
FORMS = {"causal": TINY, "masked": (*TINY, *MASKED), "gpt2": (*TINY[1:], *GPT2)}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    before = os.environ.get("OPENCRATE_CACHE")
    os.environ["OPENCRATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("OPENCRATE_CACHE")
    if before is not None:
        os.environ["OPENCRATE_CACHE"] = before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About 9,000 characters of sentences, in one file."""
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) + ".\n" for _ in range(250))
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("".join(sentences))
    return path


def small(corpus, *overrides):
    return load_recipe("shakespeare", [f"text.path={corpus}", *overrides])


@pytest.mark.parametrize("form", FORMS)
def test_a_run_holds_model_tokenizer_and_metrics(form, corpus, tmp_path):
    run = train(small(corpus, *FORMS[form]), tmp_path / "run")
    assert run.metrics["steps"] == 12 and run.metrics["part"] == "validation"
    assert run.metrics["perplexity"] == pytest.approx(math.exp(run.metrics["loss"]))
    assert {"train", "validation"} == run.metrics["data"].keys()
    assert run.metrics["history"][-1]["validation_loss"] == pytest.approx(run.metrics["loss"], rel=1e-6)
    auto_class = AutoModelForMaskedLM if form == "masked" else AutoModelForCausalLM
    model, tokenizer = auto_class.from_pretrained(run.directory), AutoTokenizer.from_pretrained(run.directory)
    ids = tokenizer("the bell rings", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all() and int(ids.max()) < model.config.vocab_size
    assert ("bits_per_byte" in run.metrics) == (form != "masked")


@pytest.mark.parametrize("form", [TINY, (*TINY, *MASKED, "text.document=line", "text.packing=documents")])
def test_layers_are_measured_on_text(form, corpus, tmp_path):
    """What is logged at the end is what the saved model gives on unmasked text, padding left out."""
    recipe = small(corpus, *form, "logging.measure_inputs=5", "text.validation_fraction=0.2")
    run = train(recipe, tmp_path / "run")
    box = run.metrics["white_box"]
    assert (box["images"], box["inputs"], box["split"]) == (5, "texts", "validation")
    assert [row["step"] for row in box["history"]] == [0, 12] and len(box["history"][-1]["subspace_rate"]) == 1
    blocks = task_of(recipe.task).build(recipe, skip_bad=False).validation.blocks
    ids, mask = (torch.from_numpy(part) for part in blocks.take([index * len(blocks) // 5 for index in range(5)]))
    model = (AutoModelForMaskedLM if MASKED[0] in form else AutoModelForCausalLM).from_pretrained(run.directory)
    expected = layer_measures(model, [{"input_ids": ids, "attention_mask": mask}], 0.5)
    for key in ("subspace_rate", "rate", "nonzero_fraction"):
        assert box["history"][-1][key] == pytest.approx(expected.mean(key).tolist(), rel=1e-6), key
    assert bool(mask.all()) == (form == TINY)


def test_other_language_models_are_not_measured(corpus, tmp_path):
    assert "white_box" not in train(small(corpus, *FORMS["gpt2"]), tmp_path / "run").metrics


def test_loss_is_that_of_transformers(corpus):
    """The mean over predicted tokens, as the model's own loss of the same batch."""
    for form in FORMS:
        recipe = small(corpus, *FORMS[form])
        task = task_of(recipe.task)
        parts = task.build(recipe, skip_bad=False)
        batch = torch.utils.data.default_collate([parts.validation[index] for index in range(4)])
        model = parts.model.eval()
        own = model(**batch).loss.detach()
        batch = task.completed(batch)
        loss = task.loss_sum(model, batch, recipe, {})[0].detach()
        torch.testing.assert_close(loss / task.count(batch), own, rtol=1e-5, atol=0)
        sums = task.sums(model, batch)
        assert sums["count"] == task.count(batch) and sums["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_bits_per_byte_of_a_uniform_model(corpus):
    """With all logits equal each character costs log2 of the vocabulary."""
    recipe = small(corpus, *TINY)
    task = task_of(recipe.task)
    parts = task.build(recipe, skip_bad=False)
    with torch.no_grad():
        for parameter in parts.model.parameters():
            parameter.zero_()
    found, facts = task.test(parts.model, parts, recipe), parts.data["validation"]
    assert found["bits_per_byte"] == pytest.approx(
        math.log2(parts.model.config.vocab_size) * facts["tokens"] / facts["bytes"], rel=1e-5
    )


def test_learns_more_than_letter_counts(corpus, tmp_path):
    run = train(small(corpus, *TINY, "training.max_steps=150"), tmp_path / "run")
    text = corpus.read_text()
    entropy = -sum(text.count(c) / len(text) * math.log(text.count(c) / len(text)) for c in set(text))
    assert run.metrics["loss"] < 0.8 * entropy


@pytest.mark.parametrize("form", ["causal", "masked"])
def test_resumed_run_is_bit_equal(form, corpus, monkeypatch, tmp_path):
    steps = ("training.save_strategy=steps", "training.save_steps=2", "model.config.dropout=0.1")
    recipe = small(corpus, *FORMS[form], *steps)
    whole = train(recipe, tmp_path / "whole")
    resumed = killed_and_resumed(recipe, tmp_path / "killed", [5, 9], monkeypatch)
    assert_same_run(whole.directory, resumed.directory)
    assert resumed.metrics["resumed_at"] and resumed.metrics["loss"] == whole.metrics["loss"]


@pytest.mark.slow
def test_two_processes_are_one(corpus, tmp_path):
    """Masked tokens are not shared out evenly, and the mean is over all of them."""
    jobs = [
        ["shakespeare", [f"text.path={corpus}", *FORMS[form], "training.per_device_train_batch_size=4"], form]
        for form in ("causal", "masked")
    ]
    jobs = [[recipe, overrides, str(tmp_path / f"{form}-2")] for recipe, overrides, form in jobs]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "tests.training.two", str(tmp_path / "jobs.json")),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, form in enumerate(("causal", "masked")):
        one = record(small(corpus, *FORMS[form]), tmp_path / f"{form}-1")
        two = torch.load(tmp_path / f"jobs.json.{number}.pt", weights_only=True)
        first, second = (torch.cat([value.flatten() for value in run["gradients"].values()]) for run in (one, two))
        assert (first - second).norm() <= 1e-6 * first.norm()
        torch.testing.assert_close(one["losses"], two["losses"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["text.path=nowhere.txt"], "nowhere.txt"),
        (["data.image_size=32"], "'data.image_size' is set"),
        (["text.block_size=1"], "text.block_size' must be a whole number of at least 2"),
        (["model.config.max_position_embeddings=16"], "max_position_embeddings=16"),
        (["model.config.vocab_size=3"], "vocab_size=3"),
        (["model.type=vit", "model.size=null", "model.config={}"], "unknown model.type 'vit'"),
        (["model.config.is_causal=false"], "is_causal"),
    ],
)
def test_bad_input(overrides, named, corpus, tmp_path):
    with pytest.raises(ValueError, match=named):
        train(small(corpus, *TINY, *overrides), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_image_recipes_take_no_text():
    with pytest.raises(ValueError, match=r"'text.block_size' is set"):
        load_recipe("digits", ["text.block_size=32"])


def test_published_vocabulary_is_kept():
    """50,257 tokens in a table of 50,304, as published."""

    class Vocabulary:
        bos_token_id = eos_token_id = pad_token_id = None

        def get_vocab(self):
            return {"last": 50256}

    config = build_text_config(load_recipe("openwebtext-gpt-base"), Vocabulary())
    assert config.vocab_size == 50304 and config.max_position_embeddings == 1024


def glue_folder(folder):
    """SST-2 in small: whether a sentence holds "small" is its class."""
    draw = random.Random(1)
    for part, count in (("train", 48), ("dev", 16)):
        rows = [" ".join(draw.choices(WORDS, k=6)) for _ in range(count)]
        lines = ["sentence\tlabel", *(f"{row}\t{int('small' in row)}" for row in rows)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_sentences_from_a_masked_model(corpus, tmp_path):
    """Fine-tuned from a masked run: the layers are taken, the head is new, GLUE's metrics are reported."""
    masked = train(small(corpus, *TINY, *MASKED), tmp_path / "masked").directory
    (tmp_path / "sst2").mkdir()
    source = [f"model.init_from={masked}", "model.type=crate_text", "model.size=null"]
    data = [f"glue.path={glue_folder(tmp_path / 'sst2')}", "glue.max_length=24", "training.max_steps=3"]
    run = train(load_recipe("glue", [*source, *data]), tmp_path / "run")
    found = run.metrics["initialisation"]
    assert set(found["new"]) == {"classifier.weight", "classifier.bias"} and found["left_out"] == ["lm_head.weight"]
    assert run.metrics["test"].keys() == {"dev"} and 0 <= run.metrics["test"]["dev"]["accuracy"] <= 1
    assert run.metrics["history"][-1]["validation_accuracy"] == run.metrics["test"]["dev"]["accuracy"]
    scratch = [*data, "model.init_from=null", "model.size=tiny", "model.config={is_causal: false, hidden_size: 32}"]
    fresh = train(load_recipe("glue", [*scratch, f"glue.tokenizer={masked}"]), tmp_path / "fresh")
    assert "initialisation" not in fresh.metrics


def test_pairs_from_a_model_without_segments(corpus, tmp_path):
    """A masked run knows no segments: pairs come without them, in training and in the saved tokenizer."""
    masked = train(small(corpus, *TINY, *MASKED), tmp_path / "masked").directory
    (tmp_path / "rte").mkdir()
    rows = [f"{n}\t{WORDS[n]} {WORDS[0]}\t{WORDS[1]}\t{('entailment', 'not_entailment')[n % 2]}" for n in range(8)]
    for part in ("train", "dev"):
        lines = ["index\tsentence1\tsentence2\tlabel", *rows]
        (tmp_path / "rte" / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    values = [f"model.init_from={masked}", f"glue.path={tmp_path / 'rte'}", "glue.task=rte", "glue.max_length=24"]
    run = train(load_recipe("glue", [*values, "training.max_steps=2"]), tmp_path / "run")
    assert run.metrics["test"]["dev"]["examples"] == 8
    pair = AutoTokenizer.from_pretrained(run.directory)(WORDS[0], WORDS[1], return_tensors="pt")
    assert "token_type_ids" not in pair
    AutoModelForSequenceClassification.from_pretrained(run.directory)(**pair)


def test_sentences_need_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"glue\.tokenizer"):
        train(load_recipe("glue", ["model.init_from=null", "model.size=tiny"]), tmp_path / "run")
