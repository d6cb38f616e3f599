"""Tokenizers, the token cache, blocks and masking."""

import json
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from transformers import AutoTokenizer, BertConfig, GPT2Config, ViTConfig

from opencrate.data.draws import Draw, DrawSampler
from opencrate.data.text import cache
from opencrate.data.text.blocks import TokenBlocks
from opencrate.data.text.cache import TokenFile, cache_folder, tokenised
from opencrate.data.text.documents import Documents, digest
from opencrate.data.text.load import load_text
from opencrate.data.text.masking import IGNORED, Masking
from opencrate.data.text.options import TextData
from opencrate.data.text.tokenizers import check_vocabulary, encode, frame_of, load_tokenizer, pieces, train_tokenizer
from opencrate.training.processes import SharedBatches

TEXTS = ["The café is closed.\nWho said so? <|endoftext|> [MASK] 123\n", "unbelievable closedness, closed  café\n"] * 3


@pytest.fixture
def story(tmp_path):
    lines = [f"Line {number} of the story is about {number * 7 % 13} cats and a dog.\n" for number in range(400)]
    (tmp_path / "story.txt").write_text("".join(lines))
    return str(tmp_path / "story.txt")


def flat(lists):
    return list(chain.from_iterable(lists))


# --- tokenizers


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe", "wordpiece"])
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_made_tokenizers_are_deterministic_and_load_by_auto_tokenizer(kind, objective, tmp_path):
    tokenizer, again = (train_tokenizer(kind, TEXTS, objective, 300) for _ in range(2))
    assert tokenizer.get_vocab() == again.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = encode(loaded, TEXTS)
    assert ids == encode(tokenizer, TEXTS)
    if kind != "wordpiece":  # BERT's writes in lower case
        assert loaded.batch_decode(ids) == TEXTS
    special = set(loaded.all_special_ids)
    assert not special & {token for text in ids for token in text}, "words that look like special tokens stay text"
    if objective == "masked":
        assert loaded("closed")["input_ids"][0] == loaded.cls_token_id and frame_of(loaded) == (
            [loaded.cls_token_id],
            [loaded.sep_token_id],
        )
    else:
        assert loaded.eos_token == "<|endoftext|>" and frame_of(loaded) == ([], [])


def test_character_and_byte_vocabularies():
    characters = train_tokenizer("characters", ["hello\n"])
    assert len(characters) == 2 + len(set("hello\n"))
    assert encode(characters, ["hex"])[0][2] == characters.unk_token_id
    byte = train_tokenizer("bytes", [])
    assert len(byte) == 257
    assert len(encode(byte, ["é€"])[0]) == 5 and byte.decode(encode(byte, ["é€"])[0]) == "é€"


def test_too_small_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"text\.vocab_size=100: bpe needs at least 257"):
        train_tokenizer("bpe", TEXTS, vocab_size=100)
    with pytest.raises(ValueError, match=r"text\.vocab_size=7: the text has"):
        train_tokenizer("wordpiece", TEXTS, vocab_size=7)


def test_published_layouts_of_files(tmp_path):
    byte = train_tokenizer("bpe", TEXTS, vocab_size=280)
    for name in ("gpt2", "bert", "cased", "none"):
        (tmp_path / name).mkdir()
    byte.backend_tokenizer.model.save(str(tmp_path / "gpt2"))
    assert encode(load_tokenizer(tmp_path / "gpt2"), TEXTS) == encode(byte, TEXTS)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "ᴬ"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    assert load_tokenizer(tmp_path / "bert")("The cafés")["input_ids"] == [2, 5, 6, 7, 3]
    (tmp_path / "cased" / "vocab.txt").write_text("\n".join([*words, "The"]))
    assert load_tokenizer(tmp_path / "cased")("The the")["input_ids"] == [2, 9, 5, 3]
    for folder, reason in (("none", "holds no tokenizer.json"), ("missing", "no such folder")):
        with pytest.raises(ValueError, match=reason):
            load_tokenizer(tmp_path / folder)


