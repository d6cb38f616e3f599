"""The parts of transformers that are not in its documented surface, imported in one place."""

from transformers import Cache
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "CACHE",
    "CACHE_NAMES",
    "BackboneConfigMixin",
    "BackboneMixin",
    "CacheByEitherName",
    "GradientCheckpointingLayer",
    "OutputRecorder",
    "can_return_tuple",
    "capture_outputs",
    "create_bidirectional_mask",
    "create_causal_mask",
    "fixed_cross_entropy",
    "init",
    "merge_with_config_defaults",
    "one_cache",
]

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What the installed transformers calls a cache, as an argument and in outputs: ``cache`` from 5.24."""

CACHE_NAMES = ("past_key_values", "cache")


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that was given, by whichever of its two names."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values are two names of one argument: give one of them")
    return past_key_values if cache is None else cache


class CacheByEitherName:
    """Mixin of outputs whose field ``CACHE`` can be read by its other name too."""


for _other in set(CACHE_NAMES) - {CACHE}:
    setattr(CacheByEitherName, _other, property(lambda self: getattr(self, CACHE)))
