"""The language models: CRATE that predicts the next token, and CRATE that fills gaps. [2311.13110]

The stack under them is in modeling_crate_text_model.py, heads for classification in modeling_crate_text_heads.py.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput

from ._hf import CACHE, CACHE_NAMES, CacheByEitherName, GenerationMixin, cache_argument, can_return_tuple, one_cache
from .cache import SubspaceCache
from .configuration_crate_text import CrateTextConfig
from .modeling_crate_base import CrateStates
from .modeling_crate_text_model import CrateTextModel, CrateTextPreTrainedModel
from .products import apply_linear


@dataclass
class CrateCausalLMOutput(CacheByEitherName, CrateStates, CausalLMOutputWithPast):
    """``loss``, ``logits (B, N, vocabulary)``, the cache, and the states."""


@dataclass
class CrateMaskedLMOutput(CrateStates, MaskedLMOutput):
    """``loss``, ``logits (B, N, vocabulary)``, and the states."""


class _CrateLM(CrateTextPreTrainedModel):
    """The stack and the unembedding."""

    _tied_weights_keys = {"lm_head.weight": "crate.embeddings.token_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: CrateTextConfig):
        super().__init__(config)
        self.crate = CrateTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class CrateForCausalLM(_CrateLM, GenerationMixin):
    """CRATE that predicts the next token: CRATE-GPT, CRATE-LM and CRATE-alpha by configuration."""

    causal = True

    def __init__(self, config: CrateTextConfig):
        super().__init__(config)
        self._end_at_context()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As transformers'; a folder that states no length of generated texts gets this model's own."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._end_at_context()
        return loaded

    def _end_at_context(self) -> None:
        """Let texts fill the context where no other length is configured: pipelines would request 256 new tokens."""
        settings = self.generation_config
        if settings.max_length is None and settings.max_new_tokens is None:
            settings.max_length = self.config.max_position_embeddings + 1  # the last token needs no position

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CrateCausalLMOutput:
        """Logits of the next token at every place and, given labels, the mean cross-entropy in nats.

        Args:
            labels: ``(B, N)``, shifted inside: ``labels=input_ids`` trains; -100 is ignored.
            logits_to_keep: number of trailing positions to compute logits of (0: all), or the positions in a tensor.
            kwargs: ``shift_labels (B, N)``, already shifted, instead of ``labels``; ``num_items_in_batch``; and as in
                :meth:`CrateTextModel.forward`, where the other arguments are explained.
        """
        outputs = self.crate(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **cache_argument(one_cache(cache, past_key_values)),
            **kwargs,
        )
        tokens = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            tokens = tokens[:, logits_to_keep]
        elif logits_to_keep:
            tokens = tokens[:, -logits_to_keep:]
        logits, loss, targets = apply_linear(self.lm_head, tokens), None, kwargs.get("shift_labels")
        if labels is not None or targets is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        if labels is not None and targets is None:
            targets = labels[..., 1:]
        loss = self._with_penalties(loss, targets, kwargs.get("num_items_in_batch"))
        kept = cache_argument(outputs.past_key_values)
        return CrateCausalLMOutput(loss=loss, logits=logits, **kept, **self._states_of(outputs))

    def generate(self, inputs: Tensor | None = None, generation_config=None, *args, context_overflow=None, **kwargs):
        """Generate tokens: transformers' ``generate``, all its arguments and strategies, within the context.

        Args:
            inputs: prompt ``(B, N)``, padded on the left.
            generation_config, args: see transformers.
            context_overflow: what happens beyond the context; ``None``: as configured. ``error``: a
                ``ValueError`` before anything is generated. ``crop``: only the last ``max_position_embeddings``
                tokens are kept and computed anew for each further token, as the published sampling does; slower,
                because positions shift and the cache is of no use.
            kwargs: see transformers. Where no length is given or configured, texts end with the context.

        Raises:
            ValueError: the prompt, or what would come of it, is longer than the context, and ``context_overflow`` is
                not ``crop``.
        """
        overflow = self.config.context_overflow if context_overflow is None else context_overflow
        if overflow not in ("error", "crop"):
            raise ValueError(f"context_overflow={overflow!r} is not allowed; it must be 'error' or 'crop'")
        if not self.config.operator("compression").cached:
            kwargs["use_cache"] = False
        asked = {**_stated(self.generation_config), **_stated(generation_config), **kwargs}
        needed, context = self._needed_positions(inputs, asked), self.config.max_position_embeddings
        if needed > context:
            self._check_overflow(needed, overflow, asked)
            kwargs["context_overflow"] = "crop"  # else not handed on: an assistant of another kind does not know it
        generation_config = _with_one_length(inputs, generation_config, asked, kwargs)
        given = one_cache(*(kwargs.pop(name, None) for name in CACHE_NAMES))
        chosen = [asked.get(name) for name in ("cache_implementation", "custom_generate")]
        if given is None and chosen == [None] * 2 and asked.get("use_cache") is not False:
            given = SubspaceCache(self.config, min(needed, context))
        if given is not None:
            kwargs[CACHE] = given
        return super().generate(inputs, generation_config, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]  # its class is a stub there

    def _needed_positions(self, inputs: Tensor | None, asked: dict[str, Any]) -> int:
        """Positions that a call of ``generate`` can come to use; the last token generated needs none."""
        given = _prompt_length(inputs, asked)
        attended = asked.get("attention_mask")
        length = given if attended is None else int(attended.sum(-1).max())
        for name, before in (("max_new_tokens", length), ("max_length", length - given)):
            if asked.get(name) is not None:
                return max(length, before + asked[name] - 1)
        return length

    def _check_overflow(self, needed: int, overflow: str, asked: dict[str, Any]) -> None:
        names = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
        remedy = ", or pass context_overflow='crop' to keep only the last tokens, computed anew for each further one"
        if any(asked.get(name) for name in names):
            remedy = "; context_overflow='crop' does not go with guessed tokens"
        elif overflow == "crop":
            return
        raise ValueError(
            f"prompt and new tokens take up to {needed} positions, more than the context of "
            f"{self.config.max_position_embeddings} (max_position_embeddings): shorten the prompt or max_new_tokens"
            f"{remedy}"
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        context_overflow: str | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """Inputs of the next forward: transformers', or beyond the context its last tokens without a cache."""
        context, cache = self.config.max_position_embeddings, one_cache(cache, past_key_values)
        if context_overflow == "crop":
            if inputs_embeds is not None:  # the prompt; what came after it is in the ids
                new = kwargs["position_ids"].shape[1] - inputs_embeds.shape[1]
                tokens = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - new :])
                inputs_embeds = torch.cat((inputs_embeds, tokens.to(inputs_embeds)), dim=1)
            if (input_ids if inputs_embeds is None else inputs_embeds).shape[1] > context:
                input_ids, cache, next_sequence_length = input_ids[:, -context:], None, None
                inputs_embeds = None if inputs_embeds is None else inputs_embeds[:, -context:]
                attention_mask = None if attention_mask is None else attention_mask[:, -context:]
                is_first_iteration = is_first_iteration or inputs_embeds is not None  # they are read only there
                kwargs.update(position_ids=None, use_cache=False)
        return super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]  # as above
            input_ids,
            next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **cache_argument(cache),
            **kwargs,
        )


