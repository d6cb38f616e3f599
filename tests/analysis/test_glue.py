"""GLUE's files in small, and its metrics."""

import math

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch.utils.data import default_collate

from opencrate.data.draws import Draw
from opencrate.data.text.glue import GLUE_TASKS, load_glue, read_glue, trimmed
from opencrate.data.text.tokenizers import train_tokenizer
from opencrate.evaluation.glue import glue_metrics

HEADERS = {
    "cola": None,
    "sst2": "sentence\tlabel",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}
FIRST, SECOND = 'He said "no.', "Then, he left"


def write(folder, task, rows=4):
    folder.mkdir(exist_ok=True)
    definition = GLUE_TASKS[task]
    names = definition.names or HEADERS[task].removeprefix("\ufeff").split("\t")
    lines = [] if definition.names else [HEADERS[task]]
    for number in range(rows):
        label = str(number / 2) if definition.is_regression else definition.classes[number % len(definition.classes)]
        values = dict.fromkeys(names, "x") | dict(zip(definition.texts, (f"{FIRST} {number}", SECOND)))
        lines.append("\t".join((values | {definition.label: label})[name] for name in names))
    for file in ("train.tsv", *definition.validation):
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_task_reads_its_columns(task, tmp_path):
    splits = load_glue(write(tmp_path, task), task, train_tokenizer("bytes", [], "masked"), max_length=40)
    definition = GLUE_TASKS[task]
    rows = splits.examples["train"]
    expected = [number / 2 if definition.is_regression else number % len(definition.classes) for number in range(4)]
    assert list(rows.labels) == expected
    assert rows.texts[1] == (f"{FIRST} 1", SECOND)[: len(definition.texts)]
    assert list(splits.validation) == [file.removesuffix(".tsv") for file in definition.validation]
    item = splits.train[Draw(1, 3, 0)]
    assert item["labels"].dtype == (torch.float32 if definition.is_regression else torch.int64)
    text = splits.tokenizer.decode(item["input_ids"], skip_special_tokens=True)
    assert text.startswith(f"{FIRST} 1") and len(item["input_ids"]) == 40
    assert splits.label_names == (list(definition.classes) or None)
    assert splits.fingerprint()["train"]["examples"] == 4


def test_a_tokenizer_without_special_tokens_ends_each_sentence(tmp_path):
    tokenizer = train_tokenizer("bytes", [])
    splits = load_glue(write(tmp_path, "rte"), "rte", tokenizer, max_length=24)
    ids, end = splits.train[0]["input_ids"], tokenizer.eos_token_id
    assert (ids == end).sum() == 2 and ids[-1] == end and splits.train[0]["attention_mask"].all()
    texts = tokenizer.decode(ids).split("<|endoftext|>")
    assert FIRST.startswith(texts[0]) and SECOND.startswith(texts[1]) and abs(len(texts[0]) - len(texts[1])) <= 1


def test_trimmed_batches_lose_padding_only(tmp_path):
    splits = load_glue(write(tmp_path, "sst2"), "sst2", train_tokenizer("bytes", [], "masked"), max_length=64)
    items = [splits.train[number] for number in range(3)]
    batch = trimmed(default_collate(items))
    length = max(int(item["attention_mask"].sum()) for item in items)
    assert batch["input_ids"].shape == (3, length) and length < 64
    assert torch.equal(batch["input_ids"][0], items[0]["input_ids"][:length]) and batch["labels"].shape == (3,)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"unknown GLUE task 'sst3'; did you mean 'sst2'"):
        read_glue(tmp_path / "x.tsv", "sst3")
    with pytest.raises(ValueError, match="no such file"):
        read_glue(tmp_path / "x.tsv", "sst2")
    file = tmp_path / "train.tsv"
    for content, reason in (
        ("text\tlabel\n", "no column 'sentence'"),
        ("sentence\tlabel\n", "no rows"),
        ("sentence\tlabel\nfine\t2\n", "row 1: the label is '2'; must be 0 or 1"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=reason):
            read_glue(file, "sst2")
    file.write_text("sentence\tlabel\nbroken\nfine\t1\n")
    assert read_glue(file, "sst2").texts == (("fine",),)


def test_metrics():
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    logits = torch.tensor([[2.0, 1], [0, 1], [2, 1], [2, 1], [0, 3], [0, 1]])
    predicted = logits.argmax(1)
    assert glue_metrics("sst2", logits, labels) == {"accuracy": pytest.approx(4 / 6)}
    assert glue_metrics("cola", logits, labels)["matthews_correlation"] == pytest.approx(
        matthews_corrcoef(labels, predicted)
    )
    assert list(glue_metrics("mrpc", logits, labels)) == ["f1", "accuracy"]
    assert glue_metrics("qqp", logits, labels)["f1"] == pytest.approx(f1_score(labels, predicted))
    scores = torch.tensor([0.1, 0.2, 0.4, 0.9])
    found = glue_metrics("stsb", scores[:, None], torch.tensor([1.0, 2, 3, 4]))
    assert found["spearman"] == pytest.approx(1) and 0.9 < found["pearson"] < 1
    assert math.isnan(glue_metrics("stsb", torch.ones(4), scores)["pearson"])
    with pytest.raises(ValueError, match=r"need \(n, 3\) and \(n,\)"):
        glue_metrics("mnli", logits, labels)
