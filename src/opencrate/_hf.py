"""The parts of transformers that are not in its documented surface, imported in one place."""

from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "BackboneConfigMixin",
    "BackboneMixin",
    "GradientCheckpointingLayer",
    "OutputRecorder",
    "can_return_tuple",
    "capture_outputs",
    "create_bidirectional_mask",
    "create_causal_mask",
    "init",
    "merge_with_config_defaults",
]