def test_pieces_have_the_tokens_of_the_whole():
    text = "".join(f"word{number} caf\u00e9  two\n" + "\n \n" * (number % 5 == 0) for number in range(2000))
    parts = list(pieces(text, 500))
    assert len(parts) > 30 and "".join(parts) == text
    for kind in ("bpe", "wordpiece", "characters"):
        tokenizer = train_tokenizer(kind, [text], vocab_size=400)
        assert flat(encode(tokenizer, parts)) == encode(tokenizer, [text])[0]
    assert list(pieces("x" * 2000, 500)) == ["x" * 2000]


def test_vocabulary_mismatch():
    tokenizer = train_tokenizer("characters", ["abc"])
    check_vocabulary(tokenizer, GPT2Config(vocab_size=len(tokenizer)))
    check_vocabulary(tokenizer, GPT2Config(vocab_size=64))
    with pytest.raises(ValueError, match=r"the tokenizer has 5 tokens and the model 4 \(ids from 0 to 3\)"):
        check_vocabulary(tokenizer, GPT2Config(vocab_size=4))
    with pytest.raises(ValueError, match="the model has 30,522 tokens and the tokenizer only 5"):
        check_vocabulary(tokenizer, BertConfig())
    with pytest.raises(ValueError, match="a vit model has no vocabulary"):
        check_vocabulary(tokenizer, ViTConfig())


# --- the cache


def documents_of(texts, name="memory"):
    return Documents(name, lambda: iter(texts), lambda: digest(*texts))


def test_tokens_are_made_once_and_are_those_of_the_text(monkeypatch):
    tokenizer = train_tokenizer("bpe", TEXTS, vocab_size=300)
    made = tokenised(documents_of(TEXTS), tokenizer)
    expected = [[*ids, tokenizer.eos_token_id] for ids in encode(tokenizer, TEXTS)]
    assert made.tokens.tolist() == flat(expected) and made.tokens.dtype == np.uint16
    assert np.diff(made.ends, prepend=0).tolist() == [len(each) for each in expected]
    assert made.counts.bytes == len("".join(TEXTS).encode()) and made.counts.characters == len("".join(TEXTS))
    monkeypatch.setattr(cache, "_make", None)
    assert tokenised(documents_of(TEXTS), tokenizer).tokens.tolist() == made.tokens.tolist()
    with pytest.raises(TypeError):
        tokenised(documents_of(TEXTS[:-1]), tokenizer)


def test_large_vocabularies_take_four_bytes(monkeypatch):
    monkeypatch.setattr(cache, "vocabulary_size", lambda tokenizer: 70_000)
    assert tokenised(documents_of(["abc"], "large"), train_tokenizer("bytes", [])).tokens.dtype == np.uint32


