"""How good are the frozen features of an image encoder: neighbours and linear probes on labelled images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..recipe.schema import ENCODERS
from .inputs import Batch, evaluating, place, read_batches
from .probe import Features, Probe, hidden_states, last_layer, probe

QUICK_REGULARISATION = 1e-2
"""C of the logistic regression while a model is trained, where it is not chosen anew each time."""
TOKENS = ("pooled", "patches", "last_two")
"""Keys of `representations`: what a head reads, the mean of the patch tokens, the class tokens of two layers."""


def representations(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, Features]:
    """Three vectors for each labelled image, without gradients, by one forward pass.

    - `pooled`: what the linear layer of classes reads, where there is one, and what the model gives where there is
      none: CRATE's pooled token after LN, ViT's class token. Of a masked autoencoder, which is shown whole images, what
      a classifier made of its encoder would pool (`config.pool`).
    - `patches`: the mean of the last layer's patch tokens after the model's last LN.
    - `last_two`: the class tokens of the last two layers after that LN, one after the other.

    Args:
        model: an image classifier, an encoder without classes or a masked autoencoder; token 0 is the class token.
        batches: mappings with `pixel_values` and `labels`.

    Raises:
        ValueError: a model without a last norm, or batches without labels.
    """
    norm = last_norm(model)
    vectors: dict[str, list[Tensor]] = {name: [] for name in TOKENS}
    labels = []
    for batch in read_batches(batches):
        if "labels" not in batch:
            raise ValueError("batches: have no labels; a representation is judged by labelled images")
        states, pooled = _run(model, place(batch["pixel_values"], model), norm)
        with evaluating(model):
            before, last = (norm(state) for state in states)
        found = pooled, last[:, 1:].mean(1), torch.cat([before[:, 0], last[:, 0]], 1)
        for name, value in zip(TOKENS, found):
            vectors[name].append(value.float().cpu())
        labels.append(batch["labels"].cpu())
    numbers = torch.cat(labels).numpy()
    return {name: Features(torch.cat(values).numpy(), numbers) for name, values in vectors.items()}


def _run(model: PreTrainedModel, pixels: Tensor, norm: nn.Module) -> tuple[tuple[Tensor, ...], Tensor]:
    """The last two hidden states, and the pooled token `(B, d)` after the last norm; one forward pass."""
    if model.config.model_type in ENCODERS:
        states = hidden_states(model, pixels)[-2:]
        tokens = states[-1]
        with evaluating(model):
            return states, norm(tokens.mean(1) if getattr(model.config, "pool", "cls") == "mean" else tokens[:, 0])
    read: list[Tensor] = []
    handle = model.get_submodule("classifier").register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        with evaluating(model):
            outputs = model(pixel_values=pixels, output_hidden_states=True)
    finally:
        handle.remove()
    return outputs.hidden_states[-2:], read[0]


def last_norm(model: PreTrainedModel) -> nn.Module:
    """The LN that the last layer's tokens go through: before the head of CRATE, in the encoder of all others.

    Raises:
        ValueError: a model that has none of these.
    """
    for owner, name in ((model, "norm"), (model.base_model, "layernorm"), (model.base_model, "norm")):
        found = getattr(owner, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ValueError(f"a {model.config.model_type} model has no last norm; give a CRATE, ViT, DINOv2 or an autoencoder")


def judge_quickly(model: PreTrainedModel, train: Iterable[Batch], test: Iterable[Batch]) -> dict[str, float]:
    """Accuracies, 0 to 1, of the pooled features: `knn` (votes exp(cos/0.07)), `knn_majority` and `linear`."""
    fitted, counted = (representations(model, part)["pooled"] for part in (train, test))
    layer = last_layer(model)
    return {
        "knn": probe(fitted, counted, "knn", layer, "pooled", weights="exp").accuracy,
        "knn_majority": probe(fitted, counted, "knn", layer, "pooled").accuracy,
        "linear": probe(fitted, counted, "linear", layer, "pooled", QUICK_REGULARISATION).accuracy,
    }


def judge(model: PreTrainedModel, train: Iterable[Batch], test: Iterable[Batch]) -> dict[str, Probe]:
    """`knn` and `knn_majority` of the pooled features, and linear probes of all three.

    These are `linear` (of the pooled features), `linear_patches` and `linear_last_two`, each with its own
    regularisation, chosen on held-out training images.
    """
    fitted, counted = (representations(model, part) for part in (train, test))
    layer = last_layer(model)
    found = {
        "knn": probe(fitted["pooled"], counted["pooled"], "knn", layer, "pooled", weights="exp"),
        "knn_majority": probe(fitted["pooled"], counted["pooled"], "knn", layer, "pooled"),
    }
    for token in TOKENS:
        name = "linear" if token == "pooled" else f"linear_{token}"
        found[name] = probe(fitted[token], counted[token], "linear", layer, token)
    return found


def accuracies(found: dict[str, Probe]) -> dict[str, Any]:
    """The accuracies alone, by name."""
    return {name: one.accuracy for name, one in found.items()}
