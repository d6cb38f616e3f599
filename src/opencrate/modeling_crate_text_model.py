"""CRATE for text without a head: embedding, L layers of (compress, sparsify), final norm. [2311.13110]

Since queries = keys = values = U^T LN(Z), the cache of a causal model holds one tensor per layer, half of what separate
keys and values take. The states that the vision models record (see modeling_crate.py) are recorded here by the same
flags, on every output.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ._graph import known, traced
from ._hf import (
    CACHE,
    CACHE_NAMES,
    CacheByEitherName,
    cache_argument,
    capture_outputs,
    create_causal_mask,
    init,
    merge_with_config_defaults,
    one_cache,
)
from .blocks import CrateLayer, LayerList
from .cache import SubspaceCache
from .configuration_crate_text import CrateTextConfig
from .modeling_crate_base import CratePreTrainedModel, CrateStates, last_norm
from .positions import places_argument, text_places
from .recording import read_by, record
from .sparsification import ISTA, Synthesis

_CHECKS_WITHOUT_WAITING = ("cuda", "meta")
"""Devices that are asked nothing, since the answer would be waited for; CUDA stops by itself where a check fails."""


@dataclass
class CrateTextModelOutput(CacheByEitherName, CrateStates, BaseModelOutputWithPast):
    """``last_hidden_state (B, N, d)`` after the final norm, the cache, and the states."""


class CrateTextEmbeddings(nn.Module):
    """Token, position and segment tables, summed: ``(B, N)`` -> ``(B, N, d)``."""

    def __init__(self, config: CrateTextConfig):
        super().__init__()
        self.dropout = config.dropout
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if "absolute" in config.positions:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, tokens: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """``tokens (B, N, d)`` are token embeddings already; positions and segments are ids ``(B or 1, N)``."""
        if hasattr(self, "position_embeddings"):
            tokens = tokens + self.position_embeddings(position_ids)
        if hasattr(self, "type_embeddings"):
            segments = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            tokens = tokens + self.type_embeddings(segments)
        return F.dropout(tokens, self.dropout, self.training)


class CrateTextPreTrainedModel(CratePreTrainedModel):
    """Loading, saving, initialisation and the recording of states of the text models."""

    config_class = CrateTextConfig
    config: CrateTextConfig
    main_input_name = "input_ids"
    causal: bool | None = None
    """Whether the class needs a causal model; ``None`` takes either."""
    _no_split_modules = ["CrateTextEmbeddings", "CrateLayer"]  # noqa: RUF012 (transformers' convention)
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012

    def __init__(self, config: CrateTextConfig, *args, **kwargs):
        if config.is_causal is None:
            config.is_causal = bool(self.causal)
            config._check_text()
        if self.causal not in (None, config.is_causal):
            raise ValueError(
                f"is_causal={config.is_causal} in the configuration, but {type(self).__name__} needs {self.causal}: a "
                "model trained in one direction is not one of the other; use the class of its kind, or set is_causal"
            )
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self.config.initializer == "normal" or not isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        else:
            added = 2 * self.config.num_hidden_layers if getattr(module, "is_output_map", False) else 1
            init.normal_(module.weight, std=0.02 / added**0.5)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)

    def _init_dictionaries(self, module: ISTA | Synthesis) -> None:
        super()._init_dictionaries(module)
        if self.config.initializer == "official" and isinstance(module, ISTA):
            bound = (6 / self.config.hidden_size) ** 0.5  # Kaiming uniform of D^T, whose fan-in is the width
            for dictionary in module.dictionaries():
                init.uniform_(dictionary, -bound, bound)


class CrateTextModel(CrateTextPreTrainedModel):
    """Embedding, L layers and, where the configuration has it, a final norm."""

    gradient_checkpointing = False  # set by activation_checkpointing_enable(), as in the layers

    def __init__(self, config: CrateTextConfig):
        super().__init__(config)
        self.embeddings = CrateTextEmbeddings(config)
        layers = (CrateLayer(config, index) for index in range(config.num_hidden_layers))
        self.layers: LayerList[CrateLayer] = LayerList(layers)
        if config.final_norm:
            self.norm = last_norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.embeddings.token_embeddings

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the token table."""
        self.embeddings.token_embeddings = new_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CrateTextModelOutput:
        """Encode tokens.

        Args:
            input_ids: ``(B, N)``; with a cache, the tokens after those it holds.
            attention_mask: ``(B, tokens so far)``, 1 = attend, or None.
            token_type_ids: ``(B, N)`` segments, where ``type_vocab_size`` is not 0.
            position_ids: ``(B, N)``; by default a causal model counts attended tokens, another one all. Counting from
                0 again at each document of a packed block, without an attention mask, keeps a causal model's
                documents from seeing each other.
            past_key_values: ``cache`` by the name that transformers had for it before 5.24.
            inputs_embeds: ``(B, N, d)`` instead of ``input_ids``.
            use_cache: return a cache (causal models, outside training).
            cache: of earlier tokens, of a causal model; this call's tokens are added.
            kwargs: ``output_hidden_states``, ``output_compressed_states``, ``output_projected_states``,
                ``output_sparse_codes``, ``output_attentions``.

        Raises:
            ValueError: ids beyond the tables; more tokens than the context; an output flag the model does not know; a
                cache where none can be used.
        """
        self._check_outputs(kwargs)
        cache = one_cache(cache, past_key_values)
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        positions = self._positions(given, position_ids, attention_mask, cache)
        if input_ids is not None:
            _check_ids("input_ids", input_ids, self.config.vocab_size, "vocab_size")
            inputs_embeds = self.embeddings.token_embeddings(input_ids)
        if token_type_ids is not None:
            _check_ids("token_type_ids", token_type_ids, max(1, self.config.type_vocab_size), "type_vocab_size")
        tokens = self._as_handed_on(self.embeddings(inputs_embeds, positions, token_type_ids))
        mask = self._mask(tokens, attention_mask, cache, position_ids)
        cache = self._cache_to_fill(cache, use_cache)
        maps = bool(kwargs.get("output_attentions", self.config.output_attentions))
        first = 0 if cache is None else cache.get_seq_length()
        places = places_argument(text_places(self.config, tokens.shape[1], first, tokens.device))
        further = cache_argument(cache) | places | self._padding_argument(attention_mask)
        for layer in self.layers:
            tokens = layer(tokens, mask, output_attentions=maps, **further)
        if self.config.final_norm:
            tokens = read_by(self.norm, "hidden_states", tokens)
        else:
            record("hidden_states", tokens)
        return CrateTextModelOutput(last_hidden_state=tokens, **cache_argument(cache if use_cache else None))

    def _cache_to_fill(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache that the layers are to fill, if any; an exported graph, which returns tensors only, makes none.

        With activation checkpointing there is none: a layer computed again in the backward pass would add to it twice,
        so transformers keeps it from the layers (before 5.24 also without gradients).
        """
        if not self.config.is_causal:
            if cache is not None:
                raise ValueError("cache: only a causal model has a cache, and this one has is_causal=False")
            return None
        held = 0 if cache is None else cache.get_seq_length()
        if not self.config.operator("compression").cached:
            if held:
                raise ValueError(
                    f"cache: compression={self.config.compression!r} uses none; give the tokens themselves"
                )
            return None
        if self.gradient_checkpointing and self.training and (torch.is_grad_enabled() or CACHE != "cache"):
            if held:
                raise ValueError(
                    f"cache: one that holds tokens ({held}) does not go with activation checkpointing in training: "
                    "give the tokens themselves, or turn checkpointing off"
                )
            return None
        makes_one = use_cache and not self.training and not torch.compiler.is_exporting()
        return SubspaceCache(self.config) if cache is None and makes_one else cache

    def _positions(
        self, tokens: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Position of every token, ``(B or 1, N)``, each within the context."""
        num_tokens, context = tokens.shape[1], self.config.max_position_embeddings
        if position_ids is None and self.config.is_causal and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_tokens:]
        if position_ids is not None:
            _check_ids("position_ids", position_ids, context, "max_position_embeddings")
            return position_ids
        past = 0 if cache is None else cache.get_seq_length()
        if not isinstance(past, Tensor) and known(past + num_tokens > context):
            raise ValueError(
                f"{past + num_tokens} tokens are more than the context of {context} (max_position_embeddings): let the "
                f"tokenizer or the pipeline cut the text (truncation=True, max_length={context}), or cut it into "
                "pieces; generate() can also keep the last tokens with context_overflow='crop'"
            )
        return (torch.arange(num_tokens, device=tokens.device) + past)[None]

    def _mask(
        self, tokens: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor | None
    ) -> Any:
        """What the compression operator takes; ``None`` where nothing but the direction limits attention."""
        padding_only = self.config.operator("compression").padding_only
        if padding_only and attention_mask is None:
            self._refuse_packed(position_ids)
        if self.config.is_causal and not padding_only:
            kept = cache_argument(cache)
            return create_causal_mask(self.config, tokens, attention_mask, position_ids=position_ids, **kept)
        return self._padding_or_mask(tokens, attention_mask)

    def _refuse_packed(self, position_ids: Tensor | None) -> None:
        """An operator that knows padding only would let a block's documents see each other, without a word."""
        if not self.config.is_causal or position_ids is None or traced():
            return
        one_document = (position_ids.diff(dim=-1) == 1).all()
        message = (
            f"position_ids: compression={self.config.compression!r} cannot keep the documents of a packed block "
            "apart; give one document a row, with an attention_mask where rows are padded"
        )
        if position_ids.device.type in _CHECKS_WITHOUT_WAITING:
            torch._assert_async(one_document, message)  # pyright: ignore[reportPrivateImportUsage]
        elif not bool(one_document):
            raise ValueError(message)


def _check_ids(name: str, ids: Tensor, size: int, field: str) -> None:
    """Refuse ids outside ``[0, size)``, whose table row does not exist.

    Not on CUDA, where reading them back is a wait and the look-up itself stops the program; on other accelerators only
    without gradients and for more than one token (a prompt, not each generated token). Never inside a compiled graph.
    """
    if traced() or ids.numel() == 0 or ids.device.type in _CHECKS_WITHOUT_WAITING:
        return
    if ids.device.type != "cpu" and (torch.is_grad_enabled() or ids.shape[-1] == 1):
        return
    low, high = (int(value) for value in torch.aminmax(ids))
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} go from {low} to {high}, but the model has {size} ({field}={size}): ids from 0 to {size - 1} are "
            "allowed; were the tokenizer and the model made for each other?"
        )