def test_a_stopped_preparation_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENCRATE_CACHE", str(tmp_path))
    texts = [f"document {number}\n" * 20 for number in range(30)]
    tokenizer = train_tokenizer("bytes", [])
    monkeypatch.setattr(cache, "_BATCH", 1000)
    seen = []
    real = cache.encode

    def stops(tokenizer, batch):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(batch)
        return real(tokenizer, batch)

    monkeypatch.setattr(cache, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        tokenised(documents_of(texts), tokenizer)
    (partial,) = cache_folder().glob("tokens/*.partial")
    with (partial / "tokens.bin").open("ab") as file:
        file.write(b"rubbish of a write that was cut off")
    after = []
    monkeypatch.setattr(cache, "encode", lambda tokenizer, batch: after.append(batch) or real(tokenizer, batch))
    made = tokenised(documents_of(texts), tokenizer)
    assert len(flat(seen)) + len(flat(after)) == len(texts)
    expected = flat([*ids, tokenizer.eos_token_id] for ids in encode(tokenizer, texts))
    assert made.tokens.tolist() == expected and made.counts.documents == 30
    assert not list(cache_folder().glob("tokens/*.partial"))


KILLED = """
import os, signal, sys
from opencrate.data.text import cache
from opencrate.data.text.documents import Documents, digest
from opencrate.data.text.tokenizers import train_tokenizer
cache._BATCH = 1000
texts = [f"document {number}\\n" * 20 for number in range(30)]
real, calls = cache.encode, []
def encode(tokenizer, batch):
    calls.append(batch)
    if len(calls) == 5 and len(sys.argv) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(tokenizer, batch)
cache.encode = encode
made = cache.tokenised(Documents("killed", lambda: iter(texts), lambda: "killed"), train_tokenizer("bytes", []))
print(len(calls), digest(*made.tokens.tolist()))
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on(tmp_path):
    def run(folder, *words):
        return subprocess.run(
            [sys.executable, "-c", KILLED, *words],
            env={**os.environ, "OPENCRATE_CACHE": str(tmp_path / folder)},
            capture_output=True,
            text=True,
        )

    assert run("killed", "kill").returncode == -signal.SIGKILL
    calls, tokens = run("killed").stdout.split()
    all_calls, expected = run("whole").stdout.split()
    assert tokens == expected and int(calls) == int(all_calls) - 4


def test_damaged_cache_is_named(tmp_path):
    tokenizer = train_tokenizer("bytes", [])
    made = tokenised(documents_of(["damage"], "damage"), tokenizer)
    folder = cache_folder() / "tokens" / made.key
    about = json.loads((folder / "about.json").read_text())
    about["counts"]["tokens"] += 1
    (folder / "about.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="damaged"):
        tokenised(documents_of(["damage"], "damage"), tokenizer)


# --- blocks


def file_of(documents):
    flat = np.concatenate([[*document, 0] for document in documents]).astype(np.uint16)
    return TokenFile(flat, np.cumsum([len(document) + 1 for document in documents]), None, "key")


def test_stream_blocks_cover_the_text_and_shift():
    blocks = TokenBlocks(file_of([range(1, 11), range(11, 24)]), 5)
    ids, mask = blocks.take(range(len(blocks)))
    assert len(blocks) == 5 and mask.all()
    assert ids.flatten().tolist() == [*range(1, 11), 0, *range(11, 24), 0]
    assert blocks.take([0, 4], 3)[0].tolist() == [[4, 5, 6, 7, 8], [20, 21, 22, 23, 0]]
    shifts = {blocks.shift(0, epoch) for epoch in range(40)}
    assert shifts == set(range(5)) and blocks.shift(0, 7) == blocks.shift(0, 7)


def test_document_blocks_hold_one_document_and_all_of_it():
    documents = [list(range(1, 4)), list(range(10, 23)), [5]]
    blocks = TokenBlocks(file_of(documents), 6, "documents", pad=9)
    ids, mask = blocks.take(range(len(blocks)))
    assert ids.tolist() == [
        [1, 2, 3, 0, 9, 9],
        [10, 11, 12, 13, 14, 15],
        [16, 17, 18, 19, 20, 21],
        [22, 0, 9, 9, 9, 9],
        [5, 0, 9, 9, 9, 9],
    ]
    assert mask.sum() == sum(map(len, documents)) + 3 and blocks.shift(0, 1) == 0
    framed = TokenBlocks(file_of(documents), 6, "documents", ([7], [8]), 9).take(range(6))[0].tolist()
    assert framed[0] == [7, 1, 2, 3, 8, 9] and framed[1] == [7, 10, 11, 12, 13, 8] and framed[-1] == [7, 5, 8, 9, 9, 9]


def test_too_little_text_and_too_small_blocks(tmp_path, story):
    with pytest.raises(ValueError, match=r"train part: text\.block_size=100000: the text has"):
        load_text(TextData(story, block_size=100_000))
    with pytest.raises(ValueError, match="must be above the tokenizer's 2 special tokens"):
        load_text(TextData(story, block_size=2), "masked")
    with pytest.raises(ValueError, match="has no mask token"):
        load_text(TextData(story), "masked", train_tokenizer("bytes", []))


# --- datasets


def test_causal_items(story):
    splits = load_text(TextData(story, block_size=32, test_fraction=0.1))
    text = Path(story).read_text()
    item = splits.validation[0]
    assert set(item) == {"input_ids", "labels"} and torch.equal(item["input_ids"], item["labels"])
    start = round(len(text) * 0.8)
    assert splits.tokenizer.decode(item["input_ids"]) == text[start : start + 32]
    found = splits.fingerprint()
    assert sum(part["characters"] for part in found.values()) == len(text) == sum(p["bytes"] for p in found.values())
    assert found == load_text(TextData(story, block_size=32, test_fraction=0.1)).fingerprint()
    assert splits.tokenizer.model_max_length == 32 and splits.label_names is None


def test_padding_is_neither_attended_to_nor_predicted(story):
    splits = load_text(TextData(story, document="line", packing="documents", block_size=80))
    item = splits.train[Draw(3, 0, 0)]
    real = int(item["attention_mask"].sum())
    assert 40 < real < 80 and (item["labels"][real:] == IGNORED).all() and (item["labels"][:real] >= 0).all()


def test_training_items_depend_on_seed_epoch_and_index_alone(story):
    for objective in ("causal", "masked"):
        train = load_text(TextData(story, tokenizer="bpe", vocab_size=300, block_size=16), objective).train

        def items(seed, epoch, train=train):
            sampler = DrawSampler(len(train), seed, 4)
            sampler.set_epoch(epoch)
            return list(DataLoader(train, sampler=sampler, batch_size=4))

        first, again, other = items(1, 2), items(1, 2), items(1, 3)
        assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again) for name in a)
        assert not all(torch.equal(a["labels"], b["labels"]) for a, b in zip(first, other))
        draw = Draw(5, 2, 1)
        alone, beside = train[draw], train.__getitems__([Draw(3, 2, 1), draw])[1]
        assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_two_processes_and_a_resumed_epoch_see_the_same_batches(story):
    train = load_text(TextData(story, tokenizer="bytes", block_size=16), "masked").train
    draws = DrawSampler(len(train), 3, 8)
    draws.set_epoch(1)

    def batches(size, rank, count):
        return [default_collate(train.__getitems__(batch)) for batch in SharedBatches(draws, size, rank, count)]

    whole, halves = batches(8, 0, 1), list(zip(batches(4, 0, 2), batches(4, 1, 2)))
    for one, two in zip(whole, halves):
        for name in one:
            assert torch.equal(one[name], torch.cat([part[name] for part in two]))
    later = batches(8, 0, 1)[3:]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(whole[3:], later))


# --- masking


@pytest.fixture(scope="module")
def words():
    return train_tokenizer("wordpiece", TEXTS * 3 + ["abc def ghi"], "masked", 90)


@pytest.mark.parametrize("whole_word", [False, True])
def test_masking_shares(words, whole_word):
    masking = Masking(words, whole_word=whole_word)
    ids = np.tile(np.array([2, *encode(words, ["unbelievable closedness of the cafe, so closed"])[0], 3]), 4000)
    corrupted, labels = masking(ids, np.random.default_rng(0))
    chosen = labels != IGNORED
    special = np.isin(ids, (2, 3))
    assert (
        not chosen[special].any()
        and (corrupted[~chosen] == ids[~chosen]).all()
        and (labels[chosen] == ids[chosen]).all()
    )
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.012)
    masked = corrupted[chosen] == words.mask_token_id
    kept = corrupted[chosen] == ids[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.03) and kept.mean() == pytest.approx(0.1, abs=0.03)
    assert not np.isin(corrupted[chosen], [0, 2, 3]).any()
    numbers = Masking(words, whole_word=True).words(ids)
    per_word = np.bincount(numbers, chosen) / np.bincount(numbers)
    assert whole_word == bool(np.isin(per_word, (0, 1)).all())


def test_words_of_byte_level_tokens():
    tokenizer = train_tokenizer("bytes", [], "masked")
    masking = Masking(tokenizer, whole_word=True)
    text = "ab, cd\nef 12"
    ids = np.array([tokenizer.cls_token_id, *encode(tokenizer, [text])[0], tokenizer.sep_token_id])
    groups = {}
    for number, character in zip(masking.words(ids)[1:-1], text):
        groups.setdefault(number, []).append(character)
    assert ["".join(group) for group in groups.values()] == ["ab", ",", " ", "cd", "\n", "ef", " ", "12"]


def test_every_text_gets_a_prediction(words):
    masking = Masking(words, probability=1e-9)
    _, labels = masking(np.array([2, 7, 8, 3]), np.random.default_rng(0))
    assert (labels != IGNORED).sum() == 1


def test_evaluation_masks_are_fixed(story):
    validation = load_text(TextData(story, tokenizer="bytes", block_size=16), "masked").validation
    first, again = validation[2], validation[2]
    assert torch.equal(first["labels"], again["labels"]) and (first["labels"] != IGNORED).any()
    assert not torch.equal(first["labels"] != IGNORED, validation[3]["labels"] != IGNORED)
