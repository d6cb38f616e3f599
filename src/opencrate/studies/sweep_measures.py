"""What the runs of a sweep are compared by: accuracy, rates, sparsity, and how readable maps and features are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from ..analysis.layers.registry import Measure
from ..analysis.layers.result import layer_measures
from ..analysis.record.states import describe_states, has_maps, record
from ..configuration_crate import pair
from ..data.images.labelled import label_names
from ..data.images.sources import load_images
from ..evaluation.probe import features, last_layer, probe
from ..objective import sparsity
from ..recipe.schema import Recipe
from ..store.build import AUTO_MODELS, build_config
from ..store.saved import SavedModel, open_saved

EPS = 0.5
"""ε of the coding rates."""
PROBE_IMAGES = 5000
"""The linear probe is fitted on at most this many training images, and evaluated on as many test images."""
_BATCH = 64


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("accuracy", "%", "on all test images", scale=100),
    "error": Measure("masked-patch error", "", "squared error on the masked patches of the test images", digits=4),
    "psnr": Measure("PSNR", "dB", "of whole reconstructed test images"),
    "loss": Measure("loss", "", "the task's own on the test images: cross-entropy in nats, or squared error", digits=3),
    "compression": Measure(
        "R^c(Z^{ℓ+½}) − R^c(Z^ℓ)", "nats", "change of R^c in the first half of a layer, mean over layers; per image"
    ),
    "subspace_rate": Measure("R^c, last layer", "nats", "R^c(Z^{ℓ+½} | U^ℓ) of the last layer; per image"),
    "rate_reduction": Measure("ΔR, last layer", "nats", "R − R^c of Z^{ℓ+½} in the last layer; per image"),
    "nonzero": Measure(
        "non-zero", "%", "‖Z^{ℓ+1}‖_0 / (d N), entries exactly zero count as zero; mean over layers", scale=100
    ),
    "hoyer": Measure(
        "Hoyer of codes",
        "",
        "sparsity of the codes (0 dense, 1 sparse): the ISTA code or the MLP's hidden activations",
        digits=3,
    ),
    "entropy": Measure(
        "attention entropy",
        "of log N",
        "of the rows of all attention maps (0 sharp, 1 uniform); mean over layers",
        digits=3,
    ),
    "selectivity": Measure(
        "class selectivity",
        "",
        "class selectivity index [1803.06959] of the last layer's codes, mean over live atoms",
        digits=3,
    ),
    "probe": Measure(
        "linear probe",
        "%",
        f"on the mean token of the last layer; fitted on at most {PROBE_IMAGES:,} images",
        scale=100,
    ),
    "operations": Measure("operations", "MFLOP", "of a forward in training, per image", scale=1e-6, digits=1),
    "parameters": Measure("parameters", "", "all", digits=0),
    "seconds": Measure("training", "s", "wall-clock; comparable only if nothing else ran", digits=0),
}
"""Every measure of a run by its key, in the order of the tables."""
HEADLINES = ("accuracy", "error")
"""What arms are compared by first: of classifiers, of autoencoders."""


def measure_run(directory: Path, num_images: int) -> dict[str, Any]:
    """What the rates of a finished run are taken against (`subspaces`, `shape`), and its `values` of `MEASURES`."""
    saved = open_saved(directory, ("classifier", "autoencoder"))
    recipe, metrics = saved.recipe, saved.metrics
    if recipe is None or metrics is None:
        raise ValueError(f"{directory}: is not a run with a recipe and metrics; train it first")
    skip_bad = bool(metrics["data"].get("skipped"))
    labelled = recipe.task == "image-classification"
    splits = load_images(recipe.data, skip_bad, saved.transform.smallest, labelled=labelled)
    train, test = splits.train, splits.test
    images = test.select(_spread(len(test), num_images))
    values: dict[str, float | None] = {
        **_outcome(metrics),
        **_rates(saved.model, saved.batches(images, _BATCH)),
        **_readability(saved.model, saved.batches(images, _BATCH)),
        "probe": _linear_probe(saved, train, test) if len(label_names(train)) > 1 else None,
        "operations": forward_operations(saved.model.config, recipe.task),
        "parameters": metrics["parameters"],
        "seconds": metrics["seconds"],
    }
    config = saved.model.config
    shape = (config.num_attention_heads, config.hidden_size, config.head_dim)
    return {"subspaces": describe_states(saved.model)[0], "shape": shape, "values": values}


def _outcome(metrics: dict[str, Any]) -> dict[str, float | None]:
    """What the run itself measured on its test images."""
    test = metrics["test"]
    found = {key: test[name]["mean"] for key, name in (("error", "error_model"), ("psnr", "psnr")) if name in test}
    return {"accuracy": metrics.get("accuracy"), "error": None, "psnr": None, **found, "loss": metrics["loss"]}


def class_selectivity(activity: Tensor, labels: Tensor) -> Tensor:
    """Class selectivity index of each unit, `(μ_max − μ_rest) / (μ_max + μ_rest)` [1803.06959], `(m)`.

    μ_max is the largest of a unit's mean activities `(n, m)` per class, μ_rest the mean of those of the other classes;
    NaN for a unit that is never active.
    """
    means = torch.stack([activity[labels == label].mean(0) for label in labels.unique()])
    largest = means.amax(0)
    rest = (means.sum(0) - largest) / (len(means) - 1)
    return (largest - rest) / (largest + rest)


def attention_entropy(maps: Tensor) -> Tensor:
    """Entropy of the rows of attention maps `(B, K, N, N)`, over log N; mean over heads and rows, `(B)`."""
    return torch.special.entr(maps.double()).sum(-1).mean((-2, -1)) / math.log(maps.shape[-1])


def recipe_operations(recipe: Recipe) -> float:
    """`forward_operations` of the model that a recipe builds for its data."""
    classes = label_names(load_images(recipe.data).train) if recipe.task == "image-classification" else None
    return forward_operations(build_config(recipe, classes), recipe.task)


def forward_operations(config: PreTrainedConfig, task: str = "image-classification") -> float:
    """Floating-point operations of the model's forward in training, per image, as torch counts them.

    Products of matrices and convolutions count, two operations per multiplication; building the matrix of a complete
    ISTA step counts once per batch of 64.
    """
    height, width = pair(config.image_size)
    with torch.device("meta"):
        auto_class = AUTO_MODELS[task]
        model = auto_class.from_config(config, attn_implementation="eager", trust_remote_code=False).train()
        images = torch.empty(_BATCH, config.num_channels, height, width)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / _BATCH


def _rates(model: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
    keys = ("subspace_rate_before", "subspace_rate", "rate_reduction", "nonzero_fraction")
    found = layer_measures(model, batches, EPS, measures=keys)
    before, after = found.mean("subspace_rate_before"), found.mean("subspace_rate")
    return {
        "compression": (after - before).mean().item(),
        "subspace_rate": after[-1].item(),
        "rate_reduction": found.mean("rate_reduction")[-1].item(),
        "nonzero": found.mean("nonzero_fraction").mean().item(),
    }


def _readability(model: PreTrainedModel, batches: DataLoader) -> dict[str, float | None]:
    """Sharpness of the maps, sparsity and selectivity of the codes; `None` without maps or codes."""
    means: dict[str, list[Tensor]] = {"hoyer": [], "entropy": []}
    activity = []
    labels = torch.cat([batch["labels"] for batch in batches])
    for states in record(model, batches, attentions=has_maps(model)):
        codes = [step.codes for step in states.steps() if step.codes is not None]
        if states.attentions is not None:
            means["entropy"].append(torch.stack([attention_entropy(maps) for maps in states.attentions]).mean(0))
        if codes:
            means["hoyer"].append(torch.stack([sparsity(one, "hoyer") for one in codes]).mean(0))
            activity.append(codes[-1].clamp_min(0).mean(1))
    found = {name: torch.cat(values).mean().item() if values else None for name, values in means.items()}
    found["selectivity"] = None
    if activity and len(labels.unique()) > 1:
        found["selectivity"] = class_selectivity(torch.cat(activity).cpu(), labels).nanmean().item()
    return found


def _linear_probe(saved: SavedModel, train, test) -> float:
    layer = last_layer(saved.model)
    parts = [
        features(saved.model, saved.batches(part.select(_spread(len(part), PROBE_IMAGES))), layer, "mean")
        for part in (train, test)
    ]
    return probe(*parts, method="linear", layer=layer, token="mean", regularisation=1.0).accuracy


def _spread(length: int, count: int) -> list[int]:
    """`count` rows (or all) at equal distances."""
    count = min(count, length)
    return [index * length // count for index in range(count)]
