"""Classification heads on the CRATE text models: of sequences, of tokens, of answers' places, of choices."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from ._hf import can_return_tuple, fixed_cross_entropy
from .configuration_crate_text import CrateTextConfig
from .modeling_crate_base import CrateStates
from .modeling_crate_text_model import CrateTextModel, CrateTextPreTrainedModel


@dataclass
class CrateSequenceClassifierOutput(CrateStates, SequenceClassifierOutput):
    """``loss``, ``logits (B, num_labels)``, and the states."""


@dataclass
class CrateTokenClassifierOutput(CrateStates, TokenClassifierOutput):
    """``loss``, ``logits (B, N, num_labels)``, and the states."""


@dataclass
class CrateQuestionAnsweringOutput(CrateStates, QuestionAnsweringModelOutput):
    """``loss``, ``start_logits (B, N)``, ``end_logits (B, N)``, and the states."""


@dataclass
class CrateMultipleChoiceOutput(CrateStates, MultipleChoiceModelOutput):
    """``loss``, ``logits (B, choices)``, and the states, whose first axis counts B times choices."""


def pool(tokens: Tensor, attention_mask: Tensor | None, kind: str) -> Tensor:
    """One vector for each sequence, ``(B, N, d)`` -> ``(B, d)``.

    ``first`` and ``last`` are the first and the last attended token, ``mean`` is over all attended ones.
    """
    if attention_mask is None:
        return tokens.mean(1) if kind == "mean" else tokens[:, 0 if kind == "first" else -1]
    weights = attention_mask.to(tokens.dtype)
    if kind == "mean":
        return (tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    order = attention_mask.long() * (places if kind == "last" else places.flip(0))
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), order.argmax(1)]


class _CrateTextHead(CrateTextPreTrainedModel):
    """The stack, dropout, and a linear map of the pooled or of every token."""

    num_outputs: int | None = None
    """Numbers for each token; ``None`` is ``config.num_labels``."""

    def __init__(self, config: CrateTextConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.crate = CrateTextModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_outputs or config.num_labels)
        self.post_init()

    def _encode(self, kwargs: dict[str, Any], *inputs: Tensor | None) -> Any:
        """The stack's output; a classifier reads its text once, so it keeps no cache."""
        *ids, embeds = inputs
        return self.crate(*ids, inputs_embeds=embeds, **{**kwargs, "use_cache": False})

    def _pooled(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        return pool(tokens, attention_mask, self.config.pool or ("last" if self.config.is_causal else "first"))

    def _classify(self, tokens: Tensor) -> Tensor:
        share = self.config.classifier_dropout
        return self.classifier(F.dropout(tokens, self.config.dropout if share is None else share, self.training))


class CrateForSequenceClassification(_CrateTextHead):
    """CRATE with a linear layer on the pooled token (``config.pool``): classification or regression of sequences."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CrateSequenceClassifierOutput:
        """Logits ``(B, num_labels)`` and, given ``labels (B)``, the loss of ``config.problem_type``.

        ``num_items_in_batch`` is for a Trainer, see :func:`~opencrate.modeling_crate_base.share_of_step`; the other
        arguments are those of ``CrateTextModel.forward``.
        """
        outputs = self._encode(kwargs, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        logits = self._classify(self._pooled(outputs.last_hidden_state, attention_mask))
        loss = self._class_loss(logits, labels, num_items_in_batch)
        return CrateSequenceClassifierOutput(loss=loss, logits=logits, **self._states_of(outputs))


class CrateForTokenClassification(_CrateTextHead):
    """CRATE with a linear layer on every token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CrateTokenClassifierOutput:
        """Logits ``(B, N, num_labels)`` and, given ``labels (B, N)`` (-100 ignored), the mean cross-entropy.

        The other arguments are those of :class:`CrateForSequenceClassification`.
        """
        outputs = self._encode(kwargs, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        logits, loss = self._classify(outputs.last_hidden_state), None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        loss = self._with_penalties(loss, labels, num_items_in_batch)
        return CrateTokenClassifierOutput(loss=loss, logits=logits, **self._states_of(outputs))


class CrateForQuestionAnswering(_CrateTextHead):
    """CRATE with two numbers for every token: does the answer start here, does it end here."""

    accepts_loss_kwargs = False  # places are not counted as labels are: the Trainer takes the mean over its batches

    num_outputs = 2

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs,
    ) -> CrateQuestionAnsweringOutput:
        """``start_logits`` and ``end_logits (B, N)`` and, given both positions ``(B)``, their mean cross-entropy.

        Positions beyond the sequence (answers that were cut off) are ignored. The other arguments are those of
        ``CrateTextModel.forward``.
        """
        outputs = self._encode(kwargs, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        start_logits, end_logits = self._classify(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self._with_penalties(self.loss_function(start_logits, end_logits, start_positions, end_positions))
        return CrateQuestionAnsweringOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **self._states_of(outputs)
        )


class CrateForMultipleChoice(_CrateTextHead):
    """CRATE with one number for every choice, from its pooled token."""

    num_outputs = 1

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CrateMultipleChoiceOutput:
        """Logits ``(B, choices)`` and, given the right ones ``labels (B)``, the mean cross-entropy.

        ``num_items_in_batch`` is for a Trainer, see :func:`~opencrate.modeling_crate_base.share_of_step`; all other
        arguments have an axis of choices after the first, ``(B, choices, N)``, and are those of
        ``CrateTextModel.forward``.
        """
        given = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        first = inputs_embeds if input_ids is None else input_ids
        if first is None:
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        flat = [None if each is None else each.flatten(0, 1) for each in given]
        outputs = self._encode(kwargs, *flat)
        logits = self._classify(self._pooled(outputs.last_hidden_state, flat[1])).view(-1, first.shape[1])
        loss = None if labels is None else fixed_cross_entropy(logits, labels, num_items_in_batch)  # pyright: ignore[reportArgumentType]  # int too
        loss = self._with_penalties(loss, labels, num_items_in_batch)
        return CrateMultipleChoiceOutput(loss=loss, logits=logits, **self._states_of(outputs))
