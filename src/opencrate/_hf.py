"""The parts of transformers that are not in its documented surface, imported in one place."""

from typing import Any

import torch
from transformers import Cache, initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.generation.utils import GenerationMixin
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, _active_collector, capture_outputs

__all__ = ["ALL_ATTENTION_FUNCTIONS", "CACHE", "CACHE_NAMES", "RECORDED_BY_FORWARD", "BackboneConfigMixin"]
__all__ += ["BackboneMixin", "CacheByEitherName", "GenerationMixin", "GradientCheckpointingLayer", "ModelOutput"]
__all__ += ["cache_argument", "can_return_tuple", "capture_outputs", "create_bidirectional_mask", "create_causal_mask"]
__all__ += ["fixed_cross_entropy", "init", "merge_with_config_defaults", "one_cache", "states_asked_for"]

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What the installed transformers calls a cache, as an argument and in outputs: ``cache`` from 5.24."""

CACHE_NAMES = ("past_key_values", "cache")


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that was given, by whichever of its two names."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


def cache_argument(cache: Cache | None) -> dict[str, Any]:
    """The cache as a keyword of the installed transformers."""
    return {CACHE: cache}


class CacheByEitherName:
    """Mixin of outputs whose field ``CACHE`` can be read by its other name too."""


for _other in set(CACHE_NAMES) - {CACHE}:
    setattr(CacheByEitherName, _other, property(lambda self: getattr(self, CACHE)))


RECORDED_BY_FORWARD = OutputRecorder(None)  # pyright: ignore[reportArgumentType]  # no class: no hook
"""For ``_can_record_outputs``: transformers sets no hook, because the forward itself hands the states over.

transformers' hooks see what a module returned before a user's hook, set later, changed it, and are not there for a
module that is exchanged or wrapped later.
"""


def states_asked_for(key: str) -> list[torch.Tensor] | None:
    """The list that the running model returns as its ``key``, if the caller requested these states."""
    if torch.compiler.is_dynamo_compiling() and not _active_collector.compiling:  # a part compiled on its own
        return None
    collected = _active_collector.get()
    return None if collected is None else collected.get(key)
