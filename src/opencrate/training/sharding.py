"""Weights in shards (FSDP2): which modules are sharded together, and the whole model again when a run is done."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


def wrap_layers(model: PreTrainedModel, plugin: Any) -> None:
    """Let accelerate's plugin shard layer by layer, unless the launch configuration names classes.

    Its default, all of `_no_split_modules`, would shard the embeddings as one, and accelerate shards the module with
    the input's weights inside them by itself: a second time.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        names = [name for name in model._no_split_modules or () if not name.endswith("Embeddings")]
        plugin.transformer_cls_names_to_wrap = names


def reshard(model: nn.Module) -> None:
    """Give up whole weights that a forward without a backward has left."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes hold a part of each of the model's weights."""
    return any(isinstance(value, DTensor) for value in model.parameters())


def whole_model(model: PreTrainedModel, kind: type[PreTrainedModel], main: bool) -> PreTrainedModel:
    """A model of the class `kind` with whole weights in the `main` process, on this one's device; all have to call.

    The other processes, and everyone where nothing is sharded, get the model itself.
    """
    reshard(model)
    if not is_sharded(model):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not main:
        return model
    with torch.device("meta"):
        whole = kind(model.config)
    whole.to_empty(device=model.device)
    whole.tie_weights()
    whole.load_state_dict(weights, strict=True)
    return whole.train(model.training)


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece; then all processes have to call."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def as_sharded(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of another and sharded as it is."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value
