"""GLUE's task files: sentences, or pairs of them, with a class or a score. [arXiv 1804.07461]"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..._suggest import suggest
from ..draws import Draw
from .documents import digest
from .sources import read_text
from .tokenizers import frame_of, separator_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GlueTask:
    """Where a task's files keep what is needed, and how it is scored.

    Attributes:
        texts, label: columns of the one or two sentences, and of the label.
        classes: words of the label in the files, in the order of the class numbers; empty for a score.
        metrics: names in `evaluation.glue`, the one that is reported first.
        names: of the columns, where the files have no header.
        validation: files to be scored on.
    """

    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    names: tuple[str, ...] = ()
    validation: tuple[str, ...] = ("dev.tsv",)

    @property
    def is_regression(self) -> bool:
        """Whether the labels are scores."""
        return not self.classes


_BINARY, _ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
GLUE_TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        ("sentence",), "label", _BINARY, ("matthews_correlation",), ("source", "label", "star", "sentence")
    ),
    "sst2": GlueTask(("sentence",), "label", _BINARY, ("accuracy",)),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", _BINARY, ("f1", "accuracy")),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", _BINARY, ("f1", "accuracy")),
    "stsb": GlueTask(_PAIR, "score", (), ("spearman", "pearson")),
    "mnli": GlueTask(
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        validation=("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "qnli": GlueTask(("question", "sentence"), "label", _ENTAILMENT, ("accuracy",)),
    "rte": GlueTask(_PAIR, "label", _ENTAILMENT, ("accuracy",)),
    "wnli": GlueTask(_PAIR, "label", _BINARY, ("accuracy",)),
}
"""The tasks by name; the metrics are those of the GLUE paper."""


@dataclass(frozen=True)
class GlueExamples:
    """Rows of one file: `texts` of one or two sentences each, `labels` (class numbers, or scores)."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[float, ...]


class GlueDataset(Dataset):
    """Tokenised examples: `input_ids`, `attention_mask`, `labels` (and `token_type_ids` where the tokenizer has them).

    All of `max_length` tokens, int64; `trimmed` cuts what is padding in a whole batch. Labels are int64 scalars,
    float32 for scores. Asked with a `Draw` or an index, which give the same. A tokenizer without special tokens around
    a text (GPT-2's) gets its end token after each sentence. Pairs too long lose tokens of the longer sentence.
    """

    def __init__(
        self, examples: GlueExamples, tokenizer: PreTrainedTokenizerBase, max_length: int, regression: bool = False
    ) -> None:
        encoded = _encoded(examples.texts, tokenizer, max_length)
        self.fields = {name: torch.tensor(values) for name, values in encoded.items()}
        self.fields["labels"] = torch.tensor(examples.labels, dtype=torch.float32 if regression else torch.int64)

    def __len__(self) -> int:
        return len(self.fields["labels"])

    def __getitem__(self, item: Draw | int) -> dict[str, Tensor]:
        index = item.index if isinstance(item, Draw) else item
        return {name: values[index] for name, values in self.fields.items()}


@dataclass(frozen=True)
class GlueSplits:
    """A task's examples, ready for a model; `validation` by file name (`dev`; MNLI has two)."""

    task: str
    train: GlueDataset
    validation: dict[str, GlueDataset]
    tokenizer: PreTrainedTokenizerBase
    examples: dict[str, GlueExamples]

    @property
    def label_names(self) -> list[str] | None:
        """Class names in the order of the class numbers."""
        return list(GLUE_TASKS[self.task].classes) or None

    def drop_segments(self) -> None:
        """Leave out `token_type_ids`, here and in what the tokenizer gives: for a model that knows no segments."""
        for part in (self.train, *self.validation.values()):
            part.fields.pop("token_type_ids", None)
        names = self.tokenizer.model_input_names
        self.tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Of each part: how many examples, and a hash of their texts and labels."""
        return {
            name: {"examples": len(part.labels), "sha256": digest(*part.texts, *part.labels)}
            for name, part in self.examples.items()
        }


def load_glue(path: str | Path, task: str, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> GlueSplits:
    """A task of `GLUE_TASKS` from its folder of `train.tsv` and `dev.tsv`, as the GLUE download lays it out.

    The published test files have no labels; scores are those of the dev files.

    Args:
        tokenizer: of the model; one without a padding token pads with its end token.
        max_length: tokens per example, special ones included.

    Raises:
        ValueError: an unknown task, a missing or empty file, columns or labels that are not the task's.
    """
    definition = glue_task(task)
    folder = Path(path).expanduser()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    files = {"train": "train.tsv", **{name.removesuffix(".tsv"): name for name in definition.validation}}
    examples = {part: read_glue(folder / name, task) for part, name in files.items()}
    made = {part: GlueDataset(rows, tokenizer, max_length, definition.is_regression) for part, rows in examples.items()}
    return GlueSplits(task, made.pop("train"), made, tokenizer, examples)


def glue_task(name: str) -> GlueTask:
    """A task by name; `ValueError` if there is none."""
    if name not in GLUE_TASKS:
        raise ValueError(f"unknown GLUE task '{name}'; {suggest(name, GLUE_TASKS)}")
    return GLUE_TASKS[name]


def read_glue(file: Path, task: str) -> GlueExamples:
    """The rows of one tab-separated file, quote marks taken as they are; those with missing columns are left out.

    Raises:
        ValueError: no such file, columns or labels that are not the task's, or no rows.
    """
    definition = glue_task(task)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give the folder of the GLUE task {task}")
    rows = [line.rstrip("\r").split("\t") for line in read_text(file).split("\n") if line]
    names = list(definition.names) or (rows.pop(0) if rows else [])
    needed = [*definition.texts, definition.label]
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"{file}: no column '{missing[0]}', which the GLUE task {task} has; columns: {', '.join(names)}"
        )
    columns = [names.index(name) for name in needed]
    whole = [(number, row) for number, row in enumerate(rows, start=1) if len(row) > max(columns)]
    if len(whole) < len(rows):
        logger.warning("%s: left out %d rows with missing columns", file, len(rows) - len(whole))
    if not whole:
        raise ValueError(f"{file}: no rows of the GLUE task {task} in it")
    labels = [_label(row[columns[-1]], definition, f"{file}, row {number}") for number, row in whole]
    return GlueExamples(tuple(tuple(row[column] for column in columns[:-1]) for _, row in whole), tuple(labels))


def _label(text: str, task: GlueTask, where: str) -> float:
    try:
        return float(text) if task.is_regression else task.classes.index(text)
    except ValueError:
        allowed = "a number" if task.is_regression else " or ".join(task.classes)
        raise ValueError(f"{where}: the label is '{text}'; must be {allowed}") from None


def trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch without the columns at the end that are padding in every item."""
    length = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :length] if value.ndim == 2 else value for name, value in batch.items()}


def _encoded(texts: Sequence[tuple[str, ...]], tokenizer: Any, length: int) -> dict[str, list]:
    columns = [list(column) for column in zip(*texts)]
    if any(frame_of(tokenizer)):
        return dict(tokenizer(*columns, truncation=True, max_length=length, padding="max_length"))
    end, pad = separator_of(tokenizer), tokenizer.pad_token_id
    ids = []
    for row in zip(*(tokenizer(column, add_special_tokens=False)["input_ids"] for column in columns)):
        parts = [list(part) for part in row]
        while sum(map(len, parts)) > length - len(parts):
            max(parts, key=len).pop()
        ids.append([token for part in parts for token in (*part, end)])
    return {
        "input_ids": [[*row, *[pad] * (length - len(row))] for row in ids],
        "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in ids],
    }
