"""Bytes that a layer keeps for its backward, counted by autograd's hooks: what the batch of a training step costs.

    python benchmarks/activations.py [--expansion 4] [--attention sdpa]

One layer more or less of a small model on a CPU gives the bytes per token and channel (the part that grows with the
batch), in float32 and under bf16 autocast. Other widths and lengths follow by scaling, unless attention keeps its maps.
"""

from __future__ import annotations

import argparse
import os

os.environ["OPENCRATE_CALIBRATE"] = "0"  # batches of all sizes go the same way
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from opencrate import CrateConfig, CrateForImageClassification

WIDTH, IMAGE, PATCH = 64, 32, 8
BATCHES = (16, 32)  # of more tokens than channels, as in training
TOKENS = 1 + (IMAGE // PATCH) ** 2


def saved_bytes(layers: int, batch: int, half: bool, expansion: int, attention: str) -> int:
    """Bytes of all tensors that the forward keeps, parameters apart, each storage once."""
    config = CrateConfig(
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
        dictionary_expansion=expansion,
        dictionary_decode="untied" if expansion > 1 else "none",
    )
    model = CrateForImageClassification(config).train()
    model.set_attn_implementation(attention)
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.randn(batch, 3, IMAGE, IMAGE)
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(images).logits
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits
    return size


def bytes_per_entry(half: bool, expansion: int = 1, attention: str = "sdpa") -> float:
    """Of one layer, per token and channel; what does not grow with the batch is left out."""
    sizes = {
        (layers, batch): saved_bytes(layers, batch, half, expansion, attention)
        for layers in (1, 2)
        for batch in BATCHES
    }
    one, other = (sizes[2, batch] - sizes[1, batch] for batch in BATCHES)
    return (other - one) / ((BATCHES[1] - BATCHES[0]) * TOKENS * WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expansion", type=int, default=1, help="atoms per channel of the dictionary")
    parser.add_argument("--attention", default="sdpa")
    options = parser.parse_args()
    for half in (False, True):
        entry = bytes_per_entry(half, options.expansion, options.attention)
        image = entry * 197 * 768 / 2**20
        words = "bf16 autocast" if half else "float32"
        print(
            f"{words}: {entry:.1f} bytes per token, channel and layer; {image:.2f} MiB an image and layer of CRATE-B/16"
        )


if __name__ == "__main__":
    main()
