"""Scores of language models against sums over single tokens, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from opencrate import CrateConfig, CrateForImageClassification
from opencrate.data.text.documents import Documents, digest
from opencrate.data.text.tokenizers import train_tokenizer
from opencrate.evaluation.generation import Sampling, generate
from opencrate.evaluation.lambada import read_lambada, score_lambada
from opencrate.evaluation.language import score_masked, score_text, windows
from opencrate.store.kinds import LANGUAGE
from opencrate.store.saved import open_saved

from .language_models import STORY, causal, masked, saved

TEXTS = [STORY[:50], "The dog.\n", STORY[200:233]]


def documents(texts=TEXTS):
    return Documents("memory", lambda: iter(texts), lambda: digest(*texts))


@pytest.fixture(scope="module")
def gpt2():
    return causal("gpt2", steps=60)


@pytest.fixture(scope="module")
def crate():
    return causal("crate", steps=20)


def losses_one_by_one(language, text, context, stride):
    """Every token of one text by itself, with the context that its window gives it."""
    ids = [language.start, *language.tokenizer(text)["input_ids"]]
    found = []
    for target in range(1, len(ids)):
        begin = 0 if target <= context else -(-(target - context) // stride) * stride
        with torch.no_grad():
            logits = language.model(input_ids=torch.tensor([ids[begin:target]])).logits[0, -1].double()
        found.append(-logits.log_softmax(-1)[ids[target]].item())
    return found


@pytest.mark.parametrize(("context", "stride"), [(32, 16), (16, 16), (10, 3)])
@pytest.mark.parametrize("kind", ["gpt2", "crate"])
def test_every_token_is_scored_once_with_its_context(kind, context, stride, request):
    language = request.getfixturevalue(kind)
    found = score_text(language, documents(), context=context, stride=stride, batch_size=3)
    expected = [loss for text in TEXTS for loss in losses_one_by_one(language, text, context, stride)]
    assert found.tokens == len(expected) == sum(map(len, TEXTS))
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / len("".join(TEXTS).encode()), rel=1e-5)
    words = sum(len(text.split()) + text.count("\n") for text in TEXTS)
    assert found.word_perplexity == pytest.approx(math.exp(sum(expected) / words), rel=1e-5)


@pytest.mark.parametrize(("length", "context", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 4), (100, 8, 8), (57, 8, 3)])
def test_windows_count_each_token_once(length, context, stride):
    counted = []
    for first, last, scored in windows(length, context, stride):
        assert 0 < last - first <= context and 0 < scored <= last - first
        counted += range(last - scored + 1, last + 1)
    assert counted == list(range(1, length + 1))


def test_a_longer_context_helps_a_trained_model(gpt2):
    text = documents([STORY])
    assert score_text(gpt2, text, context=32).loss < score_text(gpt2, text, context=2).loss - 0.1


def test_bits_per_byte_of_many_bytes_per_character():
    tokenizer = train_tokenizer("characters", ["é€a"])
    found = score_text(causal(tokenizer=tokenizer), documents(["é€aé"]))
    assert (found.tokens, found.bytes, found.unknown) == (4, 8, 0)
    assert found.bits_per_byte == pytest.approx(found.loss * 4 / math.log(2) / 8)


def test_unknown_tokens_are_counted(gpt2):
    assert score_text(gpt2, documents(["The cät"])).unknown == 1


def test_windows_beyond_the_model_are_refused(gpt2):
    with pytest.raises(ValueError, match="context=33: the model reads 2 to 32"):
        score_text(gpt2, documents(), context=33)
    with pytest.raises(ValueError, match="stride=9: must be at least 1 and at most the context, 8"):
        score_text(gpt2, documents(), context=8, stride=9)


def test_pseudo_loss_is_that_of_the_same_masked_tokens():
    language = masked()
    first, again = score_masked(language, documents([STORY])), score_masked(language, documents([STORY]), batch_size=1)
    assert first.loss == pytest.approx(again.loss, rel=1e-5) and first.tokens == again.tokens
    blocks = len(STORY) // 30
    assert first.tokens == pytest.approx(0.15 * blocks * 30, rel=0.15)
    assert first.loss == pytest.approx(math.log(len(language.tokenizer)), abs=0.5)  # untrained
    assert first.bits_per_byte is None
    with pytest.raises(ValueError, match="a masked model has no loss per token"):
        score_text(language, documents())


def test_nan_is_not_a_score(gpt2):
    broken = causal()
    broken.model.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="losses that are not finite"):
        score_text(broken, documents())


# --- LAMBADA


def test_lambada_against_single_passages():
    gpt2 = causal(steps=5)
    passages = [
        ("The cat number 3 saw the", "dog"),
        ("The", "dog"),
        ("The cat number 12 saw the dog and ran to", "tree"),
    ]
    found = score_lambada(gpt2, passages, batch_size=2)
    sums, right = [], []
    for context, word in passages:
        text = f"{context} {word}"
        ids = torch.tensor([[gpt2.start, *gpt2.tokenizer(text)["input_ids"]]])[:, -33:]
        with torch.no_grad():
            scores = gpt2.model(input_ids=ids[:, :-1]).logits.log_softmax(-1)[0]
        last = len(word) + 1  # a token per character, and the space
        wanted = ids[0, -last:]
        sums.append(-scores[-last:].gather(1, wanted[:, None]).sum().item())
        right.append(bool((scores[-last:].argmax(1) == wanted).all()))
    assert found.word_loss == pytest.approx(np.mean(sums), rel=1e-5)
    assert found.loss == pytest.approx(sum(sums) / (4 + 4 + 5), rel=1e-5)
    assert found.accuracy == np.mean(right) and found.truncated == 1


def test_lambada_accuracy_is_greedy_decoding():
    language = causal(tokenizer=train_tokenizer("bpe", [STORY], vocab_size=300), steps=40)
    passages = [(f"The cat number {n} saw the", word) for n in range(3) for word in ("dog", "cat")]
    for passage in passages:
        text = generate(language, passage[0], Sampling(1, temperature=0))
        assert score_lambada(language, [passage]).accuracy == (text == f" {passage[1]}")
    assert 0 < score_lambada(language, passages).accuracy < 1


def test_reading_lambada(tmp_path):
    file = tmp_path / "lambada.jsonl"
    file.write_text(json.dumps({"context": "one two", "continuation": "three"}) + "\n" + json.dumps({"text": "a b c"}))
    assert read_lambada(file) == [("one two", "three"), ("a b", "c")]
    for content, reason in (
        ("{}", "line 1: needs"),
        ("[]", "line 1: damaged"),
        ('{"text": "one"}', "fewer"),
        ("", "empty"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=reason):
            read_lambada(file)


# --- opening and generating


def test_open_language_models(gpt2, tmp_path):
    opened = open_saved(saved(gpt2, tmp_path / "gpt2"), LANGUAGE)
    assert opened.kind == "causal" and opened.context == 32
    assert score_text(opened, documents()).loss == pytest.approx(score_text(gpt2, documents()).loss)
    train_tokenizer("bytes", []).save_pretrained(tmp_path / "bytes")
    with pytest.raises(ValueError, match=r"the tokenizer has 257 tokens and the model \d+"):
        open_saved(tmp_path / "gpt2", LANGUAGE, tokenizer=str(tmp_path / "bytes"))
    gpt2.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="give `tokenizer`"):
        open_saved(tmp_path / "bare", LANGUAGE)
    assert open_saved(tmp_path / "bare").kind == "causal"
    assert open_saved(saved(masked(), tmp_path / "bert"), LANGUAGE).kind == "masked"


def test_other_models_are_refused(tmp_path):
    CrateForImageClassification(CrateConfig.from_size("digits")).save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="holds CrateForImageClassification, an image classifier, not a causal"):
        open_saved(tmp_path / "vision", LANGUAGE)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(tmp_path / "sentences")
    with pytest.raises(ValueError, match="a classifier of texts, not a causal language model or a masked"):
        open_saved(tmp_path / "sentences", LANGUAGE)


def test_generation_repeats_itself_and_follows_the_seed(crate):
    first, again = (generate(crate, "The cat", Sampling(20, seed=1)) for _ in range(2))
    assert first == again != generate(crate, "The cat", Sampling(20, seed=2))
    beams = generate(crate, "The cat", Sampling(8, temperature=0, num_beams=3))
    assert len(beams) <= 8
    assert len(generate(crate, "The cat number 3 saw the dog and ra", Sampling(20, crop=True))) == 20


def test_streaming_prints_prompt_and_text(crate, capsys):
    text = generate(crate, "The cat", Sampling(12), stream=True)
    assert capsys.readouterr().out.rstrip("\n") == ("The cat" + text).rstrip("\n")


def test_empty_prompt_begins_a_text(gpt2):
    assert generate(gpt2, "", Sampling(5, temperature=0))


def test_bad_prompts(gpt2):
    with pytest.raises(ValueError, match="prompt: has 40 tokens, more than the model's context of 32"):
        generate(gpt2, "T" * 40)
    with pytest.raises(ValueError, match="max_new_tokens=23 or less"):
        generate(gpt2, "T" * 10)
    with pytest.raises(ValueError, match="does not know 'é'"):
        generate(gpt2, "caé")
    with pytest.raises(ValueError, match="only CRATE models"):
        generate(gpt2, "a", Sampling(crop=True))
    with pytest.raises(ValueError, match="a masked model cannot continue"):
        generate(masked(), "The")
    for options in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"num_beams": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Sampling(**options)