def _with_one_length(inputs: Tensor | None, settings: Any, asked: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """The caller's generation configuration and ``kwargs`` (changed here) such that they state one length.

    transformers warns of two, and one is in the model's own configuration. A prompt that is longer than that by itself
    and is cropped gets transformers' default of 20 new tokens.
    """
    names = {"max_length", "max_new_tokens"}
    by_word = {name for name in names if kwargs.get(name) is not None}
    by_settings = names & _stated(settings).keys()
    if not by_word | by_settings and "context_overflow" in kwargs:
        kwargs["max_new_tokens"], by_word = 20, {"max_new_tokens"}
    if by_word == {"max_new_tokens"}:
        kwargs["max_length"] = None
    elif not by_word and by_settings == {"max_new_tokens"}:
        settings = copy.copy(settings)
        settings.max_length, settings.max_new_tokens = _prompt_length(inputs, asked) + settings.max_new_tokens, None
    return settings


def _prompt_length(inputs: Tensor | None, asked: dict[str, Any]) -> int:
    """Tokens of a prompt, padding included; without one, the token that begins a text."""
    prompts = (asked.get("inputs_embeds"), inputs, asked.get("input_ids"))
    return next((prompt.shape[1] for prompt in prompts if prompt is not None), 1)


def _stated(settings: Any) -> dict[str, Any]:
    """What a generation configuration, if there is one, says."""
    return {} if settings is None else {name: value for name, value in vars(settings).items() if value is not None}


class CrateForMaskedLM(_CrateLM):
    """CRATE that fills masked tokens: CRATE-BERT by configuration."""

    causal = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> CrateMaskedLMOutput:
        """Logits of the token at every place and, given ``labels (B, N)`` (-100 ignored), their mean cross-entropy.

        ``kwargs`` may hold a Trainer's ``num_items_in_batch``; the other arguments are those of
        :meth:`CrateTextModel.forward`.
        """
        outputs = self.crate(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        logits, loss = apply_linear(self.lm_head, outputs.last_hidden_state), None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        loss = self._with_penalties(loss, labels, kwargs.get("num_items_in_batch"))
        return CrateMaskedLMOutput(loss=loss, logits=logits, **self._states_of(outputs))
