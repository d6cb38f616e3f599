"""Text and a language model: the next token, or the masked ones."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.text.load import Objective, load_text
from ...data.text.masking import IGNORED
from ...recipe.schema import Recipe
from ...store.build import build_text_config
from ...store.start import start_model
from ..losses import cross_entropy_sum
from ..whitebox_callback import measured_texts
from .base import Batch, Parts, Task, held_out_batches


class LanguageModelling(Task):
    """Cross-entropy in nats per predicted token, of any transformers language model."""

    objective: ClassVar[Objective]

    def targets(self, labels: Tensor) -> Tensor:
        """What the logits at every place are to say, int64 `(B, N)`; -100 is ignored."""
        return labels

    def build(self, recipe: Recipe, skip_bad: bool) -> Parts:
        splits = load_text(recipe.text, self.objective)
        model, initialisation = start_model(recipe, build_text_config(recipe, splits.tokenizer), splits.tokenizer)
        count = recipe.logging.measure_inputs if model.config.model_type == "crate_text" else 0
        return Parts(
            model=model,
            initialisation=initialisation,
            processor=splits.tokenizer,
            train=splits.train,
            validation=splits.validation,
            test=splits.test or splits.validation,
            measured=measured_texts(splits, count) if count else None,
            data=splits.fingerprint(),
        )

    def count(self, batch: Batch) -> int:
        return int((self.targets(batch["labels"]) != IGNORED).sum())

    def completed(self, batch: Batch) -> Batch:
        """With `places`, int64 `(n)`: which of the B N tokens are predicted; without a mask that hides nothing.

        transformers reads a mask to find that out, which an accelerator would be waited for.
        """
        kept = {name: value for name, value in batch.items() if name != "attention_mask" or not value.all()}
        return {**kept, "places": (self.targets(batch["labels"]) != IGNORED).flatten().nonzero()[:, 0]}

    def loss_sum(self, model: nn.Module, batch: Batch, recipe: Recipe, recorded: dict[str, bool]) -> tuple[Tensor, Any]:
        outputs = model(**_inputs(batch), **recorded)
        logits, targets = self._predicted(outputs.logits, batch)
        return cross_entropy_sum(logits, targets, recipe.training.label_smoothing_factor), outputs

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        logits, targets = self._predicted(model(**_inputs(batch)).logits, batch)
        right = (logits.argmax(-1) == targets).sum().item()
        return {"count": len(targets), "loss": cross_entropy_sum(logits, targets).item(), "accuracy": right}

    def test(self, model: PreTrainedModel, parts: Parts, recipe: Recipe) -> dict[str, Any]:
        """Of the test part, or the validation part where there is no other; nothing where neither is."""
        if parts.test is None:
            return {}
        metrics = self.metrics(self.sums_of(model, held_out_batches(parts.test, recipe)))
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700))
        part = "test" if "test" in parts.data else "validation"
        if self.objective == "causal":
            facts = parts.data[part]
            metrics["bits_per_byte"] = metrics["loss"] / math.log(2) * facts["tokens"] / facts["bytes"]
        return {**metrics, "part": part}

    def outcome(self, metrics: dict[str, Any]) -> str:
        if "loss" not in metrics:
            return "nothing held out to evaluate on"
        bits = f", {metrics['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in metrics else ""
        return (
            f"loss {metrics['loss']:.4f} nats per token (perplexity {metrics['perplexity']:.2f}{bits}) on the "
            f"{metrics['part']} part"
        )

    def _predicted(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits `(n, vocabulary)` and targets `(n)` of the places that count."""
        places = batch["places"]
        return logits.flatten(0, 1).index_select(0, places), self.targets(batch["labels"]).flatten()[places]


class CausalLanguageModelling(LanguageModelling):
    """The next token from those before it."""

    objective = "causal"

    def targets(self, labels: Tensor) -> Tensor:
        return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


class MaskedLanguageModelling(LanguageModelling):
    """The masked tokens from all others [arXiv 1810.04805]."""

    objective = "masked"


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in ("labels", "places")}
