"""The cache of a causal CRATE: one tensor per layer, U^T LN(Z) of the tokens so far, for queries = keys = values."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class SubspaceLayer(DynamicLayer):
    """transformers' growing cache layer, which writes new tokens into spare room instead of copying all old ones.

    ``keys`` is a view ``(B, K, tokens so far, p)`` of the room, and ``values`` has no numbers of its own where the
    caller's have none. Room for ``capacity`` tokens is taken at once; beyond that it grows by half.
    """

    def __init__(self, capacity: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.capacity = capacity
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add the states of new tokens ``(B, K, N, p)``; returns those of all tokens."""
        if torch.is_grad_enabled() and key_states.requires_grad:
            return super().update(key_states, value_states, *args, **kwargs)  # autograd needs each step's own tensor
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[-2]
        if not self._has_room(total):
            self._make_room(key_states, value_states, used, total)
        self.keys, self.values = (room[..., :total, :] for room in self._room)
        self.keys[..., used:, :] = key_states
        if value_states.shape[-1]:
            self.values[..., used:, :] = value_states
        return self.keys, self.values

    def _has_room(self, total: int) -> bool:
        """Whether ``keys`` still is the start of the room (beam search replaces it) and the room is large enough."""
        if self._room is None or self.keys.data_ptr() != self._room[0].data_ptr():
            return False
        return self.keys.shape[0] == self._room[0].shape[0] and total <= self._room[0].shape[-2]

    def _make_room(self, key_states: Tensor, value_states: Tensor, used: int, total: int) -> None:
        grown = 0 if self._room is None else self._room[0].shape[-2] * 3 // 2
        length = max(total, grown, self.capacity)
        room = tuple(s.new_empty(*s.shape[:-2], length, s.shape[-1]) for s in (key_states, value_states))
        for new, old in zip(room, (self.keys, self.values)):
            if used and new.shape[-1]:
                new[..., :used, :] = old
        self._room = room

    def reset(self) -> None:
        """Forget all tokens."""
        self._room = None
        super().reset()


class SubspaceCache(DynamicCache):
    """transformers' growing cache, made of :class:`SubspaceLayer`.

    Args:
        config: of the model.
        capacity: tokens to take room for at the first one; any number of tokens fits.
    """

    def __init__(self, config: Any, capacity: int = 0):
        super().__init__()
        self.layer_class_to_replicate = None
        self.layers = [SubspaceLayer(capacity) for _ in range(config.num_hidden_layers)]
