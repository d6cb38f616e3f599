"""The parts of transformers that are not in its documented surface, imported in one place."""

import torch
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, _active_collector, capture_outputs

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "RECORDED_BY_FORWARD",
    "BackboneConfigMixin",
    "BackboneMixin",
    "GradientCheckpointingLayer",
    "can_return_tuple",
    "capture_outputs",
    "create_bidirectional_mask",
    "create_causal_mask",
    "init",
    "merge_with_config_defaults",
    "states_asked_for",
]

RECORDED_BY_FORWARD = OutputRecorder(None)
"""For ``_can_record_outputs``: transformers sets no hook, because the forward itself hands the states over.

transformers' hooks see what a module returned before a user's hook, set later, changed it, and are not there for a
module that is exchanged or wrapped later.
"""


def states_asked_for(key: str) -> list[torch.Tensor] | None:
    """The list that the running model returns as its ``key``, where the caller asked for these states."""
    if torch.compiler.is_dynamo_compiling() and not _active_collector.compiling:  # a part compiled on its own
        return None
    collected = _active_collector.get()
    return None if collected is None else collected.get(key)
