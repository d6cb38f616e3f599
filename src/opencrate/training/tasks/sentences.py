"""Sentences, alone or in pairs, with classes or scores: the GLUE tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.text.glue import GlueDataset, load_glue, read_glue, trimmed
from ...data.text.options import TRAINED
from ...data.text.tokenizers import load_tokenizer, train_tokenizer
from ...evaluation.glue import glue_metrics
from ...evaluation.inputs import evaluating
from ...recipe.schema import Recipe
from ...store.build import build_text_config
from ...store.start import start_model
from ..losses import cross_entropy_sum
from .base import Batch, Parts, Task, held_out_batches


class SentenceClassification(Task):
    """Cross-entropy over the classes, or squared error of a score, of a transformers sequence classifier."""

    def build(self, recipe: Recipe, skip_bad: bool) -> Parts:
        glue = recipe.glue
        splits = load_glue(glue.path, glue.task, _tokenizer(recipe), glue.max_length)
        splits.tokenizer.model_max_length = glue.max_length
        names = splits.label_names
        labels = {"num_labels": 1} if names is None else {"id2label": dict(enumerate(names))}
        config = build_text_config(recipe, splits.tokenizer, glue.max_length, labels)
        if getattr(config, "type_vocab_size", 0) < 2:
            splits.drop_segments()
        model, initialisation = start_model(recipe, config, splits.tokenizer)
        first = next(iter(splits.validation.values()))
        return Parts(
            model=model,
            initialisation=initialisation,
            processor=splits.tokenizer,
            train=splits.train,
            validation=first,
            test=splits.validation,
            data=splits.fingerprint(),
        )

    def completed(self, batch: Batch) -> Batch:
        """Without the columns that are padding in every sentence."""
        return trimmed(batch)

    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        outputs = model(**_inputs(batch), **recorded)
        return _loss_sum(outputs.logits, batch["labels"], recipe.training.label_smoothing_factor), outputs

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        logits, labels = model(**_inputs(batch)).logits, batch["labels"]
        found = {"count": len(labels), "loss": _loss_sum(logits, labels).item()}
        if not labels.is_floating_point():
            found["accuracy"] = (logits.argmax(-1) == labels).sum().item()
        return found

    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        """The task's metrics on its dev files, which are the only ones with labels."""
        found = {name: self._scores(model, split, recipe) for name, split in parts.test.items()}
        first = next(iter(found.values()))
        return {**first, "test": found}

    def outcome(self, metrics: dict[str, Any]) -> str:
        parts = []
        for name, scores in metrics["test"].items():
            words = ", ".join(f"{key} {value:.4f}" for key, value in scores.items() if key not in ("loss", "examples"))
            parts.append(f"{words} on {scores['examples']:,} examples ({name})")
        return "; ".join(parts)

    def _scores(self, model: PreTrainedModel, split: GlueDataset, recipe: Recipe) -> dict[str, float]:
        logits, labels = [], []
        with evaluating(model):
            for batch in held_out_batches(split, recipe):
                placed = {name: value.to(model.device) for name, value in self.completed(batch).items()}
                logits.append(model(**_inputs(placed)).logits.float().cpu())
                labels.append(batch["labels"])
        every, right = torch.cat(logits), torch.cat(labels)
        loss = _loss_sum(every, right).item() / len(right)
        return {**glue_metrics(recipe.glue.task, every, right), "loss": loss, "examples": len(right)}


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The one that the recipe names, one made from its training sentences, or that of the source."""
    glue = recipe.glue
    source = glue.tokenizer or recipe.model.init_from
    if source is None:
        raise ValueError(
            "glue.tokenizer: none is given, and model.init_from names no model to take it from; give a folder with a "
            f"tokenizer, or one of {', '.join(TRAINED)}"
        )
    if source not in TRAINED:
        return load_tokenizer(source)
    rows = read_glue(Path(glue.path).expanduser() / "train.tsv", glue.task).texts
    return train_tokenizer(source, [sentence for row in rows for sentence in row], "masked")


def _loss_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    if labels.is_floating_point():
        return (logits[:, 0].float() - labels).square().sum()
    return cross_entropy_sum(logits, labels, smoothing)


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}
