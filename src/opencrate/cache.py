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
        self._room = self._room_for(total, used, key_states, value_states)
        keys, values = (room[..., :total, :] for room in self._room)
        self.keys, self.values = keys, values
        keys[..., used:, :] = key_states
        if value_states.shape[-1]:
            values[..., used:, :] = value_states
        return keys, values

    def _room_for(self, total: int, used: int, *states: Tensor) -> tuple[Tensor, Tensor]:
        """The room while ``keys`` is its start (beam search replaces it) and it is large enough, else a larger one."""
        old, keys, length = (self.keys, self.values), self.keys, max(total, self.capacity)
        if self._room is not None and keys is not None:
            first = self._room[0]
            ours = keys.data_ptr() == first.data_ptr() and keys.shape[0] == first.shape[0]
            if ours and total <= first.shape[-2]:
                return self._room
            length = max(length, first.shape[-2] * 3 // 2)
        keys, values = (s.new_empty(*s.shape[:-2], length, s.shape[-1]) for s in states)
        for new, before in zip((keys, values), old):
            if used and new.shape[-1] and before is not None:
                new[..., :used, :] = before
        return keys, values

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
